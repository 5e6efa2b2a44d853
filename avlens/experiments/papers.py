"""The three papers' experiments, a few lines each.

    selection   which modality decides each answer                                        arXiv:2605.10815
    tracing     which tokens carry what the decisive modality gives to the answer         arXiv:2605.10815
    lens        do audio tokens name what is heard, layer by layer                        "Do AVLLMs Really See and Hear?"
    shift       which words would have been written without the sound                     "Do AVLLMs Really See and Hear?"
    flow        through which layers does what a group of tokens holds reach another      arXiv:2606.10147

Each function measures one sample under one condition, and returns rows. The modules it calls say what is measured and where that
differs from the papers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from avlens.analyses.flow import information_flow
from avlens.analyses.logit_lens import logit_lens
from avlens.analyses.selection import Ask, Judgement, answer_of, judge, prompt_of, three_clips
from avlens.analyses.shift import token_distribution_shift
from avlens.analyses.tracing import CausalTrace, causal_trace
from avlens.errors import PromptError
from avlens.experiments.experiment import Condition, Experiment
from avlens.hub_table import hub_sets
from avlens.media import Clip
from avlens.samples import Opened
from avlens.tokens import TokenSet

Row = dict[str, Any]


def measure_selection(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """Which modality decides, and the three answers."""
    return [_judged(model, opened, condition).to_row()]


def measure_tracing(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """Effects of patching each set of `hub_sets`; one row that says so where no modality decides alone."""
    judged = _judged(model, opened, condition)
    about = {name: judged.to_row()[name] for name in ("dominant", "correct")}
    if judged.dominant == "neither":
        return [about]
    ask, seed = condition["ask"], condition["seed"]
    clips = three_clips(opened, condition["corrupt"], None, seed)
    broken = clips["video" if judged.dominant == "audio" else "audio"]
    clean, corrupt = (prompt_of(model, one, opened.sample, ask) for one in (clips["both"], broken))
    sets = hub_sets(model, clean, corrupt, judged.dominant, n=condition["n"], draws=condition["draws"], seed=seed)
    answers = (answer_of(opened.sample, judged.o_clean, ask), answer_of(opened.sample, judged.o_corrupt, ask))
    rows = []
    for some in _groups({name: chosen for name, chosen in sets.items() if chosen}, condition.get("at_once")):
        rows += [about | row for row in _effects(causal_trace(model, clean, corrupt, some, answers=answers))]
    return rows


def measure_lens(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """For each layer, the share of media tokens whose likeliest word names the label, and the same of other options."""
    inputs = model.prepare(_clip(opened), opened.sample.question)
    chosen: TokenSet = getattr(inputs.tokens, condition["modality"])
    read = logit_lens(model, inputs, chosen, k=condition["k"], norm=condition["norm"])
    truth, others = _label_and_others(opened)
    own = read.hits(_words(truth)).float().mean(1)
    control = [read.hits(_words(other)).float().mean(1) for other in others]
    return [
        {
            "layer": layer, "named": float(own[i]), "any": float(own[i] > 0), "entropy": float(read.entropy[i].mean()),
            "named_other": sum(float(one[i]) for one in control) / len(control) if control else float("nan"),
        }
        for i, layer in enumerate(read.layers)
    ]  # fmt: skip


def measure_shift(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """Each token of the answer, as the model sees it without one modality, or with it corrupted."""
    clip, question = _clip(opened), opened.sample.question
    changed = {
        "no audio": clip.without_audio, "no video": clip.without_video, "silent": clip.silenced, "blank": clip.blanked,
    }[condition["base"]]()  # fmt: skip
    base = model.prepare(changed, question)
    read = token_distribution_shift(
        model, model.prepare(clip, question), base, max_new_tokens=condition["max_new_tokens"]
    )
    return [
        {
            "step": step, "token": read.strings[step], "rank": int(read.rank[step]), "shifted": float(shift == "shifted"),
            "unshifted": float(shift == "unshifted"), "KL": float(read.kl[step]), "P": float(read.p[step]),
            "P base": float(read.p_base[step]),
        }
        for step, shift in enumerate(read.shifts)
    ]  # fmt: skip


def measure_flow(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """What cutting one edge in windows of layers does to the answer."""
    inputs = prompt_of(model, _clip(opened), opened.sample, condition["ask"])
    flow = information_flow(model, inputs, [condition["edge"]], window=condition["window"])
    right = _right(model, flow.answers[0], opened.sample.label)
    return [
        {
            "layer": layer, "change": float(flow.change[0, i, 0]), "flipped": float(flow.flipped[0, i, 0]),
            "logit_diff": float(flow.values("logit_diff")[0, i, 0]), "P": float(flow.p_base[0]),
            "answer": flow.answers[0], "correct": right,
        }
        for i, layer in enumerate(flow.layers)
    ]  # fmt: skip


EDGES = ("video -> question", "audio -> question", "question -> last", "video -> last", "audio -> last")

EXPERIMENTS: Mapping[str, Experiment] = {
    one.name: one
    for one in (
        Experiment(
            "selection", measure_selection, {name: {"corrupt": name, "ask": "letters"} for name in ("zero", "noise")},
            asks_choices=True,
            summary=[("audio_dominant", ("condition",)), ("video_dominant", ("condition",)), ("correct", ("condition",))],
        ),
        Experiment(
            "tracing", measure_tracing, {"zero": {"corrupt": "zero", "ask": "letters", "n": [2, 3, 4], "draws": 10}},
            asks_choices=True,
            when_memory_is_short=({"at_once": 4}, {"at_once": 1}),
            summary=[("IE_clean", ("dominant", "set")), ("IE_corrupt", ("dominant", "set"))],
        ),
        Experiment(
            "lens", measure_lens, {"audio": {"modality": "audio", "k": 1, "norm": True}},
            summary=[("named", ("layer",)), ("named_other", ("layer",))],
        ),
        Experiment(
            "shift", measure_shift, {base: {"base": base, "max_new_tokens": 64} for base in ("no audio", "no video")},
            summary=[("shifted", ("condition",)), ("unshifted", ("condition",)), ("KL", ("condition",))],
        ),
        Experiment(
            "flow", measure_flow, {edge: {"edge": edge, "window": 7, "ask": "letters"} for edge in EDGES},
            summary=[("change", ("condition", "layer"))],
        ),
    )
}  # fmt: skip
"""By name, as `avlens run` takes them. `dataclasses.replace` makes one with other conditions or seeds."""


def asked_as(experiment: Experiment, ask: Ask) -> Experiment:
    """The experiment with its questions asked as a data set wants it: `letters` for its options, or `words`."""
    conditions = {k: {**v, "ask": ask} if "ask" in v else v for k, v in experiment.conditions.items()}
    return replace(experiment, conditions=conditions)


def _clip(opened: Opened) -> Clip:
    assert opened.clip is not None  # Workers open clips before they measure.
    return opened.clip


def _judged(model: Any, opened: Opened, condition: Condition) -> Judgement:
    """Which modality decides.

    Raises:
        PromptError: If the question could not be asked.
    """
    judged = judge(model, opened, corrupt=condition["corrupt"], ask=condition["ask"], seed=condition["seed"])
    if judged.problem:
        raise PromptError(judged.problem)
    return judged


def _groups(sets: Mapping[str, TokenSet], at_once: int | None) -> Iterator[dict[str, TokenSet]]:
    """The sets, some at a time."""
    names = list(sets)
    for start in range(0, len(names), at_once or len(names)):
        yield {name: sets[name] for name in names[start : start + (at_once or len(names))]}


def _effects(trace: CausalTrace) -> Iterator[Row]:
    for i, (name, chosen) in enumerate(trace.sets.items()):
        control, _, draw = name.partition(" #")
        yield {
            "set": control, "draw": int(draw or 0), "tokens": len(chosen), "IE_clean": float(trace.ie_clean[i]),
            "IE_corrupt": float(trace.ie_corrupt[i]), "TE_clean": trace.te_clean, "TE_corrupt": trace.te_corrupt,
            "flipped": float(trace.flipped[i]),
        }  # fmt: skip


def _label_and_others(opened: Opened) -> tuple[str, list[str]]:
    """What the clip is labelled with, and the options it is not.

    Raises:
        PromptError: If it has no label.
    """
    sample = opened.sample
    if not sample.label:
        raise PromptError(f"{sample.id!r} has no label, so that nothing can name it. Give samples with labels.")
    if not sample.options:
        return sample.label, []
    right = sample.letters.index(sample.label)
    return sample.options[right], [option for i, option in enumerate(sample.options) if i != right]


def _words(text: str) -> set[str]:
    """What a token may say to name it: the whole of it, or its words that are no article."""
    words = [word for word in text.lower().split() if word not in ("a", "an", "the")]
    return {" ".join(words), *words} - {""}


def _right(model: Any, answer: str, label: str) -> float:
    """Whether an answer's first token begins the label; NaN where there is none."""
    if not label:
        return float("nan")
    return float(
        any(model.tokenizer.decode([token]).strip() == answer.strip() for token in model.to_first_tokens(label))
    )
