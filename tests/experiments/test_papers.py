"""The papers' experiments: rows are what the analyses say, and in the embedded model they find what it was trained to do."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avlens import HookedAVModel
from avlens.analyses.flow import information_flow
from avlens.analyses.selection import Judgement, judge
from avlens.analyses.tracing import causal_trace
from avlens.data import read_data
from avlens.errors import ExperimentError, MetricError, PromptError
from avlens.experiments import EXPERIMENTS, asking, cross_modal_hubs, for_data, run, see_and_hear, senses_to_decisions
from avlens.records import Record, RecordTable, plain_row
from avlens.samples import Opened, Sample
from avlens.summaries import compare, summarise
from avlens.testing import tiny_clip, tiny_model

OPTIONS = ("a bell", "a drum")
TRACING = {"corrupt": "zero", "ask": "letters", "n": [2], "draws": 2, "direction": "denoise", "seed": 0}
FLOW = {"edges": ["audio -> last", "correct option -> last"], "window": 1, "order": "media_first", "ask": "letters"}


@pytest.fixture(scope="module")
def model():
    return tiny_model(n_layers=2)


@pytest.fixture(scope="module")
def samples():
    captions = {"audio_captions": ["a bell"], "video_captions": ["a drum"]}
    return [
        Sample(str(i), Path(), "what do you hear ?", OPTIONS, "AB"[i % 2], record={"event": "bell", **captions})
        for i in range(2)
    ]


def read(sample):
    return tiny_clip(1.0, seed=int(sample.id), size=(56, 56))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_runs_and_has_the_columns_that_it_sums_up(model, samples, tmp_path, monkeypatch, name):
    monkeypatch.setattr(asking, "judge", decided)
    chosen = EXPERIMENTS[name]
    chosen = replace(chosen, conditions={k: settings | short(settings) for k, settings in chosen.conditions.items()})
    found = run(chosen, model, samples, tmp_path, read=read)
    assert len(found) == 2 * len(chosen.conditions) and found.problems().empty
    if name != "dynamics":  # Random weights write no object's name, and have no sinks to score.
        tables = chosen.summarise(found)
        assert list(tables) == [value for value, _ in chosen.summary]
        assert name in ("sinks", "decoding") or all(table.to_frame()["clips"].max() == 2 for table in tables.values())


def short(settings):
    return {name: value for name, value in {"max_new_tokens": 2, "n": [2], "draws": 2}.items() if name in settings} | (
        {"n": 2} if isinstance(settings.get("n"), int) else {}
    )


def decided(model, opened, **options):
    """As if audio alone decided."""
    one = judge(model, opened, **options)
    return replace(one, dominant="audio", o_clean="A", o_corrupt="B")


@pytest.mark.parametrize("name", [name for name, one in EXPERIMENTS.items() if one.when_memory_is_short])
def test_settings_for_little_memory_change_no_value(model, samples, monkeypatch, name):
    monkeypatch.setattr(asking, "judge", decided)
    one = EXPERIMENTS[name]
    settings = next(iter(one.conditions.values())) | short(next(iter(one.conditions.values()))) | {"seed": 0}
    opened = Opened(samples[0], read(samples[0]), "")
    whole = [plain_row(row) for row in one.measure(model, opened, settings)]
    assert len(whole) > 1
    for way in one.when_memory_is_short:
        pieces = [plain_row(row) for row in one.measure(model, opened, settings | way)]
        assert [list(row) for row in pieces] == [list(row) for row in whole]
        for row, other in zip(whole, pieces, strict=True):
            assert {k: v for k, v in row.items() if not isinstance(v, float)} == {
                k: v for k, v in other.items() if not isinstance(v, float)
            }
            numbers = [name for name, value in row.items() if isinstance(value, float)]
            assert [other[k] for k in numbers] == pytest.approx(
                [row[k] for k in numbers], rel=1e-3, abs=1e-4, nan_ok=True
            )


def test_tracing_in_pieces_gives_the_same(model, samples, monkeypatch):
    monkeypatch.setattr(asking, "judge", decided)
    opened = Opened(samples[0], read(samples[0]), "")
    whole, pieces = (cross_modal_hubs.measure_tracing(model, opened, TRACING | more) for more in ({}, {"at_once": 1}))
    assert whole == pieces
    assert {row["set"] for row in whole} == {"all", "idle"}  # Random weights have no sinks.
    clean, silent = (
        model.prepare(clip, samples[0].question, options=OPTIONS) for clip in (opened.clip, opened.clip.silenced())
    )
    trace = causal_trace(model, clean, silent, {"all": clean.tokens.video}, answers=("A", "B"))
    found = next(row for row in whole if row["set"] == "all")
    assert found["IE_clean"] == pytest.approx(float(trace.ie_clean[0]), abs=1e-6) and found[
        "TE_clean"
    ] == pytest.approx(trace.te_clean)


def test_flow_is_that_of_the_analysis(model, samples):
    opened = Opened(samples[0], read(samples[0]), "")
    rows = senses_to_decisions.measure_flow(model, opened, FLOW)
    inputs = model.prepare(opened.clip, samples[0].question, options=OPTIONS)
    flow = information_flow(model, inputs, ["audio -> last"], window=1)
    cut = [float(row["change"]) for row in rows if row["edge"] == "audio -> last"]
    assert cut == pytest.approx(flow.change[0, :, 0].tolist(), rel=1e-4)
    assert len(rows) == 4 and all(row["correct"] in (0.0, 1.0) for row in rows)
    unlabelled = Opened(replace(samples[0], label=""), opened.clip, "")
    rows = senses_to_decisions.measure_flow(model, unlabelled, FLOW)
    assert len(rows) == 2 and math.isnan(rows[0]["correct"])  # Which option is correct is not known.


def test_a_clip_that_no_modality_decides_says_so(model, samples, monkeypatch):
    monkeypatch.setattr(
        asking, "judge", lambda *_, **__: Judgement("0", dict.fromkeys(("both", "audio", "video"), "A"))
    )
    opened = Opened(samples[0], read(samples[0]), "")
    for measure in (
        cross_modal_hubs.measure_tracing, cross_modal_hubs.measure_layers, senses_to_decisions.measure_paths,
    ):  # fmt: skip
        assert [row["dominant"] for row in measure(model, opened, TRACING)] == ["neither"]


def test_words_of_a_label_go_without_their_article():
    assert see_and_hear._words("a bell") == {"bell"}
    assert see_and_hear._words("dog barking") == {"dog barking", "dog", "barking"}


def test_clips_without_a_label_cannot_be_named(model, samples, tmp_path):
    bare = replace(samples[0], label="", record={})
    assert (
        "Give samples with labels"
        in run(EXPERIMENTS["lens"], model, [bare], tmp_path / "a", read=read).records[0].problem
    )
    found = run(EXPERIMENTS["decoding"].only(["greedy"]), model, [bare], tmp_path / "b", read=read)
    assert "Give samples with labels" in found.records[0].problem


def test_clips_whose_objects_nobody_knows_have_a_problem_not_hallucinations(model, samples, tmp_path):
    strange = replace(samples[0], record={"event": "zzyzx humming"})
    found = run(EXPERIMENTS["decoding"].only(["greedy"]), model, [strange], tmp_path, read=read)
    assert "knows nothing of 'zzyzx humming'" in found.records[0].problem


def test_conditions_can_be_chosen():
    assert list(EXPERIMENTS["tracing"].only(["swap"]).conditions) == ["swap"]
    with pytest.raises(ExperimentError, match="no condition 'swop'. It has 'zero', 'swap'"):
        EXPERIMENTS["tracing"].only(["swop"])


def test_a_swap_takes_the_sound_of_a_sample_with_another_label(model, samples, tmp_path):
    several = [replace(samples[0], id=str(i), label="AAB"[i]) for i in range(3)]
    swapping = EXPERIMENTS["selection"].only(["zero", "swap"])
    items = {(item.sample.id, item.condition): item for item in swapping.items(several)}
    assert [one.id for one in items["0", "swap"].others] == ["2"] and not items["0", "zero"].others
    assert [one.id for one in items["2", "swap"].others] == ["1", "0"]
    rows = run(swapping, model, several, tmp_path, read=read).to_frame().set_index(["condition", "sample"])
    assert rows.loc["swap", "other"].tolist() == ["2", "2", "1"] and rows.loc["zero", "other"].isna().all()
    alone = run(swapping.only(["swap"]), model, several[:1], tmp_path / "alone", read=read)
    assert "nothing to swap" in alone.records[0].problem


# What the embedded model was trained to do (its card): sound reaches the answer through video tokens, those of its hubs.


@pytest.fixture(scope="module")
def tiny():
    return HookedAVModel.from_pretrained("avlens-tiny")


def measured(name, model, folder, clips, **settings):
    data = read_data(f"synthetic:{clips}", task=EXPERIMENTS[name].task)
    chosen = for_data(EXPERIMENTS[name], data)
    chosen = replace(chosen, conditions={k: v | settings for k, v in chosen.conditions.items()})
    return lambda *only: run(chosen.only(only) if only else chosen, model, data.samples, folder / name, read=data.read)


def test_hubs_carry_the_sound_and_as_many_other_tokens_do_not(tiny, tmp_path):
    found = measured("tracing", tiny, tmp_path, 6, n=[3], draws=2)("zero")
    table = summarise(found, "IE_clean", over="TE_clean", by=["dominant", "set"]).to_frame()["IE_clean / TE_clean"]
    assert {"audio", "video"} <= set(table.index.get_level_values("dominant"))
    assert abs(table["audio", "idle"]) < 1e-3  # Frames before the first sound, in which there can be none of it.
    assert all(table[dominant, name] > 0.9 for dominant in ("audio", "video") for name in ("all", "cross N=3"))
    assert table["audio", "cross N=3, matched count"] < 0.6  # As many video tokens that are no hubs.


def test_patched_in_one_layer_the_last_step_of_the_route_carries_it(tiny, tmp_path):
    frame = measured("layers", tiny, tmp_path, 4)().to_frame().dropna(subset="layer")
    effects = frame.groupby("layer").IE_clean.mean()
    assert effects.iloc[-1] > 0.9 and effects.iloc[:-1].abs().max() < 0.1


def test_paths_lead_over_the_other_modality(tiny, tmp_path):
    found = measured("paths", tiny, tmp_path, 4)()
    table = summarise(found, "effect", over="total", by=["kind", "path"]).to_frame()["effect / total"]
    chains = table["chain"].filter(regex="^(audio|video) -> (audio|video) -> last$")
    assert len(chains) and (chains > 0.7).all() and table["edge"].filter(like="question").abs().max() < 0.1


def test_cutting_who_is_read_costs_what_was_read(tiny, tmp_path):
    found = measured("flow", tiny, tmp_path, 4, edges=["media -> text", "question -> last"])("media first")
    changes = found.to_frame().groupby(["edge", "layer"]).change.mean().unstack()
    assert changes.loc["media -> text", 2:].max() < -50 and changes.loc["media -> text", :1].abs().max() < 1
    assert changes.loc["question -> last", 4:].abs().max() < 1  # What is asked is known by then.
    assert (found.to_frame().correct == 1).all()


def test_groups_that_leave_when_they_are_read_no_more_change_nothing_and_random_ones_do(tiny, tmp_path):
    found = measured("discarding", tiny, tmp_path, 4, discard={"audio": {"audio": 26 / 36}})()
    means = found.to_frame().groupby("plan")[["same", "P", "rows"]].mean()
    assert means.same["plain"] == means.same["audio"] == 1 and means.rows["audio"] < 0.9
    assert means.P["as many random as audio"] < means.P["audio"] - 0.05
    assert means.rows["audio"] == pytest.approx(means.rows["as many random as audio"], abs=0.01)


def test_captions_that_cannot_read_a_modality_miss_what_it_holds(tiny, tmp_path):
    found = measured("fidelity", tiny, tmp_path, 4, max_new_tokens=16, order="media_first")("plain", "video cut")
    means = found.to_frame().groupby("condition")[["audio", "video"]].mean()
    assert means.loc["plain"].tolist() == [1, 1]


def test_captions_of_the_embedded_model_are_true_and_noise_makes_them_false(tiny, tmp_path):
    run_ = measured("decoding", tiny, tmp_path, 4, max_new_tokens=16)
    row = EXPERIMENTS["decoding"].summarise(run_("greedy", "ASD"))
    assert row["hallucinates"].to_frame()["hallucinates"].tolist() == [0, 0]
    assert row["found / true"].to_frame().iloc[:, 0].tolist() == [1, 1]


def test_probes_are_fitted_on_what_clips_recorded():
    pytest.importorskip("sklearn")
    draw = torch.Generator().manual_seed(0)
    records = []
    for clip in range(24):
        label = ("bell", "drum")[clip % 2]
        rows = [
            {"label": label, "set": name, "layer": layer, "x": torch.randn(8, generator=draw)}
            for name in ("audio", "last")
            for layer in (0, 1)
        ]
        rows[1]["x"][3] += 6 * (label == "bell")  # At audio tokens, in layer 1 only.
        records.append(Record(f"{clip:02d}", rows=tuple(map(plain_row, rows))))
    probes = see_and_hear.probes_of(RecordTable(tuple(records)), folds=3, n_shuffles=1)
    assert probes.sets == ("audio", "last") and probes.layers == (0, 1)
    assert probes.accuracy[0, 1] > 0.85 and probes.accuracy[0, 0] < 0.8 and probes.accuracy[1].max() < 0.8
    with pytest.raises(MetricError, match="hold no features"):
        see_and_hear.probes_of(RecordTable((Record("a", rows=({"x": 1.0},)),)))


def test_few_directions_keep_distances():
    x = torch.randn(20, 512, generator=torch.Generator().manual_seed(1))
    near = torch.pdist(see_and_hear._in_few_directions(x, 64)) / torch.pdist(x)
    assert 0.9 < near.mean() < 1.1 and near.std() < 0.15


def test_comparisons_take_conditions(tiny, tmp_path):
    found = measured("attention", tiny, tmp_path, 3, max_new_tokens=2)()
    table = compare(found, "mass", of="read", against="audio", by=["condition", "reader"])
    assert ("question first", "last", "video") in table.groups
    whole = found.to_frame().dropna(subset="mass").groupby(["sample", "condition", "reader", "layer"]).mass.sum()
    assert whole.to_numpy() == pytest.approx(1, abs=1e-4)


def test_a_clip_without_the_modality_shows_no_shift(model, samples):
    settings = {"max_new_tokens": 2, "seed": 0}
    for base, clip in (("no audio", tiny_clip(1.0, audio=False)), ("no video", tiny_clip(1.0, video=False))):
        with pytest.raises(PromptError, match="lacks the modality"):
            see_and_hear.measure_shift(model, Opened(samples[0], clip, ""), settings | {"base": base})
