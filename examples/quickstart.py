# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A clip, its tokens, and what they do
#
# This notebook runs in a few seconds on `avlens-tiny`, a small model that comes with avlens. Its weights are random but for a few
# planted sinks: what its sinks are is known, what it answers means nothing. With a GPU, put `"Qwen/Qwen2.5-Omni-3B"` in its place.

# %%
from pathlib import Path
from tempfile import mkdtemp

from avlens import Clip, HookedAVModel, knockout, patch, views
from avlens.datasets.synthetic import ball_and_bell

model = HookedAVModel.from_pretrained("avlens-tiny")
path = ball_and_bell(6.0).to_file(Path(mkdtemp()) / "ball.mp4")  # or a file of yours
clip = Clip.from_file(path)
clip

# %% [markdown]
# ## Which token is what
#
# Two seconds of video, two seconds of sound, and so on: the `TokenMap` knows what each position is, when, and where.

# %%
inputs = model.prepare(clip, "what do you hear ?")
tokens = inputs.tokens
tokens.to_frame().loc[14:24]

# %% [markdown]
# Sets of tokens are made by saying what is meant.

# %%
tokens.video & tokens.seconds(1.0, 2.0)

# %% [markdown]
# ## Sinks
#
# The sink dimensions are found in the model's text-only pass. `resid_pre` is all that is needed to find the tokens; which modality
# reads them is in the patterns, which are summed while the model runs and never kept.

# %%
from avlens.analyses.dominance import modality_dominance, read_by_modality, split_sinks
from avlens.analyses.sinks import find_sink_dims, find_sinks

dims = find_sink_dims(model)
logits, cache = model.run_with_cache(inputs, names_filter=["resid_pre"], reductions=read_by_modality(tokens))
sinks = find_sinks(cache, dims)
sinks.to_frame().head(8)

# %%
views.timeline(
    clip, tokens, value=sinks.energy.amax(0), name="energy in the sink dimension", sinks=sinks.tokens & tokens.media
)

# %%
dominance = modality_dominance(cache, sinks.tokens & tokens.media)
hubs = split_sinks(dominance)
print(hubs)
views.plot(dominance)

# %% [markdown]
# ## A patch that restores an answer
#
# Silence the clip and the answer changes. Then put clean activations back, one set of tokens at a time.

# %%
from avlens.analyses.tracing import causal_trace

silent = model.prepare(clip.silenced(), "what do you hear ?")
sets = {
    "audio": tokens.audio,
    "video": tokens.video,
    "cross-modal sinks": hubs.cross,
    "unimodal sinks": hubs.uni,
    "as many random": tokens.random_like(hubs.cross, seed=0, within=tokens.media - sinks.tokens),
}
trace = causal_trace(model, inputs, silent, sets)
views.plot(trace)

# %% [markdown]
# The same by hand: hooks are plain `(name, fn)` pairs, and interventions add up.

# %%
hooks = patch(cache, tokens.audio) + knockout(tokens.last, tokens.video, layers=range(3, 6))
restored = model.run_with_hooks(silent, fwd_hooks=hooks)
[model.to_string(out[0, -1].argmax()) for out in (logits, model(silent), restored)]

# %% [markdown]
# ## Attention, grouped so that it can be read

# %%
_, cache = model.run_with_cache(inputs, names_filter=["blocks.3.attn.hook_pattern"])
views.attention(cache, layer=3, sinks=sinks.tokens)

# %% [markdown]
# ## Adaptive Sink-guided Decoding
#
# A second stream reads cross-modal sinks more and unimodal ones less; `gamma` says how much it guides each step.

# %%
from avlens.decoding import ASD

plain, guided = model.generate(inputs, 12), model.generate(inputs, 12, decoding=ASD(alpha=0.5))
print(plain.text, guided.text, guided.records["gamma"], sep="\n")
