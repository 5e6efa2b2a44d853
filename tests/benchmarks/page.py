"""Write what was measured into docs/benchmarks.md: a table in each place that has a name there, and the figures."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.benchmarks import figures
from tests.benchmarks.compare import LENGTHS, MEMORY_LENGTHS, ROOT, SINGLE, SWEEPS
from tests.benchmarks.found import Found
from tests.benchmarks.goals import GOALS, NAN, SHAPES_PARTS, Goal, growth
from tests.benchmarks.peers import PEERS
from tests.benchmarks.tasks import TASKS

PAGE = ROOT / "docs" / "benchmarks.md"
WIDTH = 1000
FIGURES = {"benchmarks": figures.by_peer, "benchmarks_length": figures.by_length}


def write(found: Found, page: Path = PAGE) -> None:
    """Tables and figures, in their places; a place whose numbers are missing stays as it is."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables(found).items():
        place = rf"(<!-- {name} -->\n)(?:.*?\n)??(<!-- end -->)"
        text = re.sub(place, lambda at, table=table: f"{at[1]}{table}\n{at[2]}", text, flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")
    (page.parent / "images").mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        draw(found).write_image(page.parent / "images" / f"{name}.png", width=WIDTH, scale=1.5)


def tables(found: Found) -> dict[str, str]:
    """Each table by the name of its place."""
    made = {
        "measured on": measured_on(found),
        "goals": goals(found),
        "missed": missed(found),
        **{f"works {part}": works(found, part) for part in ("1024", "2048", "wide")},
        "memory": memory(found, "memory"),
        "memory by length": memory_by_length(found),
        "length": lengths(found),
        "loading": loading(found),
        "decoding": decoding(found),
    }
    return {name: table for name, table in made.items() if table}


def measured_on(found: Found) -> str:
    """Machine, versions, and how far apart the peers' numbers were."""
    said = [*found.machines(), f"every number that peers share agrees to {found.apart():.0e}"]
    return "; ".join(said + [f"{who} failed: {why}" for who, why in found.failures().items()]) + "."


def goals(found: Found) -> str:
    """One line for each goal: what avlens does, and what the others do in the same measure."""
    others, rows = [who for who in PEERS if who not in ("avlens", "stock")], []
    for goal in GOALS:
        ratios = [goal.ratio(found, part, "avlens") for part in goal.parts]
        theirs = [goal.ratio(found, goal.parts[0], who) for who in others]
        if goal.parts != SHAPES_PARTS:  # measured once, or on several cases of which the worst counts
            ratios, theirs = [max(ratios, key=lambda ratio: (ratio == ratio, ratio)), NAN, NAN], [NAN] * len(others)
        bound = f"{goal.least:g} to {goal.wanted:g}" if goal.least else f"at most {goal.wanted:g}"
        rows.append([goal.name, goal.says, bound, *(_judged(goal, ratio) for ratio in ratios), *map(_number, theirs)])
    return _table(["", "ratio", "goal", "S = 1024", "S = 2048", "wide", *others], rows) if _any(rows, 3) else ""


def missed(found: Found) -> str:
    """The goals that are missed somewhere, and why."""
    lines = []
    for goal in GOALS:
        ratios = [goal.ratio(found, part, "avlens") for part in goal.parts]
        if any(ratio == ratio and not goal.met(ratio) for ratio in ratios):
            lines.append(f"- **{goal.name}**, {goal.says}: {goal.missed or 'the cause is not known'}.")
    return "\n".join(lines) or "None."


def works(found: Found, part: str) -> str:
    """What each work costs by each peer, in stock forward passes."""
    there = [who for who in PEERS if found.of(part, who)]
    rows = [[task, *(_spread(found.ratios(part, who, task)) for who in there)] for task in TASKS]
    seconds = found.seconds(part)
    title = f"times of a stock forward, {seconds:.2f} s"
    return _table([title, *there], [row for row in rows if any(row[1:])]) if seconds == seconds else ""


def memory(found: Found, part: str) -> str:
    """What each work holds at most, in MiB."""
    there = [who for who in PEERS if found.of(part, who)]
    rows = [[task, *(_whole(found.peak(part, who, task)) for who in there)] for task in TASKS]
    return _table(["extra peak, MiB", *there], [row for row in rows if any(row[1:])]) if _any(rows) else ""


def memory_by_length(found: Found) -> str:
    """What avlens's single runs hold at most as prompts grow, in MiB."""
    rows = [[task, *(_whole(found.peak(f"memory {n}", "avlens", task)) for n in MEMORY_LENGTHS)] for task in SINGLE]
    return _table(["extra peak, MiB", *(f"S = {n}" for n in MEMORY_LENGTHS)], rows) if _any(rows) else ""


def lengths(found: Found) -> str:
    """What each work costs as prompts grow, in stock forward passes of the same length."""
    rows = [
        [task, *(_number(found.ratio(f"length {n}", "avlens", task)) for n in LENGTHS), _number(growth(found, task))]
        for task in SINGLE + SWEEPS
    ]
    seconds = ["stock forward, s", *(_number(found.seconds(f"length {n}")) for n in LENGTHS), ""]
    return _table(["", *(f"S = {n}" for n in LENGTHS), "growth"], [seconds, *rows]) if _any(rows) else ""


def loading(found: Found) -> str:
    """What loading holds beside the weights."""
    rows = [
        [f"`{family}`", way if "=" not in way else f"`{way}`", _whole(weights), _whole(peak), f"{peak / weights:.2f}"]
        for family in ("qwen2_5_omni", "qwen3_omni")
        for one in found.of("loading", family)
        for way, (weights, peak) in one.items()
    ]
    return _table(["family", "loaded", "weights MiB", "peak MiB", "ratio"], rows) if rows else ""


def decoding(found: Found) -> str:
    """What a token costs beside a vanilla one."""
    rows = []
    for one in [one for kind in ("bfloat16", "float32") for one in found.of("decoding", kind)]:
        for method, seconds in one["methods"].items():
            if method != "vanilla":
                pairs = list(zip(seconds, one["methods"]["vanilla"], strict=True))
                first, later = ([ours[i] / theirs[i] for ours, theirs in pairs] for i in (0, 1))
                what = f"{one['d_model']}, {one['dtype']}, {one['weights']:.0f} MiB"
                rows.append([what, method, f"{median(first):.2f}", _spread(later)])
    head = [
        "d_model, dtype, weights of the blocks",
        "method",
        "prompt and first token, ratio",
        "later token, ratio (min to max)",
    ]
    return _table(head, rows) if rows else ""


def _judged(goal: Goal, ratio: float) -> str:
    said = _number(ratio)
    return said if not said or goal.met(ratio) else f"**{said}** missed"


def _number(x: float) -> str:
    """Three figures; nothing for NaN."""
    return "" if x != x else f"{x:.3f}" if abs(x) < 0.1 else f"{x:.2f}" if abs(x) < 10 else f"{x:.1f}"


def _whole(x: float) -> str:
    return "" if x != x else f"{x:.0f}"


def _spread(ratios: Sequence[float]) -> str:
    """Median, and the extremes where there are several."""
    if len(ratios) < 2:
        return "".join(map(_number, ratios))
    return f"{_number(median(ratios))} ({_number(min(ratios))} to {_number(max(ratios))})"


def _any(rows: Sequence[Sequence[str]], first: int = 1) -> bool:
    return any(cell for row in rows for cell in row[first:])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))
