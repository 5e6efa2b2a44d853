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
# # Sinks, and who reads them
#
# A few tokens of almost every language model draw attention that has little to do with what they say: attention sinks. They
# can be told by a massive activation in a few dimensions of the residual stream. In audio-visual models some of them are read
# mostly by video, some mostly by audio, and some by both: cross-modal hubs. In `avlens-tiny` sinks are planted, so that it is known what
# should be found; in `avlens-tiny-organic`, the same model without the plant, nothing should be.

# %%
from avlens import HookedAVModel, views
from avlens.analyses.dominance import head_dominance, modality_dominance, split_sinks
from avlens.analyses.sinks import find_sink_dims, find_sinks
from avlens.datasets.synthetic import synthetic_clips

model = HookedAVModel.from_pretrained("avlens-tiny")
sample = synthetic_clips(1, seed=4, seconds=4.0, size=168, blank=0, silent=0, matching=0)[0]
sample.clip

# %% [markdown]
# ## One dimension stands out
#
# Sink dimensions are looked for where no clip is: in the first token of plain texts, which is a sink in every model that has any. Here it is
# one, which stands out in every layer but the first two and the last, which are left out.

# %%
dims = find_sink_dims(model)
views.plot(dims)

# %% [markdown]
# ## Nineteen tokens carry it, from layer 1 to the end
#
# A token is a sink in a layer where that dimension holds more than 17.4 % of its energy. They are sinks from the layer on that plants them,
# none later.

# %%
inputs = model.prepare(sample.clip, "describe the clip .")
_, cache = model.run_with_cache(inputs, names_filter=["resid_pre", "pattern"])
sinks = find_sinks(cache, dims)
views.plot(sinks)

# %% [markdown]
# Where and when they are: the squares. The colour is the share of a token's energy that is in the sink dimensions.

# %%
media_sinks = sinks.tokens & inputs.tokens.media
views.timeline(
    sample.clip, inputs.tokens, value=sinks.energy.amax(0), name="energy in the sink dimension", sinks=media_sinks
)

# %% [markdown]
# ## Half of them are read by the other modality
#
# The modality dominance score of a sink is +1 where only later video reads it, -1 where only later audio does, and near 0 where both
# do. None is near 0 here: video sinks come in two kinds, read by video and read by audio, and so do audio sinks.

# %%
scores = modality_dominance(cache, media_sinks)
hubs = split_sinks(scores)
views.plot(scores)

# %%
hubs

# %% [markdown]
# The same by head: which head reads whose sinks for whom.

# %%
views.plot(head_dominance(cache, media_sinks))

# %% [markdown]
# Attention between the sinks and everything else, pooled: the strong columns are what is read.

# %%
views.attention(cache, layer=2, group="sinks", sinks=media_sinks)

# %% [markdown]
# ## The control: no plant, no sinks
#
# A detector that finds sinks everywhere finds nothing. In the model without a plant:

# %%
organic = HookedAVModel.from_pretrained("avlens-tiny-organic")
found = find_sink_dims(organic)
_, bare = organic.run_with_cache(organic.prepare(sample.clip, "describe the clip ."), names_filter=["resid_pre"])
print(len(found), "dimensions stand out;", len(find_sinks(bare, dims).tokens), "sinks by the planted dimension")

# %% [markdown]
# ## How this misleads
#
# The later a sink stands, the fewer tokens are left to read it, so its score says where it stands as much as what it does:
# `scores.position_confound()` tells by how much. A sink that one modality cannot read any more scores +1 or -1 for that reason alone;
# it is marked as one-sided and drawn hatched. Patterns say what is read, not what follows from it: for that, patch.

# %%
scores.to_frame()[["label", "modality", "mds", "one_sided"]]
