"""What do the traces of many clips say together, and how sure is it?

One row per set of tokens: the mean effects over clips with bootstrap intervals, their share of the total effect as a ratio of
means (sum of IE over sum of TE), and how much each token carries. Sets named `random #0`, `random #1`, ... are draws of one
control: their effects are averaged within each clip before clips are averaged. A clip whose set is empty is left out of that
row and counted.

Source: tables of causal effects in Jung et al. 2026, arXiv:2605.10815 (x100), whose effects are plain means over one unseeded
draw.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from avlens import display
from avlens.analyses.tracing import CausalTrace
from avlens.errors import PromptError
from avlens.metrics.effects import Interval, bootstrap_mean, ratio_of_sums


@dataclass(frozen=True)
class SetEffect:
    """A set's effects over clips.

    Attributes:
        name: The set.
        tokens: Mean number of tokens.
        ie_clean: Mean indirect effect on the clean answer, a difference of probabilities.
        ie_corrupt: The same on the corrupted answer.
        share: Sum of IE_clean over sum of TE_clean.
        per_token: Mean of IE_clean / tokens.
        flipped: Share of the clips whose answer flipped.
        clips: How many clips count.
        empty: How many were left out because their set was empty.
        draws: How many draws were averaged in each clip.
    """

    name: str
    tokens: float
    ie_clean: Interval
    ie_corrupt: Interval
    share: Interval
    per_token: Interval
    flipped: float
    clips: int
    empty: int
    draws: int


@dataclass(frozen=True)
class TraceTable:
    """Effects of each set over clips.

    Attributes:
        rows: One per set.
        te_clean: Mean total effect on the clean answer.
        te_corrupt: The same on the corrupted answer.
        direction: Of the patches.
    """

    rows: tuple[SetEffect, ...]
    te_clean: Interval
    te_corrupt: Interval
    direction: str

    def __getitem__(self, name: str) -> SetEffect:
        """The row of a set."""
        found = [row for row in self.rows if row.name == name]
        if not found:
            raise PromptError(f"no set is called {name!r}. Sets are {', '.join(row.name for row in self.rows)}.")
        return found[0]

    def to_frame(self) -> pd.DataFrame:
        """One row per set; effects x100, with the ends of their intervals."""
        return pd.DataFrame([_row(row) for row in self.rows]).set_index("set")

    def to_latex(self) -> str:
        """The table as LaTeX (booktabs), effects x100 with their intervals."""
        lines = [
            f"{row.name} & {_tex(row.ie_clean)} & {_tex(row.ie_corrupt)} & {row.tokens:.0f} & {_tex(row.share, 1)} \\\\"
            for row in self.rows
        ]
        head = r"\begin{tabular}{lrrrr}" + "\n" + r"\toprule" + "\n"
        names = r"Set & $\mathrm{IE}_{clean}$ & $\mathrm{IE}_{corr}$ & \#Tokens & IE/TE \\" + "\n" + r"\midrule" + "\n"
        return head + names + "\n".join(lines) + "\n" + r"\bottomrule" + "\n" + r"\end{tabular}" + "\n"

    def __repr__(self) -> str:
        shown = pd.DataFrame([_shown(row) for row in self.rows]).set_index("set")
        total = f"total effect x100: clean {100 * self.te_clean.estimate:.2f}, corrupted {100 * self.te_corrupt.estimate:.2f}"
        level = f"{100 * self.te_clean.level:g}% bootstrap intervals over clips"
        return f"{shown.to_string()}\n{total}; {self.direction}; {level}"

    def _repr_html_(self) -> str:
        return display.table(f"TraceTable({len(self.rows)} sets, {self.direction}; effects x100)", self.to_frame())


def trace_table(
    traces: Sequence[CausalTrace], *, n_draws: int = 10_000, level: float = 0.95, seed: int = 0
) -> TraceTable:
    """The traces of many clips as one table.

    Args:
        traces: One per clip, all in one direction; a set may be missing from some.
        n_draws: Bootstrap draws.
        level: Of the intervals.
        seed: Of the bootstrap.

    Raises:
        PromptError: If there are none, or they go in different directions.
    """
    if len({trace.direction for trace in traces}) != 1:
        raise PromptError(
            f"{len(traces)} traces were given, of directions {sorted({t.direction for t in traces})}. Pass some of one."
        )
    options: dict[str, Any] = {"n_draws": n_draws, "level": level, "seed": seed}
    names = dict.fromkeys(_control(name) for trace in traces for name in trace.sets)
    rows = tuple(_effect(name, traces, options) for name in names)
    te_clean, te_corrupt = (
        bootstrap_mean(te, **options) for te in ([t.te_clean for t in traces], [t.te_corrupt for t in traces])
    )
    return TraceTable(rows, te_clean, te_corrupt, traces[0].direction)


def _effect(name: str, traces: Sequence[CausalTrace], options: dict[str, Any]) -> SetEffect:
    per_clip = [(trace, [i for i, one in enumerate(trace.sets) if _control(one) == name]) for trace in traces]
    filled = [(trace, [i for i in index if _size(trace, i)]) for trace, index in per_clip]
    clips = [(trace, index) for trace, index in filled if index]
    clean = [float(trace.ie_clean[index].mean()) for trace, index in clips]
    corrupt = [float(trace.ie_corrupt[index].mean()) for trace, index in clips]
    sizes = [sum(_size(trace, i) for i in index) / len(index) for trace, index in clips]
    flips = [sum(trace.flipped[i] for i in index) / len(index) for trace, index in clips]
    return SetEffect(
        name=name, clips=len(clips), empty=sum(1 for _, index in per_clip if index) - len(clips),
        draws=max((len(index) for _, index in clips), default=0), tokens=_mean(sizes), flipped=_mean(flips),
        ie_clean=bootstrap_mean(clean, **options), ie_corrupt=bootstrap_mean(corrupt, **options),
        share=ratio_of_sums(clean, [trace.te_clean for trace, _ in clips], **options),
        per_token=bootstrap_mean([ie / n for ie, n in zip(clean, sizes, strict=True)], **options),
    )  # fmt: skip


def _control(name: str) -> str:
    """The name of a control without the number of its draw."""
    return re.sub(r" #\d+$", "", name)


def _size(trace: CausalTrace, index: int) -> int:
    return len(list(trace.sets.values())[index])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _row(row: SetEffect) -> dict[str, object]:
    ends = {
        f"{name} {end}": scale * getattr(interval, end)
        for name, interval, scale in (
            ("IE_clean", row.ie_clean, 100),
            ("IE_corrupt", row.ie_corrupt, 100),
            ("IE/TE", row.share, 1),
        )
        for end in ("low", "high")
    }
    return {
        "set": row.name, "IE_clean": 100 * row.ie_clean.estimate, "IE_corrupt": 100 * row.ie_corrupt.estimate,
        "tokens": row.tokens, "IE/TE": row.share.estimate, "IE_clean per token": 100 * row.per_token.estimate,
        "flipped": row.flipped, "clips": row.clips, "empty": row.empty, "draws": row.draws, **ends,
    }  # fmt: skip


def _shown(row: SetEffect) -> dict[str, object]:
    """A row as it is printed: effects x100 with their intervals."""
    effects = {"IE_clean": (row.ie_clean, 100), "IE_corrupt": (row.ie_corrupt, 100), "IE/TE": (row.share, 1)}
    said = {name: _tex(interval, scale) for name, (interval, scale) in effects.items()}
    return {"set": row.name, **said, "tokens": f"{row.tokens:.1f}", "clips": row.clips}


def _tex(interval: Interval, scale: int = 100) -> str:
    return f"{scale * interval.estimate:.2f} [{scale * interval.low:.2f}, {scale * interval.high:.2f}]"
