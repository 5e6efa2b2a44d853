import pytest

from avlens.datasets.audioset import read_audioset
from avlens.errors import DatasetError

TABLE = """# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=2
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"
-0abc, 30.500, 40.500, "/m/09x0r"
"""
CLASSES = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/068hy,"Domestic animals, pets"\n2,/m/07q6cd_,Squeak\n'


@pytest.fixture
def tables(tmp_path):
    (tmp_path / "eval_segments.csv").write_text(TABLE)
    (tmp_path / "class_labels_indices.csv").write_text(CLASSES)
    return tmp_path / "eval_segments.csv", tmp_path / "class_labels_indices.csv"


def test_each_segment_becomes_a_sample(tables, tmp_path):
    first, second = read_audioset(tables[0], tmp_path, classes=tables[1])
    assert first.record["sounds"] == ["Domestic animals, pets", "Squeak"]
    assert (first.path, first.start, first.end) == (tmp_path / "--4gqARaEJE.mp4", None, None)
    assert (second.id, second.label) == ("-0abc_30500", "Speech") and second.question.startswith("Describe")


def test_files_may_be_whole_videos_or_named_otherwise(tables, tmp_path):
    options = {"names": "{id}_{start}_{end_ms}.webm", "whole_videos": True, "question": "what ?"}
    _, second = read_audioset(tables[0], tmp_path, **options)
    assert second.path.name == "-0abc_30.5_40500.webm" and (second.start, second.end) == (30.5, 40.5)
    assert second.label == "/m/09x0r" and second.question == "what ?"


def test_broken_tables_are_refused_by_line(tables, tmp_path):
    tables[0].write_text(TABLE + "onlyid, 1.0\n")
    with pytest.raises(DatasetError, match="line 6 is 'onlyid, 1.0'"):
        list(read_audioset(tables[0], tmp_path))
    tables[0].write_text(TABLE.replace("09x0r", "unheard"))
    with pytest.raises(DatasetError, match="none of the 3 classes"):
        list(read_audioset(tables[0], tmp_path, classes=tables[1]))
    with pytest.raises(DatasetError, match="index, mid and display_name"):
        list(read_audioset(tables[0], tmp_path, classes=tables[0]))
