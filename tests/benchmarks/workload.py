"""What every peer is given: the weights of one decoder, two prompts of one layout, and what is asked of them.

A prompt has 15 tokens of text, chunks of 103 video and 17 audio tokens, as two seconds of a clip have, and a question of 32. The
clean prompt differs from the corrupted one in its audio and video, which are what is patched.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from avlens.inputs import AVInputs, Prompt
from avlens.model import HookedAVModel
from avlens.testing import tiny_model
from avlens.tokens import Modality, Segment, TokenMap

DIMS = (3, 7)
WINDOW = 3
_BEFORE, _VIDEO, _AUDIO, _QUESTION = 15, 103, 17, 32


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder; weights are random."""

    n_layers: int = 12
    d_model: int = 512
    n_heads: int = 8
    n_key_value_heads: int = 2
    d_mlp: int = 1408
    d_vocab: int = 1000


SHAPES = {
    "narrow": Shape(),
    "wide": Shape(d_model=768, n_heads=12, n_key_value_heads=3, d_mlp=2112),
    "tiny": Shape(n_layers=4, d_model=64, n_heads=2, n_key_value_heads=1, d_mlp=96),
}


@dataclass(frozen=True)
class Weights:
    """One decoder, as each peer loads it.

    Attributes:
        shape: Its sizes.
        folder: A checkpoint of a plain Qwen2 with the weights of the thinker's decoder.
        device: Where it runs.
    """

    shape: Shape
    folder: Path
    device: str = "cpu"

    def hooked(self) -> HookedAVModel:
        """The decoder within a model that hears and sees."""
        return hooked_model(self.shape, self.device)

    def stock(self, attn: str = "sdpa") -> PreTrainedModel:
        """The unmodified transformers model."""
        model = Qwen2ForCausalLM.from_pretrained(self.folder, dtype=torch.float32, attn_implementation=attn)
        return model.to(self.device).eval()


def leaving_at(shape: Shape) -> dict[str, int]:
    """Before which layers audio and video leave."""
    return {"a quarter": shape.n_layers // 4, "half": shape.n_layers // 2, "three quarters": 3 * shape.n_layers // 4}


def hooked_model(shape: Shape = SHAPES["narrow"], device: str = "cpu") -> HookedAVModel:
    """A thinker of Qwen2.5-Omni whose decoder has these sizes."""
    return tiny_model(seed=0, **asdict(shape)).to(device)


def save_weights(shape: Shape, folder: Path, device: str = "cpu") -> Weights:
    """Write the checkpoint that peers load: for text positions the thinker's decoder is a Qwen2."""
    model = hooked_model(shape)
    theirs = model.stock.whole.model.language_model.config
    config = Qwen2Config(
        vocab_size=shape.d_vocab, hidden_size=shape.d_model, intermediate_size=shape.d_mlp, num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads, num_key_value_heads=shape.n_key_value_heads, rms_norm_eps=theirs.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": theirs.rope_parameters["rope_theta"]},
        max_position_embeddings=16384, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    with torch.device("meta"):
        plain = Qwen2ForCausalLM(config)
    decoder = {f"model.{name}": value for name, value in model.stock.whole.model.language_model.state_dict().items()}
    plain.load_state_dict(decoder | {"lm_head.weight": model.stock.whole.lm_head.weight}, assign=True)
    plain.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return Weights(shape, folder, device)


class Workload:
    """One prompt, a clean one, and what is asked of them.

    Args:
        shape: Of the decoder.
        length: Of a prompt.
        device: Where its tensors are.
        every: Of sets and cells, every how many-th is asked for.
    """

    def __init__(self, shape: Shape, length: int, device: str = "cpu", every: int = 1) -> None:
        self.shape, self.length, self.device, self._every = shape, length, device, every
        draw = torch.Generator().manual_seed(1)
        self.kinds = _layout(length)
        self.media = torch.arange(_BEFORE, length - _QUESTION)
        self.video, self.audio = (
            self.media[self.kinds[self.media] == kind] for kind in (Modality.VIDEO, Modality.AUDIO)
        )
        ids, other = torch.randint(0, 300, (2, 1, length), generator=draw)
        self._ids, self._clean = ids, torch.where(self.kinds == Modality.TEXT, ids, other)
        self._pairs = {
            "20 %": [self._drawn(0.2, draw) for _ in range(8)],
            "80 %": [self._drawn(0.8, draw) for _ in range(8)],
            "modalities": [[_without_some(whole, draw) for whole in (self.video, self.media)] for _ in range(8)],
        }

    @property
    def ids(self) -> Tensor:
        """Token ids of the prompt that is edited: [1, pos]."""
        return self._ids.to(self.device)

    @property
    def clean_ids(self) -> Tensor:
        """Those of the prompt that is patched from."""
        return self._clean.to(self.device)

    @property
    def sets(self) -> dict[str, list[Tensor]]:
        """Sets of positions to patch at all layers: 16 each of a fifth and of four fifths of the media, and of modalities."""
        return {kind: [one for pair in pairs[:: self._every] for one in pair] for kind, pairs in self._pairs.items()}

    @property
    def groups(self) -> list[Tensor]:
        """Keys that the last position may not read: audio, video, text."""
        return [self.audio, self.video, torch.arange(1, _BEFORE)]

    @property
    def windows(self) -> list[range]:
        """Layers in which it may not."""
        n = self.shape.n_layers
        return [range(first, min(first + WINDOW, n)) for first in range(n)]

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Layers and positions to patch one by one: all layers, four positions."""
        positions = [self.length * eighth // 8 for eighth in (1, 3, 5, 7)]
        return [(layer, at) for at in positions for layer in range(self.shape.n_layers)][:: self._every]

    @cached_property
    def queries(self) -> Tensor:
        """1 at the positions of video, and of audio: [2, pos]."""
        return torch.stack([self.kinds == kind for kind in (Modality.VIDEO, Modality.AUDIO)]).float().to(self.device)

    def dominance(self, pattern: Tensor) -> Tensor:
        """MDS of each audio and video token in one layer's attention, [1, head, pos, pos]: how whole-pattern peers sum it."""
        received = (self.queries @ pattern[0]).mean(0) - self.queries * pattern[0].diagonal(dim1=-2, dim2=-1).mean(0)
        later = self.queries.flip(1).cumsum(1).flip(1) - self.queries
        video, audio = (received / later.clamp(min=1))[:, self.media]
        return ((video - audio) / (video + audio)).nan_to_num()

    def energy(self, resid: Tensor) -> Tensor:
        """What share of each row's energy its largest sink dimension has: [pos]."""
        return resid[0, :, list(DIMS)].pow(2).amax(-1) / resid[0].pow(2).sum(-1)

    def inputs(self, model: HookedAVModel, *, clean: bool = False) -> AVInputs:
        """A prompt as avlens takes it; the embeddings of audio and video are those of their ids."""
        ids = (self._clean if clean else self._ids)[0]
        segments = {Modality.TEXT: Segment.QUESTION, Modality.VIDEO: Segment.MEDIA, Modality.AUDIO: Segment.MEDIA}
        runs = [
            TokenMap.of(part, ["?"] * len(part), kind, segments[kind], clip=torch.zeros(len(part), dtype=torch.long))
            for kind, part in _runs(self.kinds, ids)
        ]
        row = Prompt(ids, TokenMap.join(runs), (), torch.arange(self.length).expand(3, -1), self.length)
        return AVInputs((row,), model.family.text_inputs(ids[None]).stock_kwargs)

    def _drawn(self, share: float, draw: torch.Generator) -> list[Tensor]:
        """A share of audio and video: one window of it, and as many scattered tokens."""
        n, size = len(self.media), round(share * len(self.media))
        start = int(torch.randint(0, n - size, (1,), generator=draw))
        scattered = torch.randperm(n, generator=draw)[:size].sort().values
        return [self.media[start : start + size], self.media[scattered]]


def _layout(length: int) -> Tensor:
    """The modality of each position."""
    kinds = torch.full((length,), int(Modality.TEXT))
    within = torch.arange(length - _BEFORE - _QUESTION) % (_VIDEO + _AUDIO)
    kinds[_BEFORE : length - _QUESTION] = torch.where(within < _VIDEO, int(Modality.VIDEO), int(Modality.AUDIO))
    return kinds


def _without_some(whole: Tensor, draw: torch.Generator, n: int = 8) -> Tensor:
    """A modality without a few of its tokens, as one that is patched without its sinks."""
    return whole[torch.randperm(len(whole), generator=draw)[n:].sort().values]


def _runs(kinds: Tensor, ids: Tensor) -> list[tuple[Modality, Tensor]]:
    """Stretches of one modality."""
    values, counts = kinds.unique_consecutive(return_counts=True)
    return [(Modality(int(kind)), part) for kind, part in zip(values, ids.split(counts.tolist()), strict=True)]
