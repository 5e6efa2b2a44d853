"""A model to test detectors with: random weights with sinks planted among them, so that what should be found is known.

In a model with random weights a few dimensions of the residual stream are reserved. Then

    tau     is large at `<|im_start|>`, and a random reading of each audio or video token's content elsewhere
    nu      is another such reading; mu is +1 at video and -1 at audio tokens; one is 1 everywhere
    phi1    block 0's MLP writes a massive value where tau > threshold: a step, not a slope
    phi2    there it writes one of the sign of nu
    heads   of later blocks pay every such token more attention (their keys read phi1 in an unrotated dimension),
            video queries more to those with phi2 > 0, audio queries to those with phi2 < 0 (keys read phi2, queries mu)

So the sink dimension is phi1 (phi2 is 0 at the first token), the sinks are where tau is above the threshold, and which
modality reads a sink is the sign of nu. All else is random: the answers mean nothing. `avlens.training.plant` plants sinks in
the embedded model, which is trained around them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from avlens.datasets.synthetic import ball_and_bell
from avlens.model import HookedAVModel
from avlens.testing import tiny_model
from avlens.zoo.tokenizer import words


@dataclass(frozen=True)
class GroundTruth:
    """What is planted.

    Attributes:
        sink_dims: phi1, which every sink carries.
        side_dim: phi2, whose sign says which modality reads the sink.
        flag_dim: tau; a media token is a sink where it exceeds `threshold` before block 0.
        threshold: Of tau.
        reader_dim: nu; above 0 video queries read the sink more, below 0 audio queries.
        first_layer: The first block whose resid_pre carries the massive values.
        always: Texts of tokens that are always sinks.
    """

    sink_dims: tuple[int, ...] = (9,)
    side_dim: int = 21
    flag_dim: int = 33
    threshold: float = 1.6
    reader_dim: int = 40
    modality_dim: int = 45
    constant_dim: int = 50
    first_layer: int = 1
    always: tuple[str, ...] = ("<|im_start|>",)

    @property
    def reserved(self) -> list[int]:
        """Every dimension that only the plant writes."""
        planted = [self.side_dim, self.flag_dim, self.reader_dim, self.modality_dim, self.constant_dim]
        return [*self.sink_dims, *planted]


def planted_model(seed: int = 1, truth: GroundTruth | None = None) -> tuple[HookedAVModel, GroundTruth]:
    """A small random model with planted sinks, and what was planted."""
    truth = truth or GroundTruth()
    model = tiny_model(seed=seed, n_layers=6, d_model=64, d_mlp=96)
    with torch.no_grad():
        _reserve(model, truth)
        _flag(model, truth, torch.Generator().manual_seed(seed))
        _write_massive_values(model, truth)
        _speak_in_words(model)
        for block in list(model.blocks)[1:]:
            _read_sinks(block.attn, truth)
    return model, truth


def _reserve(model: Any, truth: GroundTruth) -> None:
    """Nothing but the plant writes to the reserved dimensions or reads them."""
    dims = truth.reserved
    model.embed.weight[:, dims] = 0
    model.unembed.weight[:, dims] = 0
    for block in model.blocks:
        for linear in (block.attn.o_proj, block.mlp.down_proj):
            linear.weight[dims] = 0
        for linear in (block.attn.q_proj, block.attn.k_proj, block.attn.v_proj, block.mlp.gate_proj, block.mlp.up_proj):
            linear.weight[:, dims] = 0
        for norm in (block.ln1, block.ln2):
            norm.w[dims] = 1
    for projection in _projections(model).values():
        projection.weight[dims] = 0
        projection.bias[dims] = 0


def _flag(model: Any, truth: GroundTruth, generator: torch.Generator) -> None:
    model.embed.weight[:, truth.constant_dim] = 1
    start = model.tokenizer.convert_tokens_to_ids(list(truth.always))
    model.embed.weight[start, truth.flag_dim] = truth.threshold + 0.4
    clip = ball_and_bell(8.0, fps=2.0)
    for modality, projection in _projections(model).items():
        for dim in (truth.flag_dim, truth.reader_dim):
            projection.weight[dim] = torch.randn(projection.weight.shape[1], generator=generator)
        _, cache = model.run_with_cache(model.prepare(clip), names_filter=[f"hook_{_HEARD_OR_SEEN[modality]}_embed"])
        read = cache[f"hook_{_HEARD_OR_SEEN[modality]}_embed"][0][:, [truth.flag_dim, truth.reader_dim]]
        for i, dim in enumerate((truth.flag_dim, truth.reader_dim)):
            # Over this clip's tokens the reading has mean 0 and deviation 1.
            projection.weight[dim] /= read[:, i].std()
            projection.bias[dim] = -read[:, i].mean() / read[:, i].std()
        projection.bias[truth.constant_dim] = 1
        projection.bias[truth.modality_dim] = 1 if modality == "vision" else -1


def _write_massive_values(model: Any, truth: GroundTruth, steepness: float = 1000.0, step: float = 0.01) -> None:
    """silu(k (tau - t)) - silu(k (tau - t - step)) is k step above the threshold and 0 below it."""
    mlp, one = model.blocks[0].mlp, truth.constant_dim
    writes = ((truth.sink_dims[0], one, 12.0), (truth.side_dim, truth.reader_dim, 6.0))
    for i, (dim, source, size) in enumerate(writes):
        for j, (shift, sign) in enumerate(((0.0, 1.0), (step, -1.0))):
            neuron = 2 * i + j
            for linear in (mlp.gate_proj, mlp.up_proj):
                linear.weight[neuron] = 0
            mlp.gate_proj.weight[neuron, truth.flag_dim] = steepness
            mlp.gate_proj.weight[neuron, one] = -steepness * (truth.threshold + shift)
            mlp.up_proj.weight[neuron, source] = 1
            mlp.down_proj.weight[:, neuron] = 0
            mlp.down_proj.weight[dim, neuron] = sign * size


def _read_sinks(attn: Any, truth: GroundTruth, pull: float = 0.6, preference: float = 1.2) -> None:
    """Every head's key and query use two dimensions of the lowest rotary frequencies, which hardly turn, for the plant."""
    half = attn.cfg.d_head // 2
    for linear, n_heads in ((attn.q_proj, attn.cfg.n_heads), (attn.k_proj, attn.cfg.n_key_value_heads)):
        weight, bias = linear.weight.unflatten(0, (n_heads, -1)), linear.bias.unflatten(0, (n_heads, -1))
        for frequency in (half - 1, half - 2):
            weight[:, [frequency, frequency + half]] = 0
            bias[:, [frequency, frequency + half]] = 0
        if linear is attn.k_proj:
            weight[:, half - 1, truth.sink_dims[0]] = pull
            weight[:, half - 2, truth.side_dim] = preference
        else:
            bias[:, half - 1] = 4.0
            weight[:, half - 2, truth.modality_dim] = 4.0


_HEARD_OR_SEEN = {"vision": "video", "audio": "audio"}


def _speak_in_words(model: Any, clarity: float = 8.0) -> None:
    """Clear answers, so that effects on their probability can be seen; tokens that are no whole word are left at logit 0."""
    ids = [model.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words()]
    spoken = torch.zeros(len(model.unembed.weight), 1)
    spoken[[token for one in ids for token in one]] = clarity
    model.unembed.weight *= spoken


def _projections(model: Any) -> dict[str, Any]:
    """The last linear map of each tower."""
    vision: Any = model.stock.encoders["vision"]
    audio: Any = model.stock.encoders["audio"]
    return {"vision": vision.merger.mlp[2], "audio": audio.proj}


def planted_sinks(truth: GroundTruth, embed: Float[Tensor, "pos d_model"]) -> Bool[Tensor, " pos"]:
    """Where the plant puts sinks, from what enters block 0 (`hook_embed`)."""
    return embed[:, truth.flag_dim] > truth.threshold * embed[:, truth.constant_dim]
