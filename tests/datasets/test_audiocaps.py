import pytest

from avlens.data import read_data
from avlens.datasets.audiocaps import read_audiocaps
from avlens.errors import DatasetError

TABLE = """audiocap_id,youtube_id,start_time,caption
97151,vfY_TJq7n_U,130,"Rustling occurs, ducks quack and water splashes"
97152,tdWhHV3X25Q,60,An audience gives applause
97153,vfY_TJq7n_U,130,Ducks are quacking
97154,vfY_TJq7n_U,20.5,A man speaks
"""


@pytest.fixture
def table(tmp_path):
    (tmp_path / "val.csv").write_text(TABLE)
    return tmp_path / "val.csv"


def test_each_clip_becomes_a_sample_with_all_its_captions(table, tmp_path):
    ducks, audience, man = read_audiocaps(table, tmp_path)
    assert ducks.record["audio_captions"] == ["Rustling occurs, ducks quack and water splashes", "Ducks are quacking"]
    assert (ducks.id, ducks.path, ducks.label) == (
        "vfY_TJq7n_U_130", tmp_path / "vfY_TJq7n_U_130.mp4", "Rustling occurs, ducks quack and water splashes",
    )  # fmt: skip
    assert (audience.start, audience.end) == (None, None) and man.id == "vfY_TJq7n_U_20.5"


def test_files_may_be_whole_videos_or_named_otherwise(table, tmp_path):
    options = {"names": "{audiocap}/{id}.webm", "whole_videos": True, "question": "what ?"}
    ducks, _, man = read_audiocaps(table, tmp_path, **options)
    assert ducks.path == tmp_path / "97151" / "vfY_TJq7n_U.webm" and ducks.question == "what ?"
    assert (ducks.start, ducks.end, man.start, man.end) == (130, 140, 20.5, 30.5)


def test_it_is_known_by_its_header_and_tells_what_is_heard(table, tmp_path):
    data = read_data(table, tmp_path, task="describe")
    assert data.truth(data.samples[0]) == ["Rustling occurs, ducks quack and water splashes", "Ducks are quacking"]
    assert "duck" in data.vocabulary.objects(data.truth(data.samples[0])[0])


def test_broken_tables_are_refused_by_line(table, tmp_path):
    table.write_text(TABLE + "97155,abc,soon,A bell\n")
    with pytest.raises(DatasetError, match="line 6 is '97155,abc,soon,A bell'"):
        list(read_audiocaps(table, tmp_path))
    table.write_text(TABLE + "97155,abc,1\n")
    with pytest.raises(DatasetError, match="line 6 is"):
        list(read_audiocaps(table, tmp_path))
    table.write_text(TABLE + "97155,../../etc/x,1,A bell\n")
    with pytest.raises(DatasetError, match="not below"):
        list(read_audiocaps(table, tmp_path))
    table.write_text(TABLE.replace("caption\n", "text\n", 1))
    with pytest.raises(DatasetError, match="Give audiocap_id, youtube_id"):
        list(read_audiocaps(table, tmp_path))
