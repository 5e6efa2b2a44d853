"""Nothing outside: no network, no pickle, no code of a checkpoint's, no text that becomes HTML."""

import ast
import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from avlens import Clip, HookedAVModel, views
from avlens.errors import AVLensError, CheckpointError
from avlens.records import Record, RecordTable
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
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.save",
    "marshal.loads",
}
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "shelve",
    "joblib",
    "marshal",
    "urllib",
    "requests",
    "httpx",
}


def sources():
    """What runs when avlens is used: training, which keeps its own states, does not."""
    return sorted(path for path in (ROOT / "avlens").rglob("*.py") if "training" not in path.parts)


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
    ):
        assert list(faults(ast.parse(text)))
    found = {str(path): list(faults(ast.parse(path.read_text(encoding="utf-8")))) for path in sources()}
    assert {path: what for path, what in found.items() if what} == {}


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
