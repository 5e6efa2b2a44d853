"""What do the records of many clips say together, and do conditions differ?

    summarise(records, "IE_clean", by=["condition", "set"])                     means with bootstrap intervals
    summarise(records, "IE_clean", over="TE_clean", by="set")                   ratios of sums: shares of the total effect
    compare(records, "change", "condition", against="none", by="layer")         paired differences with p, corrected

Several rows of one clip are not independent, nor are several questions about it, so whole clips are drawn. In a comparison
each clip is its own control: its rows of both conditions are averaged, and the clip counts if it has both.

Source: as in `avlens.metrics.effects` and `avlens.metrics.significance`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype

from avlens import display
from avlens.errors import MetricError
from avlens.metrics.effects import Interval, bootstrap_mean, ratio_of_sums
from avlens.metrics.significance import Correction, adjusted, sign_change_p
from avlens.records import RecordTable

Records = RecordTable | pd.DataFrame

_EXACT = 2**53
"""Below it every whole number has a float of its own."""


@dataclass(frozen=True, eq=False)
class Summary:
    """A value by group, with intervals.

    Attributes:
        value: What was averaged; `a / b` for a ratio of sums.
        by: The columns that make the groups.
        groups: Each group's values of these columns.
        intervals: Of each group.
    """

    value: str
    by: tuple[str, ...]
    groups: tuple[tuple[Any, ...], ...]
    intervals: tuple[Interval, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row per group."""
        columns = {
            self.value: [one.estimate for one in self.intervals],
            "low": [one.low for one in self.intervals],
            "high": [one.high for one in self.intervals],
            "n": [one.n for one in self.intervals],
            "clips": [one.n_clusters for one in self.intervals],
            "missing": [one.n_missing for one in self.intervals],
        }
        return pd.DataFrame(columns, index=_index(self.groups, self.by))

    def to_latex(self, *, digits: int = 3) -> str:
        """The table as LaTeX (booktabs); names are escaped."""
        rows = [
            [*map(_escaped, map(str, group)), _tex(one, digits), str(one.n_clusters)]
            for group, one in zip(self.groups, self.intervals, strict=True)
        ]
        return _latex([*self.by, self.value, "clips"], rows)

    def __repr__(self) -> str:
        return self.to_frame().to_string(float_format=lambda x: f"{x:.4g}")

    def _repr_html_(self) -> str:
        return display.table(f"Summary({self.value} by {', '.join(self.by) or 'nothing'})", self.to_frame())


@dataclass(frozen=True, eq=False)
class Comparison:
    """How far groups lie from one of them, clip by clip.

    Attributes:
        value: What was compared.
        of: The column whose groups are compared.
        against: The group that all others are compared with.
        by: Columns within whose groups the comparison is made.
        groups: Each comparison's values of `by`, then the group that is compared.
        differences: Group minus `against`, a mean over clips.
        p: Of the sign-change test, two-sided.
        p_adjusted: The same, corrected for all comparisons of this table.
        correction: How.
    """

    value: str
    of: str
    against: str
    by: tuple[str, ...]
    groups: tuple[tuple[Any, ...], ...]
    differences: tuple[Interval, ...]
    p: tuple[float, ...]
    p_adjusted: tuple[float, ...]
    correction: Correction

    def to_frame(self) -> pd.DataFrame:
        """One row per comparison."""
        columns = {
            "difference": [one.estimate for one in self.differences],
            "low": [one.low for one in self.differences],
            "high": [one.high for one in self.differences],
            "clips": [one.n for one in self.differences],
            "p": self.p,
            f"p ({self.correction})": self.p_adjusted,
        }
        return pd.DataFrame(columns, index=_index(self.groups, (*self.by, self.of)))

    def to_latex(self, *, digits: int = 3) -> str:
        """The table as LaTeX (booktabs); names are escaped."""
        rows = [
            [*map(_escaped, map(str, group)), _tex(one, digits), _tex_p(p, digits), str(one.n)]
            for group, one, p in zip(self.groups, self.differences, self.p_adjusted, strict=True)
        ]
        return _latex([*self.by, self.of, f"{self.value} - {self.against}", "p", "clips"], rows)

    def __repr__(self) -> str:
        said = f"{self.value}: {self.of} minus {self.against!r}"
        return f"{said}\n{self.to_frame().to_string(float_format=lambda x: f'{x:.4g}')}"

    def _repr_html_(self) -> str:
        return display.table(f"Comparison({self.value}: {self.of} minus {self.against})", self.to_frame())


def summarise(
    records: Records,
    value: str,
    *,
    over: str | None = None,
    by: str | Sequence[str] = "condition",
    clip: str | None = None,
    n_draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Summary:
    """The mean of a value in each group, with its interval.

    Args:
        records: What `run` returns, `read_records`, or a table of your own.
        value: Which column. Where it is NaN it is counted as missing; rows of records that have no such column do not count.
        over: A column to divide by, as the sum of one over the sum of the other.
        by: The columns that make the groups; rows without one of them are left out.
        clip: The column that names the clip, of which whole ones are drawn; by default `clip`, else `sample`.
        n_draws: Bootstrap draws.
        level: Of the intervals.
        seed: Of the bootstrap.

    Raises:
        MetricError: If there is no such column, or it holds no numbers.
    """
    keys = (by,) if isinstance(by, str) else tuple(by)
    frame, clip = _frame(records, [value, *([over] if over else [])], keys, clip)
    options: dict[str, Any] = {"n_draws": n_draws, "level": level, "seed": seed}
    groups, intervals = [], []
    for group, rows in _grouped(frame, keys):
        x, clips = _numbers(rows, value), rows[clip].tolist()
        groups.append(group)
        if over is None:
            intervals.append(bootstrap_mean(x, clusters=clips, **options))
        else:
            intervals.append(ratio_of_sums(x, _numbers(rows, over), clusters=clips, **options))
    return Summary(value if over is None else f"{value} / {over}", keys, tuple(groups), tuple(intervals))


def compare(
    records: Records,
    value: str,
    of: str = "condition",
    *,
    against: str,
    by: str | Sequence[str] = (),
    clip: str | None = None,
    correction: Correction = "holm",
    n_draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Each group of a column minus one of them, over the clips that have both.

    Args:
        records: What `run` returns, `read_records`, or a table of your own.
        value: Which column.
        of: The column whose groups are compared, such as `condition` or `set`.
        against: The group that is subtracted.
        by: Compare within each group of these columns, such as `layer`.
        clip: The column that names the clip; by default `clip`, else `sample`.
        correction: For all comparisons of the table: `holm`, `bh`, or `none`.
        n_draws: Draws of the bootstrap, and of sign changes.
        level: Of the intervals.
        seed: Of both.

    Raises:
        MetricError: If there is no such column, group or correction.
    """
    keys = (by,) if isinstance(by, str) else tuple(by)
    frame, clip = _frame(records, [value], (of, *keys), clip)
    if of == clip:
        raise MetricError(
            f"clips cannot be compared with each other, and {of!r} names them. Compare the groups of another column."
        )
    frame = frame.assign(**{of: _whole(frame[of])})
    known = list(dict.fromkeys(frame[of].dropna()))
    if against not in known:
        raise MetricError(f"{of} is never {against!r}. It is {', '.join(map(repr, known[:10]))}.")
    groups, differences = [], []
    for group, rows in _grouped(frame, keys):
        table = rows.assign(**{value: _numbers(rows, value)}).groupby([clip, of])[value].mean().unstack(of)
        for other in known:
            if other != against and other in table and against in table:
                groups.append((*group, other))
                differences.append((table[other] - table[against]).to_numpy(dtype=float))
    options: dict[str, Any] = {"n_draws": n_draws, "seed": seed}
    p = np.array([sign_change_p(one, **options) for one in differences])
    return Comparison(
        value, of, str(against), keys, tuple(groups), tuple(bootstrap_mean(one, level=level, **options) for one in differences),
        tuple(p.tolist()), tuple(adjusted(p, correction).tolist()), correction,
    )  # fmt: skip


def _frame(
    records: Records, values: Sequence[str], groups: Sequence[str], clip: str | None
) -> tuple[pd.DataFrame, str]:
    """The table, and the column that names the clip.

    Raises:
        MetricError: If a column is missing, is asked for twice, or groups by what cannot be told apart.
    """
    columns = [*values, *groups]
    frame = records if isinstance(records, pd.DataFrame) else records.to_frame(having=columns)
    clip = clip or ("clip" if "clip" in frame else "sample")
    if missing := [name for name in (*columns, clip) if name not in frame]:
        failed = (
            "" if isinstance(records, pd.DataFrame) else f"; {len(records.failures)} of {len(records)} have a problem"
        )
        raise MetricError(
            f"the records have no {missing[0]!r}. They have {', '.join(map(str, frame.columns))}{failed}."
        )
    if len(set(groups)) < len(groups) or set(groups) & set(values):
        raise MetricError(f"{values[0]!r} cannot be grouped by {', '.join(map(repr, groups))}. Name each column once.")
    if lists := [name for name in (*groups, clip) if any(isinstance(one, list) for one in frame[name])]:
        raise MetricError(f"{lists[0]!r} holds lists, which make no groups. Choose another.")
    return frame, clip


def _grouped(frame: pd.DataFrame, keys: tuple[str, ...]) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    if not keys:
        return [((), frame)]
    whole = {name: _whole(frame[name]) for name in keys}
    return [
        (tuple(one.item() if isinstance(one, np.generic) else one for one in group), rows)
        for group, rows in frame.assign(**whole).groupby(list(keys), sort=False)
        if isinstance(group, tuple)
    ]


def _whole(column: pd.Series) -> pd.Series:
    """Whole numbers as such, where a row without one has made them fractions."""
    known = column.dropna()
    whole = is_float_dtype(column) and ((known == known.round()) & (known.abs() < _EXACT)).all()
    return column.astype("Int64") if whole else column


def _numbers(rows: pd.DataFrame, value: str) -> np.ndarray:
    try:
        return rows[value].to_numpy(dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise MetricError(
            f"{value!r} holds no numbers, such as {rows[value].iloc[0]!r:.80}. Choose another."
        ) from error


def _index(groups: tuple[tuple[Any, ...], ...], names: tuple[str, ...]) -> pd.Index:
    if not names:
        return pd.Index(["all"] * len(groups))
    if len(names) == 1:
        return pd.Index([group[0] for group in groups], name=names[0])
    return pd.MultiIndex.from_tuples(groups, names=names)


def _tex(one: Interval, digits: int) -> str:
    """An estimate with its interval, as far as there is one."""
    if np.isnan(one.estimate):
        return "--"
    interval = "" if np.isnan(one.low) else rf"\ [{one.low:.{digits}f}, {one.high:.{digits}f}]"
    return f"${one.estimate:.{digits}f}{interval}$"


def _tex_p(p: float, digits: int) -> str:
    """A p; one that would be rounded to 0 is said to lie below what is shown."""
    if np.isnan(p):
        return "--"
    return f"$<{10**-digits:.{digits}f}$" if p < 0.5 * 10**-digits else f"${p:.{digits}f}$"


def _latex(head: list[str], rows: list[list[str]]) -> str:
    lines = [" & ".join(row) + r" \\" for row in [list(map(_escaped, head)), *rows]]
    body = [lines[0], r"\midrule", *lines[1:]]
    columns = "l" * (len(head) - 2) + "rr"
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}", ""])


_TEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\n": " ",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def _escaped(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
