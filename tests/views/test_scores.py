"""Pictures of results over clips and captions, and of what a decoding method decided."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avlens.analyses.selection import Judgement, Selection
from avlens.datasets.counterfactual import Counterfactuals, Dubbed, mismatched
from avlens.decoding import ASD
from avlens.errors import ViewError
from avlens.hub_table import HubTable
from avlens.hubs import PromptHubs
from avlens.metrics.aloha import aloha
from avlens.metrics.chair import chair
from avlens.metrics.fidelity import Verdict, caption_fidelity
from avlens.views import plot
from avlens.views.style import COLOURS, CROSS_MODAL, dark

HOSTILE = "<b>x</b>"


def judged(name, dominant, label="A", clean=(0.9, 0.1), corrupt=(0.2, 0.7), problem=""):
    return Judgement(
        name, dominant=dominant, o_clean="A", p_clean=clean, p_corrupt=corrupt, label=label, problem=problem
    )


@pytest.fixture(scope="module")
def selection():
    unknown = (math.nan, math.nan)
    return Selection(
        (
            judged(HOSTILE, "audio"), judged("b", "audio", "B"), judged("c", "video", "", (0.5, 0.0), (0.25, 0.5)),
            judged("d", "neither", "A", unknown, unknown), judged("e", "neither", problem="no sound"),
        ),
        False,
        {"model": "m"},
    )  # fmt: skip


def test_clips_are_counted_by_what_decides_them_and_whether_they_are_right(selection):
    fig = plot(selection)
    bars = {one.name: list(one.x) for one in fig.data if one.type == "bar"}
    assert bars == {
        "answered right (n = 2)": [1, 0, 1],
        "answered wrong (n = 1)": [1, 0, 0],
        "no label (n = 1)": [0, 1, 0],
    }
    boxes = [one for one in fig.data if one.type == "box"]
    assert [list(box.x) for box in boxes] == [pytest.approx([0.7, 0.7]), [0.25]]
    assert boxes[0].text[0] == "&lt;b&gt;x&lt;/b&gt;"
    assert (
        fig.layout.title.text == "3 clips of 5 that one modality decides"
        and "1 skipped" in fig.layout.title.subtitle.text
    )


def test_scores_of_captions_are_drawn_with_their_intervals():
    found = chair(
        ["A puppy barks at a car.", "Church bells ring."], [["dog barking"], ["church bell ringing"]], n_draws=50
    )
    bar = plot(found).data[0]
    assert list(bar.x) == [found.scores[name] for name in ("Cs", "Ci", "precision", "recall", "F1")]
    assert list(bar.error_x.array) == [
        found.intervals[name].high - found.scores[name] for name in ("Cs", "Ci", "precision", "recall", "F1")
    ]


def test_every_caption_with_a_score_is_in_a_bin_that_is_drawn():
    found = aloha(["A dog barks.", "A train and a dog.", "Nothing."], [["a dog"], ["a dog"], ["a dog"]])
    fig = plot(found)
    bins = fig.data[0].xbins
    assert len(fig.data[0].x) == 2 and all(bins.start <= x < bins.end for x in fig.data[0].x)
    assert "1 without a score" in fig.layout.title.subtitle.text


def test_what_no_judge_scored_is_not_known():
    def judge(caption, reference, *, modality):
        return Verdict(1.0 if modality == "audio" else math.nan)

    fig = plot(caption_fidelity(["a", "b"], {"audio": ["x", "y"], "video": ["x", "y"]}, judge, n_draws=20))
    assert fig.layout.title.text == "Fidelity: audio 1.00, video not known"
    assert [list(one.x) for one in fig.data] == [[0.95, 0.95], []]
    fig.to_json()


def test_new_sounds_are_shown_by_how_unlike_they_are(tmp_path):
    found = mismatched(["a dog barks", "a dog barks loudly", "rain", "heavy rain"])
    fig = plot(found)
    assert list(fig.data[0].x) == found.similarity.tolist() and fig.layout.shapes[0].x0 == found.chance
    clips = tuple(
        Dubbed(f"{i}", "f", swapped, "v", "a", (), (), 0.25, problem)
        for i, (swapped, problem) in enumerate([(True, ""), (False, ""), (True, "broken")])
    )
    fig = plot(Counterfactuals(Path(tmp_path), clips))
    assert list(fig.data[0].x) == [0.25] and fig.layout.title.text == "1 factual clip, 1 counterfactual one"
    assert "1 without a file" in fig.layout.title.subtitle.text
    plot(Counterfactuals(Path(tmp_path), ())).to_json()


def test_both_cases_stand_side_by_side(run, selection):
    table = HubTable(run.table, replace(run.table, direction="noise"), selection, {}, {"model": "m"})
    fig = plot(table)
    assert [one.xaxis for one in fig.data] == ["x", "x", "x2", "x2"]
    assert list(fig.data[0].x)[:2] == [row.ie_clean.estimate for row in run.table.rows][:2]
    assert [one.name.split()[0] for one in fig.data] == ["restores", "removes", "destroys", "brings"]
    assert all("<audio>" not in name for name in fig.data[0].y)
    plot(replace(table, audio_dominant=None, video_dominant=None)).to_json()


def test_sinks_of_a_prompt_stand_by_who_reads_them_and_how_strong_they_are(run):
    fig = plot(PromptHubs(run.sinks, run.mds, run.hubs))
    points = [(x, y) for one in fig.data for x, y in zip(one.x, one.y, strict=True)]
    scored = ~run.mds.mean.isnan()
    energy = run.sinks.energy.amax(0)[run.mds.sinks.positions]
    assert sorted(points) == sorted(
        zip(run.mds.mean[scored].double().tolist(), energy[scored].double().tolist(), strict=True)
    )
    for one in fig.data:
        assert one.marker.color in COLOURS.values()
        assert (one.marker.line.color == CROSS_MODAL) == (one.marker.symbol == "diamond") == ("cross-modal" in one.name)
    table = PromptHubs(run.sinks, run.mds, run.hubs)._repr_html_()
    assert "energy" in table and "PromptHubs" in table


def test_what_a_method_decided_stands_over_the_words_it_wrote(run):
    inputs = run.model.prepare(run.clip, "what do you hear ?")
    written = run.model.generate(inputs, 4, decoding=ASD(), min_new_tokens=4)
    assert [run.model.tokenizer.decode(ids) for ids in written.tokens] == ["".join(row) for row in written.strings]
    fig = plot(replace(written, strings=((HOSTILE, " ", "\n", "d"),)))
    assert list(fig.data[0].y) == written.records["gamma"][0].double().tolist()
    assert list(fig.layout.xaxis.ticktext) == ["&lt;b&gt;x&lt;/b&gt;", "␣", "⏎", "d"]
    two = plot(replace(written, records={"entropy": torch.rand(2, 3)}, texts=("a", "b"), strings=()))
    assert [one.showlegend for one in two.data] == [True, True] and "entropy" in two.layout.title.text
    with pytest.raises(ViewError, match=r"hold nothing, .*decoding=ASD"):
        plot(run.model.generate(inputs, 1))


def test_none_of_them_has_text_that_a_dark_page_hides(run, selection):
    for result in (selection, PromptHubs(run.sinks, run.mds, run.hubs), mismatched(["a", "b"])):
        turned = dark(plot(result))
        turned.layout.template = None
        assert "#333333" not in turned.to_json()
