import math
from dataclasses import replace
from html import unescape
from types import SimpleNamespace

import pytest
import torch

from avlens.analyses.attention_mass import attention_by_group
from avlens.analyses.discarding import compare_discarding, leaving
from avlens.analyses.flow import Controls, flow_by_head, information_flow
from avlens.errors import PromptError, ViewError
from avlens.testing import tiny_clip, tiny_model
from avlens.views import flow_graph, plot

EDGES = ["audio -> last", "video <-> audio", "video -> video across frames", "last -> audio"]


@pytest.fixture(scope="module")
def shown():
    model = tiny_model(n_layers=3)
    inputs = model.prepare(tiny_clip(1.6), "what do you hear ?")
    several = [inputs, model.prepare(tiny_clip(1.6, seed=3), "what do you hear ?")]
    return SimpleNamespace(
        flow=information_flow(model, several, EDGES, window=1, controls=Controls(1)),
        one=information_flow(model, inputs, EDGES[:1], sweep="top_down"),
        heads=flow_by_head(model, inputs, "audio -> last"),
        mass=attention_by_group(model, inputs, sinks=inputs.tokens.at([0])),
        discarding=compare_discarding(model, several, {"audio": leaving({"audio": 1})}, repeats=1),
    )


@pytest.mark.parametrize("result", ["flow", "one", "heads", "mass", "discarding"])
def test_every_result_has_a_picture_and_a_table(shown, result):
    drawn = getattr(shown, result)
    fig = plot(drawn)
    assert len(fig.data) and "sendChartToCloud" in fig.layout.modebar.remove
    assert "tiny-qwen2_5_omni-0" in fig.layout.title.subtitle.text
    fig.to_json()
    assert "<table" in drawn._repr_html_()


def test_curves_are_means_with_bands_and_controls(shown):
    fig, layers = plot(shown.flow), list(shown.flow.layers)
    for i, edge in enumerate(shown.flow.edges):
        band, curve, control = fig.data[3 * i : 3 * i + 3]
        assert unescape(curve.name).startswith(str(edge)) and list(curve.x) == layers
        assert list(curve.y) == pytest.approx(shown.flow.change[i].mean(-1).tolist(), abs=1e-4)
        ends = shown.flow.change[i].sort(-1).values
        assert (
            list(band.y[:3]) == pytest.approx(ends[:, 1].tolist(), abs=1e-4) and list(band.x) == layers + layers[::-1]
        )
        assert list(control.y) == pytest.approx(shown.flow.control_change[i].mean(-1).tolist(), abs=1e-4)
    assert "causality forbids" in fig.data[10].name
    assert len(plot(shown.one).data) == 1 and "first layer that is cut" in plot(shown.one).layout.xaxis.title.text


def test_curves_of_other_measures_and_chosen_edges(shown):
    from avlens.views.flow import plot_flow

    flipped = plot_flow(shown.flow, measure="flipped", edges=["video <-> audio"])
    assert [one.name for one in flipped.data] == [None, "video &lt;-&gt; audio"]
    assert list(flipped.data[1].y) == shown.flow.flipped[1].double().mean(-1).tolist()
    with pytest.raises(PromptError, match="was not cut"):
        plot_flow(shown.flow, edges=["audio -> question"])


def test_the_graph_has_an_arrow_for_each_way_and_none_that_causality_forbids(shown):
    fig = flow_graph(shown.flow, least=0)
    arrows = [one for one in fig.layout.annotations if one.showarrow]
    places = {
        text.replace("<br>", " "): (x, y)
        for text, x, y in zip(*(fig.data[-1][k] for k in ("text", "x", "y")), strict=True)
    }
    ends = {
        tuple(name for point in ((one.ax, one.ay), (one.x, one.y)) for name, at in places.items() if at == point)
        for one in arrows
    }
    assert ends == {("audio", "last"), ("video", "audio"), ("audio", "video")}
    assert any("within" in (one.text or "") for one in fig.layout.annotations)
    widest = max(arrows, key=lambda one: one.arrowwidth)
    changes = {edge: abs(shown.flow.peak(edge)[1]) for edge in EDGES[:2]}
    assert (widest.x, widest.ax) == (places["last"][0], places["audio"][0]) or changes["video <-> audio"] >= changes[
        "audio -> last"
    ]
    with pytest.raises(ViewError, match="Cut some, such as 'audio -> last'"):
        flow_graph(replace(shown.flow, pairs=torch.zeros_like(shown.flow.pairs)))


def test_unknown_numbers_do_not_break_the_pictures(shown):
    nothing = torch.full_like(shown.flow.p, math.nan)
    plot(replace(shown.flow, p=nothing, logit_diff=nothing, flipped=nothing)).to_json()
    flow_graph(replace(shown.flow, p=nothing)).to_json()
    plot(replace(shown.heads, change=torch.full_like(shown.heads.change, math.nan))).to_json()
    plot(replace(shown.mass, mass=torch.full_like(shown.mass.mass, math.nan))).to_json()


def test_attention_is_drawn_for_groups_that_were_run(shown):
    fig = plot(shown.mass)
    titles = [one.text for one in fig.layout.annotations]
    assert [title.split(" (")[0] for title in titles] == ["question", "tail", "last"] and "(1 query)" in titles[-1]
    solid = [one for one in fig.data if one.line.dash is None]
    assert list(solid[0].y) == shown.mass.mass[0, 0].double().mean(-1).tolist()
    assert len(fig.data) == 2 * len(solid) == 2 * 3 * len(shown.mass.keys)


def test_plans_stand_where_their_cost_and_their_answers_are(shown):
    frame = shown.discarding.to_frame()
    for point, (plan, row) in zip(plot(shown.discarding).data, frame.iterrows(), strict=True):
        assert (point.name, point.x[0], point.y[0]) == (plan, row["rows"], row["same answer"])


def test_plans_of_one_colour_have_other_symbols(shown):
    found, rows = shown.discarding, [0, 1, 1, 1]
    parts = {name: getattr(found, name)[rows] for name in ("p", "right", "same", "seconds", "rows", "cache_bytes")}
    points = plot(replace(found, **parts, plans=("plain", "audio at 1", "audio at 2", "video"))).data
    marks = [(point.marker.color, point.marker.symbol) for point in points]
    assert len(set(marks)) == 4 and marks[1][0] == marks[2][0] != marks[3][0]
    assert [symbol for _, symbol in marks] == ["diamond", "circle", "square", "circle"]
