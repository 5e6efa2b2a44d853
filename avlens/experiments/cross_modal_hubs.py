"""The experiments of "Probing Cross-modal Information Hubs in Audio-Visual LLMs", arXiv:2605.10815.

    selection   which modality decides each answer
    tracing     which tokens carry what the decisive modality gives to the answer    tables of causal effects
    layers      the same for one modality's tokens, in one layer at a time           figure 10
    sinks       where sinks are, and which modality reads them                       figure 7, table 12
    decoding    what captions hallucinate, greedily and by ASD and its rivals        tables of captions
    dynamics    how much is read of sinks while an object's word is written          figure of attention dynamics

Each function measures one sample under one condition, and returns rows. The modules it calls say what is measured and where that
differs from the paper.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from avlens.analyses.dynamics import attention_dynamics
from avlens.analyses.selection import prompt_of
from avlens.analyses.tracing import CausalTrace, causal_trace, trace_layers
from avlens.decoding import ASD, AVCD, FMD, PAI, VCD
from avlens.experiments.asking import Row, clip_of, decided, in_parts, judged, truth, vocabulary_of
from avlens.experiments.experiment import Condition, Experiment
from avlens.hub_table import hub_sets
from avlens.hubs import find_hubs
from avlens.metrics.aloha import OverlapEmbedder, VocabularyExtractor, aloha_score
from avlens.metrics.vocabulary import words
from avlens.samples import Opened

METHODS: Mapping[str, Any] = {"greedy": None, "ASD": ASD, "PAI": PAI, "VCD": VCD, "AVCD": AVCD, "FMD": FMD}


def measure_selection(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """Which modality decides, and the three answers."""
    one, about = judged(model, opened, condition)
    return [one.to_row() | about]


def measure_tracing(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """Effects of patching each set of `hub_sets`; one row that says so where no modality decides alone."""
    pair, about = decided(model, opened, condition)
    if pair is None:
        return [about]
    sets = hub_sets(
        model, pair.clean, pair.corrupt, pair.dominant, n=condition["n"], draws=condition["draws"], seed=condition["seed"]
    )  # fmt: skip
    rows = []
    for names in in_parts([name for name, chosen in sets.items() if chosen], condition.get("at_once")):
        some = {name: sets[name] for name in names}
        trace = causal_trace(
            model, pair.clean, pair.corrupt, some, answers=pair.answers, direction=condition["direction"]
        )
        rows += [about | row for row in _effects(trace)]
    return rows


def measure_layers(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """Effects of patching all tokens of the other modality in a window of layers that begins at each layer."""
    pair, about = decided(model, opened, condition)
    if pair is None:
        return [about]
    found = trace_layers(
        model, pair.clean, pair.corrupt, pair.carriers, answers=pair.answers, window=condition["window"], site=condition["site"]
    )  # fmt: skip
    effects = zip(found.first_layers, found.ie_clean.tolist(), found.ie_corrupt.tolist(), strict=True)
    total = {"TE_clean": found.trace.te_clean, "TE_corrupt": found.trace.te_corrupt}
    return [
        about | {"layer": layer, "IE_clean": clean, "IE_corrupt": corrupt} | total for layer, clean, corrupt in effects
    ]


def measure_sinks(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """How many sinks each modality has in each layer; their modality dominance, and how far their place explains it."""
    inputs = prompt_of(model, clip_of(opened), opened.sample, condition["ask"])
    hubs = find_hubs(model, inputs, n=condition["n"])
    counts = hubs.sinks.per_layer()
    rows: list[Row] = [
        {"modality": kind, "layer": layer, "sinks": n, "share": n / max(1, len(getattr(inputs.tokens, kind)))}
        for kind in counts.columns.intersection(["video", "audio"])
        for layer, n in zip(hubs.sinks.layers, counts[kind].tolist(), strict=True)
    ]
    scores, confound = hubs.dominance.distribution(), hubs.dominance.position_confound()
    return rows + [
        {
            "modality": kind, "scored": scores.scored[kind], "MDS": scores["median"][kind], "IQR": scores.iqr[kind],
            "spearman with position": confound.spearman[kind], "one-sided": confound.share_one_sided[kind],
        }
        for kind in scores.index
    ]  # fmt: skip


def measure_decoding(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """A caption, what it mentions of what the clip holds and does not hold, and its worst object's similarity (ALOHa)."""
    known = vocabulary_of(condition)
    held = truth(opened, known)
    method = METHODS[condition["method"]]
    caption = model.generate(
        model.prepare(clip_of(opened), opened.sample.question), condition["max_new_tokens"],
        decoding=method and method(**condition.get("options", {})),
    ).text  # fmt: skip
    said = [mention.object for mention in known.mentions(caption)]
    objects = VocabularyExtractor(known)(caption, reference=False)
    return [
        {
            "caption": caption, "hallucinates": float(not held.issuperset(said)), "mentioned": len(said),
            "hallucinated": sum(one not in held for one in said), "found": len(held.intersection(said)), "true": len(held),
            "ALOHa": aloha_score(objects, [(name,) for name in held], OverlapEmbedder(known)), "words": len(words(caption)),
        }
    ]  # fmt: skip


def measure_dynamics(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """Attention to cross-modal and to unimodal sinks at the steps that write objects which the clip holds, or does not hold."""
    inputs, known = model.prepare(clip_of(opened), opened.sample.question), vocabulary_of(condition)
    held = truth(opened, known)
    hubs = find_hubs(model, inputs, n=condition["n"]).hubs
    sets = {name: chosen for name, chosen in (("cross", hubs.cross), ("uni", hubs.uni)) if chosen}
    caption = model.generate(inputs, condition["max_new_tokens"]).text
    kinds = {m.words: "genuine" if m.object in held else "hallucinated" for m in known.mentions(caption)}
    about: Row = {"caption": caption, "mentioned": len(kinds)}
    if not sets or not kinds:
        return [about]
    seen = attention_dynamics(model, inputs, sets, words=list(kinds), max_new_tokens=condition["max_new_tokens"])
    frame = seen.at_words(kinds)
    return [about, *({str(name): row[name] for name in row} for row in frame[frame["words"] > 0].to_dict("records"))]


def _effects(trace: CausalTrace) -> Iterator[Row]:
    for i, (name, chosen) in enumerate(trace.sets.items()):
        control, _, draw = name.partition(" #")
        yield {
            "set": control, "draw": int(draw or 0), "tokens": len(chosen), "IE_clean": float(trace.ie_clean[i]),
            "IE_corrupt": float(trace.ie_corrupt[i]), "TE_clean": trace.te_clean, "TE_corrupt": trace.te_corrupt,
            "flipped": float(trace.flipped[i]),
        }  # fmt: skip


_WRITE: Row = {"objects": None, "max_new_tokens": 64}

EXPERIMENTS = (
    Experiment(
        "selection", measure_selection,
        {name: {"corrupt": name, "ask": "letters"} for name in ("zero", "swap", "noise", "mean")}, asks_choices=True,
        summary=[("audio_dominant", ("condition",)), ("video_dominant", ("condition",)), ("correct", ("condition",))],
    ),
    Experiment(
        "tracing", measure_tracing,
        {
            name: {"corrupt": name, "ask": "letters", "n": [2, 3, 4], "draws": 10, "direction": "denoise"}
            for name in ("zero", "swap")
        },
        asks_choices=True, when_memory_is_short=({"at_once": 4}, {"at_once": 1}),
        summary=[(value, ("condition", "dominant", "set")) for value in ("IE_clean", "IE_corrupt", "IE_clean / TE_clean")],
    ),
    Experiment(
        "layers", measure_layers, {"zero": {"corrupt": "zero", "ask": "letters", "window": 1, "site": "ln1.normalized"}},
        asks_choices=True, summary=[("IE_clean", ("dominant", "layer")), ("IE_corrupt", ("dominant", "layer"))],
    ),
    Experiment(
        "sinks", measure_sinks, {"N=2": {"n": 2, "ask": "letters"}},
        summary=[("share", ("modality", "layer")), ("MDS", ("modality",)), ("IQR", ("modality",)), ("one-sided", ("modality",))],
    ),
    Experiment(
        "decoding", measure_decoding, {name: {"method": name} | _WRITE for name in METHODS}, task="describe",
        summary=[
            (value, ("condition",))
            for value in ("ALOHa", "hallucinates", "hallucinated / mentioned", "found / true", "words")
        ],
    ),
    Experiment(
        "dynamics", measure_dynamics, {"N=3": {"n": 3} | _WRITE}, task="describe",
        summary=[("attention", ("kind", "set"))],
    ),
)  # fmt: skip
"""With settings as in the paper's tables."""
