import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avlens.analyses import selection
from avlens.analyses.selection import (
    chosen_letter,
    dominant_modality,
    judge,
    read_judgements,
    unimodal_dominance,
)
from avlens.errors import DatasetError, MediaError, PromptError, RecordError
from avlens.records import read_records
from avlens.samples import Opened, Sample, open_clip
from avlens.testing import tiny_clip, tiny_model

OPTIONS = ("a bell", "a drum")


@pytest.fixture(scope="module")
def model():
    return tiny_model(n_layers=2)


@pytest.fixture
def samples(tmp_path):
    """Three clips and two broken ones; all but the last labelled."""
    made = [Sample(str(i), tmp_path / f"{i}.mp4", "what do you hear ?", OPTIONS, "AB"[i % 2]) for i in range(5)]
    for i in (0, 2, 3):
        tiny_clip(1.0, seed=i, size=(56, 56)).to_file(made[i].path)
    made[4].path.write_text("no video")
    return made


def read(sample):
    return tiny_clip(1.0, seed=int(sample.id), size=(56, 56))


letters = st.sampled_from(["", "A", "B", "C"])


@given(letters, letters, letters)
def test_the_rule(both, audio, video):
    found = dominant_modality(both, audio, video)
    assert (found == "audio") == (bool(both and video) and both == audio != video)
    assert (found == "video") == (bool(both and audio) and both == video != audio)
    swapped = {"audio": "video", "video": "audio", "neither": "neither"}
    assert dominant_modality(both, video, audio) == swapped[found]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("B.", "B"), (" (C) a cat", "C"), ("**B**: dog", "B"), ("D", ""), ("Barking", ""), ("", ""), ("b", ""),
        ("It is a Cat.", "C"), ("a dog or a cat", ""), ("cats", ""), ("A", "A"), ("The answer is B", ""),
    ],
)  # fmt: skip
def test_the_letter_of_an_answer(text, letter):
    assert chosen_letter(text, ("a car", "a dog", "a cat")) == letter


def test_asked_openly_an_answer_begins_with_no_letter():
    options = ("a car", "a dog", "a cat")
    assert [chosen_letter(text, options, "words") for text in ("A dog", "B", "a cat or a dog")] == ["B", "", ""]


def test_asked_openly_options_are_not_listed_and_p_is_that_of_words(model, samples):
    sample = replace(samples[0], options=("bell", "drum"))
    listed, openly = (selection.prompt_of(model, read(sample), sample, ask) for ask in ("letters", "words"))
    assert len(openly.tokens) < len(listed.tokens) and openly.record["options"] == ()
    assert [selection.answer_of(sample, "B", ask) for ask in ("letters", "words")] == ["B", "drum"]
    answer = selection._asked(model, openly, 1)
    p = selection._probabilities(model, answer, ("bell", "drum"), "first")
    ids = [model.tokenizer(form)["input_ids"][0] for form in ("drum", " drum")]
    assert p[1] == pytest.approx(float(model(openly)[0, -1].softmax(-1)[ids].max()), abs=1e-6)
    assert all(math.isnan(one) for one in selection._probabilities(model, answer, ("a bell", "a drum"), "first"))


def answering(monkeypatch, answers):
    """Let the model write, for a clip with sound and sight, without sight, and without sound, these texts."""
    asked = selection._asked

    def written(model, inputs, max_new_tokens):
        answer = asked(model, inputs, max_new_tokens)
        return type(answer)(next(texts), answer.steps)

    texts = iter(answers)
    monkeypatch.setattr(selection, "_asked", written)


@pytest.mark.parametrize(
    ("answers", "dominant", "o_corrupt"),
    [(["A", "A", "B"], "audio", "B"), (["A", "B", "A"], "video", "B"), (["A", "A", "A"], "neither", "")],
)
def test_a_judgement_by_hand(monkeypatch, model, samples, answers, dominant, o_corrupt):
    answering(monkeypatch, answers)
    opened = open_clip(samples[0])
    one = judge(model, opened)
    assert (one.dominant, one.o_clean, one.o_corrupt, one.correct) == (dominant, "A", o_corrupt, True)
    if dominant == "neither":
        assert all(map(math.isnan, one.p_clean + one.p_corrupt))
        return
    clip, question = opened.clip, samples[0].question
    corrupted = clip.silenced() if dominant == "audio" else clip.blanked()
    for p, shown in ((one.p_clean, clip), (one.p_corrupt, corrupted)):
        spread = model(model.prepare(shown, question, options=OPTIONS))[0, -1].softmax(-1)
        ids = [[int(model.to_tokens(text)[0, 0]) for text in (letter, f" {letter}")] for letter in "AB"]
        assert p == pytest.approx([max(float(spread[i]) for i in pair) for pair in ids], rel=1e-4)


def test_the_largest_probability_of_all_steps_is_no_smaller(monkeypatch, model, samples):
    pairs = {}
    for step in ("first", "max"):
        answering(monkeypatch, ["A", "A", "B"])
        pairs[step] = judge(model, open_clip(samples[0]), step=step, max_new_tokens=4).p_clean
        monkeypatch.undo()
    assert all(most >= first for first, most in zip(pairs["first"], pairs["max"], strict=True))
    assert pairs["first"] != pairs["max"]


@pytest.mark.parametrize("corrupt", ["zero", "swap", "noise", "mean"])
def test_corruption_keeps_one_modality_and_the_layout(model, samples, corrupt):
    other = Opened(samples[3], tiny_clip(2.0, seed=9, size=(28, 84), fps=4.0), "")
    opened = replace(open_clip(samples[0]), other=other)
    clips = selection.three_clips(opened, corrupt, seed=0)
    both, audio, video = (clips[run] for run in ("both", "audio", "video"))
    assert torch.equal(audio.waveform, both.waveform) and not torch.equal(audio.frames, both.frames)
    assert torch.equal(video.frames, both.frames) and not torch.equal(video.waveform, both.waveform)
    one = judge(model, opened, corrupt=corrupt)
    assert set(one.answers) == {"both", "audio", "video"} and not one.problem
    if corrupt == "mean":
        assert len(audio.frames.flatten(2).unique(dim=2).flatten()) <= 3 * len(audio.frames)
        assert video.waveform.unique().numel() == 1


def test_broken_clips_are_skipped_with_their_reason(model, samples):
    found = unimodal_dominance(model, samples)
    assert [one.id for one in found.skipped] == ["1", "4"] and "1.mp4" in found.skipped[0].problem
    frame = found.to_frame()
    assert frame.index.tolist() == list("01234") and frame.loc["1", "correct"] is None
    assert "2 skipped" in repr(found) and "of 5 samples" in repr(found)
    silent = judge(model, Opened(samples[0], tiny_clip(1.0, audio=False), ""))
    assert "Give a clip with frames and sound" in silent.problem and silent.correct is None


def test_a_run_that_ended_goes_on_and_its_folder_only_grows(model, samples, tmp_path):
    folder, asked = tmp_path / "out" / "judged", []

    def reading(sample):
        asked.append(sample.id)
        if sample.id == "3" and len(asked) < 5:
            raise KeyboardInterrupt
        return read(sample)

    with pytest.raises(KeyboardInterrupt):
        unimodal_dominance(model, samples, read=reading, save_to=folder)
    before = {path: path.read_bytes() for path in folder.glob("*.jsonl")}
    assert list(read_judgements(folder)) == ["0", "1", "2"]
    found = unimodal_dominance(model, samples, read=reading, save_to=folder)
    assert asked == ["0", "1", "2", "3", "3", "4"] and all(path.read_bytes() == text for path, text in before.items())
    again = unimodal_dominance(model, samples, read=reading, save_to=folder)
    assert len(asked) == 6 and repr(again.judgements) == repr(found.judgements)
    fresh = unimodal_dominance(model, samples, read=read)
    assert repr(fresh.judgements) == repr(found.judgements)


def test_what_was_skipped_is_tried_again(model, samples, tmp_path):
    folder = tmp_path / "judged"
    unimodal_dominance(model, samples, save_to=folder)
    unimodal_dominance(model, samples, save_to=folder)
    assert len(list(folder.glob("*.jsonl"))) == 1  # still broken: nothing new to say
    tiny_clip(1.0, size=(56, 56)).to_file(samples[1].path)
    found = unimodal_dominance(model, samples, save_to=folder)
    assert [one.id for one in found.skipped] == ["4"] and len(list(folder.glob("*.jsonl"))) == 2
    assert not read_judgements(folder)["1"].problem and read_judgements(folder)["4"].problem


def test_a_folder_of_other_settings_is_refused(model, samples, tmp_path):
    folder = tmp_path / "judged"
    unimodal_dominance(model, samples[:1], save_to=folder)
    with pytest.raises(RecordError, match="Write to another folder"):
        unimodal_dominance(model, samples[:1], save_to=folder, max_new_tokens=5)
    turned = replace(samples[0], options=OPTIONS[::-1], label="B")
    with pytest.raises(RecordError, match="answers another question about '0'"):
        unimodal_dominance(model, [turned], save_to=folder)
    both = [unimodal_dominance(model, samples[:1], save_to=folder, corrupt=corrupt) for corrupt in ("noise", "zero")]
    assert len(read_records(folder)) == 2 and both[0].made_by["corrupt"] == "noise"


def test_correct_answers_may_be_required(monkeypatch, model, samples):
    some = [samples[0], samples[3]]
    for require, audio, video in ((False, ["0"], ["3"]), (True, ["0"], [])):
        answering(monkeypatch, ["A", "A", "B", "A", "B", "A"])  # the label of the second is B
        found = unimodal_dominance(model, some, require_correct=require, read=read)
        monkeypatch.undo()
        assert [one.id for one in found.audio_dominant] == audio and [one.id for one in found.video_dominant] == video
        assert found.to_frame()["correct"].tolist() == [True, False]


def test_swaps_come_from_the_nearest_sample_before_that_has_another_label_or_after(samples):
    opened = []

    def reading(sample):
        opened.append(sample.id)
        if sample.id == "1":
            raise MediaError("broken")
        return read(sample)

    assert selection.partner_of(samples, 0, reading).sample.id == "3"
    assert opened == ["1", "3"]  # 2 and 4 have the same label, 1 is broken
    assert selection.partner_of(samples[:1], 0, reading) is None
    assert [one.id for one in selection.others_of(samples, 4)] == ["3", "1"]
    assert [one.id for one in selection.others_of(samples[:4], 2)] == ["1", "3"]


def test_swapping_without_another_clip_is_a_reason_to_skip(model, samples):
    found = unimodal_dominance(model, samples[:1], corrupt="swap")
    assert "Give another clip" in found.skipped[0].problem


def test_a_question_that_lists_its_options_is_asked_as_it_is(model, samples):
    clip = read(samples[0])
    listing = Sample("x", samples[0].path, "what ?\n\nA. a bell\nB. a drum\nonly a letter", OPTIONS)
    assert selection.prompt_of(model, clip, listing).record["options"] == ()
    assert selection.prompt_of(model, clip, samples[0]).record["options"] == OPTIONS


def test_layouts_that_differ_are_refused(monkeypatch, model, samples):
    monkeypatch.setattr(
        selection,
        "three_clips",
        lambda opened, *_: {"both": opened.clip, "audio": tiny_clip(3.0), "video": opened.clip},
    )
    with pytest.raises(PromptError, match="Corrupt with 'zero'"):
        judge(model, open_clip(samples[0]))


def test_a_prompt_that_cannot_be_made_is_a_reason_to_skip(model, samples):
    one = judge(model, open_clip(replace(samples[0], question="what is <|VIDEO|> ?")))
    assert one.problem and not one.answers


def test_samples_that_cannot_be_judged_are_refused(model, samples):
    with pytest.raises(DatasetError, match="two or more to choose from"):
        unimodal_dominance(model, [Sample("x", samples[0].path, "what ?")])
    with pytest.raises(DatasetError, match="Give each its own"):
        unimodal_dominance(model, [samples[0], samples[0]])
