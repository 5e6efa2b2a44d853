"""Files of data sets that hold anything: read, or refused with a DatasetError that names the file."""

import json
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avlens.data import read_data
from avlens.datasets.counterfactual import Counterfactuals
from avlens.datasets.crossmodal_hub import read_history, read_prompts, read_results, read_sounding_chunks
from avlens.datasets.questions import read_questions
from avlens.errors import DatasetError
from avlens.samples import Sample, inside

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(["A", "../x", "/x"])
)
KEYS = st.sampled_from(
    [
        "clip", "id", "question", "options", "label", "start", "end", "video_id", "task", "text", "role", "content", "type",
        "video", "choices", "audio", "important_blocks", "mds", "v_score", "a_score",
    ]
)  # fmt: skip
TREES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=6)), max_leaves=12
)  # fmt: skip


@given(st.lists(TREES, max_size=3), st.sampled_from(["jsonl", "json", "csv"]), st.binary(max_size=20))
@settings(max_examples=150, deadline=None)
def test_files_of_any_content_are_read_or_refused(tmp_path_factory, records, suffix, tail):
    path = tmp_path_factory.getbasetemp() / f"data.{suffix}"
    written = "\n".join(map(json.dumps, records)) if suffix == "jsonl" else json.dumps(records)
    path.write_bytes(written.encode() + tail)
    for read in (read_data, read_results, read_history, read_sounding_chunks, lambda file: list(read_prompts(file))):
        try:
            found = read(path)
        except DatasetError as error:
            assert "data" in str(error) or "has the" in str(error)
        else:
            for sample in islice(getattr(found, "samples", ()), 5):
                assert isinstance(sample, Sample) and sample.path.resolve().is_relative_to(Path.cwd())


WRITTEN = {
    "vggsound.csv": 'a,1,"dog, barking",test\nb,2,rain,test\n',
    "audioset.csv": '# Segments\n# YTID, start, end, labels\na, 1.000, 11.000, "/m/1,/m/2"\nb, 2.000, 12.000, "/m/2"\n',
    "audiocaps.csv": 'audiocap_id,youtube_id,start_time,caption\n1,a,1,"A dog, barking"\n2,b,2,Rain\n',
    "avhbench.json": '[{"video_id": "a", "task": "t", "text": "q", "label": "Yes"},\n'
    '{"video_id": "b", "task": "t", "text": "q", "label": "No"}]\n',
    "prompts.json": '[[{"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "q"}]}]]\n',
    "own.jsonl": '{"clip": "a.mp4", "question": "q"}\n{"clip": "b.mp4", "id": null, "question": "q"}\n',
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_files_that_other_programs_wrote_are_read_alike(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(WRITTEN[name].encode())
    plain = read_data(path, tmp_path).samples
    assert plain[0].path == tmp_path / plain[0].path.name and plain[0].path.name[0] == "a"
    for written in (
        b"\xef\xbb\xbf" + WRITTEN[name].encode(), WRITTEN[name].replace("\n", "\r\n").encode(), (WRITTEN[name] + "\n\n").encode()
    ):  # fmt: skip
        path.write_bytes(written)
        assert read_data(path, tmp_path).samples == plain


def test_seconds_and_texts_that_are_none_are_refused(tmp_path):
    for name, text in (
        ("a.csv", '# x\na, inf, 3, "/m/1"\n'), ("a.csv", '# x\na, 1, nan, "/m/1"\n'),
        ("a.jsonl", '{"clip": "a.mp4", "id": "\\udcff"}'),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        with pytest.raises(DatasetError, match="Write YouTube id|which is no text"):
            read_data(tmp_path / name, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../x.mp4", "a/../../x.mp4", "/etc/passwd", "C:\\x.mp4", "C:x.mp4", "..\\x.mp4", "a\\..\\..\\x.mp4", "\\x.mp4",
        "//host/x",
        "\\\\host\\share\\x", "a\0b", "", "x" * 5000, 7, None, ["x"],
    ],
)  # fmt: skip
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    with pytest.raises(DatasetError, match="is not below"):
        inside(tmp_path, name, "line 1")


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path):
    clips, other = tmp_path / "clips", tmp_path / "other"
    clips.mkdir(), other.mkdir()
    (other / "x.mp4").touch(), (clips / "own.mp4").touch()
    (clips / "out.mp4").symlink_to(other / "x.mp4")
    (clips / "elsewhere").symlink_to(other)
    (clips / "within.mp4").symlink_to(clips / "own.mp4")
    (clips / "round").symlink_to(clips / "round")
    (tmp_path / "link").symlink_to(clips)
    for name in ("out.mp4", "elsewhere/x.mp4"):
        with pytest.raises(DatasetError, match="a link to .*which is not below .* as the folder of clips"):
            inside(clips, name, "line 1")
    with pytest.raises(DatasetError, match="cannot be read"):
        inside(clips, "round", "line 1")
    for folder in (clips, tmp_path / "link"):
        assert inside(folder, "within.mp4", "line 1") == folder / "within.mp4"
        assert inside(folder, "a/../own.mp4", "line 1").resolve() == (clips / "own.mp4").resolve()


def test_options_are_a_list_and_texts_are_texts(tmp_path):
    path = tmp_path / "q.jsonl"
    for line, says in (
        ({"clip": "x.mp4", "options": "ab"}, "Write a list"),
        ({"clip": "x.mp4", "options": [1]}, "Give a list of texts|cannot be read"),
        ({"clip": "x.mp4", "question": 5}, "the question 5, which is no text|cannot be read"),
        ({"clip": "x.mp4", "start": "1"}, "Give seconds|cannot be read"),
    ):
        path.write_text(json.dumps(line))
        with pytest.raises(DatasetError, match=says):
            list(read_questions(path, tmp_path))


def test_a_manifest_of_counterfactuals_that_holds_something_else_is_refused(tmp_path):
    for text in ("[]", "{", '{"clips": [1]}', '{"clips": [], "made_by": ', "\udcff"):
        (tmp_path / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(DatasetError, match="manifest"):
            Counterfactuals.read(tmp_path)
