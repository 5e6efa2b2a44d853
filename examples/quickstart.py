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
# A model hears a clip and answers a question. Which of its tokens hold the answer, who reads them, and what happens if they say
# something else? From the first look to the answer in six steps, in a few seconds, on `avlens-tiny`: a small model that comes with avlens and
# was trained on synthetic clips. Its sinks are planted, so that it is known what should be found. With a GPU, put
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
# ## 1. Every token has a time and a place
#
# The prompt holds a second of video, a second of sound, and so on (two and two in Qwen2.5-Omni): the `TokenMap` knows what each position
# is, when, and where.

# %%
inputs = model.prepare(clip, "which sound does it make ?")
tokens = inputs.tokens
tokens.to_frame().loc[14:24, ["label", "modality", "segment", "start", "end", "frame", "row", "col"]]

# %% [markdown]
# Sets of tokens are made by saying what is meant; they combine as sets do, and are all that the rest of avlens needs.

# %%
tokens.video & tokens.seconds(1.0, 2.0)

# %% [markdown]
# ## 2. A few tokens are sinks
#
# In the residual stream of a few tokens one dimension holds most of the energy. That dimension is found in the model's text-only pass, the
# tokens in `resid_pre`. Who reads them is in the patterns, which are summed while the model runs and never kept.

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

# %% [markdown]
# The clip, its sound and its tokens on one axis: of the media, the first and the last patch of each step of video are sinks, and the first
# and the last token of each second of sound.
#
# ## 3. Some are read by the other modality
#
# +1 is a sink that only later video reads, -1 one that only later audio reads. A video sink at the left, or an audio sink at the right, is
# read by the other modality: a cross-modal sink.

# %%
dominance = modality_dominance(cache, sinks.tokens & tokens.media)
hubs = split_sinks(dominance)
print(hubs)
views.plot(dominance)

# %% [markdown]
# ## 4. The cross-modal ones hold the answer
#
# Silence the clip and the answer changes: the model guesses the sound that belongs to what it sees. Then put clean activations
# back into the silenced run, one set of tokens at a time.

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
# All the sound restores the answer, and so do the cross-modal sinks alone. As many unimodal sinks or random tokens restore nothing: it
# is not a matter of number. (Pictures restore it because they have read the sound, which is what cross-modal sinks are.)
#
# The same by hand: hooks are plain `(name, fn)` pairs, and interventions add up.

# %%
hooks = patch(cache, tokens.audio) + knockout(tokens.last, tokens.video, layers=range(2, 4))
restored = model.run_with_hooks(silent, fwd_hooks=hooks)
[model.to_string(out[0, -1].argmax()) for out in (logits, model(silent), restored)]

# %% [markdown]
# ## 5. Where it is, by clicking
#
# A grid of layers and groups of tokens: a click patches, a click with shift knocks out, a click on a label sweeps the column. The
# answers' probabilities stand beside it, and the code for what is shown can be copied. Here the whole grid was swept from a cell, and the first
# second of sound patched in layer 1: it alone brings the answer back, until video has read it. From then on the last step of video does.

# %%
explorer = views.PatchExplorer(model, inputs, silent, clip=clip)
explorer.sweep()
explorer.patch(1, next(label for label in explorer.result.groups if label.startswith("a·")))
explorer

# %% [markdown]
# Attention agrees, as far as it can. A hundred tokens are grouped so that it can be read, and sinks (stars) keep rows of their own. In the
# last layer the last token (the lowest row) reads two video sinks: `v0[2,2]`, which stands before any sound and cannot hold it, and `v3[2,2]`,
# which the patches say does. Hover over a head to see it.

# %%
_, cache = model.run_with_cache(inputs, names_filter=["blocks.5.attn.hook_pattern"])
views.attention(cache, layer=5, sinks=sinks.tokens, heads=[1, 2, 3])

# %% [markdown]
# ## 6. A caption that listens to them
#
# Adaptive Sink-guided Decoding runs a second stream that reads cross-modal sinks more and unimodal ones less; `gamma` says how much it guides
# each step. This caption was right before, and stays right.

# %%
from avlens.decoding import ASD

request = model.prepare(clip, "describe the clip .")
plain, guided = model.generate(request, 12), model.generate(request, 12, decoding=ASD(alpha=0.5))
print(plain.text, guided.text, guided.records["gamma"], sep="\n")

# %% [markdown]
# Where next: [tracing](tracing.ipynb) over clips and with controls, [sinks](sinks_and_dominance.ipynb) and how their scores mislead,
# [flow](flow.ipynb) through layers, and [an analysis of your own](add_your_own_analysis.ipynb).
