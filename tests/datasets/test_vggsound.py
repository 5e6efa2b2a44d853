import pytest

from avlens.data import read_data
from avlens.datasets.vggsound import read_vggsound
from avlens.errors import DatasetError

EVENTS = ["dog barking", "donkey, ass braying", "people marching", "rope skipping", "sailing"]


@pytest.fixture
def table(tmp_path):
    lines = [f'clip-{i},{10 * i},"{event}",{("train", "test")[i % 2]}' for i, event in enumerate(EVENTS)]
    path = tmp_path / "vggsound.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_each_line_becomes_a_choice(table, tmp_path):
    samples = list(read_vggsound(table, tmp_path, n_options=3))
    assert [sample.id for sample in samples] == [f"clip-{i}_{10 * i:06d}" for i in range(5)]
    for sample, event in zip(samples, EVENTS, strict=True):
        assert sample.options[sample.letters.index(sample.label)] == event == sample.record["event"]
        assert len(set(sample.options)) == 3 and sample.lists_options
        assert sample.question.startswith("Classify the sounding object") and sample.question.endswith("(A–C).")
        assert sample.path == tmp_path / f"{sample.id}.mp4"


def test_options_depend_on_seed_and_clip_alone(table, tmp_path):
    first = {sample.id: sample for sample in read_vggsound(table, tmp_path, n_options=3)}
    tests = list(read_vggsound(table, tmp_path, n_options=3, split="test"))
    assert len(tests) == 2 and all(sample == first[sample.id] for sample in tests)
    others = [list(read_vggsound(table, tmp_path, n_options=3, seed=seed)) for seed in range(6)]
    assert len({sample.options for samples in others for sample in samples[:1]}) > 1
    assert len({samples[0].label for samples in others}) > 1


def test_a_table_of_fewer_events_lists_them_all(table, tmp_path):
    samples = list(read_vggsound(table, tmp_path, n_options=None))
    assert all(set(sample.options) == set(EVENTS) for sample in samples) and samples[0].question.endswith("(A–E).")
    found = read_data(table, tmp_path)
    assert list(found.samples) == samples and found.chance == pytest.approx(1 / 5)
    table.write_text("\n".join(f"clip,{i},event {i},test" for i in range(30)))
    assert {len(sample.options) for sample in read_data(table, tmp_path).samples} == {20}


def test_lines_of_another_kind_and_too_many_options_are_refused(table, tmp_path):
    with pytest.raises(DatasetError, match="Ask for 1 to 5 options, not 20"):
        next(read_vggsound(table, tmp_path))
    table.write_text(table.read_text() + "clip,soon,sailing,test\n")
    with pytest.raises(DatasetError, match="line 6 is 'clip,soon,sailing,test'"):
        next(read_vggsound(table, tmp_path, n_options=2))
    for line in ("clip,1,,test", ",1,sailing,test", 'clip,1,"sailing,test\nclip-0,0,"dog",test'):
        table.write_text(line + "\n")
        with pytest.raises(DatasetError, match="Write YouTube id"):
            next(read_vggsound(table, tmp_path, n_options=1))
