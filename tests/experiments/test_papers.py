"""The papers' experiments, on a model with random weights: their rows equal what the analyses say."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from avlens.analyses.flow import information_flow
from avlens.analyses.selection import Judgement, judge
from avlens.analyses.tracing import causal_trace
from avlens.experiments import EXPERIMENTS, papers, run
from avlens.samples import Opened, Sample
from avlens.summaries import summarise
from avlens.testing import tiny_clip, tiny_model

OPTIONS = ("a bell", "a drum")
TRACING = {"corrupt": "zero", "ask": "letters", "n": [2], "draws": 2, "seed": 0}


@pytest.fixture(scope="module")
def model():
    return tiny_model(n_layers=2)


@pytest.fixture(scope="module")
def samples():
    return [Sample(str(i), Path(), "what do you hear ?", OPTIONS, "AB"[i % 2]) for i in range(2)]


def read(sample):
    return tiny_clip(1.0, seed=int(sample.id), size=(56, 56))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_runs_and_has_the_columns_that_it_sums_up(model, samples, tmp_path, monkeypatch, name):
    monkeypatch.setattr(papers, "judge", decided)
    chosen = EXPERIMENTS[name]
    chosen = replace(chosen, conditions={k: settings | short(settings) for k, settings in chosen.conditions.items()})
    found = run(chosen, model, samples, tmp_path, read=read)
    assert len(found) == 2 * len(chosen.conditions) and found.problems().empty
    for value, by in chosen.summary:
        table = summarise(found, value, by=by).to_frame()
        assert len(table) and table["clips"].max() == 2


def short(settings):
    return {name: value for name, value in {"max_new_tokens": 2, "n": [2], "draws": 2}.items() if name in settings}


def decided(model, opened, **options):
    """As if audio alone decided."""
    one = judge(model, opened, **options)
    return replace(one, dominant="audio", o_clean="A", o_corrupt="B")


def test_tracing_in_pieces_gives_the_same(model, samples, monkeypatch):
    monkeypatch.setattr(papers, "judge", decided)
    opened = Opened(samples[0], read(samples[0]), "")
    whole, pieces = (papers.measure_tracing(model, opened, TRACING | more) for more in ({}, {"at_once": 1}))
    assert whole == pieces
    assert {row["set"] for row in whole} == {"all", "idle"}  # Random weights have no sinks.
    audio = Opened(samples[0], opened.clip, "")
    clean, silent = (
        model.prepare(clip, samples[0].question, options=OPTIONS) for clip in (audio.clip, audio.clip.silenced())
    )
    trace = causal_trace(model, clean, silent, {"all": clean.tokens.video}, answers=("A", "B"))
    found = next(row for row in whole if row["set"] == "all")
    assert found["IE_clean"] == pytest.approx(float(trace.ie_clean[0]), abs=1e-6) and found[
        "TE_clean"
    ] == pytest.approx(trace.te_clean)


def test_flow_is_that_of_the_analysis(model, samples):
    opened = Opened(samples[0], read(samples[0]), "")
    rows = papers.measure_flow(model, opened, {"edge": "audio -> last", "window": 1, "ask": "letters"})
    inputs = model.prepare(opened.clip, samples[0].question, options=OPTIONS)
    flow = information_flow(model, inputs, ["audio -> last"], window=1)
    assert [row["change"] for row in rows] == pytest.approx(flow.change[0, :, 0].tolist(), rel=1e-4)
    assert all(row["correct"] in (0.0, 1.0) for row in rows)
    unlabelled = Opened(replace(samples[0], label=""), opened.clip, "")
    assert math.isnan(
        papers.measure_flow(model, unlabelled, {"edge": "audio -> last", "window": 1, "ask": "letters"})[0]["correct"]
    )


def test_a_clip_that_no_modality_decides_says_so(model, samples, monkeypatch):
    monkeypatch.setattr(
        papers, "judge", lambda *_, **__: Judgement("0", dict.fromkeys(("both", "audio", "video"), "A"))
    )
    opened = Opened(samples[0], read(samples[0]), "")
    rows = papers.measure_tracing(model, opened, TRACING)
    assert [row["dominant"] for row in rows] == ["neither"] and "set" not in rows[0]


def test_words_of_a_label_go_without_their_article():
    assert papers._words("a bell") == {"bell"} and papers._words("dog barking") == {"dog barking", "dog", "barking"}


def test_clips_without_a_label_cannot_be_named(model, samples, tmp_path):
    found = run(EXPERIMENTS["lens"], model, [replace(samples[0], label="")], tmp_path, read=read)
    assert "Give samples with labels" in found.records[0].problem
