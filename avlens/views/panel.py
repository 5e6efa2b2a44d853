"""What is a browser given to show an explorer: what stays, what changes, the script, and a picture without one?"""

import html
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avlens import display
from avlens.media import Clip
from avlens.tokens import Modality, TokenSet
from avlens.views.frames import data_uri, thumbnails
from avlens.views.page import script_json
from avlens.views.patching import SITES, Bench, PatchGrid
from avlens.views.style import CLEAN, COLOURS, CORRUPT, counted, escaped, joined, origin

_HERE = Path(__file__).parent
_CELL, _LAYERS, _LABELS = (20, 16), 46, 120  # pixels of the picture without a script
_LOSS, _GAIN = (33, 102, 172), (178, 24, 43)  # the ends of style.DIVERGING


def spec(bench: Bench, clip: Clip | None) -> dict[str, Any]:
    """What stays: columns, layers, answers, and both runs."""
    p = {"clean": bench.p_clean.tolist(), "corrupted": bench.p_corrupt.tolist()}
    return {
        "groups": [_column(label, tokens, clip) for label, tokens in bench.groups.items()], "layers": bench.n_layers,
        "answers": list(bench.answers), "p": p, "sites": list(SITES),
        "colours": {"clean": CLEAN, "corrupted": CORRUPT},
        "note": joined([counted(len(bench.clean.tokens), "token"), origin(bench.model.made_by(bench.clean))]),
    }  # fmt: skip


@cache
def script() -> str:
    """The module that draws it, as anywidget takes it."""
    return (_HERE / "explorer.js").read_text(encoding="utf-8")


@cache
def styles() -> str:
    """Its style."""
    return (_HERE / "explorer.css").read_text(encoding="utf-8")


def standing_alone(spec: Mapping[str, Any], view: Mapping[str, Any]) -> str:
    """HTML that draws it without a kernel; cells that were run can be clicked on."""
    drawn = script().replace("export default", "const explorer =")
    return (
        f"<style>{styles()}</style><div id='avlens-explorer'></div><script type='module'>{drawn}\n"
        f"explorer.alone(document.getElementById('avlens-explorer'), {script_json(spec)}, {script_json(view)});</script>"
    )


def as_html(grid: PatchGrid, probabilities: Mapping[str, Mapping[str, float]]) -> str:
    """A picture of what is known, without a script."""
    n_layers, labels = len(grid.patched), list(grid.groups)
    width, height = _LAYERS + len(labels) * _CELL[0] + 60, _LABELS + n_layers * _CELL[1] + 4
    parts = [_column_label(label, i) for i, label in enumerate(labels)]
    parts += [
        f"<text x='{_LAYERS - 6}' y='{_LABELS + i * _CELL[1] + 12}' font-size='10' text-anchor='end' fill='currentColor'>L{i}"
        "</text>"
        for i in range(n_layers)
        if i % -(-n_layers // 32) == 0
    ]
    sizes = torch.cat([grid.patched, grid.knocked_out]).nan_to_num().abs()
    limit = max(float(sizes.max()), abs(grid.p_clean - grid.p_corrupt), 1e-9)
    parts += [_cell(grid, layer, i, limit) for layer in range(n_layers) for i in range(len(labels))]
    svg = (
        f"<svg viewBox='0 0 {width} {height}' width='{width}' style='max-width:100%;display:block' role='img' "
        f"aria-label='{html.escape(repr(grid))}'>{''.join(parts)}</svg>"
    )
    runs = [f"{run}: {', '.join(f'{name} {p:.3f}' for name, p in of.items())}" for run, of in probabilities.items()]
    note = (
        f"Colour: change of P({grid.answer}), red more, blue less, full at {limit:.2g}; dots: knocked out; grey: not run. "
        + "; ".join(runs)
    )
    return display.framed(f"<b>{escaped(repr(grid))}</b>{svg}<div style='opacity:.65'>{escaped(note)}</div>")


def _column(label: str, tokens: TokenSet, clip: Clip | None) -> dict[str, Any]:
    kinds = tokens.tokens.modality[tokens.positions]
    kind = Modality(int(kinds.mode().values))
    told = {"label": label, "n": len(tokens), "modality": kind.name.lower(), "colour": COLOURS[kind]}
    frame = _seen(tokens, clip)
    return told if frame is None else told | {"picture": data_uri(thumbnails(frame)[0])}


def _seen(tokens: TokenSet, clip: Clip | None) -> Tensor | None:
    """The frame that is on when the first video token of the group begins."""
    seen = tokens & tokens.tokens.video & tokens.tokens.clips(0)
    if clip is None or clip.frames is None or clip.frame_seconds is None or not seen:
        return None
    start = tokens.tokens.start[seen.positions].min().double()
    at = int(torch.searchsorted(clip.frame_seconds.double(), start + 1e-6)) - 1
    return clip.frames[max(0, at)][None]


def _column_label(label: str, i: int) -> str:
    x, y = _LAYERS + (i + 0.7) * _CELL[0], _LABELS - 5
    return f"<text transform='translate({x:.0f},{y}) rotate(-60)' font-size='10' fill='currentColor'>{escaped(label)}</text>"


def _cell(grid: PatchGrid, layer: int, group: int, limit: float) -> str:
    x, y = _LAYERS + group * _CELL[0], _LABELS + layer * _CELL[1]
    patched, knocked = float(grid.patched[layer, group]), float(grid.knocked_out[layer, group])
    rect = f"<rect x='{x}' y='{y}' width='{_CELL[0] - 1}' height='{_CELL[1] - 1}' fill='{_fill(patched, limit)}'/>"
    if knocked == knocked:
        rect += f"<circle cx='{x + 9.5}' cy='{y + 7.5}' r='5' stroke='#888' stroke-width='.7' fill='{_fill(knocked, limit)}'/>"
    return rect


def _fill(value: float, limit: float) -> str:
    if value != value:
        return "rgba(128,128,128,.14)"
    red, green, blue = _GAIN if value >= 0 else _LOSS
    return f"rgba({red},{green},{blue},{min(1.0, abs(value) / limit):.3f})"
