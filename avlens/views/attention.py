"""Who attends to whom: many heads between some fifty groups of tokens, or one head between all tokens?

`attention` is CircuitsVis's attention heads over groups (see `grouping`); `attention_full` is one head at full
resolution. CircuitsVis takes about 50 microseconds times cells = (heads + 1) * rows^2 to draw, so that eight heads are drawn
at a time, and the others by a menu. It is silent up to 60,000 cells at a time, warns above, and refuses above 250,000.
"""

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from avlens.cache import AVCache
from avlens.errors import LayerError, ViewError
from avlens.tokens import Modality, TokenMap, TokenSet
from avlens.views import grouping
from avlens.views.page import View
from avlens.views.style import COLOURS, counted, escaped, figure, joined, origin

_SLOW, _TOO_MUCH = 60_000, 250_000  # cells
_AT_ONCE = 8  # heads
_MOST_NUMBERS = 2_000 * 2_000  # 16 MB
_DECADES = 4  # probabilities below 1e-4 look alike
_PARTS = 10**_DECADES
_SHADES = ["#FEFEFE", "#C6DBEF", "#6BAED6", "#08519C", "#08123F"]


def attention(
    cache: AVCache,
    *,
    layer: int,
    heads: Sequence[int] | None = None,
    group: grouping.Grouping = "overview",
    sinks: TokenSet | None = None,
    order: grouping.RowOrder = "sequence",
    audio_seconds: float | int = 1.0,
    frames_per_row: int = 1,
) -> View:
    """Attention heads of one layer between groups of tokens: mean over queries, sum over keys.

    The part above the diagonal is greyed out only where nothing is in it: a sink inside a frame is read by the later
    half of that frame, and rows ordered by modality are in no causal order.

    Args:
        cache: Holds `pattern` of the layer, for one prompt.
        layer: The block, 0-based; negative counts from the end where the cache has its model.
        heads: Which heads; all by default.
        group: How positions become rows: `overview`, `regions`, `modality`, `sinks` or `token`; see `grouping.group`.
        sinks: Positions that keep a row of their own, with a star, as does the first.
        order: Rows in the order of the prompt, or by modality.
        audio_seconds: How much sound is a row.
        frames_per_row: How many frames are a row.

    Raises:
        ViewError: If the picture would be too big to draw, or a choice does not exist.
        LayerError: If a head does not exist.
        MissingActivationError: If the cache does not hold the pattern.
        BatchError: If it holds several prompts.
    """
    tokens, pattern = cache.tokens, _pattern(cache, layer)
    heads = list(range(len(pattern))) if heads is None else _checked_heads(heads, len(pattern))
    groups = grouping.group(
        tokens, by=group, sinks=sinks, order=order, audio_seconds=audio_seconds, frames_per_row=frames_per_row
    )
    _guard_size(len(heads), len(groups))
    shown = grouping.aggregate(pattern[heads], groups).cpu()
    top = _top(shown)
    caption = joined(
        [
            f"Attention in layer {layer}: {counted(len(heads), 'head')}, {counted(len(tokens), 'token')} in {len(groups)} "
            f"rows. Rows read (mean over queries), columns are read (sum over keys). Strongest colour: {top:.3g} and above",
            origin(cache.made_by, tokens),
        ]
    )
    props = {
        "attention": [[[round(x, 4) for x in row] for row in head] for head in shown.double().tolist()],
        "attentionHeadNames": [f"L{layer}H{head}" for head in heads],
        "tokens": [one.label for one in groups],
        "maxValue": top,
        "minValue": -top,
        "maskUpperTri": not shown.triu(1).any().item(),
    }
    return View("AttentionHeads", props, caption, at_once=_AT_ONCE)


def attention_full(
    cache: AVCache, *, layer: int, head: int, queries: TokenSet | None = None, keys: TokenSet | None = None
) -> go.Figure:
    """One head between all tokens, on a logarithmic colour scale from 1e-4 to 1.

    The figure holds whole ten-thousandths: what is below 1e-4 looks alike, and a figure of 1,500 tokens stays light.

    Args:
        cache: Holds `pattern` of the layer, for one prompt.
        layer: The block, 0-based; negative counts from the end where the cache has its model.
        head: The head, 0-based.
        queries: Only these rows.
        keys: Only these columns.

    Raises:
        ViewError: If the picture would be too big to draw, or empty.
        LayerError: If the head does not exist.
        MissingActivationError: If the cache does not hold the pattern.
        BatchError: If it holds several prompts.
    """
    tokens, pattern = cache.tokens, _pattern(cache, layer)
    _checked_heads([head], len(pattern))
    rows, columns = (_chosen(tokens, given) for given in (queries, keys))
    if not 0 < len(rows) * len(columns) <= _MOST_NUMBERS:
        raise ViewError(
            f"{len(rows)} queries x {len(columns)} keys are {'none' if not len(rows) * len(columns) else 'too many'} to "
            f"draw: {_MOST_NUMBERS:,} fit. Pass other queries=... or keys=..., such as keys=tokens.seconds(0, 4)."
        )
    shown = pattern[head].float().cpu()[rows.positions][:, columns.positions]
    shape = f"{len(rows)} queries × {len(columns)} keys"
    fig = figure(
        f"Attention of L{layer}H{head}", note=joined([shape, origin(cache.made_by, tokens)]), height=820, flush=True
    )
    x, y = ([escaped(grouping.named_alone(tokens, position)) for position in part] for part in (columns, rows))
    fig.add_heatmap(
        z=(shown.nan_to_num() * _PARTS).round().numpy().astype(np.uint16), x=x, y=y, zmin=0, zmax=_PARTS,
        colorscale=_log_scale(), showscale=False, hovertemplate="%{y} reads %{x}<br>%{z} / 10,000<extra></extra>",
    )  # fmt: skip
    _add_log_bar(fig)
    ticks = {"type": "category", "nticks": 40, "tickfont": {"size": 9}, "ticks": "", "showgrid": False}
    fig.update_xaxes(title="key (read)", tickangle=-90, **ticks)
    fig.update_yaxes(title="query (reads)", autorange="reversed", **ticks)
    for axis, part in (("x", columns), ("y", rows)):
        _mark_modalities(fig, part, axis)
    return fig.update_layout(margin={"l": 120, "b": 120})


def _pattern(cache: AVCache, layer: int) -> Float[Tensor, "head query_pos key_pos"]:
    """The prompt's part of a layer's pattern.

    Raises:
        ViewError: If it does not cover the prompt.
    """
    pattern, n = cache["pattern", layer][0], len(cache.tokens)
    if min(pattern.shape[1:]) < n:
        raise ViewError(
            f"the pattern of layer {layer} is {list(pattern.shape)}, but the prompt has {n} tokens. Draw a run of the "
            "whole prompt: model.run_with_cache(inputs, names_filter=['pattern'])."
        )
    return pattern[:, :n, :n]


def _checked_heads(heads: Sequence[int], n: int) -> list[int]:
    if wrong := [head for head in heads if not 0 <= head < n]:
        raise LayerError(f"there is no head {wrong[0]}: the pattern has {n} heads (0 to {n - 1}).")
    if not heads:
        raise ViewError("heads=[] leaves nothing to draw. Pass some heads, or leave it out for all of them.")
    return list(heads)


def _guard_size(n_heads: int, n_rows: int) -> None:
    n_heads = min(n_heads, _AT_ONCE)
    cells = (n_heads + 1) * n_rows**2
    if cells <= _SLOW:
        return
    told = f"{n_heads} heads x {n_rows} rows are {cells:,} cells"
    fewer = math.floor(_SLOW / n_rows**2) - 1
    heads = f"heads=range({fewer})" if 0 < fewer < n_heads else "fewer heads"
    advice = (
        f"Pass {heads}, fewer sinks, group='modality', or longer audio_seconds=... and frames_per_row=...; "
        "attention_full(cache, layer=..., head=...) draws one head in full."
    )
    if cells > _TOO_MUCH:
        raise ViewError(f"{told}; a browser cannot draw more than {_TOO_MUCH:,}. {advice}")
    warnings.warn(f"{told}, which takes a browser about {cells * 5e-5:.0f} s to draw. {advice}", stacklevel=3)


def _top(shown: Float[Tensor, "head query_group key_group"]) -> float:
    """The 0.99 quantile, or else the largest number, so that one sink does not leave the rest white."""
    known = shown[shown.isfinite()]
    if not len(known):
        return 1.0
    return float(known.quantile(0.99)) or float(known.max()) or 1.0


def _chosen(tokens: TokenMap, given: TokenSet | None) -> TokenSet:
    if given is None:
        return tokens.all
    tokens.check_own(given)
    return given.sorted()


def _log_scale() -> list[tuple[float, str]]:
    """Colours evenly spaced in log10 of the value, while the numbers stay what they are."""
    return [(0.0, _SHADES[0]), *zip(torch.logspace(-_DECADES, 0, len(_SHADES)).tolist(), _SHADES, strict=True)]


def _add_log_bar(fig: go.Figure) -> None:
    """The bar that belongs to `_log_scale`: plotly's own would be linear. Hangs on a trace that shows nothing."""
    exponents = list(range(-_DECADES, 1))
    bar = {
        "title": {"text": "attention"}, "thickness": 12, "x": 1.03, "tickvals": exponents,
        "ticktext": [f"{10.0**exponent:g}" for exponent in exponents],
    }  # fmt: skip
    marker = {"color": [0], "cmin": -_DECADES, "cmax": 0, "colorscale": _SHADES, "showscale": True, "colorbar": bar}
    fig.add_scatter(x=[None], y=[None], mode="markers", marker=marker, showlegend=False, hoverinfo="skip")


def _mark_modalities(fig: go.Figure, part: TokenSet, axis: str) -> None:
    """A coloured line along an axis for each run of tokens of one modality."""
    kinds = part.tokens.modality[part.positions].tolist()
    borders = [i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]]
    other = "y" if axis == "x" else "x"
    for first, last in pairwise([0, *borders, len(kinds)]):
        along = {f"{axis}0": first - 0.5, f"{axis}1": last - 0.5, f"{axis}ref": axis}
        across = {f"{other}0": 1.004, f"{other}1": 1.016, f"{other}ref": "paper"}
        fig.add_shape(type="rect", fillcolor=COLOURS[Modality(kinds[first])], line_width=0, **along, **across)
