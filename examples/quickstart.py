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
# This notebook runs in a few seconds on `avlens-tiny`, a small model that comes with avlens. It was trained on synthetic clips: it
# hears, sees and answers. Its sinks are planted, so that it is known what should be found. With a GPU, put
# `"Qwen/Qwen2.5-Omni-3B"` in its place.

# %%
from pathlib import Path
from tempfile import mkdtemp

from avlens import Clip, HookedAVModel, knockout, patch, views
from avlens.datasets.synthetic import synthetic_clips

model = HookedAVModel.from_pretrained("avlens-tiny")
sample = synthetic_clips(1, seed=4, seconds=4.0, fps=10.0, size=168, blank=0, silent=0, matching=0)[0]
print(sample.content)
clip = Clip.from_file(sample.clip.to_file(Path(mkdtemp()) / "clip.mp4"))  # or a file of yours
clip

# %% [markdown]
# ## Which token is what
#
# A second of video, a second of sound, and so on (two and two in Qwen2.5-Omni): the `TokenMap` knows what each position is,
# when, and where.

# %%
inputs = model.prepare(clip, "which sound does it make ?")
tokens = inputs.tokens
tokens.to_frame().loc[14:24]

# %% [markdown]
# Sets of tokens are made by saying what is meant.

# %%
tokens.video & tokens.seconds(1.0, 2.0)

# %% [markdown]
# ## Sinks
#
# The sink dimensions are found in the model's text-only pass. `resid_pre` is all that is needed to find the tokens; which
# modality reads them is in the patterns, which are summed while the model runs and never kept.

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
# Silence the clip and the answer changes: the model guesses the sound that belongs to what it sees. Then put clean activations
# back, one set of tokens at a time.

# %%
from avlens.analyses.tracing import causal_trace

silent = model.prepare(clip.silenced(), "which sound does it make ?")
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
hooks = patch(cache, tokens.audio) + knockout(tokens.last, tokens.video, layers=range(2, 4))
restored = model.run_with_hooks(silent, fwd_hooks=hooks)
[model.to_string(out[0, -1].argmax()) for out in (logits, model(silent), restored)]

# %% [markdown]
# ## The same by clicking
#
# A grid of layers and groups of tokens: a click patches, a click with shift knocks out, a click on a label sweeps the column. The
# answers' probabilities stand beside it, and the code for what is shown can be copied. Here the sound was swept from a cell, and its
# first second patched in layer 1.

# %%
explorer = views.PatchExplorer(model, inputs, silent, clip=clip)
sounds = [label for label in explorer.result.groups if label.startswith("a·")]
for group in sounds:
    explorer.sweep(group)
explorer.patch(1, sounds[0])
explorer

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

request = model.prepare(clip, "describe the clip .")
plain, guided = model.generate(request, 12), model.generate(request, 12, decoding=ASD(alpha=0.5))
print(plain.text, guided.text, guided.records["gamma"], sep="\n")
