import json

import pytest

from avlens.datasets.avhbench import read_avhbench
from avlens.errors import DatasetError

HEARD, SEEN = "Video-driven Audio Hallucination", "Audio-driven Video Hallucination"
ONE = [
    {"video_id": "00001", "task": HEARD, "text": "Is the dog making sound in the audio?", "label": "Yes"},
    {"video_id": "00001", "task": SEEN, "text": "Is the dog visible in the video?", "label": "No"},
]
TWO = [{"video_id": "00002", "task": SEEN, "text": "Is the car visible in the video?", "label": "Yes"}]


def test_one_file_and_a_folder_of_files_hold_the_same(tmp_path):
    (tmp_path / "all.json").write_text(json.dumps(ONE + TWO))
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "00002.json").write_text(json.dumps(TWO))
    (tmp_path / "json" / "00001.json").write_text(json.dumps(ONE))
    samples = list(read_avhbench(tmp_path / "all.json", tmp_path))
    assert samples == list(read_avhbench(tmp_path / "json", tmp_path))
    assert [sample.id for sample in samples] == ["00001/0", "00001/1", "00002/0"]
    assert (samples[1].label, samples[1].path) == ("No", tmp_path / "00001.mp4")
    seen = list(read_avhbench(tmp_path / "all.json", tmp_path, task=SEEN, suffix="_swap.mp4"))
    assert [sample.id for sample in seen] == ["00001/1", "00002/0"] and seen[0].path.name == "00001_swap.mp4"


@pytest.mark.parametrize(
    ("text", "advice"),
    [("{", "Download it again"), ("{}", "Give a list of records"), ('[{"video_id": "1"}]', "record 0 lacks 'task'")],
)
def test_other_files_are_refused(tmp_path, text, advice):
    (tmp_path / "qa.json").write_text(text)
    with pytest.raises(DatasetError, match=advice):
        list(read_avhbench(tmp_path / "qa.json", tmp_path))
