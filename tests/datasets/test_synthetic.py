"""Clips with known content: seeded, honest about what they hold, and real files."""

import numpy as np
import pytest
import torch

from avlens import Clip
from avlens.datasets.synthetic import (
    CHOICES,
    QUESTIONS,
    SHAPES,
    SOUNDS,
    Content,
    choice_of,
    counterfactual_pairs,
    draw_clip,
    pair_of,
    synthetic_clips,
)


def test_a_clip_depends_on_seed_and_index_alone():
    few, many = synthetic_clips(2, seed=7), synthetic_clips(4, seed=7)
    assert [one.clip.sha256 for one in few] == [one.clip.sha256 for one in many[:2]]
    assert few[1].content == many[1].content
    assert synthetic_clips(1, seed=8)[0].clip.sha256 != few[0].clip.sha256


def test_answers_by_hand():
    content = Content("square", "red", "left", "bell")
    assert {question: content.answer(question) for question in QUESTIONS} == {
        "see": "a red square", "hear": "a bell", "move": "left", "match": "no", "object": "square", "sound": "bell",
        "describe": "a red square moves left and a bell sounds",
    }  # fmt: skip
    blank, silent = Content(None, "red", "left", "bell"), Content("square", "red", "left", None)
    assert [blank.answer(q) for q in ("see", "move", "match", "object")] == ["nothing", "nothing", "no", "circle"]
    assert blank.answer("describe") == "nothing moves and a bell sounds"
    assert [silent.answer(q) for q in ("hear", "match", "sound")] == ["nothing", "no", "drum"]
    assert silent.answer("describe") == "a red square moves left and nothing sounds"
    assert Content("circle", "red", "up", "bell").answer("match") == "yes"


def test_pairs_go_both_ways():
    assert all(pair_of(pair_of(one)) == one for one in (*SHAPES, *SOUNDS))
    assert pair_of(None) == "nothing"


def test_shares_are_as_asked():
    contents = [sample.content for sample in synthetic_clips(300, seed=1, seconds=0.5)]
    assert np.mean([one.shape is None for one in contents]) == pytest.approx(0.15, abs=0.06)
    assert np.mean([one.sound is None for one in contents]) == pytest.approx(0.15, abs=0.06)
    assert not any(one.shape is None and one.sound is None for one in contents)
    unmatched = synthetic_clips(50, seed=1, seconds=0.5, blank=0, silent=0, matching=1)
    assert all(sample.content.matches for sample in unmatched)


def test_frames_show_what_they_should():
    content = Content("circle", "green", "right", None)
    frames = draw_clip(content, np.random.default_rng(0)).frames.float()
    green = (frames[:, 1] - frames[:, 0]) > 80
    across = [float(one.nonzero()[:, 1].float().mean()) for one in green]
    assert across == sorted(across) and across[-1] - across[0] > 15
    assert (frames[:, :, 4:8, 4:8] > 200).all() and (frames[:, 1, 76:80, 76:80] < 100).all()  # the two marks


def test_silence_is_silent_and_sound_is_not():
    for seed in range(4):
        quiet = draw_clip(Content("bar", "red", "up", None), np.random.default_rng(seed)).waveform
        loud = draw_clip(Content("bar", "red", "up", "horn"), np.random.default_rng(seed)).waveform
        assert quiet.abs().max() < 0.01 < loud.abs().max()


def test_counterfactual_pairs_differ_in_sound_only():
    for one, other in counterfactual_pairs(3, seed=2):
        assert torch.equal(one.clip.frames, other.clip.frames) and one.content.shape == other.content.shape
        assert one.content.sound != other.content.sound
        assert not torch.equal(one.clip.waveform, other.clip.waveform)


@pytest.mark.parametrize("question", CHOICES)
def test_options_hold_the_right_answer_once(question):
    for sample in synthetic_clips(20, seed=3, seconds=0.5):
        asked = sample.ask_choice(question)
        assert len(set(asked.options)) == 4
        assert asked.options["ABCD".index(asked.answer)] == sample.content.answer(question)
        assert sample.ask_choice(question) == asked
    generator = np.random.default_rng(0)
    letters = {choice_of(Content("ring", "red", "up", "bell"), question, generator).answer for _ in range(40)}
    assert letters == set("ABCD")


def test_a_file_holds_the_same_clip(tmp_path):
    sample = synthetic_clips(1, seed=4, blank=0)[0]
    read = Clip.from_file(sample.clip.to_file(tmp_path / "clip.mp4"))
    assert read.frames.shape == sample.clip.frames.shape and len(read.waveform) == len(sample.clip.waveform)
    assert (read.frames.float() - sample.clip.frames.float()).abs().mean() < 8
