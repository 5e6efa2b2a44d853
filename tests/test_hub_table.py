"""The whole table: its sets are what they are called, idle tokens do nothing, and its numbers are those of single traces."""

import json

import pytest
import torch

from avlens.analyses.selection import three_clips, unimodal_dominance
from avlens.analyses.tracing import causal_trace
from avlens.data import read_data
from avlens.errors import DatasetError
from avlens.hub_table import hub_sets, hub_table
from avlens.model import HookedAVModel
from avlens.planting import planted_model
from avlens.samples import open_clip


@pytest.fixture(scope="module")
def model():
    return HookedAVModel.from_pretrained("avlens-tiny")


@pytest.fixture(scope="module")
def data():
    return read_data("synthetic:6", seed=3)


@pytest.fixture(scope="module")
def table(model, data):
    judged = unimodal_dominance(model, data.samples, ask=data.ask, read=data.read)
    return hub_table(model, data.samples, judged, read=data.read, n=[2], draws=3)


def test_clips_are_selected_by_their_words(table, data):
    frame = table.selection.to_frame()
    assert frame["dominant"].isin(["audio", "video"]).sum() >= 4 and frame["correct"].mean() >= 0.6
    decided = {name.split("-")[0]: one for name, one in frame["dominant"].items() if one != "neither"}
    assert decided == {"sound": "audio", "object": "video"}
    assert (frame.loc[frame["dominant"] != "neither", "TE_clean"] > 0.5).all()


def test_sets_are_what_they_are_called(model, data, table):
    for trace, base in [(t, "video") for t in table.traces["audio"]] + [(t, "audio") for t in table.traces["video"]]:
        sets = trace.sets
        tokens = sets["all"].tokens
        kind = getattr(tokens, base)
        assert list(sets["all"]) == list(kind)
        sink, uni, cross = (set(sets[f"{name} N=2"]) for name in ("sink", "uni", "cross"))
        assert not uni & cross and uni | cross <= sink <= set(kind) and len(cross) - len(uni) in (0, 1)
        for i in range(3):
            assert len(sets[f"random N=2 #{i}"]) == len(sink) and set(sets[f"random N=2 #{i}"]) <= set(kind)
            matched = set(sets[f"cross N=2, matched chunk #{i}"])
            assert len(matched) == len(cross) and not matched & cross
            chunk = tokens.chunk
            assert sorted(chunk[list(matched)].tolist()) == sorted(chunk[list(cross)].tolist())


def test_idle_tokens_do_nothing_and_numbers_are_those_of_a_trace(model, data, table):
    assert len(table.traces["audio"]) >= 2
    first = table.selection.audio_dominant[0]
    sample = next(one for one in data.samples if one.id == first.id)
    clips = three_clips(open_clip(sample, data.read))
    clean, broken = (model.prepare(clips[run], sample.question) for run in ("both", "video"))
    words = tuple(sample.options[sample.letters.index(x)] for x in (first.o_clean, first.o_corrupt))
    mine = table.traces["audio"][0]
    alone = causal_trace(model, clean, broken, dict(mine.sets), answers=words)
    torch.testing.assert_close(mine.p_patched, alone.p_patched, atol=1e-5, rtol=0)
    assert mine.flipped == alone.flipped and (mine.te_clean, mine.te_corrupt) == pytest.approx(
        (alone.te_clean, alone.te_corrupt)
    )
    for trace in table.traces["audio"]:
        assert len(trace.sets["idle"]) == 9 and abs(float(trace.ie_clean[list(trace.sets).index("idle")])) < 1e-5
    assert table.audio_dominant["random N=2"].draws == 3 and table.audio_dominant["all"].clips == len(
        table.traces["audio"]
    )


def test_idle_tokens_can_be_left_out_and_objects_given(model, data):
    sample = data.samples[0]
    clips = three_clips(open_clip(sample, data.read))
    clean, broken = (model.prepare(clips[run], sample.question) for run in ("both", "video"))
    last = clean.tokens.video & clean.tokens.seconds(3, 4)
    sets = hub_sets(model, clean, broken, "audio", n=[2, 4], draws=1, skip_idle=True, objects=last | clean.tokens.audio)
    first = clean.tokens.video & clean.tokens.seconds(0, 1)
    assert "idle" not in sets and all(not set(chosen) & set(first) for chosen in sets.values())
    assert list(sets["object"]) == list(last) and "cross N=4" in sets


def test_a_model_without_sinks_has_empty_rows():
    model = planted_model()[0]
    data = read_data("synthetic:1")
    clips = three_clips(open_clip(data.samples[0], data.read))
    clean, broken = (model.prepare(clips[run], "what ?") for run in ("both", "video"))
    many = hub_sets(model, clean, broken, "audio", n=[1], draws=1)
    assert len(many["sink N=1"]) > 0
    random = HookedAVModel.from_pretrained("avlens-tiny-organic")
    clean, broken = (random.prepare(clips[run], "what do you see ?") for run in ("both", "video"))
    assert len(hub_sets(random, clean, broken, "audio", n=[2], draws=2)["cross N=2"]) == 0


def test_it_prints_intervals_and_exports(table):
    shown = repr(table)
    assert "audio dominant" in shown and "95% bootstrap intervals" in shown and "[" in shown.splitlines()[5]
    assert table.to_latex().count("toprule") == len(table.tables) == 2
    assert table.to_frame().loc[("audio dominant", "all"), "clips"] == len(table.traces["audio"])


def test_a_data_set_is_told_by_its_file(tmp_path):
    def file(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    vgg = file(
        "a.csv",
        "abc,1,dog barking,test\nabd,2,bell ringing,test\n" + "".join(f"x{i},1,event {i},test\n" for i in range(20)),
    )
    audioset = file("b.csv", '# ids\nabc, 0.000, 10.000, "/m/04rlf,/m/09x0r"\n')
    avhbench = file("c.json", json.dumps([{"video_id": "1", "task": "AV Matching", "text": "match?", "label": "Yes"}]))
    own = file(
        "d.jsonl", json.dumps({"clip": "x/dog.mp4", "options": ["a", "b"], "objects": ["dog"], "start": 1.0}) + "\n\n"
    )
    assert read_data(vgg, tmp_path, limit=2).samples[0].path == tmp_path / "abc_000001.mp4"
    for source, limit in ((vgg, 0), ("synthetic:4", 0), (vgg, -1)):
        with pytest.raises(DatasetError, match=f"limit is {limit}. Pass a number from 1 on"):
            read_data(source, tmp_path, limit=limit)
    described = read_data(vgg, tmp_path, task="describe").samples[0]
    assert described.question.startswith("Describe") and not described.options
    data = read_data(vgg)
    assert data.truth(data.samples[0]) == ["dog barking"] and data.ask == "letters"
    data = read_data(audioset)
    assert data.truth(data.samples[0]) == ["/m/04rlf", "/m/09x0r"]
    assert read_data(avhbench).samples[0].question == "match?"
    data = read_data(own, tmp_path, task="describe")
    assert (data.samples[0].id, data.samples[0].start, data.truth(data.samples[0])) == ("dog", 1.0, ["dog"])
    for name, text in (("e.json", "{"), ("f.json", "[]"), ("g.jsonl", '{"id": 1}'), ("h.jsonl", "{")):
        with pytest.raises(DatasetError):
            read_data(file(name, text))
    with pytest.raises(DatasetError, match="synthetic:40"):
        read_data("nothing.csv")
