"""The whole table over a data set: which tokens of one modality carry what another one says, cross-modal sinks or others?

For each clip that one modality decides, the other one's tokens are patched from the clean run into one in which the deciding
modality is corrupted; the sets are

    all             every token of the other modality
    object          those that show or sound the object, where they are given
    sink N          its share of sink(N);  random N   as many of its tokens, drawn at random
    uni N, cross N  the halves of sink N that their own modality, or the other one, reads relatively more
    cross N, matched count | chunk | later queries | frequency
                    as many tokens that are not cross-modal sinks, like these in place, in readers to come, or as often sinks
    idle            those before the first corrupted token: a control that must read 0

Random sets are seeded draws, averaged within each clip; means over clips come with bootstrap intervals.

Source: Jung et al. 2026, "Probing Cross-modal Information Hubs in Audio-Visual LLMs", arXiv:2605.10815, tables of causal effects;
its released code, causal_tracing_modality_sink.py:66-153 (sets).

Differs from the source: one unseeded random draw there; the matched controls, the idle tokens, intervals and shares of the total
effect are ours. A clip whose set is empty, or that has too few other tokens to draw from, is left out of that row and counted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
from tqdm.auto import tqdm

from avlens import display
from avlens.analyses.controls import Match, causally_idle, matched_draws
from avlens.analyses.dominance import modality_dominance, split_sinks
from avlens.analyses.selection import (
    Judgement,
    Selection,
    answer_of,
    partner_of,
    prompt_of,
    three_clips,
)
from avlens.analyses.sinks import find_sink_dims, find_sinks
from avlens.analyses.tracing import CausalTrace, causal_trace
from avlens.contrast import Direction
from avlens.hubs import hub_reductions
from avlens.inputs import AVInputs
from avlens.media import Clip
from avlens.model import HookedAVModel
from avlens.samples import Sample, open_clip, read_clip
from avlens.tables import TraceTable, trace_table
from avlens.tokens import TokenSet

Dominant = Literal["audio", "video"]
MATCHES: tuple[Match, ...] = ("count", "chunk", "later_queries", "frequency")


@dataclass(frozen=True, eq=False)
class HubTable:
    """Causal effects over a data set.

    Attributes:
        audio_dominant: Video tokens patched, in clips that audio decides; None where there are none.
        video_dominant: Audio tokens patched, in clips that video decides; None where there are none.
        selection: Which clips those are.
        traces: Of each of them, by case.
        made_by: What made it.
    """

    audio_dominant: TraceTable | None
    video_dominant: TraceTable | None
    selection: Selection
    traces: Mapping[Dominant, tuple[CausalTrace, ...]]
    made_by: Mapping[str, Any]

    @property
    def tables(self) -> dict[str, TraceTable]:
        """The tables that there are, by case."""
        both = {"audio dominant": self.audio_dominant, "video dominant": self.video_dominant}
        return {case: table for case, table in both.items() if table is not None}

    def to_frame(self) -> pd.DataFrame:
        """One row per case and set; effects x100."""
        frames = {case: table.to_frame() for case, table in self.tables.items()}
        return pd.concat(frames, names=["case"]) if frames else pd.DataFrame()

    def to_latex(self) -> str:
        """Both tables as LaTeX (booktabs)."""
        return "\n".join(f"% {case}\n{table.to_latex()}" for case, table in self.tables.items())

    def __repr__(self) -> str:
        lines = [repr(self.selection)]
        for case, table in self.tables.items():
            lines += ["", f"{case}: {table.te_clean.n} clips, effects x100", repr(table)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        clips = ", ".join(f"{table.te_clean.n} {case}" for case, table in self.tables.items())
        return display.table(f"HubTable({clips or 'no'} clips; effects x100)", self.to_frame(), self.made_by)


def hub_table(
    model: HookedAVModel,
    samples: Iterable[Sample],
    selection: Selection,
    *,
    read: Callable[[Sample], Clip] = read_clip,
    n: Sequence[float] = (2, 3, 4),
    draws: int = 10,
    objects: Callable[[Sample, AVInputs], TokenSet] | None = None,
    skip_idle: bool = False,
    direction: Direction = "denoise",
    site: str | Sequence[str] = "resid_pre",
    seed: int = 0,
    progress: bool = False,
) -> HubTable:
    """Trace each clip that one modality decides, and sum up.

    Args:
        model: A HookedAVModel.
        samples: Those that were judged.
        selection: What `unimodal_dominance` made of them; how it asked and corrupted is how they are traced.
        read: Opens a sample's clip.
        n: The N of each sink(N).
        draws: Of each random set.
        objects: Which tokens of a prompt show or sound the object, of both modalities.
        skip_idle: Whether to leave the tokens before the first corrupted one out of every set.
        direction: As in `causal_trace`.
        site: The same.
        seed: Of the draws and the intervals.
        progress: Whether to show bars.
    """
    how, listed = selection.made_by, list(samples)
    index = {sample.id: i for i, sample in enumerate(listed)}
    chosen: dict[Dominant, tuple[Judgement, ...]] = {
        "audio": selection.audio_dominant,
        "video": selection.video_dominant,
    }
    traces: dict[Dominant, list[CausalTrace]] = {case: [] for case in chosen}
    for case, judged in chosen.items():
        for one in tqdm(judged, desc=f"tracing, {case} decides", unit="clip", disable=not progress):
            sample = listed[index[one.id]]
            clean, broken = _prompts(model, listed, index[one.id], case, read, how)
            sets = hub_sets(
                model, clean, broken, case, n=n, draws=draws, skip_idle=skip_idle, seed=seed,
                objects=None if objects is None else objects(sample, clean),
            )  # fmt: skip
            answers = (answer_of(sample, one.o_clean, how["ask"]), answer_of(sample, one.o_corrupt, how["ask"]))
            once, copies = _each_once(sets)
            trace = causal_trace(
                model, clean, broken, once, direction=direction, site=site, step=how["step"], answers=answers
            )
            flipped = tuple(trace.flipped[i] for i in copies)
            traces[case].append(replace(trace, sets=sets, p_patched=trace.p_patched[copies], flipped=flipped))
    tables = {case: trace_table(made, seed=seed) if made else None for case, made in traces.items()}
    about = {"selection": dict(how), "n": list(n), "draws": draws, "skip_idle": skip_idle, "seed": seed}
    made_by = model.made_by(None, **about)
    kept = {case: tuple(made) for case, made in traces.items()}
    return HubTable(tables["audio"], tables["video"], selection, kept, made_by)


def hub_sets(
    model: HookedAVModel,
    clean: AVInputs,
    corrupt: AVInputs,
    dominant: Dominant,
    *,
    n: Sequence[float] = (2, 3, 4),
    draws: int = 10,
    objects: TokenSet | None = None,
    skip_idle: bool = False,
    seed: int = 0,
) -> dict[str, TokenSet]:
    """The table's sets of one prompt, by name; a set is empty where the prompt has no such tokens.

    Args:
        model: A HookedAVModel.
        clean: The prompt.
        corrupt: The same on the corrupted clip.
        dominant: The modality that decides; the sets are of the other one.
        n: The N of each sink(N).
        draws: Of each random set.
        objects: Which tokens show or sound the object.
        skip_idle: Whether to leave the tokens before the first corrupted one out of every set.
        seed: Of the draws.
    """
    tokens = clean.tokens
    idle = causally_idle(clean, corrupt)
    base = tokens.video if dominant == "audio" else tokens.audio
    kept = base - idle if skip_idle else base
    dims = tuple(find_sink_dims(model))
    _, cache = model.run_with_cache(
        clean, names_filter=[], reductions=hub_reductions(clean, dims), logits_at=tokens.last
    )
    sinks = find_sinks(cache, dims)
    sets = {"all": kept}
    if objects is not None:
        sets["object"] = kept & objects
    for one in n:
        chosen = sinks.top(one) & kept
        hubs = split_sinks(modality_dominance(cache, chosen))
        sets |= {f"sink N={one:g}": chosen, f"uni N={one:g}": hubs.uni, f"cross N={one:g}": hubs.cross}
        sets |= _draws(f"random N={one:g}", chosen, "count", kept, draws, seed, sinks.frequency)
        for match in MATCHES:
            name = f"cross N={one:g}, matched {match.replace('_', ' ')}"
            sets |= _draws(name, hubs.cross, match, kept - hubs.cross, draws, seed, sinks.frequency)
    return sets if skip_idle else sets | {"idle": base & idle}


def _draws(
    name: str, like: TokenSet, match: Match, within: TokenSet, draws: int, seed: int, frequency: Any
) -> dict[str, TokenSet]:
    """Draws by name; one empty set where there are too few tokens to draw from."""
    if len(within) < len(like):
        return {f"{name} #0": like.tokens.at([])}
    found = matched_draws(like, match, n=draws, seed=seed, within=within, frequency=frequency)
    return {f"{name} #{i}": one for i, one in enumerate(found)}


def _each_once(sets: Mapping[str, TokenSet]) -> tuple[dict[str, TokenSet], list[int]]:
    """Sets of the same tokens only once, and which of these each set is."""
    kept: dict[tuple[int, ...], str] = {}
    keys = {name: tuple(chosen.sorted().positions.tolist()) for name, chosen in sets.items()}
    for name, key in keys.items():
        kept.setdefault(key, name)
    order = list(kept)
    return {kept[key]: sets[kept[key]] for key in order}, [order.index(key) for key in keys.values()]


def _prompts(
    model: HookedAVModel,
    samples: Sequence[Sample],
    index: int,
    dominant: Dominant,
    read: Callable[[Sample], Clip],
    how: Mapping[str, Any],
) -> tuple[AVInputs, AVInputs]:
    """The prompt of a sample on its clip, and on the clip with the deciding modality corrupted."""
    sample = samples[index]
    opened = open_clip(sample, read)
    if how["corrupt"] == "swap":
        opened = replace(opened, other=partner_of(samples, index, read))
    clips = three_clips(opened, how["corrupt"], how["seed"])
    broken = clips["video" if dominant == "audio" else "audio"]
    return prompt_of(model, clips["both"], sample, how["ask"]), prompt_of(model, broken, sample, how["ask"])
