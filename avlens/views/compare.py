"""Does an estimate put things in the order of what was run?"""

import plotly.graph_objects as go

from avlens.analyses.attribution_patching import PatchingEffects
from avlens.analyses.transport import Transport
from avlens.errors import ViewError
from avlens.views.patch_effects import told
from avlens.views.style import CLEAN, figure, joined, origin


def compare(estimated: PatchingEffects | Transport, exact: PatchingEffects | Transport) -> go.Figure:
    """Each effect as it was estimated and as it was run, as shares of the total effect; on the dotted line both are equal.

    Raises:
        ViewError: If they are results of different kinds.
        PromptError: If they are of different patches.
    """
    if isinstance(estimated, PatchingEffects) and isinstance(exact, PatchingEffects):
        agreement, frames = estimated.agrees_with(exact), [one.to_frame() for one in (estimated, exact)]
        by_head = estimated.heads is not None and exact.heads is not None
        keys = ["layer", *(["head"] if by_head else []), "group"]
        frames = [frame.groupby(keys, sort=False)[["share"]].sum().reset_index() for frame in frames]
    elif isinstance(estimated, Transport) and isinstance(exact, Transport):
        agreement, frames = estimated.agrees_with(exact), [one.to_frame() for one in (estimated, exact)]
        keys = ["edge", "layer", "head"]
    else:
        kinds = f"{type(estimated).__name__} and {type(exact).__name__}"
        raise ViewError(f"a {kinds} cannot be compared. Pass two of one kind, the estimate first.")
    rows = frames[0].merge(frames[1], on=keys, suffixes=(" estimated", " exact")).dropna()
    fig = figure(
        f"Estimated and exact effects: Spearman {agreement.spearman:.2f}, n = {agreement.n}",
        note=joined([told(exact.contrast, exact.direction), origin(exact.made_by)]),
        height=480, width=620,
    )  # fmt: skip
    both = rows[["share estimated", "share exact"]].to_numpy()
    ends = [float(both.min()), float(both.max())] if len(both) else [0.0, 0.0]
    fig.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": "#888888", "dash": "dot", "width": 1}, hoverinfo="skip"
    )
    fig.add_scatter(
        x=rows["share exact"].tolist(), y=rows["share estimated"].tolist(), mode="markers",
        marker={"color": CLEAN, "size": 7, "opacity": 0.7},
        text=[", ".join(f"{key} {value}" for key, value in zip(keys, row, strict=True)) for row in rows[keys].to_numpy()],
        hovertemplate="%{text}<br>exact %{x:.4f}, estimated %{y:.4f}<extra></extra>",
    )  # fmt: skip
    return fig.update_layout(showlegend=False, xaxis={"title": "exact"}, yaxis={"title": "estimated"})
