"""Files that a data set names stay in its folder."""

import json

import pytest

from avlens.data import read_data, read_synthetic
from avlens.datasets.audioset import read_audioset
from avlens.datasets.avhbench import read_avhbench
from avlens.datasets.crossmodal_hub import read_prompts
from avlens.datasets.questions import read_questions
from avlens.datasets.synthetic import synthetic_clips
from avlens.datasets.vggsound import read_vggsound
from avlens.errors import DatasetError
from avlens.samples import inside


@pytest.mark.parametrize("name", ["", "..", "../x", "a/../../x", "/x", "./../x", "C:\\x", "\\\\host\\x", "a\0b"])
def test_paths_that_climb_out_are_refused(tmp_path, name):
    with pytest.raises(DatasetError, match="not below"):
        inside(tmp_path, name, "here")


def test_paths_that_stay_are_kept(tmp_path):
    for name in ("x", "a/b.mp4", "a/../b", "..x/y", "a..b"):
        assert inside(tmp_path, name, "here") == tmp_path / name


def test_no_reader_lets_a_table_name_a_file_elsewhere(tmp_path):
    table = tmp_path / "table"
    prompt = [{"role": "user", "content": [{"type": "video", "video": "../../x.mp4"}, {"type": "text", "text": "?"}]}]
    for text, reader in (
        ("../../x,1,dog,test\n../../y,1,cat,test\n", lambda: read_vggsound(table, tmp_path, n_options=2)),
        ('../../x, 0, 10, "/m/1"\n', lambda: read_audioset(table, tmp_path)),
        (
            json.dumps([{"video_id": "../x", "task": "", "text": "", "label": ""}]),
            lambda: read_avhbench(table, tmp_path),
        ),
        (json.dumps([prompt]), lambda: read_prompts(table, tmp_path)),
        (json.dumps({"clip": "/etc/passwd"}), lambda: read_questions(table, tmp_path)),
    ):
        table.write_text(text)
        with pytest.raises(DatasetError, match="not below"):
            list(reader())


def test_synthetic_samples_are_the_clips_of_their_seed():
    data = read_data("synthetic:3", seed=4)
    made = synthetic_clips(3, seed=4, seconds=4.0, blank=0, silent=0, matching=0)
    assert [read_synthetic(one).sha256 for one in data.samples] == [one.clip.sha256 for one in made]
    assert data.samples[1].record["objects"] == [made[1].content.shape, made[1].content.sound]
