import math
import re
from dataclasses import replace

import pytest
import torch

from avlens.analyses.attention_mass import attention_by_group
from avlens.analyses.dominance import head_dominance, modality_dominance, split_sinks
from avlens.analyses.sinks import find_sinks
from avlens.errors import ViewError
from avlens.testing import tiny_model
from avlens.tokens import Modality
from avlens.views import compare, plot
from avlens.views.dominance import plot_dominance
from avlens.views.style import COLOURS, origin

RESULTS = [
    "sinks",
    "dims",
    "mds",
    "hubs",
    "trace",
    "layers",
    "heads",
    "dynamics",
    "table",
    "shift",
    "shifts",
    "lens",
    "latent",
]


@pytest.mark.parametrize("result", RESULTS)
def test_every_result_has_a_picture_that_cannot_upload(run, result):
    fig = plot(getattr(run, result))
    assert len(fig.data) > 0 and fig.layout.title.text
    assert "sendChartToCloud" in fig.layout.modebar.remove
    fig.to_json()


@pytest.mark.parametrize(
    "result", ["sinks", "mds", "trace", "hubs", "layers", "heads", "dynamics", "shift", "lens", "patching", "transport"]
)
def test_pictures_say_what_was_asked_of_which_model(run, result):
    note = plot(getattr(run, result)).layout.title.subtitle.text
    assert "what do you hear ?" in note and (result == "hubs" or "tiny-qwen2_5_omni-0" in note)


def test_what_has_no_picture_is_refused_with_what_has():
    with pytest.raises(
        ViewError,
        match=r"builtins.int.*CausalTrace, .*Comparison, .*HeadDominance, .*Hubs, .*LayerTrace.*plot.register",
    ):
        plot(3)


def test_sinks_are_counted_by_layer_and_modality(run):
    bars = {one.name: one for one in plot(run.sinks).data if one.type == "bar"}
    for layer, row in enumerate(run.sinks.is_sink):
        assert sum(bar.y[layer] for bar in bars.values()) == int(row.sum())
    assert {name: bar.marker.color for name, bar in bars.items()}.items() <= {
        kind.name.lower(): colour for kind, colour in COLOURS.items()
    }.items()


def test_modalities_have_their_colours():
    assert [COLOURS[kind] for kind in (Modality.VIDEO, Modality.AUDIO, Modality.TEXT)] == [
        "#0072B2",
        "#E69F00",
        "#666666",
    ]


def test_no_sinks_are_drawn_too(run):
    assert "0 sinks" in plot(find_sinks(run.cache, [])).layout.title.text


def test_dominance_tells_how_many_and_leaves_out_what_has_no_score(run):
    score = torch.zeros_like(run.mds.score)
    score[:, 0], score[:, 1] = math.nan, 1.0
    fig = plot(replace(run.mds, score=score))
    shown = [x for one in fig.data for x in one.x]
    assert len(shown) == len(run.mds.sinks) - 1 and max(shown) < 1
    assert sum(int(one.name.split("n = ")[1].rstrip(")")) for one in fig.data) == len(shown)
    assert "1 that nothing later reads left out" in fig.layout.title.subtitle.text


def test_scores_that_mean_nothing_are_hatched(run):
    fig = plot(replace(run.mds, score=torch.ones_like(run.mds.score), one_sided=torch.ones(len(run.mds.sinks)).bool()))
    assert {one.marker.pattern.shape for one in fig.data} == {"/"}


def test_a_band_outside_of_the_scores_is_refused(run):
    with pytest.raises(ViewError, match="between 0 and 1"):
        plot_dominance(run.mds, band=1.5)


def test_hubs_count_each_sink_once(run):
    assert sum(sum(one.x) for one in plot(run.hubs).data) == len(run.mds.sinks)


def test_effects_are_bars_and_total_effects_lines(run):
    fig = plot(run.trace)
    assert list(fig.data[0].y) == run.trace.ie_clean.double().tolist()
    assert list(fig.data[1].y) == run.trace.ie_corrupt.double().tolist()
    assert [shape.y0 for shape in fig.layout.shapes] == [run.trace.te_clean, run.trace.te_corrupt]
    assert list(fig.data[0].x) == [
        f"all<br>n = {len(run.tokens.media)}", f"&lt;audio&gt;<br>n = {len(run.tokens.audio)}", "none<br>n = 0",
    ]  # fmt: skip


def test_names_of_sets_are_broken_to_stand_level_and_steep_where_they_do_not_fit(run):
    def axis(n):
        sets = {f"a cross-modal set {i}": run.tokens.audio for i in range(n)}
        fig = plot(replace(run.trace, sets=sets, p_patched=run.trace.p_patched[:1].expand(n, -1)))
        return fig.layout.xaxis.tickangle, fig.data[0].x[0]

    n = f"n = {len(run.tokens.audio)}"
    assert axis(7) == (0, f"a cross-modal<br>set 0<br>{n}")
    assert axis(10) == (-60, f"a cross-modal set 0 · {n}")


def test_a_total_effect_that_is_not_known_has_no_line(run):
    for result in (run.trace, run.layers.trace):
        unknown = replace(result, p_corrupt=run.trace.p_corrupt * math.nan)
        assert not plot(unknown).layout.shapes and not plot(replace(run.layers, trace=unknown)).layout.shapes


def test_one_layer_is_drawn_too(run):
    attention = attention_by_group(tiny_model(n_layers=1), tiny_model(n_layers=1).prepare(run.clip, "what ?"))
    assert {one.mode for one in plot(attention).data} == {"markers"}


def test_where_there_is_nothing_a_line_says_so(run):
    none = run.tokens.at([])
    bare, dims = (
        modality_dominance(run.cache, none),
        {name: getattr(run.dims, name)[:0] for name in ("dims", "magnitude", "share")},
    )
    results = (
        bare,
        split_sinks(bare),
        head_dominance(run.cache, none),
        find_sinks(run.cache, []),
        replace(run.dims, **dims),
    )
    for result in results:
        layout = plot(result).layout
        assert re.match("no (sink|token|dimension)", layout.annotations[-1].text) and layout.xaxis.visible is False


def test_effects_are_called_what_patches_do_in_their_direction(run):
    names = [one.name.split()[0] for one in plot(run.trace).data]
    other = [one.name.split()[0] for one in plot(replace(run.trace, direction="noise")).data]
    assert (names, other) == (["restores", "removes"], ["destroys", "brings"])


def test_effects_by_layer_are_lines_and_total_effects_dotted(run):
    fig = plot(run.layers)
    assert [list(one.x) for one in fig.data] == [[0, 1, 2]] * 2
    assert [list(one.y) for one in fig.data] == [run.layers.ie_clean.tolist(), run.layers.ie_corrupt.tolist()]
    assert [(shape.y0, shape.line.dash) for shape in fig.layout.shapes] == [
        (run.layers.trace.te_clean, "dot"),
        (run.layers.trace.te_corrupt, "dot"),
    ]
    assert "2 layers at a time" in fig.layout.title.subtitle.text


def test_each_head_shows_the_mean_of_its_known_scores(run):
    kinds = run.heads.sinks.tokens.modality[run.heads.sinks.positions]
    score = torch.full_like(run.heads.score, 0.5)
    score[1, 0] = math.nan
    score[2, 1, 0] = math.nan
    fig = plot(replace(run.heads, score=score))
    assert len(fig.data) == len(kinds.unique()) and (fig.layout.coloraxis.cmin, fig.layout.coloraxis.cmax) == (-1, 1)
    for heat in fig.data:
        z = torch.tensor(heat.z)
        assert tuple(z.shape) == tuple(run.heads.score.shape[:2]) and z[1, 0].isnan()
        assert float(z[0].mean()) == 0.5
    assert "grey: nothing later reads them" in fig.layout.title.subtitle.text


def test_no_sinks_have_no_heads(run):
    empty = replace(run.heads, sinks=run.tokens.at([]), score=run.heads.score[..., :0])
    assert len(plot(empty).data) == 0


def test_attention_to_each_set_is_a_line_over_the_words_written(run):
    strings = (" a", "<b>", "\n", " ", "x", "y")[: len(run.dynamics.strings)]
    fig = plot(replace(run.dynamics, strings=strings, words={"<b>": ((1,),)}))
    assert [list(one.y) for one in fig.data] == run.dynamics.attention.double().mean(1).tolist()
    assert list(fig.layout.xaxis.ticktext) == ["a", "&lt;b&gt;", "⏎", "␣", "x", "y"][: len(strings)]
    assert (fig.layout.shapes[0].x0, fig.layout.shapes[0].x1) == (0.5, 1.5)
    colours = [one.line.color for one in fig.data]
    assert colours[:2] == [COLOURS[Modality.VIDEO], COLOURS[Modality.AUDIO]] and len(set(colours)) == 3


def test_effects_over_clips_have_their_intervals(run):
    row = run.table.rows[0]
    unsure = replace(row, ie_clean=replace(row.ie_clean, estimate=0.5, low=0.25, high=0.875))
    bars = plot(replace(run.table, rows=(unsure,))).data
    assert (bars[0].y[0], bars[0].error_y.array[0], bars[0].error_y.arrayminus[0]) == (0.5, 0.375, 0.25)
    assert bars[0].customdata[0][0] == "0.5000 [0.2500, 0.8750]"


def test_a_set_that_no_clip_has_is_drawn_without_a_bar(run):
    fig = plot(run.table)
    assert fig.data[0].x[2] == "none<br>no token<br>0 clips" and fig.data[0].customdata[2][0] == "not known"


def test_unknown_numbers_do_not_break_pictures(run):
    nothing = torch.full_like(run.layers.ie_clean, math.nan)
    plot(replace(run.layers, ie_clean=nothing, ie_corrupt=nothing)).to_json()
    plot(replace(run.heads, score=torch.full_like(run.heads.score, math.nan))).to_json()
    plot(replace(run.dynamics, attention=torch.full_like(run.dynamics.attention, math.nan))).to_json()
    unknown = replace(run.table.te_clean, estimate=math.nan, low=math.nan, high=math.nan)
    rows = tuple(replace(row, ie_clean=unknown, ie_corrupt=unknown, flipped=math.nan) for row in run.table.rows)
    plot(replace(run.table, rows=rows, te_clean=unknown, te_corrupt=unknown)).to_json()
    plot(replace(run.trace, p_patched=torch.full((3, 2), math.nan))).to_json()
    plot(replace(run.sinks, energy=torch.full_like(run.sinks.energy, math.nan))).to_json()
    plot(replace(run.mds, score=torch.full_like(run.mds.score, math.nan))).to_json()


def test_origin_says_what_is_known():
    record = {"question": "what   is it ?" + " x" * 50, "clips": ["0123456789ab"]}
    assert origin({"model": "m", "dtype": "torch.bfloat16", "prompts": [record]}).startswith(
        "m · bfloat16 · clip 01234567 · “what is it ?"
    )
    assert origin({}) == ""
    assert origin({"prompts": [{}, {}]}) == "2 prompts"


def test_each_token_of_an_answer_is_one_bar(run):
    bars = {one.name.split(" ")[0]: one for one in plot(run.shift).data}
    assert sum(len(bar.x) for bar in bars.values()) == len(run.shift.tokens)
    for kind, bar in bars.items():
        assert [run.shift.shifts[step] for step in bar.x] == [kind] * len(bar.x)
    assert all("<b>" not in text for text in plot(run.shift).layout.xaxis.ticktext)


def test_a_lens_with_many_tokens_tells_its_words_on_hovering_only(run):
    few = plot(run.lens.at(run.tokens.at(list(run.tokens.audio)[:3]))).data[0]
    many = plot(run.lens).data[0]
    assert few.texttemplate and len(run.lens.tokens) > 40 and many.texttemplate is None
    assert len(few.text[0]) == 3 and len(many.customdata[0]) == len(run.lens.tokens)


def test_shares_of_the_total_effect_are_what_is_drawn(run):
    drawn = plot(run.patching).data[0]
    assert torch.allclose(torch.tensor(drawn.z).double(), run.patching.shares.double(), atol=1e-6)
    assert all("<audio>" not in name for name in drawn.x)
    assert len(plot(run.by_head).data) == 2 and len(plot(run.transport).data) == len(run.transport.edges)


def test_bars_of_an_attribution_add_up_to_the_logit(run):
    fig = plot(run.attribution)
    found = run.attribution
    rest = found.embed + found.unembed_bias + float(found.bias.sum() + found.added.sum())
    assert sum(sum(bar.y) for bar in fig.data) + rest == pytest.approx(found.logit, abs=1e-4)


def test_an_estimate_is_compared_with_what_was_run(run):
    fig = compare(run.by_head, run.exact)
    assert "Spearman" in fig.layout.title.text and len(fig.data[1].x) == run.by_head.heads.numel()
    with pytest.raises(ViewError, match="cannot be compared"):
        compare(run.by_head, run.transport)


def test_probes_have_a_line_a_band_and_a_control_for_each_set(run):
    fig = plot(run.probes)
    named = {one.name: one for one in fig.data if one.name}
    assert set(named) == {"video", "audio", "last"} and len(fig.data) == 9
    assert named["audio"].line.color == COLOURS[Modality.AUDIO]
    assert list(named["video"].y) == pytest.approx(run.probes.accuracy[0].tolist())
