import itertools
import json

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avlens.data import read_data
from avlens.datasets.counterfactual import MANIFEST, Counterfactuals, mismatched, write_counterfactuals
from avlens.datasets.synthetic import synthetic_clips
from avlens.errors import DatasetError, MediaError
from avlens.media import Clip
from avlens.samples import Sample


@given(st.integers(2, 6), st.integers(0, 99))
def test_no_other_derangement_fits_less(n, seed):
    vectors = np.random.default_rng(seed).normal(size=(n, 3))
    found = mismatched([f"caption {i}" for i in range(n)], embed=lambda texts: vectors)
    similarity = vectors @ vectors.T
    assert sorted(found.source) == list(range(n)) and (found.source != np.arange(n)).all()
    sums = [
        sum(similarity[i, j] for i, j in enumerate(order))
        for order in itertools.permutations(range(n))
        if all(i != j for i, j in enumerate(order))
    ]
    assert found.similarity.sum() == pytest.approx(min(sums))
    assert found.chance == pytest.approx(np.mean([similarity[i, j] for i, j in itertools.permutations(range(n), 2)]))


def test_the_same_sounds_are_not_swapped_and_words_count_by_default():
    found = mismatched(["a dog barks", "A dog barks ", "rain falls", "a puppy barks"])
    assert found.source[0] not in (0, 1) and found.source[1] not in (0, 1)
    assert {found.source[0], found.source[1]} == {2, 3}
    with pytest.raises(DatasetError, match="the same caption"):
        mismatched(["a", "a", "b"])
    with pytest.raises(DatasetError, match="two or more"):
        mismatched(["a"])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    clips = synthetic_clips(4, seed=2, blank=0, silent=0, seconds=2, fps=5.0)
    samples = [
        Sample(id=f"c/{i}", path=sample.clip.to_file(folder / f"{i}.mp4"), question="")
        for i, sample in enumerate(clips)
    ]
    return samples, [f"{sample.content.sound} {i}" for i, sample in enumerate(clips)]


def test_files_keep_their_pictures_and_get_the_others_sound(files, tmp_path):
    samples, captions = files
    made = write_counterfactuals(samples, captions, tmp_path / "new", factual=0.5, seed=1, video_captions=["seen"] * 4)
    assert sum(clip.counterfactual for clip in made.clips) == 2 and not made.problems
    by_id = {sample.id: i for i, sample in enumerate(samples)}
    for clip in made.clips:
        own, donor = (Clip.from_file(samples[by_id[name]].path, fps=5) for name in (clip.video_id, clip.audio_id))
        new = Clip.from_file(made.folder / clip.file, fps=5)
        assert torch.equal(new.frames, own.frames) and (clip.audio_id != clip.video_id) == clip.counterfactual
        assert clip.audio_captions == (captions[by_id[clip.audio_id]],) and clip.video_captions == ("seen",)
        n = min(len(new.waveform), len(donor.waveform))
        heard, meant = new.waveform[1000 : n - 3000], donor.waveform[1000 : n - 3000]
        assert float(torch.corrcoef(torch.stack([heard, meant]))[0, 1]) > 0.9
    again = Counterfactuals.read(made.folder)
    assert again.clips == made.clips and again.made_by["seed"] == 1
    listed = list(again.samples("what do you hear ?"))
    assert len(listed) == 4 and listed[0].record["audio_captions"] and "Counterfactuals(2 factual, 2" in repr(again)
    assert Clip.from_file(listed[0].path).has_audio


def test_what_cannot_be_written_is_said_in_the_manifest(files, tmp_path):
    samples, captions = files
    broken = [
        *samples[:2],
        Sample(id="gone", path=tmp_path / "gone.mp4", question=""),
        Sample("cut", samples[0].path, "", start=1.0),
    ]
    made = write_counterfactuals(broken, captions, tmp_path / "new", factual=0)
    assert {"gone", "cut"} <= set(made.problems) and "does not exist" in made.problems["gone"]
    assert len(list(made.samples())) + len(made.problems) == 4 and made.to_frame()["counterfactual"].all()


def test_the_folder_is_a_data_set_whose_files_lie_in_it(files, tmp_path):
    made = write_counterfactuals(*files, tmp_path, factual=0.5, seed=1)
    data = read_data(tmp_path, task="describe")
    assert [sample.id for sample in data.samples] == [clip.id for clip in made.clips]
    assert data.truth(data.samples[0]) == [*made.clips[0].video_captions, *made.clips[0].audio_captions]
    path = tmp_path / MANIFEST
    path.write_text(path.read_text().replace(made.clips[0].file, "../outside.mp4"))
    with pytest.raises(DatasetError, match="not below"):
        list(Counterfactuals.read(tmp_path).samples())


def test_refusals(files, tmp_path):
    samples, captions = files
    with pytest.raises(DatasetError, match="one for each"):
        write_counterfactuals(samples, captions[:2], tmp_path)
    with pytest.raises(DatasetError, match="an id of its own"):
        write_counterfactuals([samples[0], samples[0]], captions[:2], tmp_path)
    with pytest.raises(DatasetError, match="factual is 0.75"):
        write_counterfactuals(samples, captions, tmp_path, factual=0.75)
    with pytest.raises(DatasetError, match="does not exist"):
        Counterfactuals.read(tmp_path / "nothing")
    (tmp_path / MANIFEST).write_text(json.dumps([1]))
    with pytest.raises(DatasetError, match="no manifest"):
        Counterfactuals.read(tmp_path)


def test_dubbing_copies_packets_and_fits_the_sound(files, tmp_path):
    samples, _ = files
    long = Clip(waveform=torch.linspace(-0.5, 0.5, 16000 * 5), sample_rate=16000)
    for sound in (long, long.cut(0, 0.3)):
        for suffix in (".mp4", ".mkv"):
            path = sound.dub(samples[0].path, tmp_path / f"new{suffix}")
            with av.open(str(path)) as new, av.open(str(samples[0].path)) as old:
                packets = [[bytes(p) for p in file.demux(video=0) if p.size] for file in (new, old)]
            assert len(packets[0]) == len(packets[1]) == 10
            if suffix == ".mp4":
                assert packets[0] == packets[1]
            assert len(Clip.from_file(path).waveform) / 16000 == pytest.approx(2.0, abs=0.1)
    with pytest.raises(MediaError, match="no pictures"):
        long.dub(long.to_file(tmp_path / "sound.wav"), tmp_path / "x.mp4")
    with pytest.raises(MediaError, match="does not exist"):
        long.dub(tmp_path / "none.mp4", tmp_path / "x.mp4")
    with pytest.raises(MediaError, match=r"End it in .mp4 or .mkv"):
        long.dub(samples[0].path, tmp_path / "x.avi")
    with pytest.raises(MediaError, match="needs sound"):
        long_film = Clip.from_file(samples[0].path).without_audio()
        long_film.dub(samples[0].path, tmp_path / "x.mp4")
