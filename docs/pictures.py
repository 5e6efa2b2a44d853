"""Every picture of the pages, one function each, named as its file: `python docs/redraw.py images [NAME ...]` draws them."""

import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import plotly.graph_objects as go

from avlens import HookedAVModel, ablate, reweight, views
from avlens.analyses.attention_mass import attention_by_group
from avlens.analyses.attribution import direct_logit_attribution
from avlens.analyses.attribution_patching import attribution_patching, exact_patching
from avlens.analyses.controls import matched_draws
from avlens.analyses.discarding import compare_discarding, leaving, leaving_at_random
from avlens.analyses.dominance import head_dominance
from avlens.analyses.dynamics import attention_dynamics
from avlens.analyses.flow import Controls, flow_by_head, information_flow
from avlens.analyses.logit_lens import latent_understanding, logit_lens
from avlens.analyses.massive_activations import massive_activations
from avlens.analyses.paths import open_paths, path_patching
from avlens.analyses.probes import linear_probes, probe_features
from avlens.analyses.selection import unimodal_dominance
from avlens.analyses.shift import token_distribution_shift
from avlens.analyses.sinks import find_sink_dims, find_sinks
from avlens.analyses.tracing import causal_trace, trace_layers
from avlens.analyses.transport import transport
from avlens.analyses.tuned_lens import fit_tuned_lens
from avlens.choices import decoding_choices
from avlens.data import read_data
from avlens.datasets.counterfactual import mismatched
from avlens.datasets.synthetic import synthetic_clips
from avlens.decoding import ASD, VCD
from avlens.demo import run_demo
from avlens.groups import token_groups
from avlens.hub_table import hub_table
from avlens.hubs import find_hubs
from avlens.media import Clip
from avlens.metrics.aloha import VocabularyExtractor, aloha
from avlens.metrics.chair import chair
from avlens.metrics.fidelity import KeywordMatch, caption_fidelity
from avlens.tables import trace_table
from avlens.tokens import Modality
from avlens.views.page import page
from avlens.views.style import COLOURS, dark, figure, joined, origin

WIDTH = 1000  # pixels of a figure; pages of the site are narrower, a window of 1280 shows it whole
SOUND, DESCRIBE = "which sound does it make ?", "describe the clip ."


class World:
    """A model, a clip and what was found on it, each computed when a picture first needs it."""

    @cached_property
    def model(self) -> HookedAVModel:
        return HookedAVModel.from_pretrained("avlens-tiny")

    @cached_property
    def samples(self) -> list[Any]:
        return synthetic_clips(12, seed=7, seconds=4.0, blank=0, silent=0, matching=0)

    @cached_property
    def clip(self) -> Clip:
        drawn = synthetic_clips(1, seed=4, seconds=4.0, fps=10.0, size=168, blank=0, silent=0, matching=0)[0].clip
        with tempfile.TemporaryDirectory() as folder:
            return Clip.from_file(drawn.to_file(Path(folder) / "clip.mp4"))

    @cached_property
    def inputs(self) -> Any:
        return self.model.prepare(self.clip, SOUND)

    @cached_property
    def silent(self) -> Any:
        return self.model.prepare(self.clip.silenced(), SOUND)

    @cached_property
    def cache(self) -> Any:
        return self.model.run_with_cache(self.inputs, names_filter=["resid_pre", "pattern"])[1]

    @cached_property
    def dims(self) -> Any:
        return find_sink_dims(self.model)

    @cached_property
    def sinks(self) -> Any:
        return find_sinks(self.cache, self.dims)

    @cached_property
    def found(self) -> Any:
        return find_hubs(self.model, self.inputs)

    @cached_property
    def trace(self) -> Any:
        return causal_trace(self.model, self.inputs, self.silent, self.sets(self.inputs))

    def sets(self, inputs: Any) -> dict[str, Any]:
        tokens, hubs = inputs.tokens, find_hubs(self.model, inputs).hubs
        cross, uni = hubs.cross & tokens.video, hubs.uni & tokens.video
        control = matched_draws(cross, n=1, within=tokens.video - cross - uni)[0]
        return {
            "sound": tokens.audio,
            "pictures": tokens.video,
            "cross-modal sinks": cross,
            "unimodal sinks": uni,
            "random pictures": control,
        }

    @cached_property
    def flow(self) -> Any:
        prompts = [self.model.prepare(one.clip, SOUND) for one in self.samples[:8]]
        edges = ["audio -> last", "video -> last", "question -> last", "audio -> question"]
        return information_flow(self.model, prompts, edges, window=2, controls=Controls(2, "same_queries"))

    def p(self, hooks: Any) -> float:
        """Probability of the clean run's answer under some hooks."""
        logits = self.model.run_with_hooks(self.inputs, fwd_hooks=hooks, logits_at=self.inputs.tokens.last)
        return float(logits[0, 0].softmax(-1)[list(self.trace.o_clean)].sum())

    @cached_property
    def groups(self) -> Any:
        return {name: tokens for name, tokens in token_groups(self.inputs.tokens).items() if name != "generated"}

    @cached_property
    def data(self) -> Any:
        return read_data("synthetic:12", seed=3)

    @cached_property
    def selection(self) -> Any:
        return unimodal_dominance(self.model, self.data.samples, ask=self.data.ask, read=self.data.read)

    @cached_property
    def captions(self) -> list[str]:
        # Some clips are noise, so that there is something to miss.
        clips = [one.clip.noised(900) if i % 3 == 0 else one.clip for i, one in enumerate(self.samples)]
        return [self.model.generate(self.model.prepare(clip, DESCRIBE), 16).text for clip in clips]

    @cached_property
    def truths(self) -> list[list[str]]:
        return [[one.content.sound, one.content.shape] for one in self.samples]

    @cached_property
    def explorer(self) -> Any:
        explorer = views.PatchExplorer(self.model, self.inputs, self.silent, clip=self.clip)
        explorer.sweep()
        for group in (label for label in explorer.result.groups if label.startswith(("a·", "v"))):
            explorer.sweep(group, kind="knockout")
        explorer.patch(1, next(label for label in explorer.result.groups if label.startswith("a·")))
        return explorer


# Figures.


def timeline(w: World) -> go.Figure:
    return views.timeline(
        w.clip, w.inputs.tokens, value=w.sinks.energy.amax(0), name="energy in the sink dimension",
        sinks=w.sinks.tokens & w.inputs.tokens.media,
    )  # fmt: skip


def timeline_dark(w: World) -> go.Figure:
    return dark(timeline(w))


def timeline_part(w: World) -> go.Figure:
    return views.timeline(w.clip, w.inputs.tokens, sinks=w.sinks.tokens & w.inputs.tokens.media, start=1, end=3)


def timeline_clips(w: World) -> go.Figure:
    clips = [w.clip, w.samples[0].clip]
    tokens = w.model.prepare([clips[0], "and", clips[1]], SOUND).tokens
    return views.timeline(clips, tokens)


def frame_grid(w: World) -> go.Figure:
    energy, sinks = w.sinks.energy.amax(0), w.sinks.tokens & w.inputs.tokens.media
    return views.frame_grid(w.clip, w.inputs.tokens, value=energy, name="energy in the sink dimension", sinks=sinks)


def attention_full(w: World) -> go.Figure:
    return views.attention_full(w.cache, layer=2, head=0)


def sinks(w: World) -> go.Figure:
    return views.plot(w.sinks)


def sink_dims(w: World) -> go.Figure:
    return views.plot(w.dims)


def massive_activations_(w: World) -> go.Figure:
    return views.plot(massive_activations(w.cache))


def dominance(w: World) -> go.Figure:
    return views.plot(w.found.dominance)


def hubs(w: World) -> go.Figure:
    return views.plot(w.found.hubs)


def head_dominance_(w: World) -> go.Figure:
    return views.plot(head_dominance(w.cache, w.sinks.tokens & w.inputs.tokens.media))


def trace(w: World) -> go.Figure:
    return views.plot(w.trace)


def trace_dark(w: World) -> go.Figure:
    return dark(views.plot(w.trace))


def layer_trace(w: World) -> go.Figure:
    return views.plot(trace_layers(w.model, w.inputs, w.silent, w.inputs.tokens.audio))


def trace_table_(w: World) -> go.Figure:
    pairs = [[w.model.prepare(clip, SOUND) for clip in (one.clip, one.clip.silenced())] for one in w.samples]
    return views.plot(trace_table([causal_trace(w.model, *pair, w.sets(pair[0])) for pair in pairs], n_draws=2000))


def patch_grid(w: World) -> go.Figure:
    return views.plot(w.explorer.result)


def dynamics(w: World) -> go.Figure:
    tokens = w.inputs.tokens
    sets = {"video": tokens.video, "audio": tokens.audio, "cross-modal sinks": w.found.hubs.cross}
    request = w.model.prepare(w.clip, DESCRIBE)
    sets = {name: request.tokens.at(list(chosen)) for name, chosen in sets.items()}
    words = ["moves", "sounds"]
    return views.plot(attention_dynamics(w.model, request, sets, words=words, max_new_tokens=16))


def lens(w: World) -> go.Figure:
    words = [w.trace.answers[0].strip(), w.trace.answers[1].strip()]
    return views.plot(logit_lens(w.model, w.inputs, w.inputs.tokens.last, words=words, divergence=True))


def latent(w: World) -> go.Figure:
    lenses = [logit_lens(w.model, w.model.prepare(one.clip, "what do you hear ?")) for one in w.samples]
    return views.plot(latent_understanding(lenses, [{one.content.sound} for one in w.samples]))


def shift(w: World) -> go.Figure:
    with_sound, without = (w.model.prepare(clip, DESCRIBE) for clip in (w.clip, w.clip.without_audio()))
    return views.plot(token_distribution_shift(w.model, with_sound, without))


def flow(w: World) -> go.Figure:
    return views.plot(w.flow)


def attention_mass(w: World) -> go.Figure:
    return views.plot(attention_by_group(w.model, w.inputs))


def discarding(w: World) -> go.Figure:
    prompts = [w.model.prepare(one.clip, SOUND) for one in w.samples[:8]]
    plans: dict[str, Any] = {f"leave at {i}": leaving({"audio": i, "video": i}) for i in (1, 2, 3)}
    plans |= {f"as many at random, at {i}": leaving_at_random({"audio": i, "video": i}) for i in (1, 2, 3)}
    return views.plot(compare_discarding(w.model, prompts, plans))


def attribution(w: World) -> go.Figure:
    return views.plot(direct_logit_attribution(w.model, w.inputs, against=w.trace.answers[1].strip()))


def patching(w: World) -> go.Figure:
    return views.plot(exact_patching(w.model, w.inputs, w.silent, w.groups))


def patching_heads(w: World) -> go.Figure:
    return views.plot(attribution_patching(w.model, w.inputs, w.silent, w.groups, site="z", steps=4))


def compare(w: World) -> go.Figure:
    runs = (w.model, w.inputs, w.silent, w.groups)
    return views.compare(attribution_patching(*runs), exact_patching(*runs))


def paths(w: World) -> go.Figure:
    chains = [["audio", "last"], ["audio", "question", "last"], ["audio", "video", "last"]]
    return views.plot(open_paths(w.model, w.inputs, w.silent, chains))


def paths_layers(w: World) -> go.Figure:
    edges = ["audio -> last", "audio -> question", "audio -> video", "video -> last"]
    return views.plot(path_patching(w.model, w.inputs, w.silent, edges, window=2))


def transport_(w: World) -> go.Figure:
    return views.plot(transport(w.model, w.inputs, w.silent))


def probes(w: World) -> go.Figure:
    samples = synthetic_clips(48, seed=11, blank=0, silent=0, matching=0)
    features = probe_features(w.model, [w.model.prepare(one.clip, DESCRIBE) for one in samples])
    return views.plot(linear_probes(features, [one.content.sound for one in samples], folds=4))


def controls(w: World) -> go.Figure:
    tokens, hubs, sinks = w.inputs.tokens, w.found.hubs.cross, w.found.sinks.tokens
    sets = {"cross-modal sinks": hubs}
    for match in ("count", "chunk", "later_queries"):
        for i, draw in enumerate(matched_draws(hubs, match, n=2, within=tokens.media - sinks)):
            sets[f"{match} {i}"] = draw
    return views.plot(causal_trace(w.model, w.inputs, w.silent, sets))


def flow_graph(w: World) -> go.Figure:
    return views.flow_graph(w.flow)


def head_flow(w: World) -> go.Figure:
    return views.plot(
        flow_by_head(w.model, [w.model.prepare(one.clip, SOUND) for one in w.samples[:8]], "video -> last")
    )


def prompt_hubs(w: World) -> go.Figure:
    return views.plot(w.found)


def selection(w: World) -> go.Figure:
    return views.plot(w.selection)


def hub_table_(w: World) -> go.Figure:
    return views.plot(hub_table(w.model, w.data.samples, w.selection, read=w.data.read, n=[2], draws=3))


def generation(w: World) -> go.Figure:
    return views.plot(w.model.generate(w.model.prepare(w.clip, DESCRIBE), 16, decoding=ASD()))


def choices(w: World) -> go.Figure:
    noisy = w.model.prepare(w.clip.noised(850), DESCRIBE)
    return views.plot(decoding_choices(w.model, noisy, VCD(alpha=2.0, step=700), 16))


def chair_(w: World) -> go.Figure:
    return views.plot(chair(w.captions, w.truths, vocabulary=w.data.vocabulary))


def aloha_(w: World) -> go.Figure:
    return views.plot(aloha(w.captions, w.truths, extract=VocabularyExtractor(w.data.vocabulary)))


def fidelity(w: World) -> go.Figure:
    sounds, shapes = ([truth[i] for truth in w.truths] for i in range(2))
    return views.plot(caption_fidelity(w.captions, {"audio": sounds, "video": shapes}, KeywordMatch(w.data.vocabulary)))


def swaps(w: World) -> go.Figure:
    return views.plot(mismatched([one.content.answer("describe") for one in w.samples]))


def tuned_lens(w: World) -> go.Figure:
    prompts = [w.model.prepare(one.clip, SOUND) for one in w.samples]
    tuned = fit_tuned_lens(w.model, prompts, steps=200)
    words = [w.trace.answers[0].strip(), w.trace.answers[1].strip()]
    return views.plot(logit_lens(w.model, w.inputs, w.inputs.tokens.last, lens=tuned, words=words, divergence=True))


def ablation(w: World) -> go.Figure:
    other = w.model.prepare(w.samples[0].clip, SOUND)
    _, cache = w.model.run_with_cache(other, names_filter=["resid_pre"])
    fig = figure("What takes the sound out of the sound's tokens?", note=_probability(w))
    for name in ("video", "audio"):
        chosen, colour = getattr(w.inputs.tokens, name), COLOURS[Modality[name.upper()]]
        ways = {by: ablate(chosen, by=by) for by in ("zero", "mean", "resample")}
        ways |= {f"{by}, another clip": ablate(chosen, by=by, reference=cache) for by in ("mean", "resample")}
        fig.add_bar(
            x=list(ways), y=[w.p(hooks) for hooks in ways.values()], name=f"{name} ablated", marker_color=colour
        )
    return fig.update_layout(yaxis={"title": "P(answer)", "range": [0, 1.03]})


def reweighting(w: World) -> go.Figure:
    strengths = [x / 4 for x in range(-4, 13)]
    fig = figure("The answer, when the last token reads a group more or less", note=_probability(w))
    for name in ("video", "audio"):
        chosen, colour = getattr(w.inputs.tokens, name), COLOURS[Modality[name.upper()]]
        y = [w.p(reweight(w.inputs.tokens.last, chosen, strength)) for strength in strengths]
        fig.add_scatter(x=strengths, y=y, name=name, mode="lines+markers", line={"color": colour})
    return fig.update_layout(xaxis={"title": "strength"}, yaxis={"title": "P(answer)", "range": [0, 1.03]})


def _probability(w: World) -> str:
    return joined(
        [
            f"probability of {w.trace.answers[0]!r}, {float(w.trace.p_clean[0]):.3f} unedited",
            origin(w.trace.made_by, w.inputs.tokens),
        ]
    )


# Pages, as a browser draws them.


def shown(w: World) -> SimpleNamespace:
    """What a notebook shows of values that are no pictures."""
    parts = [w.clip, w.inputs, w.inputs.tokens.video & w.inputs.tokens.seconds(1, 2), w.cache, w.sinks]
    body = "".join(f"<div style='margin:0 0 22px'>{part._repr_html_()}</div>" for part in parts)
    return SimpleNamespace(html=page("", f"<main style='padding:8px'>{body}</main>"), select="main", width=WIDTH)


def coloured_tokens(w: World) -> SimpleNamespace:
    name, tokens = "energy in the sink dimension", w.inputs.tokens
    view = views.coloured_tokens(tokens, w.sinks.energy.amax(0), name=name, sinks=w.sinks.tokens & tokens.media)
    return SimpleNamespace(html=page("", view.fragment("tokens")), select=".avlens-tokens", width=WIDTH)


def _attention(w: World, **options: Any) -> SimpleNamespace:
    view = views.attention(w.cache, layer=2, **options)
    return SimpleNamespace(html=page("", view.fragment("view"), views=True), select=".avlens-view", width=WIDTH + 20)


def attention(w: World) -> SimpleNamespace:
    return _attention(w, sinks=w.sinks.tokens)


def attention_modality(w: World) -> SimpleNamespace:
    return _attention(w, sinks=w.sinks.tokens & w.inputs.tokens.media, order="modality")


def attention_sinks(w: World) -> SimpleNamespace:
    return _attention(w, sinks=w.sinks.tokens & w.inputs.tokens.media, group="sinks")


def attention_regions(w: World) -> SimpleNamespace:
    return _attention(w, group="regions")


def explorer(w: World) -> SimpleNamespace:
    return _explorer(w)


def explorer_dark(w: World) -> SimpleNamespace:
    told = _explorer(w)
    told.scheme, told.html = "dark", told.html.replace("margin: 16px;", "margin: 16px; background: #14171c;")
    return told


def _explorer(w: World) -> SimpleNamespace:
    with tempfile.TemporaryDirectory() as folder:
        html = w.explorer.save(Path(folder) / "page.html").read_text("utf-8")
    return SimpleNamespace(html=html, select="body", width=1120)


def report(w: World) -> SimpleNamespace:
    with tempfile.TemporaryDirectory() as folder:
        html = run_demo(w.model, Path(folder) / "avlens-demo").report.read_text("utf-8")

    def seek(shown: Any) -> None:
        shown.wait_for_timeout(1500)
        shown.evaluate("document.getElementById('avlens-player').currentTime = 1.5")
        shown.wait_for_timeout(800)

    return SimpleNamespace(html=html, select="#avlens-first", width=1280, act=seek)


def report_dark(w: World) -> SimpleNamespace:
    told = report(w)
    told.scheme = "dark"
    return told


FIGURES: Sequence[Callable[[World], go.Figure]] = (
    timeline, timeline_dark, timeline_part, timeline_clips, frame_grid,
    attention_full, sinks, sink_dims, massive_activations_, dominance, hubs, head_dominance_, trace, trace_dark,
    layer_trace, trace_table_, patch_grid, dynamics, lens, latent, shift, flow, attention_mass, discarding,
    prompt_hubs, selection, hub_table_, generation, choices, chair_, aloha_, fidelity, swaps,
    attribution, patching, patching_heads, compare, paths, paths_layers, transport_, probes, controls, flow_graph, head_flow,
    tuned_lens, ablation, reweighting,
)  # fmt: skip
PAGES: Sequence[Callable[[World], SimpleNamespace]] = (
    shown, coloured_tokens, attention, attention_modality, attention_sinks, attention_regions, explorer, explorer_dark,
    report, report_dark,
)  # fmt: skip


def draw_all(folder: Path, shoot: Callable[..., bytes], chosen: Sequence[str] = ()) -> None:
    """Draw the pictures that are named, or all."""
    import warnings

    import kaleido

    warnings.filterwarnings("ignore", message="The kopts argument is ignored")

    world, named = World(), {draw.__name__.rstrip("_"): draw for draw in (*FIGURES, *PAGES)}
    folder.mkdir(exist_ok=True)
    kaleido.start_sync_server()
    for name, draw in named.items():
        if chosen and name not in chosen:
            continue
        made, path = draw(world), folder / f"{name}.png"
        if isinstance(made, go.Figure):
            made.write_image(path, width=WIDTH, scale=1.5)
        else:
            options = {key: value for key, value in vars(made).items() if key != "html"}
            path.write_bytes(shoot(made.html, **options))
        print(f"{name}: {path.stat().st_size / 1000:.0f} kB", flush=True)
    kaleido.stop_sync_server()
