"""Nothing outside: no network, no pickle, no code of a checkpoint's, no text that becomes HTML."""

import ast
import contextlib
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from avlens import Clip, HookedAVModel, views
from avlens.analyses.attention_mass import attention_by_group
from avlens.analyses.attribution import direct_logit_attribution
from avlens.analyses.attribution_patching import attribution_patching
from avlens.analyses.dominance import head_dominance, modality_dominance, split_sinks
from avlens.analyses.dynamics import attention_dynamics
from avlens.analyses.flow import information_flow
from avlens.analyses.logit_lens import latent_understanding, logit_lens
from avlens.analyses.paths import path_patching
from avlens.analyses.probes import linear_probes, probe_features
from avlens.analyses.shift import token_distribution_shift
from avlens.analyses.sinks import find_sinks
from avlens.analyses.tracing import causal_trace, trace_layers
from avlens.errors import AVLensError, CheckpointError
from avlens.records import Record, RecordTable
from avlens.tables import trace_table
from avlens.testing import tiny_clip, tiny_model

ROOT = Path(__file__).parent.parent
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"

OFFLINE = """
import socket, sys

def refuse(*args, **kwargs):
    raise AssertionError(f"the network was asked: {args[:3]}")

class Refusing(socket.socket):
    connect = connect_ex = bind = sendto = refuse

socket.socket = Refusing
socket.create_connection = socket.getaddrinfo = socket.gethostbyname = refuse
import torch
torch.set_num_threads(1)
from avlens import Clip, HookedAVModel, views
from avlens.analyses.tracing import causal_trace
from avlens.datasets.synthetic import synthetic_clips
from avlens.data import read_data
from avlens.experiments import EXPERIMENTS, run
model = HookedAVModel.from_pretrained("avlens-tiny")
path = synthetic_clips(1, seed=0, seconds=1.0)[0].clip.to_file(sys.argv[1] + "/clip.mp4")
clip = Clip.from_file(path)
inputs = model.prepare(clip, "what do you hear ?")
trace = causal_trace(model, inputs, model.prepare(clip.silenced(), "what do you hear ?"), {"video": inputs.tokens.video})
views.plot(trace).write_html(sys.argv[1] + "/plot.html", include_plotlyjs=True)
model.generate(inputs, max_new_tokens=2)
data = read_data("synthetic:1")
assert not run(EXPERIMENTS["lens"], model, data.samples, sys.argv[1] + "/out", read=data.read).failures
model.save_pretrained(sys.argv[1] + "/saved")
HookedAVModel.from_pretrained(sys.argv[1] + "/saved")
print("done")
"""


def test_no_socket_is_opened(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    assert done.stdout.endswith("done\n"), done.stderr[-3000:]


FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "marshal.loads", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load",
}  # fmt: skip
FORBIDDEN_METHODS = {"read_pickle", "to_pickle"}
FORBIDDEN_MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "shelve", "joblib", "marshal", "urllib", "requests", "httpx", "subprocess",
}  # fmt: skip

ALLOWED = {"avlens/experiments/cluster.py": ["subprocess"]}
"""A Ray of one's own is started below a process of avlens's: this interpreter, with a list of arguments."""


def sources():
    return sorted((ROOT / "avlens").rglob("*.py"))


def dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def reads_tensors_alone(call):
    return any(one.arg == "weights_only" and getattr(one.value, "value", None) is True for one in call.keywords)


def faults(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) in FORBIDDEN_CALLS and not reads_tensors_alone(node):
            yield dotted(node.func)
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_METHODS:
            yield node.attr
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (name for name in names if name.split(".")[0] in FORBIDDEN_MODULES)
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle", "shell"):
            value = node.value.value if isinstance(node.value, ast.Constant) else None
            if value is not False:
                yield node.arg


def test_no_source_unpickles_runs_code_or_reaches_out():
    for text in (
        "import pickle",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "f(trust_remote_code=True)",
        "from urllib.request import urlopen",
        "yaml.load(x)",
        "frame.to_pickle(x)",
        "eval(x)",
    ):
        assert list(faults(ast.parse(text)))
    found = {
        path.relative_to(ROOT).as_posix(): list(faults(ast.parse(path.read_text(encoding="utf-8"))))
        for path in sources()
    }
    assert len(found) > 100 and {path: what for path, what in found.items() if what} == ALLOWED


@pytest.mark.parametrize("option", ["trust_remote_code", "use_safetensors", "weights_only", "use_kernels"])
def test_options_that_would_run_or_unpickle_are_refused(option):
    with pytest.raises(CheckpointError, match=f"{option}=True cannot be given"):
        HookedAVModel.from_pretrained("avlens-tiny", **{option: True})


def test_an_index_may_name_no_file_elsewhere(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    for name in ("../model.safetensors", str(checkpoint / "model.safetensors"), "..", 7):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
        with pytest.raises(CheckpointError, match=r"no \*\.safetensors beside it"):
            HookedAVModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model(n_layers=1, d_model=32, n_heads=2, n_key_value_heads=1, d_mlp=32).save_pretrained(folder)
    return folder


def test_pickled_weights_are_not_read(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (folder / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"x": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no weights"):
        HookedAVModel.from_pretrained(folder)
    assert not (tmp_path / "sprung").exists()


def test_code_in_a_checkpoint_is_not_run(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    trap = f"from pathlib import Path\nPath({str(tmp_path / 'sprung')!r}).touch()\nclass C: pass\n"
    (folder / "trap.py").write_text(trap)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "trap.C", "AutoModel": "trap.C"}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        stored = json.loads((folder / name).read_text()) | {"auto_map": {"AutoTokenizer": ["trap.C", None]}}
        (folder / name).write_text(json.dumps(stored))
    with contextlib.suppress(AVLensError):
        HookedAVModel.from_pretrained(folder)
    assert not (tmp_path / "sprung").exists()


def test_html_escapes_all_text(tmp_path):
    model = tiny_model(n_layers=1)
    clip = tiny_clip(1.0, size=(56, 56))
    path = tmp_path / "<img src=x onerror=alert(2)>.mp4"
    inputs = model.prepare(clip, EVIL.replace("<", " <"))
    table = RecordTable((Record(EVIL, EVIL, 0, ({EVIL: EVIL},)),), {EVIL: EVIL})
    shown = [
        Clip.from_file(clip.to_file(path))._repr_html_(),
        inputs._repr_html_(),
        inputs.tokens._repr_html_(),
        table._repr_html_(),
    ]
    sections = [views.Section(EVIL, EVIL, generated=EVIL, table=table.to_frame())]
    written = views.report(
        tmp_path / "report.html", title=EVIL, clip=clip, tokens=inputs.tokens, sections=sections, name=EVIL
    )
    page = written.read_text(encoding="utf-8")
    for html in [*shown, page]:
        assert "<script>alert" not in html and "<img src=x" not in html


# Every picture and table, of a model whose tokens, answers and sets are hostile.


class Page(HTMLParser):
    """What a browser would run of a page that nobody meant to be run."""

    def __init__(self, html):
        super().__init__()
        self.inside, self.ran = "", []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        self.ran += [tag for name, value in attributes if name.startswith("on") and "alert" in (value or "")]

    def handle_data(self, data):
        if self.inside == "script" and data.strip().startswith("alert("):
            self.ran.append(data)


def texts(value):
    """Every text in a figure that may be shown."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for key, one in value.items() if key != "legendgroup" for text in texts(one))
    elif isinstance(value, list):
        yield from (text for one in value for text in texts(one))


@pytest.fixture(scope="module")
def hostile():
    """Results by name, with EVIL as a token, a word, an answer, a group, a label and a model's name."""
    model = tiny_model(n_layers=2, d_vocab=1000)
    model.tokenizer.add_tokens([EVIL])
    clip = tiny_clip(1.0, size=(56, 56))
    inputs, silent = (model.prepare(one, f"what {EVIL} ?", options=[EVIL, "b"]) for one in (clip, clip.silenced()))
    _, cache = model.run_with_cache(inputs, names_filter=["resid_pre", "pattern"])
    tokens = inputs.tokens
    assert EVIL in tokens.strings
    sets = {EVIL: tokens.audio, "video": tokens.video}
    found = find_sinks(cache, [5, 9], energy=0.05)
    mds = modality_dominance(cache, found.tokens & tokens.media)
    two = {"clean": inputs, "corrupt": silent, "answers": (EVIL, "dog")}
    lens = logit_lens(model, inputs, tokens.audio, words=[EVIL])
    trace = causal_trace(model, inputs, silent, sets)
    results = {
        "sinks": found, "mds": mds, "hubs": split_sinks(mds), "trace": trace, "table": trace_table([trace, trace], n_draws=20),
        "layers": trace_layers(model, inputs, silent, tokens.audio, window=1), "lens": lens,
        "heads": head_dominance(cache, found.tokens & tokens.media),
        "dynamics": attention_dynamics(model, inputs, sets, max_new_tokens=2),
        "attribution": direct_logit_attribution(model, inputs), "patching": attribution_patching(model, **two, groups=sets),
        "paths": path_patching(model, **two, edges=[f"{EVIL} -> video"], groups=sets),
        "shift": token_distribution_shift(model, inputs, silent, answer=f"a {EVIL} dog", words=[EVIL]),
        "flow": information_flow(model, inputs, [f"{EVIL} -> last"], groups=sets | {"last": tokens.last}, window=1),
        "probes": linear_probes(probe_features(model, [inputs, silent] * 3), [EVIL, "b"] * 3, folds=2, n_shuffles=1),
        "mass": attention_by_group(model, inputs, keys=sets), "latent": latent_understanding([lens, lens], [{EVIL}, {"drum"}]),
    }  # fmt: skip
    return model, clip, cache, results


def test_every_picture_escapes_all_text(hostile, tmp_path):
    _, _, cache, results = hostile
    figures = {name: views.plot(result) for name, result in results.items()}
    figures |= {"graph": views.flow_graph(results["flow"]), "full": views.attention_full(cache, layer=0, head=0)}
    shown = 0
    for name, figure in figures.items():
        written = views.save(figure, tmp_path / f"{name}.html").read_text(encoding="utf-8")
        for html in (written, figure.to_html(include_plotlyjs=False)):
            assert Page(html).ran == [], name
        told = list(texts(json.loads(figure.to_json())))
        assert not [text for text in told if "<script" in text or "<img" in text], name
        shown += any("&lt;script" in text for text in told)
    assert shown >= 10


def test_every_table_timeline_and_attention_view_escapes_all_text(hostile, tmp_path):
    model, clip, cache, results = hostile
    tokens = cache.tokens
    shown = [result._repr_html_() for result in results.values() if hasattr(result, "_repr_html_")]
    assert len(shown) > 10
    shown += [cache._repr_html_(), tokens._repr_html_(), views.attention(cache, layer=0, group="token")._repr_html_()]
    timeline = views.timeline(clip, tokens, value=torch.rand(len(tokens)), name=EVIL)
    section = views.Section(EVIL, EVIL, figures=[views.plot(results["trace"]), timeline], generated=EVIL)
    shown.append(
        views.report(
            tmp_path / "r.html", title=EVIL, clip=clip, tokens=tokens, sections=[section], name=EVIL
        ).read_text()
    )
    for html in shown:
        assert Page(html).ran == []
