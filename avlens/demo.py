"""The whole story on one clip: tokens, sinks, modality dominance, a patch that restores an answer, and an ASD caption."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avlens import names, views
from avlens.analyses.dominance import Hubs, ModalityDominance
from avlens.analyses.sinks import Sinks
from avlens.analyses.tracing import CausalTrace, causal_trace
from avlens.choices import DecodingChoices, decoding_choices
from avlens.datasets.synthetic import Content, draw_clip
from avlens.decoding import ASD
from avlens.errors import ViewError
from avlens.generation import Generation
from avlens.hubs import find_hubs
from avlens.inputs import AVInputs
from avlens.media import Clip
from avlens.model import HookedAVModel
from avlens.tokens import TokenSet

QUESTION = "which sound does it make ?"
REQUEST = "describe the clip ."
CONTENT = Content("square", "blue", "right", "siren")


@dataclass(frozen=True, eq=False)
class Story:
    """What the demo found.

    Attributes:
        summary: Every number of it, as JSON holds it.
        text: The story, to be printed.
        report: The HTML file.
    """

    summary: Mapping[str, Any]
    text: str
    report: Path


def run_demo(model: HookedAVModel, out: Path, *, progress: bool = False) -> Story:
    """Make a clip, run every step on it, and write `clip.mp4`, `report.html` and `report.json` to a folder.

    Raises:
        ViewError: If the folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ViewError(
            f"the demo's folder {out} cannot be made ({error.strerror}). Pass a folder that is new, or that can be written to."
        ) from error
    drawn = draw_clip(CONTENT, np.random.default_rng(0), seconds=4.0, fps=10.0, size=252)
    drawn.to_file(out / "clip.mp4")
    clip = Clip.from_file(out / "clip.mp4")
    inputs = model.prepare(clip, QUESTION)
    found = find_hubs(model, inputs)
    sinks, scores, hubs = found.sinks, found.dominance, found.hubs
    silent = model.prepare(clip.silenced(), QUESTION)
    trace = causal_trace(model, inputs, silent, _sets(inputs, hubs), progress=progress)
    request = model.prepare(clip, REQUEST)
    greedy = model.generate(request, max_new_tokens=24)
    guided = decoding_choices(model, request, ASD(), max_new_tokens=24)
    summary = _summary(model, inputs, sinks, hubs, scores, trace, greedy, guided)
    (out / "report.json").write_text(json.dumps(summary, indent=2, default=str) + "\n", encoding="utf-8")
    report = _report(out / "report.html", model, clip, inputs, sinks, scores, hubs, trace, greedy, guided)
    return Story(summary, _told(summary, sinks, trace, greedy, guided, report), report)


def token_sets(model: HookedAVModel, inputs: AVInputs) -> dict[str, TokenSet]:
    """The sets whose effects are worth comparing: modalities, sinks, and as many random tokens as there are sinks."""
    return _sets(inputs, find_hubs(model, inputs).hubs)


def _sets(inputs: AVInputs, hubs: Hubs) -> dict[str, TokenSet]:
    tokens, sinks = inputs.tokens, hubs.uni | hubs.cross
    sets = {"all audio and video": tokens.media, "video": tokens.video, "audio": tokens.audio}
    if sinks:
        others = tokens.media - sinks
        sets |= {"cross-modal sinks": hubs.cross, "unimodal sinks": hubs.uni, "all sinks": sinks}
        sets |= {
            f"random as sinks, draw {seed}": tokens.random_like(sinks, seed=seed, within=others) for seed in range(3)
        }
    return {name: chosen for name, chosen in sets.items() if chosen}


def _summary(
    model: HookedAVModel, inputs: AVInputs, sinks: Sinks, hubs: Hubs, scores: ModalityDominance, trace: CausalTrace,
    greedy: Generation, guided: DecodingChoices,
) -> dict[str, Any]:  # fmt: skip
    tokens = inputs.tokens
    counts = {name: len(getattr(tokens, name)) for name in ("text", "special", "audio", "video")}
    return {
        "model": model.cfg.model_name,
        "question": QUESTION,
        "tokens": {"all": len(tokens), **counts},
        "sinks": {
            "dims": list(sinks.dims), "threshold": sinks.threshold, "positions": list(sinks.tokens),
            "labels": sinks.tokens.labels, "layers": sinks.frequency[sinks.tokens.positions].tolist(),
        },
        "dominance": dict(zip(scores.sinks.labels, (_number(x) for x in scores.mean.tolist()), strict=True)),
        "hubs": {"uni": hubs.uni.labels, "cross": hubs.cross.labels, "unscored": hubs.unscored.labels},
        "trace": {
            "clean": trace.answers[0], "silent": trace.answers[1], "TE_clean": trace.te_clean,
            "sets": json.loads(trace.to_frame().reset_index().to_json(orient="records")),
        },
        "caption": {"greedy": greedy.text, "asd": guided.text, "gamma": guided.decided["gamma"].tolist()},
        "made_by": model.made_by(inputs),
    }  # fmt: skip


def _told(
    summary: Mapping[str, Any],
    sinks: Sinks,
    trace: CausalTrace,
    greedy: Generation,
    guided: DecodingChoices,
    report: Path,
) -> str:
    tokens, table = summary["tokens"], trace.to_frame()[["tokens", "IE_clean", "IE_corrupt", "flipped"]]
    hubs = summary["hubs"]
    return "\n".join(
        [
            f"{summary['model']} is shown a clip and asked {QUESTION!r}.",
            "",
            f"1. The prompt has {tokens['all']} tokens: {tokens['video']} video, {tokens['audio']} audio, "
            f"{tokens['text']} text, {tokens['special']} special.",
            f"2. {len(sinks.tokens)} of them are sinks, by dimension {', '.join(map(str, sinks.dims)) or '(none found)'}: "
            f"{', '.join(sinks.tokens.labels[:8])}{' ...' if len(sinks.tokens) > 8 else ''}",
            f"3. Of the audio and video sinks, {len(hubs['cross'])} are cross-modal hubs ({', '.join(hubs['cross'])}) and "
            f"{len(hubs['uni'])} unimodal.",
            f"4. With sound it answers {trace.answers[0]!r} (P = {float(trace.p_clean[0]):.3f}), silenced "
            f"{trace.answers[1]!r}. Patching clean activations into the silenced run restores:",
            table.to_string(float_format=lambda x: f"{x:.3f}"),
            f"5. Its caption, greedy:  {greedy.text.strip()}",
            f"   with ASD:             {guided.text.strip()}",
            "",
            *_caveat(str(summary["model"])),
            f"The report, with the clip in it: {report}",
        ]
    )


def _report(
    path: Path, model: HookedAVModel, clip: Clip, inputs: AVInputs, sinks: Sinks, scores: ModalityDominance, hubs: Hubs,
    trace: CausalTrace, greedy: Generation, guided: DecodingChoices,
) -> Path:  # fmt: skip
    layer = model.cfg.n_layers // 2
    _, cache = model.run_with_cache(inputs, names_filter=[names.at("pattern", layer)], logits_at=inputs.tokens.last)
    kept = trace.to_frame()[["tokens", "IE_clean", "IE_corrupt", "IE/TE", "flipped"]].round(4).reset_index()
    caveat = " ".join(_caveat(model.cfg.model_name)).strip()
    sections = [
        views.Section(
            "Sinks",
            "Tokens whose residual stream carries a massive activation in a sink dimension. The dimensions were found in the "
            f"model's text-only pass ({', '.join(map(str, sinks.dims)) or 'none'}); a position is a sink in a layer where one of "
            f"them holds more than {sinks.threshold:.1%} of the energy. They are the squares on the timeline.",
            figures=[views.plot(sinks)],
        ),
        views.Section(
            "Who reads the sinks",
            "Modality dominance: +1 where only later video reads a sink, -1 where only later audio does. Within each "
            f"modality the half that its own side reads less is called cross-modal: {len(hubs.cross)} here, against "
            f"{len(hubs.uni)} unimodal.",
            figures=[views.plot(scores)],
            table=scores.to_frame()[["label", "modality", "mds", "one_sided"]].round(3).reset_index(),
        ),
        views.Section(
            "What restores the answer",
            f"Asked {QUESTION!r}, the model answers {trace.answers[0]!r} with sound and {trace.answers[1]!r} when silenced. "
            "Activations of each set are patched from the clean run into the silenced one, in all layers. Sets of as many "
            "random tokens as there are sinks show what the count alone does.",
            figures=[views.plot(trace)],
            table=kept,
        ),
        views.Section(
            f"Attention in layer {layer}",
            "Each head between groups of tokens: mean over the queries of a group, sum over its keys, so that rows sum to 1. "
            "The first token and the most frequent sinks keep a row of their own. Hover over a head to see it.",
            view=views.attention(cache, layer=layer, sinks=inputs.tokens.at(list(sinks.tokens)[:16])),
        ),
        views.Section("A caption, greedy", f"Asked {REQUEST!r}.", generated=greedy.text.strip()),
        views.Section(
            "The same with Adaptive Sink-guided Decoding",
            "A second stream reads cross-modal sinks more and unimodal ones less, and guides the first by "
            f"{float(guided.decided['gamma'].mean()):.2f} on average. Below: the probability of each token and of its likeliest "
            "rival, and what is read, by the model alone and with the second stream.",
            generated=guided.text.strip(),
            figures=[views.plot(guided)],
        ),
    ]
    if caveat:
        sections.insert(0, views.Section("About this model", caveat))
    energy = sinks.energy.max(0).values
    return views.report(
        path, title=f"avlens: {model.cfg.model_name} on {path.parent.name}/clip.mp4", clip=clip, tokens=inputs.tokens,
        sections=sections, value=energy, name="energy in the sink dimension", sinks=sinks.tokens & inputs.tokens.media,
    )  # fmt: skip


def _caveat(name: str) -> list[str]:
    if name != "avlens-tiny":
        return []
    return [
        "avlens-tiny was trained on synthetic clips: what it hears, sees and says is learned. Its sinks are planted and what "
        "they carry was trained in, so that it is known what should be found; they are no evidence about other models "
        "(docs/avlens-tiny.md).",
        "",
    ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
