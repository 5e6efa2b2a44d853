"""The explorer without a browser: what clicks do, what is kept, and what a page without a kernel gets."""

import json
import math
import sys
import threading
from contextlib import redirect_stdout
from html.parser import HTMLParser
from io import StringIO

import pytest
import torch

from avlens import knockout, patch
from avlens.errors import LayerError, PositionError, PromptError, ViewError
from avlens.testing import tiny_clip, tiny_model
from avlens.views import PatchExplorer, patching, plot


@pytest.fixture(scope="module")
def world():
    model, clip = tiny_model(n_layers=3), tiny_clip(3.0)
    clean, corrupt = (model.prepare(one, "what do you hear ?") for one in (clip, clip.silenced()))
    return model, clip, clean, corrupt


@pytest.fixture
def explorer(world):
    model, clip, clean, corrupt = world
    return PatchExplorer(model, clean, corrupt, clip=clip)


def click(explorer, do, layer=None, group=None, **more):
    """What a click sends, waited for."""
    explorer._receive({"do": do, "layer": layer, "group": group, **more})
    explorer.wait(60)


def by_hand(world, explorer, inputs, hooks):
    p = world[0].run_with_hooks(inputs, hooks, logits_at=inputs.tokens.last)[0, 0].softmax(-1)
    return {name: pytest.approx(float(p[list(ids)].max()), abs=1e-6) for name, ids in explorer._bench.answers.items()}


def column(explorer, start):
    return next(i for i, label in enumerate(explorer._bench.groups) if label.startswith(start))


def test_a_click_patches_and_with_shift_knocks_out(world, explorer):
    model, _, clean, corrupt = world
    _, cache = model.run_with_cache(clean, ["resid_pre"])
    tokens, i = clean.tokens, column(explorer, "a·")
    audio = list(explorer._bench.groups.values())[i]
    assert list(audio) == list(tokens.audio & tokens.seconds(0, 1))
    click(explorer, "patch", 1, i)
    assert explorer.probabilities["edited"] == by_hand(world, explorer, corrupt, patch(cache, audio, layers=[1]))
    click(explorer, "knockout", 2, i)
    cut = knockout(tokens.all - audio, audio, layers=[2])
    assert explorer.probabilities["edited"] == by_hand(world, explorer, clean, cut)
    assert explorer.probabilities["clean"] == by_hand(world, explorer, clean, [])
    assert explorer.probabilities["corrupted"] == by_hand(world, explorer, corrupt, [])


def test_edits_add_up_and_are_taken_back(world, explorer):
    model, _, clean, corrupt = world
    _, cache = model.run_with_cache(clean, ["k", "v", "resid_pre"])
    labels, i, j = list(explorer._bench.groups), column(explorer, "a·"), column(explorer, "v")
    audio, video = (explorer._bench.groups[labels[k]] for k in (i, j))
    explorer.choose(add=True, site="k, v", window=2)
    explorer.patch(0, labels[i])
    both = explorer.knockout(-1, labels[j])
    kv = [hook for site in ("k", "v") for hook in patch(cache, audio, layers=[0, 1], site=site)]
    hooks = kv + knockout(clean.tokens.all - video, video, layers=[2])
    assert both == by_hand(world, explorer, corrupt, hooks)
    assert explorer.history == ["no edit", f"patch L0-1 {labels[i]} k, v", f"+ knock out L2 {labels[j]}"]
    again = explorer.patch(0, i)  # what is there is taken out
    assert again == by_hand(world, explorer, clean, knockout(clean.tokens.all - video, video, layers=[2]))


def test_undo_goes_back_and_a_new_edit_forgets_what_was_undone(explorer):
    first, _second = explorer.patch(0, 4), explorer.patch(1, 5)
    click(explorer, "undo")
    assert explorer.probabilities["edited"] == first
    click(explorer, "redo")
    click(explorer, "undo")
    click(explorer, "undo")
    click(explorer, "undo")
    assert explorer.status == "no edit" and explorer.probabilities["edited"] == explorer.probabilities["corrupted"]
    explorer.knockout(0, 6)
    assert len(explorer.history) == 2
    click(explorer, "go_to", step=0)
    assert explorer.status == "no edit"


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_code_it_gives_does_the_same(world, explorer, direction):
    model, _, clean, corrupt = world
    explorer.choose(direction=direction, add=True, window=2)
    explorer.patch(0, column(explorer, "a·"), site="ln1.normalized")
    explorer.knockout(1, column(explorer, "v"))
    told = StringIO()
    with redirect_stdout(told):
        exec(explorer.code, {"model": model, "clean": clean, "corrupt": corrupt})
    assert eval(told.getvalue()) == pytest.approx(explorer.probabilities["edited"], abs=1e-6)


def test_code_for_no_edit_and_for_a_knockout_runs_the_run_that_is_edited(world, explorer):
    assert "hooks = []" in explorer.code and "run_with_cache" not in explorer.code
    explorer.knockout(0, 1)
    assert "model.run_with_hooks(clean," in explorer.code


def test_nothing_runs_twice(explorer, monkeypatch):
    runs, run = [], patching.sweep
    monkeypatch.setattr(
        patching, "sweep", lambda model, inputs, edits, **kw: runs.extend(edits) or run(model, inputs, edits, **kw)
    )
    grid = explorer.sweep(2)
    assert len(runs) == 3 and int(grid.patched.isfinite().sum()) == 3
    assert explorer.patch(1, 2) and explorer.sweep(layer=1).patched[1].isfinite().all()
    assert len(runs) == 3 + len(grid.groups) - 1
    column = explorer.sweep(2).patched[:, 2]
    most = int(column.abs().argmax())
    assert explorer.status.startswith(f"all of it is known; most: patch L{most} {list(grid.groups)[2]}, ")
    assert explorer.status.endswith(f"{float(column[most]):+.3f}")
    explorer.choose(follow=1)
    explorer.undo()
    assert len(runs) == 3 + len(grid.groups) - 1


def test_the_grid_is_the_change_against_the_run_that_is_edited(explorer):
    click(explorer, "sweep", group=3)
    click(explorer, "sweep", group=3, kind="knockout")
    grid, p = explorer.result, explorer.probabilities
    answer = grid.answer
    assert float(grid.patched[1, 3]) == pytest.approx(explorer.patch(1, 3)[answer] - p["corrupted"][answer], abs=1e-6)
    assert float(grid.knocked_out[2, 3]) == pytest.approx(
        explorer.knockout(2, 3)[answer] - p["clean"][answer], abs=1e-6
    )
    assert len(grid.to_frame()) == 3 and grid.patched[:, 0].isnan().all()
    assert len(plot(grid).data) == 2 and answer in plot(grid).layout.title.text


def test_errors_are_told_in_the_status_line_and_clicks_go_on(world, explorer, monkeypatch):
    shown = explorer.widget
    click(explorer, "patch", 99, 0)
    assert shown.view["failed"] and "layer 99" in shown.view["status"]
    click(explorer, "dance")
    assert "'dance' cannot be done" in explorer.status
    click(explorer, "choose", choices={"site": "resid_mid"})
    assert "site='resid_mid' is no choice" in explorer.status
    monkeypatch.setattr(patching, "sweep", lambda *_, **__: 1 / 0)
    click(explorer, "patch", 0, 0)
    assert explorer.status == "ZeroDivisionError: division by zero"
    monkeypatch.undo()
    click(explorer, "patch", 0, 0)
    assert not shown.view["failed"] and shown.view["status"].startswith("patch L0")


def test_clicks_and_cells_do_not_mix(world):
    """Both at once: every run of either gives what it gives alone, and builds no graph."""
    model, _, clean, corrupt = world
    explorer, alone = (PatchExplorer(model, clean, corrupt) for _ in range(2))
    edit = knockout(clean.tokens.last, clean.tokens.video)
    expected = model.run_with_hooks(clean, edit)
    wanted = alone.sweep().patched
    seen = []

    def cell():
        torch.set_grad_enabled(True)
        seen.extend(model.run_with_hooks(clean, edit) for _ in range(20))

    thread = threading.Thread(target=cell)
    thread.start()
    click(explorer, "sweep")
    thread.join()
    assert all(torch.equal(one, expected) and not one.requires_grad for one in seen)
    torch.testing.assert_close(explorer.result.patched, wanted)


def test_a_sweep_stops_when_told(explorer, monkeypatch):
    began, run = threading.Event(), patching.sweep

    def slow(*args, **kwargs):
        began.set()
        threading.Event().wait(0.05)
        return run(*args, **kwargs)

    monkeypatch.setattr(patching, "sweep", slow)
    explorer._receive({"do": "sweep"})
    explorer._receive({"do": "patch", "layer": 0, "group": 0})
    assert began.wait(30)
    explorer._receive({"do": "stop"})
    explorer.wait(60)
    n = 3 * len(explorer._bench.groups)
    assert f"of {n}" in explorer.status and "stopped" in explorer.status
    assert 0 < len(explorer.result.to_frame()) < n and explorer.history == ["no edit"]


def test_what_the_widget_is_sent_is_json_without_nan(explorer, monkeypatch):
    explorer.patch(0, 1)
    explorer._bench._known = {key: torch.full_like(p, math.nan) for key, p in explorer._bench._known.items()}
    sent = json.dumps([explorer._spec, explorer._view()], allow_nan=False)
    assert '"0,1": [null' in sent


class Scripts(HTMLParser):
    count = 0

    def handle_starttag(self, tag, attrs):
        self.count += tag in ("script", "img", "link", "iframe")


def displayed(explorer):
    """What a notebook is given to show."""
    shown = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("IPython.display.display", lambda data, raw: shown.append(data))
        explorer._ipython_display_()
    return shown


def test_without_a_kernel_there_is_a_picture_and_text_is_escaped(world):
    model, clip, clean, corrupt = world
    hostile = "<script>x</script>'\""
    explorer = PatchExplorer(model, clean, corrupt, groups={hostile: clean.tokens.audio, "b": clean.tokens.video})
    explorer.sweep()
    still, widget = displayed(explorer)
    assert set(still) == {"text/plain", "text/html"} and set(widget) == {"application/vnd.jupyter.widget-view+json"}
    scripts = Scripts()
    scripts.feed(still["text/html"])
    assert scripts.count == 0 and still["text/html"].count("<rect") == 6
    assert explorer.widget.spec["still"] in still["text/html"]  # by which the widget finds it, and hides it
    assert "&lt;script&gt;" in plot(explorer.result).data[0].x[0]


def test_without_anywidget_there_is_the_picture(explorer, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "avlens.views.widget", raising=False)
    (still,) = displayed(explorer)
    assert set(still) == {"text/plain", "text/html"} and explorer.widget is None


def test_a_saved_page_holds_what_was_run_and_asks_nothing_of_the_network(explorer, tmp_path):
    explorer.sweep(1)
    html = explorer.save(tmp_path / "explorer.html").read_text("utf-8")
    assert "default-src 'none'" in html and "http://www.w3.org/2000/svg" in html and html.count("://") == 1
    assert '"0,1":' in html and "explorer.alone(" in html


def test_frames_are_shown_for_columns_of_video(world, explorer):
    pictured = ["picture" in group for group in explorer._spec["groups"]]
    assert pictured == [group["modality"] == "video" for group in explorer._spec["groups"]] and any(pictured)


def test_answers_can_be_named(world):
    model, _, clean, corrupt = world
    explorer = PatchExplorer(model, clean, corrupt, answers=["dog", "siren"])
    assert list(explorer.probabilities["clean"]) == ["dog", "siren"]
    explorer.choose(follow="siren")
    assert explorer.result.answer == "siren"


def test_what_cannot_be_patched_is_refused(world, explorer):
    model, clip, clean, corrupt = world
    with pytest.raises(PromptError, match="same layout"):
        PatchExplorer(model, clean, model.prepare(clip, "what ?"))
    with pytest.raises(PromptError, match="begin differently"):
        PatchExplorer(model, clean, corrupt, answers=["dog", "dog "])
    with pytest.raises(PromptError, match="an answer is empty"):
        PatchExplorer(model, clean, corrupt, answers=[" "])
    with pytest.raises(PositionError, match="another layout"):
        PatchExplorer(model, clean, corrupt, groups={"x": model.prepare(clip, "what ?").tokens.audio})
    with pytest.raises(ViewError, match="nothing to patch"):
        PatchExplorer(model, clean, corrupt, groups={"none": clean.tokens.at([])})
    with pytest.raises(LayerError, match="from 0 to 2"):
        explorer.patch(3, 0)
    with pytest.raises(ViewError, match="no group 'x'"):
        explorer.patch(0, "x")
    with pytest.raises(ViewError, match="no group 99"):
        explorer.knockout(0, 99)
    with pytest.raises(ViewError, match="is no choice"):
        explorer.choose(follow="nobody says this")
