"""How does a notebook show what is no picture: tables, prompts and caches, as HTML without scripts?

What is made here shows wherever a notebook is shown: in a browser without a kernel, on GitHub, in a page that was
exported. All text is escaped. Colours take over the reader's own for text and lines, so that dark themes work.

Source of the colours: Okabe and Ito 2008, "Color Universal Design", https://jfly.uni-koeln.de/color/.
"""

import html
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pandas as pd

MODALITY_COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "text": "#666666",
        "audio": "#E69F00",
        "video": "#0072B2",
        "image": "#56B4E9",
        "separator": "#CC79A7",
        "special": "#999999",
    }
)
"""The colour of each modality, everywhere."""

_MOST_ROWS = 10
_FRAME = "font:12px/1.5 system-ui,sans-serif;max-width:100%;overflow-x:auto"
_LINE = "border-bottom:1px solid rgba(128,128,128,.25)"


def table(heading: str, rows: pd.DataFrame, made_by: Mapping[str, Any] | None = None) -> str:
    """A result: what it is, its first rows, and where it comes from."""
    left = len(rows) - _MOST_ROWS
    named = rows.index.nlevels > 1 or rows.index.name is not None
    rows = rows.head(_MOST_ROWS).reset_index() if named else rows.head(_MOST_ROWS)
    head = "".join(f"<th style='{_cell(value)}'>{_text(str(name))}</th>" for name, value in _columns(rows))
    body = "".join(f"<tr>{''.join(map(_written, row))}</tr>" for row in rows.itertuples(index=False, name=None))
    notes = [f"{left:,} more rows in to_frame()"] if left > 0 else []
    notes += [told] if (told := origin(made_by or {})) else []
    return framed(
        f"<b>{_text(heading)}</b><table style='border-collapse:collapse;margin:4px 0'><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{_muted(' · '.join(notes))}"
    )


def framed(body: str) -> str:
    """HTML in the common type."""
    return f"<div class='avlens-shown' style='{_FRAME}'>{body}</div>"


def runs(kinds: Sequence[str], marks: Mapping[int, str] = MappingProxyType({})) -> str:
    """A bar with a stripe for each run of positions of one modality, its legend, and marks below some positions."""
    n, stripes, first = max(1, len(kinds)), [], 0
    for i in range(1, len(kinds) + 1):
        if i == len(kinds) or kinds[i] != kinds[first]:
            told = f"{kinds[first]} {first}" + (f" to {i - 1}" if i - 1 > first else "")
            stripes.append(
                f"<rect x='{1000 * first / n:.2f}' width='{1000 * (i - first) / n:.2f}' height='22' "
                f"fill='{MODALITY_COLOURS[kinds[first]]}'><title>{told}</title></rect>"
            )
            first = i
    below = "".join(
        f"<text x='{1000 * position / n:.1f}' y='36' font-size='11' fill='currentColor'>{_text(mark)}</text>"
        for position, mark in marks.items()
    )
    counts = {kind: kinds.count(kind) for kind in MODALITY_COLOURS if kind in kinds}
    legend = " ".join(
        f"<span style='white-space:nowrap;margin-right:12px'><span style='display:inline-block;width:10px;height:10px;"
        f"background:{MODALITY_COLOURS[kind]}'></span> {kind} {count:,}</span>"
        for kind, count in counts.items()
    )
    return (
        f"<svg viewBox='0 0 1000 {40 if marks else 22}' style='width:100%;max-width:900px;display:block;margin:4px 0' "
        f"role='img' aria-label='tokens by modality'>{''.join(stripes)}{below}</svg><div>{legend}</div>"
    )


def origin(made_by: Mapping[str, Any], question: str = "") -> str:
    """Where numbers come from: model, number type, clip, question."""
    prompts: Sequence[Mapping[str, Any]] = made_by.get("prompts", ())
    record = prompts[0] if len(prompts) == 1 else {}
    question = str(record.get("question", "")) or question
    clips = record.get("clips", ())
    parts = [
        str(made_by.get("model", "")),
        str(made_by.get("dtype", "")).removeprefix("torch."),
        f"clip {', '.join(str(clip)[:8] for clip in clips)}" if clips else "",
        f"“{_shortened(question, 60)}”" if question else "",
        f"{len(prompts)} prompts" if len(prompts) > 1 else "",
    ]
    return " · ".join(part for part in parts if part)


def _columns(rows: pd.DataFrame) -> list[tuple[Any, Any]]:
    """The name and first value of each column."""
    return [(name, rows[name].iloc[0] if len(rows) else "") for name in rows.columns]


def _written(value: Any) -> str:
    return f"<td style='{_cell(value)}'>{_text(_said(value))}</td>"


def _cell(value: Any) -> str:
    side = "left" if isinstance(value, str) else "right"
    return f"text-align:{side};padding:2px 16px 2px 0;{_LINE};font-variant-numeric:tabular-nums"


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "–"
    return _shortened(str(value), 80)


def _text(text: str) -> str:
    return html.escape(text, quote=False)


def _muted(text: str) -> str:
    return f"<div style='opacity:.65'>{_text(text)}</div>" if text else ""


def _shortened(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
