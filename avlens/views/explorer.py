"""Which tokens carry the answer, and where: a grid of layers and groups of tokens to click on?

A click patches a cell, a click with shift knocks it out; the probabilities of the answers stand side by side for the
clean, the corrupted and the edited run. The same can be done from cells: the widget shows what methods do, and methods
see what clicks did. Clicks are worked off one after the other by a thread of the explorer's own, which takes the
model's lock for each run, so that nothing that a cell runs meanwhile is mixed in.

Without a kernel (on GitHub, in an exported page) a static figure is shown; `save` writes a page in which all that was
run can still be clicked.
"""

import math
import queue
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from avlens.contrast import Direction
from avlens.errors import AVLensError, ViewError
from avlens.inputs import AVInputs
from avlens.media import Clip
from avlens.tokens import TokenSet
from avlens.views import grouping, panel
from avlens.views.page import page
from avlens.views.patching import SITES, Bench, Edit, Kind, PatchGrid
from avlens.views.style import counted

_SECONDS_PER_UPDATE = 0.7


@dataclass(frozen=True)
class _Choices:
    """What the next click means.

    Attributes:
        direction: Which run is patched.
        site: What is patched.
        window: How many layers at a time.
        add: Whether an edit is added to those that are there.
        follow: Which answer colours the grid.
    """

    direction: Direction = "denoise"
    site: str = "resid_pre"
    window: int = 1
    add: bool = False
    follow: int = 0


_State = tuple[Direction, tuple[Edit, ...]]


class PatchExplorer:
    """A grid of layers and groups of tokens. Show it as the last line of a cell, and click.

    Columns are called by number or by label, layers by number; negative layers count from the end. Every method that
    runs the model waits for what is running.
    """

    def __init__(
        self,
        model: Any,
        clean: AVInputs,
        corrupt: AVInputs,
        *,
        groups: Mapping[str, TokenSet] | None = None,
        group: grouping.Grouping = "overview",
        sinks: TokenSet | None = None,
        audio_seconds: float | int = 1.0,
        frames_per_row: int = 1,
        answers: Sequence[str] | None = None,
        clip: Clip | None = None,
    ) -> None:
        """Run both prompts once.

        Args:
            model: A HookedAVModel.
            clean: One prompt.
            corrupt: The same prompt on a corrupted clip, such as `clip.silenced()`: same layout, same question.
            groups: The tokens of each column, by label; by default all tokens of the prompt, grouped as follows.
            group: How positions become columns; see `views.attention`.
            sinks: Positions that have a column of their own, with a star, as has the first.
            audio_seconds: How much sound is a column.
            frames_per_row: How many frames are a column.
            answers: Words whose probability is told; by default the likeliest of both runs. The first one colours the grid.
            clip: What the clean run sees, to show a frame when the pointer is over its column.

        Raises:
            PromptError: If the prompts differ in more than their media, or the answers begin alike.
            PositionError: If a group belongs to a prompt of another layout.
            ViewError: If there is nothing to patch, or a choice does not exist.
        """
        if groups is None:
            found = grouping.group(
                clean.tokens, by=group, sinks=sinks, audio_seconds=audio_seconds, frames_per_row=frames_per_row
            )
            groups = {one.label: clean.tokens.at(one.positions.tolist()) for one in found}
        self._bench = Bench.of(model, clean, corrupt, dict(groups), answers)
        self._choices, self._at = _Choices(), 0
        self._states: list[_State] = [("denoise", ())]
        self._status, self._failed = "Click on a cell to patch it; with shift, to knock it out.", False
        self._progress: tuple[int, int] | None = None
        self._lock, self._stopped = threading.RLock(), threading.Event()
        self._jobs: queue.Queue[Mapping[str, Any]] = queue.Queue()
        self._worker: threading.Thread | None = None
        self._starting = threading.Lock()
        self._widget: Any = None
        self._still = uuid.uuid4().hex  # by which the widget finds the picture that it hides
        self._spec = panel.spec(self._bench, clip)

    # What can be done.

    def patch(
        self, layer: int, group: int | str, *, site: str | None = None, window: int | None = None
    ) -> dict[str, float]:
        """Patch a cell; the probability of each answer.

        Raises:
            LayerError: If the layer does not exist.
            ViewError: If the group or the site does not.
        """
        self._choose(site=site, window=window)
        return self._act("patch", layer, group)

    def knockout(self, layer: int, group: int | str, *, window: int | None = None) -> dict[str, float]:
        """Forbid all others to read a group; the probability of each answer. Errors as `patch`."""
        self._choose(window=window)
        return self._act("knockout", layer, group)

    def sweep(self, group: int | str | None = None, *, layer: int | None = None, kind: Kind = "patch") -> PatchGrid:
        """Patch or knock out each cell of a column, of a row, or of the whole grid, until `stop` is called.

        Raises:
            LayerError: If the layer does not exist.
            ViewError: If the group does not.
        """
        with self._lock:
            columns = range(len(self._bench.groups)) if group is None else [self._column(group)]
            rows = range(self._bench.n_layers) if layer is None else [self._row(layer)]
            wanted = [self._edit(kind, row, column) for column in columns for row in rows]
            new = [edit for edit in wanted if self._bench.known([edit], self._choices.direction) is None]
            self._tell(f"{self._sweep(new) if new else 'all of it is known'}{self._most(wanted)}")
            return self.result

    def stop(self) -> None:
        """End a sweep after what is under way, and forget clicks that wait."""
        self._stopped.set()
        while not self._jobs.empty():
            try:
                self._jobs.get_nowait()
            except queue.Empty:
                return
            self._jobs.task_done()

    def undo(self) -> None:
        """Go back to what was before the last edit."""
        self.go_to(self._at - 1)

    def redo(self) -> None:
        """Do what was undone."""
        self.go_to(self._at + 1)

    def go_to(self, step: int) -> None:
        """Go to a step of the history, 0 being without edits; further than it reaches is ignored."""
        with self._lock:
            if 0 <= step < len(self._states):
                self._at = step
                self._tell(self._said())

    def choose(
        self, *, direction: Direction | None = None, site: str | None = None, window: int | None = None,
        add: bool | None = None, follow: int | str | None = None,
    ) -> None:  # fmt: skip
        """What the next edits are.

        Args:
            direction: `denoise` patches clean into corrupted, `noise` corrupted into clean.
            site: What is patched: `resid_pre`, `ln1.normalized`, `k, v`, `attn_out` or `mlp_out`.
            window: How many layers at a time.
            add: Whether edits are added to those that are there.
            follow: The answer that colours the grid.

        Raises:
            ViewError: If there is no such choice.
        """
        self._choose(direction=direction, site=site, window=window, add=add, follow=follow)
        self._publish()

    def wait(self, seconds: float | int | None = None) -> None:
        """Wait until all that was clicked on is done, or so many seconds have passed."""
        end = None if seconds is None else time.monotonic() + seconds
        while self._jobs.unfinished_tasks and (end is None or time.monotonic() < end):
            time.sleep(0.01)

    # What is there.

    @property
    def probabilities(self) -> dict[str, dict[str, float]]:
        """Of each answer, in the clean, the corrupted and the edited run."""
        with self._lock:
            direction, edits = self._states[self._at]
            edited = self._bench.known(edits, direction)
            runs = {"clean": self._bench.p_clean, "corrupted": self._bench.p_corrupt, "edited": edited}
            return {name: self._named(p) for name, p in runs.items() if p is not None}

    @property
    def status(self) -> str:
        """The status line."""
        return self._status

    @property
    def history(self) -> list[str]:
        """What was done, one line a step, `+` where an edit was added; undone steps are at the end."""
        lines = [self._described(self._states[0])]
        for (before, few), (after, more) in pairwise(self._states):
            added = before == after and bool(few) and more[:-1] == few
            lines.append(("+ " if added else "") + self._described((after, more[-1:] if added else more)))
        return lines

    @property
    def code(self) -> str:
        """Python that does what is shown, given `model`, `clean` and `corrupt`."""
        direction, edits = self._states[self._at]
        return self._bench.code(edits, direction)

    @property
    def result(self) -> PatchGrid:
        """What is known with the choices made, to be drawn by `views.plot`."""
        with self._lock:
            bench, chosen = self._bench, self._choices
            return PatchGrid(
                patched=self._grid("patch"), knocked_out=self._grid("knockout"), groups=bench.groups,
                answer=list(bench.answers)[chosen.follow], direction=chosen.direction, site=chosen.site, window=chosen.window,
                p_clean=float(bench.p_clean[chosen.follow]), p_corrupt=float(bench.p_corrupt[chosen.follow]),
                made_by=bench.model.made_by(bench.clean, corrupt=dict(bench.corrupt.record)),
            )  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write a page that works without a kernel: cells that were run can be clicked on. Returns the path."""
        path = Path(path)
        body = panel.standing_alone(self._spec, self._view())
        path.write_text(page("Patch explorer", body, style="body { margin: 16px; }"), encoding="utf-8")
        return path

    def __repr__(self) -> str:
        return (
            f"PatchExplorer({counted(self._bench.n_layers, 'layer')} x {counted(len(self._bench.groups), 'group')}, "
            f"{counted(len(self._bench._known), 'edit')} run)"
        )

    def _repr_html_(self) -> str:
        return panel.as_html(self.result, self.probabilities)

    def _ipython_display_(self) -> None:
        """A picture, and the widget, which hides it: where no widget can be drawn, the picture is left."""
        from IPython.display import display

        still = f"<div data-avlens-still='{self._still}'>{self._repr_html_()}</div>"
        display({"text/plain": repr(self), "text/html": still}, raw=True)
        if self.widget is not None:
            display(self.widget.mime(), raw=True)

    @property
    def widget(self) -> Any:
        """The widget, as ipywidgets know it; None where anywidget is not installed."""
        if self._widget is None:
            try:
                from avlens.views.widget import Widget
            except ImportError:
                return None
            self._widget = Widget(spec={**self._spec, "still": self._still}, view=self._view())
            self._widget.on_msg(lambda _widget, message, _buffers: self._receive(message))
        return self._widget

    # Inside: what clicks do.

    def _receive(self, message: Mapping[str, Any]) -> None:
        """A click. `stop` is heeded at once, the rest in order by the worker."""
        if message.get("do") == "stop":
            self.stop()
            return
        self._jobs.put(message)
        with self._starting:
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="PatchExplorer", daemon=True)
                self._worker.start()

    def _work(self) -> None:
        while True:
            message = self._jobs.get()
            try:
                self._do(message)
            except Exception as error:  # noqa: BLE001  a click has nobody to raise to: it is told in the status line
                self._fail(error)
            finally:
                self._jobs.task_done()

    def _do(self, message: Mapping[str, Any]) -> None:
        what, cell = message.get("do"), (message.get("layer"), message.get("group"))
        if what in ("patch", "knockout"):
            self._act(what, *cell)
        elif what == "sweep":
            self.sweep(cell[1], layer=cell[0], kind=message.get("kind", "patch"))
        elif what == "choose":
            self.choose(**message.get("choices", {}))
        elif what in ("undo", "redo"):
            getattr(self, what)()
        elif what == "go_to":
            self.go_to(int(message["step"]))
        else:
            raise ViewError(f"{what!r} cannot be done. Patch, knock out, sweep, choose, undo, redo, go_to or stop.")

    def _fail(self, error: Exception) -> None:
        told = str(error) if isinstance(error, AVLensError) else f"{type(error).__name__}: {error}"
        self._progress = None
        self._tell(told, failed=True)

    def _choose(
        self, *, direction: str | None = None, site: str | None = None, window: int | None = None, add: bool | None = None,
        follow: int | str | None = None,
    ) -> None:  # fmt: skip
        answers = list(self._bench.answers)
        follow = answers.index(follow) if isinstance(follow, str) and follow in answers else follow
        known: dict[str, Sequence[Any]] = {
            "direction": get_args(Direction), "site": list(SITES), "window": range(1, self._bench.n_layers + 1),
            "add": (False, True), "follow": range(len(answers)),
        }  # fmt: skip
        asked = {"direction": direction, "site": site, "window": window, "add": add, "follow": follow}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        for name, value in given.items():
            if value not in known[name]:
                told = answers if name == "follow" else list(known[name])
                raise ViewError(f"{name}={value!r} is no choice. Choose one of {', '.join(map(repr, told))}.")
        with self._lock:
            self._choices = replace(self._choices, **given)

    def _act(self, kind: Kind, layer: Any, group: Any) -> dict[str, float]:
        """Do one edit, or take it back where it is among those that are added up."""
        with self._lock:
            edit = self._edit(kind, self._row(layer), self._column(group))
            direction, before = self._states[self._at]
            if not self._choices.add or direction != self._choices.direction:
                before = ()
            edits: tuple[Edit, ...] = tuple(one for one in before if one != edit) if edit in before else (*before, edit)
            state = (self._choices.direction, edits)
            self._tell(f"running {self._described(state)} …")
            began, new = time.perf_counter(), self._bench.known(edits, state[0]) is None
            self._bench.run([edits], state[0])
            if state != self._states[self._at]:
                self._states = [*self._states[: self._at + 1], state]
                self._at += 1
            took = f"{time.perf_counter() - began:.2f} s" if new else "known"
            self._tell(f"{self._said()} · {took}")
            return self.probabilities["edited"]

    def _sweep(self, wanted: list[Edit]) -> str:
        """Run edits by themselves, a few at a time, so that what is known is shown and a stop is heeded; what was done."""
        self._stopped.clear()
        direction, n, began, at_once = self._choices.direction, len(wanted), time.perf_counter(), 1
        done = 0
        while done < n and not self._stopped.is_set():
            some, start = wanted[done : done + at_once], time.perf_counter()
            self._progress = (done, n)
            self._tell(f"sweeping: {done} of {counted(n, 'cell')}")
            self._bench.run([[edit] for edit in some], direction)
            done += len(some)
            each = (time.perf_counter() - start) / len(some)
            at_once = max(1, min(64, round(_SECONDS_PER_UPDATE / max(each, 1e-3))))
        self._progress = None
        stopped = f", stopped at {done} of {n}" if done < n else ""
        return f"{counted(done, 'cell')} run in {time.perf_counter() - began:.1f} s{stopped}"

    def _most(self, edits: Sequence[Edit]) -> str:
        """Which of some edits, each by itself, changes the answer most, of those that are known."""
        direction, follow = self._choices.direction, self._choices.follow
        found = [(edit, self._bench.effect([edit], direction)) for edit in edits]
        changes = {edit: float(effect[follow]) for edit, effect in found if effect is not None}
        if not changes:
            return ""
        edit, change = max(changes.items(), key=lambda item: abs(item[1]))
        return f"; most: {self._described((direction, (edit,)))}, P({list(self._bench.answers)[follow]}) {change:+.3f}"

    def _edit(self, kind: Kind, layer: int, group: int) -> Edit:
        site = self._choices.site if kind == "patch" else ""
        return self._bench.checked(Edit(kind, layer, group, self._choices.window, site))

    def _column(self, group: Any) -> int:
        labels = list(self._bench.groups)
        if isinstance(group, str) and group not in labels:
            raise ViewError(f"there is no group {group!r}. Groups are {', '.join(labels)}.")
        return labels.index(group) if isinstance(group, str) else int(group)

    def _row(self, layer: Any) -> int:
        return int(layer) + self._bench.n_layers if int(layer) < 0 else int(layer)

    def _named(self, p: Float[Tensor, " answer"]) -> dict[str, float]:
        return dict(zip(self._bench.answers, p.tolist(), strict=True))

    def _grid(self, kind: Kind) -> Float[Tensor, "layer group"]:
        effects = torch.full((self._bench.n_layers, len(self._bench.groups)), torch.nan)
        for (layer, group), p in self._cells(kind).items():
            effects[layer, group] = p[self._choices.follow]
        return effects

    def _cells(self, kind: Kind) -> dict[tuple[int, int], Float[Tensor, " answer"]]:
        """Effects of each cell by itself that are known with the choices made."""
        bench, found = self._bench, {}
        for layer in range(bench.n_layers):
            for group in range(len(bench.groups)):
                effect = bench.effect([self._edit(kind, layer, group)], self._choices.direction)
                if effect is not None:
                    found[layer, group] = effect
        return found

    def _described(self, state: _State) -> str:
        direction, edits = state
        labels, n = list(self._bench.groups), self._bench.n_layers
        if not edits:
            return "no edit"
        parts = []
        for edit in edits:
            last = min(edit.layer + edit.window, n) - 1
            layers = f"L{edit.layer}" if last == edit.layer else f"L{edit.layer}-{last}"
            site = f" {edit.site}" if edit.kind == "patch" and edit.site != "resid_pre" else ""
            parts.append(f"{'knock out' if edit.kind == 'knockout' else 'patch'} {layers} {labels[edit.group]}{site}")
        noise = (
            " (corrupted into clean)" if direction == "noise" and any(edit.kind == "patch" for edit in edits) else ""
        )
        return " + ".join(parts) + noise

    def _said(self) -> str:
        direction, edits = self._states[self._at]
        found, change = self._bench.known(edits, direction), self._bench.effect(edits, direction)
        if found is None or change is None or not edits:
            return "no edit"
        follow = self._choices.follow
        answer, p = list(self._bench.answers)[follow], float(found[follow])
        return f"{self._described((direction, edits))}: P({answer}) {p - float(change[follow]):.3f} → {p:.3f}"

    def _tell(self, status: str, *, failed: bool = False) -> None:
        self._status, self._failed = status, failed
        self._publish()

    def _publish(self) -> None:
        """Let the widget show what is."""
        if self._widget is not None:
            with self._lock:
                self._widget.view = self._view()

    def _view(self) -> dict[str, Any]:
        with self._lock:
            direction, edits = self._states[self._at]
            found = self._bench.known(edits, direction)
            cells = {
                kind: {f"{layer},{group}": _rounded(p) for (layer, group), p in self._cells(kind).items()}
                for kind in get_args(Kind)
            }
            return {
                "cells": cells, "edits": [edit._asdict() for edit in edits], "at": self._at, "history": self.history,
                "probabilities": None if found is None else _rounded(found), "choices": asdict(self._choices),
                "status": self._status, "failed": self._failed, "progress": self._progress, "code": self.code,
            }  # fmt: skip


def _rounded(p: Float[Tensor, " answer"]) -> list[float | None]:
    """As JSON holds it: an unknown number is none."""
    return [round(x, 5) if math.isfinite(x) else None for x in p.tolist()]
