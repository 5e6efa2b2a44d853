from types import SimpleNamespace

import pytest

from avlens.analyses.attribution import direct_logit_attribution
from avlens.analyses.attribution_patching import attribution_patching, exact_patching
from avlens.analyses.dominance import head_dominance, modality_dominance, split_sinks
from avlens.analyses.dynamics import attention_dynamics
from avlens.analyses.logit_lens import latent_understanding, logit_lens
from avlens.analyses.paths import path_patching
from avlens.analyses.probes import linear_probes, probe_features
from avlens.analyses.shift import shift_table, token_distribution_shift
from avlens.analyses.sinks import find_sink_dims, find_sinks
from avlens.analyses.tracing import causal_trace, trace_layers
from avlens.analyses.transport import transport
from avlens.tables import trace_table
from avlens.testing import tiny_clip, tiny_model


@pytest.fixture(scope="session")
def run():
    """One run of a tiny model on a clip of 4 s, and every result that has a picture."""
    model, clip, question = tiny_model(n_layers=3), tiny_clip(4.0), "what do you hear ?"
    inputs, silent = model.prepare(clip, question), model.prepare(clip.silenced(), question)
    _, cache = model.run_with_cache(inputs, names_filter=["resid_pre", "pattern"])
    tokens = inputs.tokens
    sinks = find_sinks(cache, [5, 9], energy=0.05)
    mds = modality_dominance(cache, sinks.tokens & tokens.media)
    trace = causal_trace(model, inputs, silent, {"all": tokens.media, "<audio>": tokens.audio, "none": tokens.at([])})
    sets = {
        "video": tokens.video,
        "<audio>": tokens.audio,
        "sinks in video": tokens.at(tokens.video.positions[:3].tolist()),
    }
    shift = token_distribution_shift(model, inputs, silent, answer="a <b>red</b> dog", words=["red"])
    two = {"clean": inputs, "corrupt": silent, "answers": ("dog", "rain")}
    named = {"<audio>": tokens.audio, "video": tokens.video}
    patching = {site: attribution_patching(model, **two, groups=named, site=site) for site in ("resid_pre", "z")}
    lens = logit_lens(model, inputs, tokens.audio)
    return SimpleNamespace(
        model=model,
        clip=clip,
        tokens=tokens,
        cache=cache,
        sinks=sinks,
        mds=mds,
        hubs=split_sinks(mds),
        dims=find_sink_dims(model, ratio=2),
        trace=trace,
        layers=trace_layers(model, inputs, silent, tokens.audio, window=2),
        heads=head_dominance(cache, sinks.tokens & tokens.media),
        dynamics=attention_dynamics(model, inputs, sets, max_new_tokens=6),
        table=trace_table([trace, trace], n_draws=50),
        attribution=direct_logit_attribution(model, inputs),
        patching=patching["resid_pre"],
        by_head=patching["z"],
        exact=exact_patching(model, **two, groups=named, site="z", by_head=True),
        paths=path_patching(
            model, **two, edges=["<audio> -> video", "video -> last"], groups=named | {"last": tokens.last}
        ),
        windows=path_patching(model, **two, edges=["audio -> last"], window=1),
        transport=transport(model, **two),
        probes=linear_probes(probe_features(model, [inputs, silent] * 3), ["a", "b"] * 3, folds=2, n_shuffles=1),
        lens=lens,
        latent=latent_understanding([lens, lens], [{"bell"}, {"drum"}]),
        shift=shift,
        shifts=shift_table([shift], n_draws=20),
    )


@pytest.fixture(scope="session")
def prompts(run):
    """A clip and its TokenMap, by what the clip has."""
    clips = {
        "both": run.clip,
        "audio only": tiny_clip(2.0, video=False),
        "video only": tiny_clip(2.0, audio=False),
    }
    return {name: (clip, run.model.prepare(clip, "what ?").tokens) for name, clip in clips.items()}
