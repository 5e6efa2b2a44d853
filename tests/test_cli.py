"""What a user types: every command, as text and as JSON, and what bad input gives."""

import json
import re
import sys

import pytest
import torch

from avlens import __version__, cli
from avlens.datasets.synthetic import synthetic_clips
from avlens.media import Clip
from tests.views.reading import unpacked


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    sample = synthetic_clips(1, seed=5, blank=0, silent=0, matching=0)[0]
    return str(sample.clip.to_file(tmp_path_factory.mktemp("clips") / "ball.mp4"))


@pytest.fixture(scope="module")
def halves(clip, tmp_path_factory):
    """The clip without its sound, and without its video."""
    folder, whole = tmp_path_factory.mktemp("halves"), Clip.from_file(clip)
    silent, blind = whole.without_audio(), whole.without_video()
    return {"SILENT": str(silent.to_file(folder / "silent.mp4")), "BLIND": str(blind.to_file(folder / "blind.wav"))}


@pytest.fixture
def run(monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["avlens", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return command


def test_demo_tells_the_whole_story(run, tmp_path):
    code, out, _ = run("demo", "--out", tmp_path)
    assert code == 0
    assert "36 video, 40 audio" in out and "cross-modal hubs" in out and "with ASD" in out
    assert "it answers 'siren'" in out and "silenced 'drum'" in out and "Its sinks are planted" in out
    assert "a blue square moves right and a siren sounds" in out
    story = json.loads((tmp_path / "report.json").read_text())
    assert story["tokens"] == {"all": 105, "text": 20, "special": 9, "audio": 40, "video": 36}
    assert story["sinks"]["dims"] == [33] and story["hubs"]["cross"] and story["hubs"]["uni"]
    effects = {row["set"]: row for row in story["trace"]["sets"]}
    assert effects["all audio and video"]["IE_clean"] == pytest.approx(story["trace"]["TE_clean"], abs=1e-5)
    assert (
        effects["all audio and video"]["flipped"]
        and effects["all sinks"]["tokens"] == effects["random as sinks, draw 0"]["tokens"]
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "inside.mp4").write_bytes(unpacked(re.search("id='avlens-media'[^>]*>([^<]*)<", page)[1]))
    inside, made = (Clip.from_file(tmp_path / name) for name in ("inside.mp4", "clip.mp4"))
    assert inside.has_audio and len(inside.frames) == len(made.frames) and "What restores the answer" in page
    code, out, _ = run("demo", "--out", tmp_path, "--json")
    assert code == 0 and json.loads(out)["tokens"]["all"] == 105


def test_tokens(run, clip):
    code, out, _ = run("tokens", clip)
    assert code == 0 and "vision_bos" in out and "a1.90s" in out
    shown = json.loads(run("tokens", clip, "-q", "what do you see ?", "--json")[1])
    kinds = [row["modality"] for row in shown["tokens"]]
    assert kinds.count("audio") == 30 and "what do you see ?" in shown["prompt"]
    assert sum(row["tokens"] for row in shown["runs"]) == len(kinds)


def test_sinks(run, clip):
    code, out, _ = run("sinks", clip, "--top", 3)
    assert code == 0 and "dims [33]" in out and "(--top)" in out
    found = json.loads(run("sinks", clip, "--json")[1])
    assert found["dims"][0]["dim"] == 33 and found["threshold"] == pytest.approx(0.1744, abs=1e-4)
    assert {row["hub"] for row in found["sinks"]} <= {"uni", "cross", ""}
    assert all(row["mds"] is None or -1 <= row["mds"] <= 1 for row in found["sinks"])


def test_lens(run, clip):
    code, out, _ = run("lens", clip, "--words", "drum,bell", "--top", 2)
    assert code == 0 and "mean P(drum)" in out and out.count(" x") >= 4
    read = json.loads(run("lens", clip, "--at", "last", "--no-norm", "--json")[1])
    assert [row["layer"] for row in read["layers"]] == list(range(6)) and len(read["tokens"]) == 6
    assert read["made_by"]["norm"] is False and all(0 <= row["p"] <= 1 for row in read["tokens"])


def test_trace_takes_direction_sites_and_layers(run, clip):
    noised = json.loads(run("trace", clip, "--direction", "noise", "--site", "k,v", "--layers", "0-3", "--json")[1])
    effects = {row["set"]: row["IE_clean"] for row in noised["sets"]}
    assert effects["all audio and video"] == pytest.approx(noised["TE_clean"], abs=1e-4)
    late = json.loads(run("trace", clip, "--layers", "3", "--site", "ln1.normalized", "--json")[1])
    assert late["made_by"]["sites"] == ["ln1.normalized"]
    assert run("trace", clip, "--layers", "x")[0] == 2 and run("trace", clip, "--layers", "9")[0] == 2


@pytest.mark.parametrize("corrupt", ["audio", "video"])
def test_trace(run, clip, corrupt):
    traced = json.loads(run("trace", clip, "--corrupt", corrupt, "--json")[1])
    effects = {row["set"]: row["IE_clean"] for row in traced["sets"]}
    assert effects["all audio and video"] == pytest.approx(traced["TE_clean"], abs=1e-4)
    assert traced["made_by"]["prompts"][0]["content"][0]["clip"] == "ball.mp4"
    code, out, _ = run("trace", clip, "--corrupt", corrupt)
    assert code == 0 and f"{corrupt} corrupted" in out and "IE_clean" in out


def test_caption(run, clip):
    code, out, _ = run("caption", clip, "--max-new-tokens", 5)
    assert code == 0 and out.strip()
    guided = json.loads(run("caption", clip, "--decoding", "asd", "--max-new-tokens", 5, "--json")[1])
    assert guided["decoding"] == "asd" and len(guided["steps"]["gamma"]) <= 5


@pytest.mark.parametrize(("decoding", "steps"), [("greedy", set()), ("vcd", set()), ("pai", set()),
                                                 ("avcd", {"entropy", "dominant"}), ("fmd", {"weight"})])  # fmt: skip
def test_caption_by_every_method(run, clip, decoding, steps):
    written = json.loads(run("caption", clip, "--decoding", decoding, "--max-new-tokens", 2, "--json")[1])
    assert written["decoding"] == decoding and written["text"] and set(written["steps"]) == steps
    assert all(len(values) <= 2 for values in written["steps"].values())


def test_flow(run, clip, tmp_path):
    page = tmp_path / "flow.html"
    code, out, _ = run("flow", clip, "--answer-prefix", "a", "--out", page)
    assert (
        code == 0
        and "video <-> audio" in out
        and "answers ' " in out
        and "Information flow" in page.read_text(encoding="utf-8")
    )
    cut = json.loads(
        run("flow", clip, "--answer-prefix", "a", "-e", "media -> text", "--sweep", "top_down", "--json")[1]
    )
    changes = {row["layer"]: row["change"] for row in cut["flow"]}
    assert cut["window"] == 1 and changes[0] < -50  # an answer needs to hear
    first = json.loads(run("flow", clip, "--order", "question_first", "-e", "audio -> question", "--json")[1])
    assert {row["pairs"] for row in first["flow"]} == {0} and {row["change"] for row in first["flow"]} == {0}
    chosen = run(
        "flow",
        clip,
        "-q",
        "which ?",
        "--option",
        "bell",
        "--option",
        "drum",
        "--correct",
        "B",
        "--controls",
        1,
        "--json",
    )
    rows = json.loads(chosen[1])["flow"]
    assert {"correct option -> last", "incorrect options -> last"} <= {row["edge"] for row in rows}
    assert all(row["control"] is not None for row in rows if row["pairs"])


def test_models_and_check(run):
    code, out, _ = run("models")
    assert code == 0 and "avlens-tiny" in out and "qwen2_5_omni: Qwen2.5-Omni 3B, 7B" in out
    assert max(map(len, out.splitlines())) <= 100
    code, out, _ = run("check", "avlens-tiny", "--json")
    checked = json.loads(out)
    assert code == 0 and checked["holds"] and len(checked["laws"]) == 9


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tokens", "no.mp4"], "no.mp4 does not exist"),
        (["tokens", __file__], "test_cli.py"),
        (["caption", "CLIP", "--model", "nothing"], "there is no checkpoint 'nothing'"),
        (["caption", "CLIP", "--decoding", "magic"], "magic"),
        (["caption", "CLIP", "--dtype", "float7"], "is no dtype"),
        (["trace", "CLIP", "--corrupt", "smell"], "smell"),
        (["trace", "CLIP", "--layers", "5-2"], "--layers is '5-2'"),
        (["trace", "CLIP", "--layers", "²"], "--layers is '²'"),
        (["trace", "CLIP", "--layers", "2-9"], "--layers is '2-9', but the model has 6 layers (0 to 5)"),
        (["flow", "CLIP", "-e", "audio"], "'audio' is no edge. Write 'source -> target'"),
        (["flow", "CLIP", "-e", "smell -> last"], "no prompt has both ends of the edge 'smell -> last'"),
        (["flow", "CLIP", "--correct", "A"], "the prompt lists none"),
        (["flow", "CLIP", "--window", "0"], "window 0"),
        (["flow", "CLIP", "--sweep", "up"], "up"),
        (["trace", "SILENT"], "has no sound. Use --corrupt video."),
        (["trace", "BLIND", "--corrupt", "video"], "has no video. Use --corrupt audio."),
        (["lens", "SILENT", "--at", "audio"], "--at audio: the clip has no such token"),
        (["lens", "CLIP", "--at", "smell"], "smell"),
        (["sinks", "CLIP", "--top", "-1"], "--top"),
        (["tokens", "CLIP", "--device", "gpu"], "the device 'gpu' cannot be used"),
        (["sinks", "CLIP", "--device", "meta"], "Devices here: cpu"),
        (["demo", "--out", __file__], "cannot be made (File exists)"),
        (["demo", "--out", f"{__file__}/below"], "cannot be made (Not a directory)"),
        (["table", "synthetic:2", "--out", __file__], "cannot be made (File exists)"),
        (["check", "/"], "no config.json"),
        (["run", "lens", "--data", "nothing", "--out", "x"], "no data set 'nothing'"),
        (["run", "lens", "--data", "EMPTY", "--out", "x"], "names no clip"),
        (["run", "lens", "--data", "EMPTY", "--out", "x", "--clips", "/no/where"], "there is no folder '/no/where'"),
        (["run", "fly", "--data", "synthetic:1", "--out", "x"], "fly"),
        (["run", "lens", "--data", "synthetic:1", "--out", __file__], "cannot be"),
        (["fly"], "fly"),
        (["flow", "CLIP", "--out", "/"], "--out is '/', which cannot be written"),
        (["flow", "CLIP", "--out", "/no/where.html"], "which cannot be written"),
        (["table", "synthetic:2", "--n", "nan"], "--n is 'nan'"),
        (["run", "lens", "--data", "synthetic:1", "--out", "x", "--seed", "-1"], "--seed"),
        (["table", "synthetic:many"], "'many' is no such number"),
        (["caption", "CLIP", "--dtype", "int8"], "is no dtype"),
    ],
)
def test_bad_input_is_said_and_ends_with_2(run, clip, halves, tmp_path, arguments, says):
    (tmp_path / "empty.jsonl").touch()
    files = {"CLIP": clip, "EMPTY": tmp_path / "empty.jsonl", **halves}
    code, out, err = run(*[files.get(argument, argument) for argument in arguments])
    assert code == 2 and says in err and not out


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuda can be used here")
def test_cuda_is_refused_where_there_is_none(run, clip):
    code, out, err = run("caption", clip, "--device", "cuda")
    assert code == 2 and "the device 'cuda' cannot be used" in err and not out


def test_an_experiment_is_run_and_goes_on(run, tmp_path):
    from avlens.experiments import EXPERIMENTS

    assert [choice.value for choice in cli.run.Choice] == list(EXPERIMENTS)
    out = tmp_path / "out"
    code, said, err = run("run", "lens", "--data", "synthetic:6", "--out", out, "--limit", 5, "--estimate", "--json")
    assert code == 0 and json.loads(said)["records"] == 2 and "estimate: 3 to go" in err
    cost = json.loads(said)["estimate"]
    assert (
        cost["items"] == 3 and cost["measured"] == 2 and cost["disk_bytes"] > 0 and json.loads(said)["summaries"] == {}
    )
    code, said, err = run("run", "lens", "--data", "synthetic:6", "--out", out, "--limit", 5, "--estimate")
    assert code == 0 and "estimate: 2 to go" in err and "without --estimate goes on" in said and "named" not in said
    code, said, err = run("run", "lens", "--data", "synthetic:6", "--out", out)
    assert "\r" not in err and "item/s" not in err  # no bars where nobody watches
    assert code == 0 and "RecordTable(6 records of 6 samples, 0 with a problem)" in said and "named_other" in said
    code, said, _ = run("run", "lens", "--data", "synthetic:6", "--out", out, "--json")
    found = json.loads(said)
    assert code == 0 and found["problems"] == [] and found["summaries"]["named"][0]["clips"] == 6
    code, said, err = run("run", "lens", "--data", "synthetic:6", "--out", out, "--model", "avlens-tiny-organic")
    assert code == 2 and "Write to another folder" in err and not said


def test_an_interrupted_run_says_how_to_go_on(run, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("avlens.experiments.run", interrupted)
    code, said, err = run("run", "lens", "--data", "synthetic:6", "--out", tmp_path)
    assert code == 130 and "Run the same command again to go on" in err and not said


def test_files_that_cannot_be_written_end_with_2(run, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("avlens.demo.run_demo", refuse)
    code, out, err = run("demo")
    assert code == 2 and "No space left on device" in err and not out


def test_device_and_dtype_of_tokens_and_the_version(run, clip):
    assert run("tokens", clip, "--device", "cpu", "--dtype", "bfloat16")[0] == 0
    assert run("--version") == (0, f"avlens {__version__}\n", "")


def test_table_of_a_data_set(run, tmp_path):
    options = ("--n", "2", "--draws", "2", "--seed", "3")
    code, out, _err = run("table", "synthetic:2", *options, "--out", tmp_path / "table", "--json")
    found = json.loads(out)
    assert code == 0 and len(found["selection"]) == 2 and set(found["tables"]) <= {"audio dominant", "video dominant"}
    rows = {row["set"]: row for table in found["tables"].values() for row in table}
    assert rows["random N=2"]["draws"] == 2 and rows["all"]["clips"] == 1
    written = {path.name for path in (tmp_path / "table").iterdir()}
    assert {"judged", "effects.csv", "effects.tex"} <= written
    code, out, _err = run("table", "synthetic:2", *options, "--out", tmp_path / "table")
    assert code == 0 and "bootstrap intervals" in out
    for wrong, says in ((("nothing.csv",), "synthetic:40"), (("synthetic:2", "--n", "0,x"), "such as 2,3,4")):
        code, _out, err = run("table", *wrong)
        assert code == 2 and says in err
