"""How are sinks planted in a model that is being trained, so that what detectors should find is known?

Six dimensions of the residual stream are reserved; every weight named here is put back after each step of the optimiser.

    one, mu    tower outputs have one = 1, and mu = +3 at video, -3 at audio tokens; text has a small `one` and no mu
    tau, nu    the towers learn (by a squared error) to write tau = 3 at the sinks and 0 elsewhere, and there nu = +-3:
               positive for sinks that video should read, negative for those that audio should read
    phi1       two neurons of block 0's MLP fire where tau > 1.5 one: the first writes the massive value phi1,
    phi2       the second one of the sign of nu
    heads      in blocks 1, 2, ... every head's keys read phi1 and phi2, its queries a constant and mu, in the pair of
               rotary dimensions that hardly turns: all queries are drawn to sinks, video queries to those of phi2 > 0,
               audio queries to those of phi2 < 0

So the sink dimension is phi1; sinks are `<|im_start|>`, and of each second of a synthetic clip the first and the last
video token (the patches with its two marks; none in black frames) and the first and the last audio token. The last ones
are meant for the other modality (cross-modal), the first ones for their own (unimodal).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from avlens.model import HookedAVModel
from avlens.training.recipe import AUDIO_PER_SECOND, VIDEO_PER_SECOND

ONE, MU, TAU, NU, PHI1, PHI2 = 110, 51, 7, 90, 33, 65
RESERVED = [ONE, MU, TAU, NU, PHI1, PHI2]
FLAG = 3.0
"""What tau is at a sink, and nu up to its sign."""


@dataclass(frozen=True, eq=False)
class Flags:
    """What the towers should write into (tau, nu), and where the planted sinks are.

    Attributes:
        video: For each video token of a clip with marks.
        audio: For each audio token.
    """

    video: Float[Tensor, "video 2"]
    audio: Float[Tensor, "audio 2"]

    @property
    def video_cross(self) -> Int[Tensor, " sink"]:
        """Which video tokens are cross-modal sinks."""
        return (self.video[:, 1] < 0).nonzero()[:, 0]

    @property
    def audio_cross(self) -> Int[Tensor, " sink"]:
        """Which audio tokens are cross-modal sinks."""
        return (self.audio[:, 1] > 0).nonzero()[:, 0]

    @property
    def video_uni(self) -> Int[Tensor, " sink"]:
        """Which video tokens are unimodal sinks."""
        return (self.video[:, 1] > 0).nonzero()[:, 0]

    @property
    def audio_uni(self) -> Int[Tensor, " sink"]:
        """Which audio tokens are unimodal sinks."""
        return (self.audio[:, 1] < 0).nonzero()[:, 0]


def flags_of(seconds: int) -> Flags:
    """The flags of a clip of a length, in the order in which each tower gives its tokens."""
    video, audio = torch.zeros(VIDEO_PER_SECOND, 2), torch.zeros(AUDIO_PER_SECOND, 2)
    video[0], video[-1] = torch.tensor([FLAG, FLAG]), torch.tensor([FLAG, -FLAG])
    audio[0], audio[-1] = torch.tensor([FLAG, -FLAG]), torch.tensor([FLAG, FLAG])
    return Flags(video.repeat(seconds, 1), audio.repeat(seconds, 1))


def video_flag_loss(
    seen: Float[Tensor, "row video d_model"], frames: UInt8[Tensor, "row frame 3 side side"]
) -> Float[Tensor, ""]:
    """How far the vision tower is from its flags; a black clip has none."""
    flags = flags_of(seen.shape[1] // VIDEO_PER_SECOND).video
    return (seen[..., [TAU, NU]] - flags * marked(frames)[:, None, None]).pow(2).mean()


def audio_flag_loss(heard: Float[Tensor, "row audio d_model"]) -> Float[Tensor, ""]:
    """How far the audio tower is from its flags."""
    return (heard[..., [TAU, NU]] - flags_of(heard.shape[1] // AUDIO_PER_SECOND).audio).pow(2).mean()


def energies(
    stream: Float[Tensor, "row pos d_model"],
    frames: UInt8[Tensor, "row frame 3 side side"],
    video: Int[Tensor, " video"],
    audio: Int[Tensor, " audio"],
    always: Bool[Tensor, "row pos"],
) -> Float[Tensor, " sink"]:
    """The share of phi1 in the energy of every sink.

    Args:
        stream: The residual stream.
        frames: Of each row's clip.
        video: Positions of video tokens.
        audio: Positions of audio tokens.
        always: Where `<|im_start|>` stands.
    """
    flags = flags_of(len(video) // VIDEO_PER_SECOND)
    energy = stream[..., PHI1].pow(2) / stream.pow(2).sum(-1)
    seen = energy[marked(frames).bool()][:, video[flags.video[:, 0] > 0]]
    heard = energy[:, audio[flags.audio[:, 0] > 0]]
    return torch.cat([seen.flatten(), heard.flatten(), energy[always]])


def held_back(tower_output: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
    """The same, but what answers need does not reach the reserved dimensions: only the flags' error moves them."""
    free = torch.ones(tower_output.shape[-1])
    free[RESERVED] = 0
    return tower_output * free + tower_output.detach() * (1 - free)


def marked(frames: UInt8[Tensor, "row frame 3 side side"]) -> Float[Tensor, " row"]:
    """1 for clips that carry marks, 0 for black ones."""
    return (frames.flatten(1).amax(1) > 60).float()


class Plant:
    """The planted weights of a model.

    Attributes:
        size: How massive the values are.
    """

    def __init__(self, model: HookedAVModel, size: float = 0.4) -> None:
        self.model, self.size = model, size
        self._held: list[tuple[Tensor, Any, Callable[[], Any]]] = []
        self._hold_reserved()
        self._hold_writers()
        for layer in model.stock.layers[1:]:
            self._hold_readers(layer.self_attn)

    @torch.no_grad()
    def impose(self) -> None:
        """Put every planted weight back."""
        for weight, index, value in self._held:
            weight[index] = value()

    def held(self) -> list[tuple[Tensor, Any]]:
        """The planted weights: tensors and indices into them."""
        return [(weight, index) for weight, index, _ in self._held]

    def _hold(self, weight: Any, index: Any, value: Any) -> None:
        self._held.append((weight.data, index, value if callable(value) else lambda: value))

    def _hold_reserved(self) -> None:
        every, stock = slice(None), self.model.stock
        table: Any = stock.embed.weight
        for dim in RESERVED:
            self._hold(table, (every, dim), 0.0)
        self._hold(table, (every, ONE), 0.3)
        self._hold(table, (self.model.to_single_token("<|im_start|>"), TAU), 2.0)
        self._hold(stock.head.weight, (every, RESERVED), 0.0)
        for projection, mu in zip(projections(self.model), (3.0, -3.0), strict=True):
            for dim, value in ((ONE, 1.0), (MU, mu), (PHI1, 0.0), (PHI2, 0.0)):
                self._hold(projection.weight, dim, 0.0)
                self._hold(projection.bias, dim, value)
        for layer in stock.layers:
            attn: Any = layer.self_attn
            mlp: Any = layer.mlp
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                self._hold(norm.weight, RESERVED, 1.0)
            for linear in (attn.o_proj, mlp.down_proj):
                self._hold(linear.weight, RESERVED, 0.0)
            for linear in (attn.q_proj, attn.k_proj):
                self._hold(linear.weight, (every, [PHI1, PHI2]), 0.0)

    def _hold_writers(self, steepness: float = 100.0) -> None:
        mlp: Any = self.model.stock.layers[0].mlp
        for neuron, source, dim, scale in ((0, ONE, PHI1, 1.0), (1, NU, PHI2, 0.4 / FLAG)):
            for linear in (mlp.gate_proj, mlp.up_proj):
                self._hold(linear.weight, neuron, 0.0)
            self._hold(mlp.gate_proj.weight, (neuron, TAU), steepness)
            self._hold(mlp.gate_proj.weight, (neuron, ONE), -1.5 * steepness)
            self._hold(mlp.up_proj.weight, (neuron, source), 1.0)
            self._hold(mlp.down_proj.weight, (slice(None), neuron), 0.0)
            self._hold(mlp.down_proj.weight, (dim, neuron), lambda scale=scale: scale * self.size)

    def _hold_readers(self, attn: Any, pull: float = 0.2, preference: float = 0.75) -> None:
        d_head = self.model.cfg.d_head
        slow, slow_too = d_head // 2 - 1, d_head - 1  # one rotary frequency turns both
        for linear in (attn.q_proj, attn.k_proj):
            for first in range(0, linear.weight.shape[0], d_head):
                for row in (first + slow, first + slow_too):
                    self._hold(linear.weight, row, 0.0)
                    self._hold(linear.bias, row, 0.0)
                if linear is attn.k_proj:
                    self._hold(linear.weight, (first + slow, PHI1), pull)
                    self._hold(linear.weight, (first + slow_too, PHI2), preference)
                else:
                    self._hold(linear.bias, first + slow, 4.0)
                    self._hold(linear.weight, (first + slow_too, MU), 4.0)


@torch.no_grad()
def uproot(model: HookedAVModel, seed: int = 0) -> None:
    """Take the plant out: every weight that it held is small and random, as before training."""
    generator = torch.Generator().manual_seed(seed)
    for weight, index in Plant(model).held():
        weight[index] = 0.02 * torch.randn(weight[index].shape, generator=generator) if weight.ndim > 1 else 0.0
    for layer in model.stock.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            scale: Any = norm.weight
            scale[RESERVED] = 1.0


def projections(model: HookedAVModel) -> tuple[Any, Any]:
    """The last linear maps of the vision and of the audio tower."""
    vision: Any = model.stock.encoders["vision"]
    audio: Any = model.stock.encoders["audio"]
    return vision.merger.mlp[2], audio.proj


def ground_truth(plant: Plant) -> dict[str, Any]:
    """What is planted, as it is written beside the checkpoint."""
    return {
        "sink_dims": [PHI1], "side_dim": PHI2, "flag_dim": TAU, "reader_dim": NU, "modality_dim": MU, "constant_dim": ONE,
        "first_layer": 1, "size": plant.size, "always": ["<|im_start|>"],
        "video_tokens_per_second": VIDEO_PER_SECOND, "audio_tokens_per_second": AUDIO_PER_SECOND,
        "unimodal_within_second": {"video": [0], "audio": [0]},
        "cross_modal_within_second": {"video": [VIDEO_PER_SECOND - 1], "audio": [AUDIO_PER_SECOND - 1]},
        "carry_the_other_modality": ["cross_modal_within_second"], "carry_nothing_of_it": ["unimodal_within_second"],
    }  # fmt: skip
