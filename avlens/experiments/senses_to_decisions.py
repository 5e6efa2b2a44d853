"""The experiments of "From Senses to Decisions", arXiv:2606.10147.

    flow         through which layers does what a group of tokens holds reach another    figures of knockouts
    discarding   when may groups of tokens leave, what does it cost and save             table 4
    paths        along which edges and chains does what differs between two runs go      ours: the paper cuts only

Flow and discarding measure every sample; the paper, those that are answered rightly: `correct` and `right` tell.
"""

from itertools import pairwise
from typing import Any

from avlens.analyses.discarding import compare_discarding, leaving, leaving_at_random, leaving_by_fastv
from avlens.analyses.flow import information_flow
from avlens.analyses.paths import open_paths, path_patching
from avlens.analyses.selection import answer_of, prompt_of
from avlens.edges import Edge
from avlens.experiments.asking import Row, clip_of, decided, in_parts, right
from avlens.experiments.experiment import Condition, Experiment
from avlens.groups import token_groups
from avlens.inputs import AVInputs
from avlens.samples import Opened
from avlens.tokens import TokenSet

EDGES = (
    "video -> question", "audio -> question", "video -> last", "audio -> last", "question -> last", "correct option -> last",
    "incorrect options -> last", "video <-> audio", "video -> video across frames", "audio -> audio across chunks",
    "media -> text",
)  # fmt: skip
"""The paper's edges of a clip with sight and sound, and all from media to text; those that a prompt lacks are left out."""

DISCARDED = {
    "question": {"question": 29 / 36}, "audio": {"audio": 26 / 36}, "video": {"video": 26 / 36},
    "all": {"question": 29 / 36, "audio": 26 / 36, "video": 26 / 36},
}  # fmt: skip
"""The groups of the paper's table 4 and the layers at which they leave, as shares of the depth."""


def measure_flow(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """What cutting each edge in windows of layers does to the answer."""
    inputs = prompt_of(model, clip_of(opened), opened.sample, condition["ask"], order=condition["order"])
    groups = _groups(inputs, opened, condition)
    edges = [edge for edge in condition["edges"] if Edge.parse(edge).cut(inputs.tokens, groups)]
    rows = []
    for some in in_parts(edges, condition.get("at_once")):
        flow = information_flow(model, inputs, some, groups=groups, window=condition["window"])
        about = {
            "answer": flow.answers[0],
            "correct": right(model, flow.answers[0], opened, condition),
            "P": flow.p_base[0],
        }
        differences = flow.values("logit_diff")
        rows += [
            about | {
                "edge": str(edge), "layer": layer, "change": flow.change[i, j, 0], "flipped": flow.flipped[i, j, 0],
                "logit_diff": differences[i, j, 0], "pairs": flow.pairs[i, 0],
            }
            for i, edge in enumerate(flow.edges)
            for j, layer in enumerate(flow.layers)
        ]  # fmt: skip
    return rows


def measure_discarding(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """Whether the answer stays, and is right, when groups leave before a layer, and which share of rows and cache that saves."""
    inputs, n = prompt_of(model, clip_of(opened), opened.sample, condition["ask"]), model.cfg.n_layers
    plans: dict[str, Any] = {}
    for name, shares in condition["discard"].items():
        layers = {group: min(n - 1, round(share * n)) for group, share in shares.items()}
        plans |= {name: leaving(layers), f"as many random as {name}": leaving_at_random(layers, seed=condition["seed"])}
    plans["FastV"] = leaving_by_fastv(layer=min(2, n - 1))
    label = answer_of(opened.sample, opened.sample.label, condition["ask"])
    found = compare_discarding(model, [inputs], plans, labels=[label] if label else None, repeats=1)
    return [
        {
            "plan": plan, "right": found.right[i, 0], "same": found.same[i, 0], "P": found.p[i, 0],
            "rows": found.rows[i, 0] / found.rows[0, 0], "cache": found.cache_bytes[i, 0] / found.cache_bytes[0, 0],
        }
        for i, plan in enumerate(found.plans)
    ]  # fmt: skip


def measure_paths(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """What patching each edge, and opening each chain, restores of what the deciding modality gives to the answer."""
    pair, about = decided(model, opened, condition)
    if pair is None:
        return [about]
    groups = _groups(pair.clean, opened, condition)
    first, second = ("audio", "video") if pair.dominant == "audio" else ("video", "audio")
    chains = [
        [first, "last"],
        [first, second, "last"],
        [first, "question", "last"],
        [first, second, "question", "last"],
    ]
    steps = {" -> ".join(step): None for chain in chains for step in pairwise(chain)}
    edges = [edge for edge in steps if Edge.parse(edge).cut(pair.clean.tokens, groups)]
    there = [chain for chain in chains if set(chain) <= set(groups)]
    options: dict[str, Any] = {"groups": groups, "answers": pair.answers}
    at_once = condition.get("at_once")
    restored = [
        *(
            ("edge", path_patching(model, pair.clean, pair.corrupt, some, **options))
            for some in in_parts(edges, at_once)
        ),
        *(("chain", open_paths(model, pair.clean, pair.corrupt, some, **options)) for some in in_parts(there, at_once)),
    ]
    return [
        about | {"kind": kind, "path": path, "effect": found.effects[i, 0], "total": found.contrast.total}
        for kind, found in restored
        for i, path in enumerate(found.paths)
    ]


def _groups(inputs: AVInputs, opened: Opened, condition: Condition) -> dict[str, TokenSet]:
    """The groups of a prompt; where options are listed and the right one is known, it and the others."""
    listed = condition["ask"] == "letters" and opened.sample.options
    return token_groups(inputs.tokens, correct=opened.sample.label or None if listed else None)


EXPERIMENTS = (
    Experiment(
        "flow", measure_flow,
        {
            order.replace("_", " "): {"edges": list(EDGES), "window": 7, "order": order, "ask": "letters"}
            for order in ("media_first", "question_first")
        },
        when_memory_is_short=({"at_once": 1},), summary=[("change", ("condition", "edge", "layer"))],
    ),
    Experiment(
        "discarding", measure_discarding, {"as published": {"discard": DISCARDED, "ask": "letters"}},
        summary=[(value, ("plan",)) for value in ("right", "same", "P", "rows", "cache")],
    ),
    Experiment(
        "paths", measure_paths, {"zero": {"corrupt": "zero", "ask": "letters"}}, asks_choices=True,
        when_memory_is_short=({"at_once": 1},), summary=[("effect / total", ("dominant", "kind", "path"))],
    ),
)  # fmt: skip
"""With settings as in the paper's tables."""
