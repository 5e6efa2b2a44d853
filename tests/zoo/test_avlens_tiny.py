"""The shipped weights: small samples of what docs/avlens-tiny.md says of them."""

import json
import subprocess
import sys

import pytest
import torch

from avlens import HookedAVModel
from avlens.analyses.sinks import find_sink_dims
from avlens.analyses.tracing import causal_trace
from avlens.checkpoint import ZOO
from avlens.datasets.synthetic import CHOICES, QUESTIONS, counterfactual_pairs, synthetic_clips
from avlens.decoding import ASD
from avlens.training.measure import (
    answers,
    bootstrapped,
    detect,
    dominated,
    knocked_out,
    planted,
    right_answers,
    share,
    sinks_of,
    through_files,
    trace,
    two_sided_clips,
)

SEED = 424242


@pytest.fixture(scope="module")
def model():
    return HookedAVModel.from_pretrained("avlens-tiny")


@pytest.fixture(scope="module")
def organic():
    return HookedAVModel.from_pretrained("avlens-tiny-organic")


@pytest.fixture(scope="module")
def truth():
    return json.loads((ZOO / "avlens-tiny" / "ground_truth.json").read_text())


@pytest.fixture(scope="module")
def samples():
    return through_files(synthetic_clips(40, seed=SEED))


@pytest.fixture(scope="module")
def two_sided():
    return two_sided_clips(24, seed=SEED + 1)


def test_both_checkpoints_are_small():
    files = [file for name in ("avlens-tiny", "avlens-tiny-organic") for file in (ZOO / name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 6_000_000


@pytest.mark.parametrize("question", QUESTIONS)
def test_it_answers_about_mp4_files(model, samples, question):
    assert sum(right_answers(model, samples, question)) >= 0.9 * len(samples)


@pytest.mark.parametrize("question", ["see", "hear", "describe"])
def test_it_answers_about_clips_longer_than_any_it_was_trained_on(model, question):
    longer = through_files(synthetic_clips(20, seed=SEED, seconds=4))
    assert sum(right_answers(model, longer, question)) >= 0.8 * len(longer)


def test_silence_breaks_hearing_only_and_blank_frames_break_sight_only(model, two_sided):
    def accuracy(question, ablation):
        return sum(right_answers(model, two_sided, question, ablation=ablation)) / len(two_sided)

    assert accuracy("hear", "silenced") == 0 and accuracy("see", "silenced") >= 0.9
    assert accuracy("see", "blanked") == 0 and accuracy("move", "blanked") <= 0.1
    assert accuracy("hear", "blanked") >= 0.9


@pytest.mark.parametrize("question", ["what do you hear ?", "describe the clip ."])
def test_the_default_detectors_find_exactly_what_is_planted(model, truth, samples, question):
    assert list(find_sink_dims(model)) == truth["sink_dims"]
    found = detect(model, truth, samples[:15], question)
    assert found.precision == found.recall == 1.0


def test_the_sinks_of_a_prompt_are_the_planted_positions(model, truth, two_sided):
    for sample in two_sided[:8]:
        inputs = model.prepare(sample.clip, "what do you hear ?")
        sinks, _ = sinks_of(model, inputs, truth["sink_dims"])
        assert sinks.tokens == planted(truth, sample.clip, inputs.tokens)


def test_the_organic_model_has_no_sinks(organic, samples):
    dims = find_sink_dims(organic)
    assert len(dims) == 0
    sinks, _ = sinks_of(organic, organic.prepare(samples[0].clip, "what do you hear ?"), list(dims))
    assert len(sinks.tokens) == 0
    assert sum(right_answers(organic, samples, "hear")) >= 0.9 * len(samples)


def test_sound_reaches_the_answer_through_cross_modal_video_sinks(model, two_sided):
    effects = trace(model, two_sided[:16], "audio", draws=10)
    means = {name: float(values.mean()) for name, values in effects.effects.items()}
    assert means["cross"] > means["random"] + 0.1 and means["random"] > means["uni"] + 0.03
    assert means["cross"] > 0.5 and abs(means["uni"]) < 0.1
    assert (effects.effects["before"] == 0).all()
    torch.testing.assert_close(effects.effects["media"], effects.total, atol=1e-4, rtol=0)


@pytest.mark.parametrize("question", CHOICES)
def test_it_chooses_letters(model, samples, question):
    assert sum(right_answers(model, samples, question, choice=True)) >= 0.55 * len(samples)


def test_nobody_hears_when_nothing_may_read_the_sound(model, two_sided):
    everywhere = knocked_out(model, two_sided[:12], "hear", "audio", range(model.cfg.n_layers))
    assert sum(everywhere) <= 4  # a guess: one in six sounds
    assert sum(knocked_out(model, two_sided[:12], "see", "audio", range(model.cfg.n_layers))) >= 10


def test_a_swapped_sound_is_a_clean_counterfactual(model):
    (one, other), *_ = counterfactual_pairs(1, seed=SEED)
    clean, corrupt = (model.prepare(sample.clip, QUESTIONS["sound"]) for sample in (one, other))
    traced = causal_trace(model, clean, corrupt, {"audio": clean.tokens.audio, "media": clean.tokens.media})
    assert traced.answers == (one.content.sound, other.content.sound)
    assert traced.ie_clean[1] == pytest.approx(traced.te_clean, abs=1e-4)


def test_sound_decides_what_is_heard_and_sight_what_moves(model, two_sided):
    by_sound, by_sight = (dominated(model, two_sided, question) for question in ("hear", "move"))
    assert by_sound["audio"].sum() >= 12 and by_sound["video"].sum() <= 4
    assert by_sight["video"].sum() >= 8 and by_sight["audio"].sum() <= 4


def test_asd_writes_captions(model, two_sided):
    asked = [sample.ask("describe") for sample in two_sided[:4]]
    said = answers(model, [sample.clip for sample in two_sided[:4]], asked, decoding=ASD())
    assert all(text.split()[-1] == "sounds" for text in said)


@pytest.mark.slow
def test_it_loads_in_under_five_seconds():
    code = (
        "import time; start = time.process_time(); from avlens import HookedAVModel; "
        "HookedAVModel.from_pretrained('avlens-tiny'); print(time.process_time() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 20  # processor seconds, imports included: 5 on an idle core


def test_intervals_by_hand():
    assert share([True] * 10).mean == 1 and share([True] * 10).low == pytest.approx(0.722, abs=1e-3)
    constant = bootstrapped(torch.full((5,), 0.25))
    assert constant.low == constant.high == constant.mean == 0.25
