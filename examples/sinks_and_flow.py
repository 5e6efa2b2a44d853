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
# # Do sinks carry what the answer needs?
#
# One paper says that cross-modal information sits in attention sinks, another that late attention to sinks carries nothing. Both can
# hold. This notebook asks a model of yours: how much attention sinks get, what cutting them from the question and from the last
# position costs, layer by layer, and what the same cuts cost at random tokens. It runs in a few seconds on `avlens-tiny`, whose
# sinks are planted: take it as the recipe, not as the answer.

# %%
from avlens import HookedAVModel, views
from avlens.analyses.attention_mass import attention_by_group
from avlens.analyses.flow import information_flow
from avlens.analyses.sinks import find_sink_dims
from avlens.datasets.synthetic import synthetic_clips
from avlens.groups import token_groups
from avlens.hubs import find_hubs

model = HookedAVModel.from_pretrained("avlens-tiny")  # or "Qwen/Qwen2.5-Omni-3B"
samples = [one for one in synthetic_clips(12, seed=5, blank=0, silent=0, matching=0) if not one.content.matches][:4]
prompts = [model.prepare(one.clip, "what do you hear ?", answer_prefix="a") for one in samples]
labels = [one.content.sound for one in samples]  # the next word

# %% [markdown]
# ## How much of attention goes to sinks
#
# Solid: how much of its attention each group of queries pays to each group of tokens. Dotted: the same with sinks left out.

# %%
dims = tuple(find_sink_dims(model))
hubs = [find_hubs(model, inputs, dims) for inputs in prompts]
attention = attention_by_group(model, prompts[0], sinks=hubs[0].sinks.tokens, max_new_tokens=3)
views.plot(attention)

# %% [markdown]
# ## Sinks alone can go, and all others alone; not both
#
# If late attention to media is a sink, cutting it there costs nothing, whatever its size: the curves at layer l cut from l to the last.
# Without its sinks, or without its other tokens, the clip still tells the answer. Without both nine tenths of it are lost from the first layers
# on, and a third in the last layer alone: what attention reads is used here, and held twice.


# %%
def groups(inputs):
    found, media = find_hubs(model, inputs, dims), inputs.tokens.media
    sinks = found.sinks.tokens & media
    random = inputs.tokens.random_like(found.hubs.cross, seed=0, within=media - sinks)
    split = {"cross": found.hubs.cross, "uni": found.hubs.uni, "random": random}
    return token_groups(inputs.tokens) | {"sinks": sinks, "no sinks": media - sinks} | split


options = {"groups": groups, "labels": labels}
edges = ["sinks -> text", "no sinks -> text", "media -> text"]
late = information_flow(model, prompts, edges, sweep="top_down", **options)
views.plot(late)

# %% [markdown]
# ## The joint test: one layer, one edge
#
# Hubs would show as cuts of cross-modal sinks that cost more than those of as many random tokens: at the question, if information
# is read there early, or at the last position.

# %%
edges = [f"{source} -> {target}" for source in ("cross", "uni", "random") for target in ("question", "last")]
joint = information_flow(model, prompts, edges, window=1, **options)
joint.to_frame().pivot(index="edge", columns="layer", values="change").reindex(edges).round(2)

# %%
views.plot(joint)
