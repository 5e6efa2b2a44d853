"""The tables of senses_to_decisions.md, measured anew and written into it: `python docs/senses_to_decisions.py`."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from avlens import AVInputs, HookedAVModel, TokenSet, views
from avlens.analyses.attention_mass import attention_by_group
from avlens.analyses.discarding import compare_discarding, leaves_at, leaving, leaving_at_random, leaving_by_fastv
from avlens.analyses.flow import InformationFlow, information_flow
from avlens.analyses.sinks import find_sink_dims
from avlens.datasets.synthetic import Sample, synthetic_clips
from avlens.groups import token_groups
from avlens.hubs import find_hubs
from avlens.interventions import knockout_types
from avlens.metrics.effects import Interval, bootstrap_mean

PAGE = Path(__file__).with_suffix(".md")
ROUTES = (
    "audio -> all", "media -> text", "media -> tail + last", "media -> question + tail", "media -> last", "media -> question",
    "question -> media", "question -> last", "tail -> last",
)  # fmt: skip
SINKS = ("cross sinks", "uni sinks", "as many random")


def clips(n: int, seed: int = 51) -> list[Sample]:
    """Clips with sight and sound that are no pair: the answer to what is heard cannot be guessed from what is seen."""
    return [one for one in synthetic_clips(3 * n, seed=seed, blank=0, silent=0, matching=0) if not one.content.matches][
        :n
    ]


def hear(model: HookedAVModel, samples: Sequence[Sample], order: str = "media_first") -> list[AVInputs]:
    """`what do you hear ?`, answered `a ...`: the next word is the sound."""
    return [model.prepare(one.clip, "what do you hear ?", order=order, answer_prefix="a") for one in samples]


def sounds(samples: Sequence[Sample]) -> list[str]:
    """The right words."""
    return [str(one.content.sound) for one in samples]


def orders(model: HookedAVModel, samples: Sequence[Sample]) -> pd.DataFrame:
    """Routes that are cut in every layer, with the question after and before the media."""
    columns = {}
    for order in ("media_first", "question_first"):
        flow = information_flow(
            model, hear(model, samples, order), ROUTES, sweep="bottom_up", layers=[model.cfg.n_layers - 1], labels=sounds(samples)
        )  # fmt: skip
        columns[f"{order} (n = {len(flow.kept)})"] = [
            _interval(flow.curve(edge)[0]) if int(flow.pairs[i].sum()) else "no such pairs"
            for i, edge in enumerate(flow.edges)
        ]
    return pd.DataFrame(columns, index=pd.Index(ROUTES, name="cut in all layers"))


def layers(model: HookedAVModel, samples: Sequence[Sample]) -> pd.DataFrame:
    """What the sound's tokens are needed for, layer by layer."""
    rows = {}
    for sweep, said in (("bottom_up", "0 to l"), ("top_down", "l to the last"), ("window", "l only")):
        flow = information_flow(
            model,
            hear(model, samples),
            ["audio -> all", "media -> text"],
            sweep=sweep,
            window=1,
            labels=sounds(samples),
        )
        rows |= {f"{edge}, {said}": [_interval(one) for one in flow.curve(edge)] for edge in flow.edges}
    return _by_layer(model, rows, "cut")


def sinks_and_others(model: HookedAVModel, dims: tuple[int, ...]) -> Callable[[AVInputs], Mapping[str, TokenSet]]:
    """The groups of a prompt, and its sinks among the media: cross-modal, unimodal, and as many random media tokens."""

    def groups(inputs: AVInputs) -> Mapping[str, TokenSet]:
        found, tokens = find_hubs(model, inputs, dims), inputs.tokens
        every = found.sinks.tokens & tokens.media
        random = tokens.random_like(found.hubs.cross, seed=0, within=tokens.media - every)
        named = dict(zip(SINKS, (found.hubs.cross, found.hubs.uni, random), strict=True))
        return token_groups(tokens) | named | {"sinks": every, "no sinks": tokens.media - every}

    return groups


def attention(model: HookedAVModel, samples: Sequence[Sample]) -> pd.DataFrame:
    """How much the last position reads the media, with sinks and without, and what cutting either does, layer by layer."""
    dims, prompts = tuple(find_sink_dims(model)), hear(model, samples)
    masses = []
    for inputs in prompts:
        sinks = find_hubs(model, inputs, dims).sinks.tokens
        one = attention_by_group(
            model, inputs, queries={"last": inputs.tokens.last}, keys={"media": inputs.tokens.media}, sinks=sinks
        )
        masses.append(torch.stack([one.of("last", "media").mean(-1), one.to_sinks[0, 0].mean(-1)]))
    mass, to_sinks = torch.stack(masses).mean(0)
    edges = ["sinks -> text", "no sinks -> text", "media -> text"]
    flow = information_flow(
        model, prompts, edges, groups=sinks_and_others(model, dims), sweep="top_down", labels=sounds(samples)
    )
    rows = {"attention of `last` to media": [f"{x:.3f}" for x in mass.tolist()]}
    rows |= {"of it to sinks": [f"{x:.3f}" for x in to_sinks.tolist()]}
    rows |= {f"{edge}, l to the last": [_interval(one) for one in flow.curve(edge)] for edge in edges}
    return _by_layer(model, rows, "")


def joint(model: HookedAVModel, samples: Sequence[Sample]) -> pd.DataFrame:
    """Sinks cut from the question and from the last position, layer by layer and in all of them."""
    dims = tuple(find_sink_dims(model))
    edges = [f"{source} -> {target}" for source in SINKS for target in ("question", "last", "text")]
    options = {"groups": sinks_and_others(model, dims), "labels": sounds(samples)}
    one = information_flow(model, hear(model, samples), edges, window=1, **options)
    whole = information_flow(
        model, hear(model, samples), edges, sweep="bottom_up", layers=[model.cfg.n_layers - 1], **options
    )
    table = _by_layer(model, {edge: [_interval(mean) for mean in one.curve(edge)] for edge in edges}, "cut in layer")
    table["all"] = [_interval(whole.curve(edge)[0]) for edge in edges]
    table["pairs"] = one.pairs.float().mean(1).round().int().tolist()
    return table


def discarded(model: HookedAVModel, samples: Sequence[Sample]) -> pd.DataFrame:
    """Media that leave when they are no longer needed, one layer before that, as many random tokens, and FastV."""
    prompts, labels = hear(model, samples), sounds(samples)
    flow = information_flow(model, prompts, ["video -> all", "audio -> all"], sweep="top_down", labels=labels)
    when = {group: leaves_at(flow, group) for group in ("video", "audio")}
    last = model.cfg.n_layers - 1
    rule = {group: layer for group, layer in when.items() if layer is not None}
    plans = {
        "by the rule (" + ", ".join(f"{group} at {layer}" for group, layer in rule.items()) + ")": leaving(rule),
        "as many random tokens": leaving_at_random(rule),
        f"media at {last}": leaving({"media": last}),
        f"as many random tokens at {last}": leaving_at_random({"media": last}),
        "media at 1": leaving({"media": 1}),
        "FastV, half of the media at 2": leaving_by_fastv("media", layer=2, ratio=0.5),
    }
    found = compare_discarding(model, prompts, plans, labels=labels, repeats=5)
    shares = found.to_frame()[["same answer", "rows", "cache", "seconds"]].map(lambda x: f"{x:.3f}")
    return pd.concat(
        [pd.Series({plan: _interval(found.accuracy(plan), 3) for plan in found.plans}, name="right"), shares], axis=1
    )


def captions(model: HookedAVModel, samples: Sequence[Sample]) -> pd.DataFrame:
    """Captions while generated tokens cannot read a modality in some layers."""
    n, rows = model.cfg.n_layers, {}
    cases = [("nothing", [], False)]
    for kind in ("video", "audio"):
        cases += [(f"{kind}, layers {a} to {n - 1}", [f"generated,{kind},{a},{n}"], False) for a in (0, n // 2, n - 1)]
        cases.append((f"{kind}, layers 0 to {n - 1}, strict_p2", [f"generated,{kind},0,{n}"], True))
        other = "audio" if kind == "video" else "video"
        blind = [f"{reader},{kind},0,{n}" for reader in ("generated", "query_text", other)]
        cases.append((f"{kind}, layers 0 to {n - 1}, nor does the prompt's text", blind[:2], False))
        cases.append((f"{kind}, layers 0 to {n - 1}, nor does anything else", blind, False))
    for name, rules, strict in cases:
        saw, heard = [], []
        for sample in samples:
            inputs = model.prepare(sample.clip, "describe the clip .")
            hooks = knockout_types(inputs.tokens, rules, n_layers=n, strict_p2=strict)
            text = model.generate(inputs, 16, fwd_hooks=hooks).text
            sight, sound = sample.ask("describe").answer.split(" and ")
            saw.append(float(sight in text))
            heard.append(float(text.rstrip(" .").endswith(sound)))
        rows[name] = {
            "sight right": _interval(bootstrap_mean(saw), 3),
            "sound right": _interval(bootstrap_mean(heard), 3),
        }
    return pd.DataFrame(rows).T.rename_axis("generated tokens do not read")


TABLES: dict[str, Callable[[HookedAVModel, Sequence[Sample]], pd.DataFrame]] = {
    "orders": orders, "layers": layers, "attention": attention, "joint": joint, "discarding": discarded, "captions": captions,
}  # fmt: skip


def pictures(model: HookedAVModel, samples: Sequence[Sample], folder: Path) -> None:
    """The figures of the page; needs `pip install avlens[export]`."""
    for order in ("media_first", "question_first"):
        edges = [
            "media -> last",
            "media -> question",
            "media -> tail",
            "media -> text",
            "question -> last",
            "tail -> last",
        ]
        flow: InformationFlow = information_flow(
            model, hear(model, samples, order), edges, sweep="bottom_up", labels=sounds(samples)
        )
        views.flow_graph(flow).write_image(folder / f"flow_{order}.png", width=900, scale=1.5)
    edges = ["audio -> all", "media -> text", "media -> tail + last", "media -> last"]
    flow = information_flow(model, hear(model, samples), edges, sweep="top_down", labels=sounds(samples))
    views.plot(flow).write_image(folder / "flow_curves.png", width=1000, scale=1.5)


def written(page: str, name: str, table: str) -> str:
    """The page with a table in its place."""
    return re.sub(
        rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", lambda found: found[1] + table + found[2], page, flags=re.DOTALL
    )


def _by_layer(model: HookedAVModel, rows: Mapping[str, Sequence[str]], name: str) -> pd.DataFrame:
    return pd.DataFrame(rows, index=[f"l = {layer}" for layer in range(model.cfg.n_layers)]).T.rename_axis(name)


def _interval(mean: Interval, digits: int = 1) -> str:
    # Adding 0 turns what rounds to -0.0 into 0.0.
    estimate, low, high = (f"{round(x, digits) + 0.0:.{digits}f}" for x in (mean.estimate, mean.low, mean.high))
    return f"{estimate} [{low}, {high}]"


def _markdown(table: pd.DataFrame) -> str:
    head = [table.index.name or "", *map(str, table.columns)]
    body = [[str(name), *map(str, row)] for name, row in zip(table.index, table.itertuples(index=False), strict=True)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--clips", type=int, default=24)
    asked.add_argument("--model", default="avlens-tiny")
    asked.add_argument("--only", nargs="*", default=list(TABLES))
    asked.add_argument("--pictures", action="store_true")
    given = asked.parse_args()
    loaded, chosen = HookedAVModel.from_pretrained(given.model), clips(given.clips)
    for name in given.only:
        text = _markdown(TABLES[name](loaded, chosen))
        print(f"\n{name}\n{text}", flush=True)
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), name, text), encoding="utf-8")
    if given.pictures:
        pictures(loaded, chosen[:8], PAGE.parent / "images")
