"""What do all pictures share: a colour for each modality, scales, titles, and no way out of the page?

Colours are those of Okabe and Ito, which colour-blind readers can tell apart. Scales of signed values are centred at
zero. Whatever text comes from a prompt, a clip or a caller goes through `escaped`, since plotly reads titles, ticks,
legends and hover labels as a kind of HTML. Figures carry their settings: nobody has to set a renderer.

Source: Okabe and Ito 2008, "Color Universal Design", https://jfly.uni-koeln.de/color/.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import plotly.graph_objects as go

from avlens.tokens import Modality, TokenMap

COLOURS: Mapping[Modality, str] = MappingProxyType(
    {
        Modality.TEXT: "#666666",
        Modality.AUDIO: "#E69F00",
        Modality.VIDEO: "#0072B2",
        Modality.IMAGE: "#56B4E9",
        Modality.SEPARATOR: "#CC79A7",
        Modality.SPECIAL: "#999999",
    }
)
"""The colour of each modality, everywhere."""

CROSS_MODAL = "#009E73"
"""The colour of what audio and video share."""

CLEAN, CORRUPT = "#332288", "#D55E00"
"""The colours of a clean and of a corrupted run's answer."""

SINK = "#00E5FF"
"""The colour that marks sinks on pictures."""

DIVERGING = ((0.0, "#2166AC"), (0.5, "#F7F7F7"), (1.0, "#B2182B"))
"""From negative to positive; give it a range that is symmetric around 0."""

OVERLAY = ((0.0, "rgba(33,102,172,0.95)"), (0.5, "rgba(255,255,255,0)"), (1.0, "rgba(178,24,43,0.95)"))
"""The same to lay over a picture: 0 is transparent."""

SEQUENTIAL = ((0.0, "#F7F7F7"), (1.0, "#B2182B"))
"""For what is never negative; give it a range from 0."""

OVERLAY_SEQUENTIAL = ((0.0, "rgba(255,255,255,0)"), (1.0, "rgba(178,24,43,0.95)"))
"""The same to lay over a picture: 0 is transparent."""

CONFIG: Mapping[str, Any] = MappingProxyType(
    {"modeBarButtonsToRemove": ["sendChartToCloud"], "displaylogo": False, "responsive": True}
)
"""Plotly's settings for a page: no button that uploads the figure, no link to a site."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
"""What the reader's system has."""


def figure(title: str, *, note: str = "", height: int = 420, width: int | None = None) -> go.Figure:
    """An empty figure in the common style, as wide as its place unless told; both texts are plain text."""
    fig = go.Figure()
    fig.update_layout(
        template="plotly_white",
        title={
            "text": escaped(title), "x": 0, "xref": "paper", "xanchor": "left", "y": 1 - 16 / height, "yanchor": "top",
            "font": {"size": 16, "color": "#1A1A1A"},
            "subtitle": {"text": escaped(note), "font": {"size": 12, "color": "#666666"}},
        },
        font={"family": FONT, "size": 12, "color": "#333333"},
        height=height, width=width, margin={"l": 64, "r": 24, "t": 104, "b": 52},
        hoverlabel={"font": {"family": FONT, "size": 12}, "align": "left"},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        modebar={"remove": ["sendChartToCloud"]},
    )  # fmt: skip
    return fig


def escaped(text: str) -> str:
    """Plain text as plotly and HTML show it."""
    return html.escape(text, quote=False)


def joined(parts: Iterable[str]) -> str:
    """The parts that say something, with a dot between them."""
    return " · ".join(part for part in parts if part)


def origin(made_by: Mapping[str, Any], tokens: TokenMap | None = None) -> str:
    """What a picture's subtitle says of where the numbers come from: model, number type, clip, question."""
    prompts: Sequence[Mapping[str, Any]] = made_by.get("prompts", ())
    record = prompts[0] if len(prompts) == 1 else {}
    question = str(record.get("question", "")) or ("" if tokens is None else question_of(tokens))
    clips = record.get("clips", ())
    return joined(
        [
            str(made_by.get("model", "")),
            str(made_by.get("dtype", "")).removeprefix("torch."),
            f"clip {', '.join(str(clip)[:8] for clip in clips)}" if clips else "",
            f"“{_shortened(question, 60)}”" if question else "",
            f"{len(prompts)} prompts" if len(prompts) > 1 else "",
        ]
    )


def question_of(tokens: TokenMap) -> str:
    """The question as it stands in the prompt; empty where there is none."""
    asked = tokens.offsets[tokens.question.positions]
    asked = asked[asked[:, 0] >= 0]
    return tokens.prompt[int(asked[:, 0].min()) : int(asked[:, 1].max())].strip() if len(asked) else ""


def counted(n: int, noun: str) -> str:
    """`1 sink`, `3 sinks`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _shortened(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
