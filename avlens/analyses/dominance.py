"""Modality dominance score (MDS): do later video or later audio tokens read a sink?

For a sink at position s, let v(s) be the mean attention that the video queries after s pay to it, over queries and
heads, and a(s) that of the audio queries. Then

    MDS(s) = (v(s) - a(s)) / (v(s) + a(s)),   in [-1, 1].

+1: only video reads the sink; -1: only audio; 0: both alike (a cross-modal sink).

Source: Jung et al. 2026, "Probing Cross-modal Information Hubs in Audio-Visual LLMs", arXiv:2605.10815; its released code,
logic/sink.py:58-143, direction "future_looks_sink", and causal_tracing_modality_sink.py:84-105 (the split).

Differs from the released code: a sink that no later audio or video token reads scores NaN. There 1e-9 in the denominator
makes it score 0, which cannot be told from a perfectly cross-modal sink. Sums are in fp32, there in bf16. A sink that only
one modality can still read scores +-1 whatever the model does; `one_sided` tells which those are.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avlens import display
from avlens.cache import AVCache, Reduction, attention_received
from avlens.errors import MissingActivationError, PositionError
from avlens.tokens import Modality, TokenMap, TokenSet

Method = Literal["median", "sign", "band", "quantile"]


@dataclass(frozen=True, eq=False)
class ModalityDominance:
    """MDS of each sink in each layer.

    Attributes:
        score: In [-1, 1]; NaN where nothing later reads the sink.
        from_video: Mean attention of later video queries; NaN where there are none.
        from_audio: The same of audio.
        one_sided: Whether only one modality has queries after the sink, so that its score is +-1 mechanically.
        sinks: The positions scored, in the order of the columns.
        layers: The block of each row, 0-based.
        made_by: What made it.
    """

    score: Float[Tensor, "layer sink"]
    from_video: Float[Tensor, "layer sink"]
    from_audio: Float[Tensor, "layer sink"]
    one_sided: Bool[Tensor, " sink"]
    sinks: TokenSet
    layers: tuple[int, ...]
    made_by: Mapping[str, Any]

    @property
    def mean(self) -> Float[Tensor, " sink"]:
        """Each sink's mean score over the layers in which it has one; NaN if none."""
        return self.score.nanmean(0)

    def distribution(self) -> pd.DataFrame:
        """Per modality: how many sinks, how many scored and how many one-sided, and the quartiles of their mean scores."""
        rows = {}
        for kind in (Modality.VIDEO, Modality.AUDIO):
            mine = self._of(kind)
            means = self.mean[mine][~self.mean[mine].isnan()].double()
            low, middle, high = (
                means.quantile(torch.tensor([0.25, 0.5, 0.75]).double()) if len(means) else [torch.nan] * 3
            )
            rows[kind.name.lower()] = {
                "sinks": len(mine), "scored": len(means), "one_sided": int(self.one_sided[mine].sum()),
                "q1": float(low), "median": float(middle), "q3": float(high), "iqr": float(high) - float(low),
            }  # fmt: skip
        return pd.DataFrame(rows).T

    def position_confound(self) -> pd.DataFrame:
        """Per modality: Spearman's correlation of a sink's mean score with its position; NaN for fewer than three sinks.

        The later a sink, the fewer queries are left to read it, so that a score can say where a sink stands
        rather than what it does.
        """
        rows = {}
        for kind in (Modality.VIDEO, Modality.AUDIO):
            mine = self._of(kind)
            scored = mine[~self.mean[mine].isnan()]
            rows[kind.name.lower()] = {
                "scored": len(scored), "spearman": spearman(self.sinks.positions[scored].double(), self.mean[scored].double()),
                "share_one_sided": float(self.one_sided[mine].float().mean()) if len(mine) else float("nan"),
                "share_unscored": 1 - len(scored) / len(mine) if len(mine) else float("nan"),
            }  # fmt: skip
        return pd.DataFrame(rows).T

    def _of(self, kind: Modality) -> Int[Tensor, " mine"]:
        """Which of the sinks are of a modality."""
        return (self.sinks.tokens.modality[self.sinks.positions] == kind).nonzero()[:, 0]

    def to_frame(self) -> pd.DataFrame:
        """One row per sink."""
        frame = self.sinks.tokens.to_frame().loc[list(self.sinks), ["label", "modality", "start", "end"]]
        frame["mds"], frame["one_sided"] = self.mean.numpy(), self.one_sided.numpy()
        for i, layer in enumerate(self.layers):
            frame[f"layer {layer}"] = self.score[i].numpy()
        return frame

    def __repr__(self) -> str:
        scored = int((~self.mean.isnan()).sum())
        return f"ModalityDominance({scored} of {len(self.sinks)} sinks scored in {len(self.layers)} layers)"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


@dataclass(frozen=True, eq=False)
class HeadDominance:
    """MDS of each sink in each head of each layer.

    Attributes:
        score: In [-1, 1]; NaN where nothing later reads the sink.
        sinks: The positions scored, in the order of the columns.
        layers: The block of each row, 0-based.
        made_by: What made it.
    """

    score: Float[Tensor, "layer head sink"]
    sinks: TokenSet
    layers: tuple[int, ...]
    made_by: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row per layer, head and sink."""
        axes = [self.layers, range(self.score.shape[1]), self.sinks.labels]
        index = pd.MultiIndex.from_product(axes, names=["layer", "head", "sink"])
        return pd.DataFrame({"mds": self.score.flatten().numpy()}, index=index)

    def _repr_html_(self) -> str:
        return display.table(
            f"HeadDominance({len(self.sinks)} sinks, {len(self.layers)} layers)", self.to_frame(), self.made_by
        )


def modality_dominance(cache: AVCache, sinks: TokenSet, *, queries: TokenSet | None = None) -> ModalityDominance:
    """Score `sinks` in every layer that the cache holds, attention averaged over heads.

    Args:
        cache: Holds `pattern`, or what `read_by_modality(tokens, queries)` keeps of it.
        sinks: Positions to score.
        queries: Which audio and video tokens may ask; by default all. The same few for every sink (such as those of
            the last chunk) take away that earlier sinks have more readers.

    Raises:
        MissingActivationError: If the cache holds neither.
        BatchError: If it holds several prompts.
        PositionError: If `sinks` or `queries` belongs to a prompt of another layout.
    """
    v, a, layers = _received_by_modality(cache, sinks, queries)
    v, a = v.mean(1), a.mean(1)
    one_sided = v.isnan()[0] != a.isnan()[0]
    return ModalityDominance(_score(v, a), v, a, one_sided, sinks, layers, cache.made_by)


def head_dominance(cache: AVCache, sinks: TokenSet, *, queries: TokenSet | None = None) -> HeadDominance:
    """Score `sinks` in every head by itself; arguments and errors as `modality_dominance`."""
    v, a, layers = _received_by_modality(cache, sinks, queries)
    return HeadDominance(_score(v, a), sinks, layers, cache.made_by)


def read_by_modality(tokens: TokenMap, queries: TokenSet | None = None) -> list[Reduction]:
    """Keep, instead of patterns, the attention that later video and later audio queries pay to each position."""
    groups = {"video": tokens.video, "audio": tokens.audio}
    return [attention_received(_asking(group, queries), _label(name, queries)) for name, group in groups.items()]


@dataclass(frozen=True, eq=False)
class Hubs:
    """Sinks split by whom they are read.

    Attributes:
        uni: Audio and video sinks that their own modality reads (relatively) more.
        cross: Those that the other modality reads (relatively) more: cross-modal hubs.
        unscored: Those that nothing later reads; all, in a prompt without audio or without video.
        method: How they were split.
    """

    uni: TokenSet
    cross: TokenSet
    unscored: TokenSet
    method: str

    def __repr__(self) -> str:
        return f"Hubs({len(self.uni)} uni, {len(self.cross)} cross, {len(self.unscored)} unscored; {self.method})"

    def to_frame(self) -> pd.DataFrame:
        """One row per sink: its label, its modality, and the part it is in."""
        parts = [("uni", self.uni), ("cross", self.cross), ("unscored", self.unscored)]
        frames = [
            tokens.tokens.to_frame().loc[list(tokens), ["label", "modality"]].assign(part=part)
            for part, tokens in parts
        ]
        return pd.concat(frames).sort_index()

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame())


def split_sinks(
    dominance: ModalityDominance, method: Method = "median", *, band: float = 0.3, quantile: float = 0.5
) -> Hubs:
    """Split audio and video sinks, each within its modality, by their mean score towards their own modality.

    Args:
        dominance: Scores; sinks of neither modality are left out.
        method: `median`, the paper's tables: the half with the higher score towards its own modality is uni, the other
            (with the odd one) cross. `sign`: cross if the score is towards the other modality. `band`: cross if
            |score| <= `band`. `quantile`: the top `quantile` towards its own modality is uni.
        band: Half-width for `band`.
        quantile: Share for `quantile`, in [0, 1].

    Raises:
        PositionError: If there is no such method, or the quantile is no share.
    """
    if method not in ("median", "sign", "band", "quantile"):
        raise PositionError(f"method is {method!r}. Split by 'median', 'sign', 'band' or 'quantile'.")
    if not 0 <= quantile <= 1:
        raise PositionError(f"quantile is {quantile}. Pass a share between 0 and 1.")
    uni, cross, unscored = [], [], []
    kinds = dominance.sinks.tokens.modality[dominance.sinks.positions]
    tokens = dominance.sinks.tokens
    if not tokens.audio or not tokens.video:
        # Where only one modality is there to read, every score is mechanical.
        media = torch.isin(kinds, torch.tensor([int(Modality.VIDEO), int(Modality.AUDIO)]))
        return Hubs(tokens.at([]), tokens.at([]), tokens.at(dominance.sinks.positions[media].tolist()), method)
    for kind, towards_own in ((Modality.VIDEO, dominance.mean), (Modality.AUDIO, -dominance.mean)):
        mine = (kinds == kind).nonzero()[:, 0]
        scored = mine[~towards_own[mine].isnan()]
        unscored += dominance.sinks.positions[mine[towards_own[mine].isnan()]].tolist()
        is_uni = _is_uni(towards_own[scored], method, band, quantile)
        uni += dominance.sinks.positions[scored[is_uni]].tolist()
        cross += dominance.sinks.positions[scored[~is_uni]].tolist()
    said = {"band": f"band {band}", "quantile": f"quantile {quantile}"}.get(method, method)
    return Hubs(tokens.at(uni), tokens.at(cross), tokens.at(unscored), said)


def _is_uni(towards_own: Float[Tensor, " sink"], method: Method, band: float, quantile: float) -> Bool[Tensor, " sink"]:
    if method == "sign":
        return towards_own > 0
    if method == "band":
        return towards_own.abs() > band
    share = 0.5 if method == "median" else quantile
    ranked = towards_own.argsort(descending=True, stable=True)
    uni = torch.zeros(len(towards_own), dtype=torch.bool)
    uni[ranked[: int(len(ranked) * share)]] = True
    return uni


def _received_by_modality(
    cache: AVCache, sinks: TokenSet, queries: TokenSet | None
) -> tuple[Float[Tensor, "layer head sink"], Float[Tensor, "layer head sink"], tuple[int, ...]]:
    """Mean attention of later video and of later audio queries to each sink, per head; NaN where there are none."""
    tokens = cache.tokens
    cache.require_positions(cache.cache_dict)
    for given in (sinks, queries):
        if given is not None:
            tokens.check_own(given)
    layers = cache.layers(f"pattern.{_label('video', queries)}") or cache.layers("pattern")
    if not layers:
        raise MissingActivationError(
            "this cache holds no pattern. Run again with run_with_cache(inputs, names_filter=['pattern']), or, to keep no "
            "pattern, with names_filter=[], reductions=read_by_modality(inputs.tokens)."
        )
    means = []
    for name, group in (("video", tokens.video), ("audio", tokens.audio)):
        asking = _asking(group, queries)
        means.append(
            torch.stack([_mean_received(cache, layer, asking, _label(name, queries), sinks) for layer in layers])
        )
    return means[0], means[1], tuple(layers)


def _mean_received(
    cache: AVCache, layer: int, queries: TokenSet, label: str, sinks: TokenSet
) -> Float[Tensor, "head sink"]:
    """Mean attention over later queries that `queries` pay to each sink; NaN where none is later."""
    if layer in cache.layers(f"pattern.{label}"):
        paid = cache[f"pattern.{label}", layer][0][:, sinks.positions].float().cpu()
    else:
        pattern = cache["pattern", layer][0][:, queries.positions][:, :, sinks.positions].float().cpu()
        paid = (pattern * (queries.positions[:, None] > sinks.positions)).sum(1)
    count: Int[Tensor, " sink"] = len(queries) - torch.searchsorted(queries.positions, sinks.positions, right=True)
    return torch.where(count > 0, paid / count.clamp(min=1), torch.nan)


def _score(video: Float[Tensor, "*axes sink"], audio: Float[Tensor, "*axes sink"]) -> Float[Tensor, "*axes sink"]:
    v, a = video.nan_to_num(), audio.nan_to_num()
    return (v - a) / (v + a)


def _asking(group: TokenSet, queries: TokenSet | None) -> TokenSet:
    return group if queries is None else group & queries


def _label(modality: str, queries: TokenSet | None) -> str:
    """Under which a reduction is kept: its own for each set of queries."""
    if queries is None:
        return f"by_{modality}"
    return f"by_{modality}_{hashlib.sha256(queries.sorted().positions.numpy().tobytes()).hexdigest()[:8]}"


def spearman(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN for fewer than three pairs or a constant."""
    if len(x) < 3:
        return float("nan")
    ranks = torch.tensor([pd.Series(z.tolist()).rank().tolist() for z in (x, y)], dtype=torch.float64)
    return float(torch.corrcoef(ranks)[0, 1])
