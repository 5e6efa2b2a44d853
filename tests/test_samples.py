import shutil
from pathlib import Path

import pytest
import torch

from avlens.errors import DatasetError
from avlens.samples import Sample, choice_question, open_clip, open_clips, read_clip
from avlens.testing import tiny_clip


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return tiny_clip(2.0, fps=4.0, size=(64, 64)).to_file(tmp_path_factory.mktemp("films") / "one.mp4")


def test_options_have_letters_and_the_label_is_one_of_them():
    sample = Sample("a", Path("a.mp4"), "which ?", options=("dog", "cat"), label="B")
    assert sample.letters == ("A", "B") and not sample.lists_options
    with pytest.raises(DatasetError, match="Give the letter of the right option"):
        Sample("a", Path("a.mp4"), "which ?", options=("dog", "cat"), label="C")
    with pytest.raises(DatasetError, match="at most 26"):
        Sample("a", Path("a.mp4"), "which ?", options=tuple("x" * 27))


def test_a_question_says_whether_it_lists_the_options():
    options = ("dog", "cat")
    question = choice_question("Which ?", options, "Answer with a letter.")
    assert question == "Which ?\n\nA. dog\nB. cat\nAnswer with a letter."
    assert Sample("a", Path("a.mp4"), question, options=options).lists_options
    assert not Sample("a", Path("a.mp4"), question, options=("cat", "dog")).lists_options
    assert not Sample("a", Path("a.mp4"), question).lists_options


def test_a_piece_of_a_file_is_read(film):
    whole, piece = read_clip(Sample("a", film, "?")), read_clip(Sample("a", film, "?", start=0.5, end=1.5))
    assert whole.has_audio and whole.has_video
    assert len(piece.waveform) == pytest.approx(16000, abs=1100) and whole.seconds > piece.seconds


def test_stills_and_a_sound_make_a_clip(film, tmp_path):
    for i in range(3):
        tiny_clip(0.5, seed=i, size=(64, 64), audio=False).to_file(tmp_path / f"{i}.mp4")
    stills = tuple(tmp_path / f"{i}.mp4" for i in range(3))
    clip = read_clip(Sample("a", tmp_path, "?", stills=stills, sound=film))
    assert clip.frames.shape == (3, 3, 64, 64) and clip.fps == 2.0
    assert torch.equal(clip.waveform, read_clip(Sample("a", film, "?")).waveform)
    tiny_clip(0.5, size=(32, 64), audio=False).to_file(tmp_path / "3.mp4")
    opened = open_clip(Sample("a", tmp_path, "?", stills=(*stills, tmp_path / "3.mp4")))
    assert opened.clip is None and "stills of one size" in opened.problem


def test_broken_clips_come_back_with_their_reason(film, tmp_path):
    shutil.copy(film, tmp_path / "whole.mp4")
    (tmp_path / "cut.mp4").write_bytes(film.read_bytes()[:200])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    names = ("cut", "missing", "whole", "text", "empty", "folder")
    opened = list(open_clips(Sample(name, tmp_path / f"{name}.mp4", "?") for name in names))
    assert [one.sample.id for one in opened if one.clip is not None] == ["whole"]
    assert all(f"{one.sample.id}.mp4" in one.problem for one in opened if one.clip is None)


def test_clips_are_opened_one_at_a_time(film):
    asked = []
    samples = (asked.append(i) or Sample(str(i), film, "?") for i in range(5))
    next(open_clips(samples))
    assert asked == [0]
