"""Which tokens are sinks: where does the residual stream carry a massive activation?

With h = resid_pre of a layer at a position, and d a sink dimension,

    energy(d) = h_d^2 / sum_j h_j^2,   in [0, 1]

and the position is a sink in that layer if the energy of some sink dimension is above a threshold. With
x = h / sqrt(mean(h^2)), |x_d| > tau says the same as energy > tau^2 / d_model; the paper's tau = 25 at d_model = 3584 is
0.174, which is the default at every width. (A tau would not carry over: |x_d| never exceeds sqrt(d_model).)

Sink dimensions come from the language model alone: those in which the first token of short chats stands out.

Source: Jung et al. 2026, "Probing Cross-modal Information Hubs in Audio-Visual LLMs", arXiv:2605.10815, appendix A.1.2; its
released code, logic/sink.py:13-25 (score) and :42-56 (selection). Sun et al. 2024, "Massive Activations in Large Language
Models", arXiv:2402.17762.

Differs from the source: dimensions are found, not written down ([458, 2570] there); the threshold scales with the width;
layers are counted, not assumed to be 28. The paper does not say by which rule it picked dimensions: here one must exceed 20
times the median |x| of the first token in more than half of the layers.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avlens import display
from avlens.cache import AVCache, Reduction
from avlens.errors import LayerError, MissingActivationError, PositionError
from avlens.tokens import Modality, TokenMap, TokenSet

ENERGY = 25**2 / 3584
"""The default threshold: the energy fraction that tau = 25 means at d_model = 3584."""

PROMPTS = (
    "The cat sat on the mat.", "Water boils at one hundred degrees.", "She opened the door and left.",
    "What is the capital of France?", "Music was playing in the next room.", "Two trains leave at the same time.",
    "I would like a cup of tea, please.", "Once upon a time there was a king.",
)  # fmt: skip
"""Short texts whose first token shows the sink dimensions."""


@dataclass(frozen=True, eq=False)
class SinkDims:
    """Dimensions that carry massive activations, strongest first. Iterates over them.

    Attributes:
        dims: Indices into d_model.
        magnitude: Mean |x_d| of the first token over prompts and layers.
        share: In what share of the layers each stands out.
        layers: The layers looked at, 0-based.
        made_by: What made it.
    """

    dims: Int[Tensor, " dim"]
    magnitude: Float[Tensor, " dim"]
    share: Float[Tensor, " dim"]
    layers: tuple[int, ...]
    made_by: Mapping[str, Any]

    def __iter__(self) -> Iterator[int]:
        return iter(self.dims.tolist())

    def __len__(self) -> int:
        return len(self.dims)

    def to_frame(self) -> pd.DataFrame:
        """One row per dimension."""
        return pd.DataFrame({"dim": self.dims, "magnitude": self.magnitude, "share_of_layers": self.share})

    def _repr_html_(self) -> str:
        return display.table(f"SinkDims({len(self)} found)", self.to_frame(), self.made_by)


def find_sink_dims(
    model: Any, *, prompts: Iterable[str] = PROMPTS, ratio: float = 20.0, min_share: float = 0.5, at_most: int = 3
) -> SinkDims:
    """The dimensions in which the first token of texts stands out, without any audio or video; a model remembers them.

    Args:
        model: A HookedAVModel.
        prompts: Short texts, which the chat template wraps.
        ratio: How many times the median |x| a dimension must reach.
        min_share: In more than what share of the layers it must do so.
        at_most: How many to keep.
    """
    asked = (tuple(prompts), ratio, min_share, at_most)
    found: SinkDims = model.remember(("sink dimensions", *asked), lambda: _find_sink_dims(model, *asked))
    return found


def _find_sink_dims(model: Any, texts: tuple[str, ...], ratio: float, min_share: float, at_most: int) -> SinkDims:
    n_layers = model.cfg.n_layers
    layers = tuple(range(2, n_layers - 1) if n_layers >= 6 else range(1, n_layers)) or (0,)
    rows = []
    for text in texts:
        _, cache = model.run_with_cache(model.prepare(text), names_filter=["resid_pre"])
        rows.append(torch.stack([_normalised(cache["resid_pre", layer][0, 0]).cpu() for layer in layers]))
    size = torch.stack(rows).abs().mean(0)  # layer d_model
    stands_out = size > ratio * size.median(-1, keepdim=True).values
    share, magnitude = stands_out.float().mean(0), size.mean(0)
    found = (share > min_share).nonzero()[:, 0]
    found = found[magnitude[found].argsort(descending=True)][:at_most]
    made_by = model.made_by(prompts_of_text=list(texts), ratio=ratio, min_share=min_share)
    return SinkDims(found, magnitude[found], share[found], layers, made_by)


@dataclass(frozen=True, eq=False)
class Sinks:
    """Which positions are sinks in which layers.

    Attributes:
        is_sink: Whether a position is a sink in a layer.
        energy: The largest energy of a sink dimension, in [0, 1].
        frequency: In how many layers each position is a sink.
        layers: The block of each row, 0-based.
        dims: The sink dimensions.
        threshold: The energy above which a position is a sink.
        token_map: The prompt.
        made_by: What made it.
    """

    is_sink: Bool[Tensor, "layer pos"]
    energy: Float[Tensor, "layer pos"]
    frequency: Int[Tensor, " pos"]
    layers: tuple[int, ...]
    dims: tuple[int, ...]
    threshold: float
    token_map: TokenMap
    made_by: Mapping[str, Any]

    @property
    def tokens(self) -> TokenSet:
        """Every position that is a sink in some layer, most frequent first; ties by first layer, then position."""
        return self._ranked(len(self.token_map))

    def top(self, n: float = 2) -> TokenSet:
        """The paper's sink(N): of the K = int(positions / N) most frequent positions, those of audio and video.

        K counts over the whole prompt, text included. Fewer come back where fewer positions were ever a sink.

        Raises:
            PositionError: If N is below 1.
        """
        if n < 1:
            raise PositionError(f"sink(N) was asked with N = {n}. N divides the number of positions: pass 1 or more.")
        return self._ranked(int(len(self.token_map) / n)) & self.token_map.media

    def top_per_modality(self, k: int) -> TokenSet:
        """The `k` most frequent positions of audio, and of video."""
        by_modality = [self.tokens & self.token_map.audio, self.tokens & self.token_map.video]
        return self.token_map.at([position for tokens in by_modality for position in list(tokens)[:k]])

    def min_layers(self, m: int) -> TokenSet:
        """Positions that are a sink in at least `m` layers, most frequent first."""
        return self.token_map.at([position for position in self.tokens if self.frequency[position] >= m])

    def in_layer(self, layer: int) -> TokenSet:
        """The sinks of one layer.

        Raises:
            LayerError: If the layer was not looked at.
        """
        if layer not in self.layers:
            raise LayerError(f"layer {layer} was not looked at; layers {list(self.layers)} were.")
        return self.token_map.at(self.is_sink[self.layers.index(layer)].nonzero()[:, 0].tolist())

    def per_layer(self) -> pd.DataFrame:
        """How many audio, video and other positions are sinks in each layer."""
        kinds = self.token_map.modality
        present = [kind for kind in Modality if bool((kinds == kind).any())]
        counts = {kind.name.lower(): self.is_sink[:, kinds == kind].sum(1).numpy() for kind in present}
        return pd.DataFrame(counts, index=pd.Index(self.layers, name="layer"))

    def to_frame(self) -> pd.DataFrame:
        """One row per sink, most frequent first."""
        tokens, first = self.tokens, self.is_sink.int().argmax(0)
        frame = self.token_map.to_frame().loc[list(tokens), ["label", "modality", "start", "end"]]
        frame["layers"] = self.frequency[tokens.positions].numpy()
        frame["first_layer"] = torch.tensor(self.layers)[first[tokens.positions]].numpy()
        frame["energy"] = self.energy.max(0).values[tokens.positions].numpy()
        return frame

    def __repr__(self) -> str:
        return f"Sinks({len(self.tokens)} of {len(self.token_map)} positions, dims {list(self.dims)}, {len(self.layers)} layers)"

    def _ranked(self, k: int) -> TokenSet:
        first = torch.where(self.is_sink.any(0), self.is_sink.int().argmax(0), len(self.layers))
        order = sorted(range(len(self.frequency)), key=lambda i: (-int(self.frequency[i]), int(first[i]), i))
        return self.token_map.at([i for i in order[:k] if self.frequency[i] > 0])

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


def find_sinks(cache: AVCache, dims: Iterable[int], *, energy: float = ENERGY) -> Sinks:
    """Sinks of one prompt in every layer that the cache holds.

    Args:
        cache: Holds `resid_pre`, or what `sink_energy(dims)` keeps of it.
        dims: Sink dimensions, as `find_sink_dims` finds them; none means no sinks.
        energy: The threshold, in [0, 1]; strict.

    Raises:
        MissingActivationError: If the cache holds neither.
        BatchError: If it holds several prompts.
    """
    dims = tuple(dims)
    cache.require_positions(cache.cache_dict)
    streamed = f"resid_pre.{_label(dims)}"
    layers = cache.layers(streamed) or cache.layers("resid_pre")
    if not layers:
        raise MissingActivationError(
            "this cache holds no resid_pre. Run again with run_with_cache(inputs, names_filter=['resid_pre']), or with "
            "names_filter=[], reductions=[sink_energy(dims)]."
        )
    if cache.layers(streamed):
        rows = [cache[streamed, layer][0] for layer in layers]
    else:
        rows = [energy_in(cache["resid_pre", layer][0], dims) for layer in layers]
    energies = torch.stack([row.cpu() for row in rows])
    is_sink = energies > energy
    return Sinks(
        is_sink,
        energies,
        is_sink.sum(0),
        tuple(layers),
        dims,
        energy,
        cache.tokens,
        {**cache.made_by, "energy": energy},
    )


def sink_energy(dims: Iterable[int]) -> Reduction:
    """Keep, instead of `resid_pre`, what `find_sinks` needs of it: one number per position."""
    dims = tuple(dims)
    return Reduction("resid_pre", _label(dims), lambda x, hook: energy_in(x, dims))  # noqa: ARG005


def energy_in(resid: Float[Tensor, "*batch pos d_model"], dims: tuple[int, ...]) -> Float[Tensor, "*batch pos"]:
    """The largest share of a row's energy that one of `dims` carries; 0 for no dimensions."""
    if not dims:
        return torch.zeros(resid.shape[:-1], device=resid.device)
    if wrong := [dim for dim in dims if not 0 <= dim < resid.shape[-1]]:
        raise PositionError(f"there is no dimension {wrong[0]}: the residual stream has {resid.shape[-1]}.")
    return _normalised(resid)[..., list(dims)].pow(2).amax(-1) / resid.shape[-1]


def _normalised(resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """Root-mean-square normalised in fp32, without the norm's weight."""
    wide = resid.float()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def _label(dims: tuple[int, ...]) -> str:
    return "energy_" + "_".join(str(dim) for dim in dims)
