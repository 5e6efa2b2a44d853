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
# # How does what is heard and seen reach the answer?
#
# Through attention: some token reads another, in some layer. Cut an edge between two groups of tokens in a window of layers
# (nobody in the one may read the other) and watch the answer's probability. Where a cut hurts, the information passed there.

# %%
from avlens import HookedAVModel, views
from avlens.analyses.attention_mass import attention_by_group
from avlens.analyses.discarding import compare_discarding, leaving, leaving_at_random
from avlens.analyses.flow import Controls, information_flow
from avlens.datasets.synthetic import synthetic_clips

model = HookedAVModel.from_pretrained("avlens-tiny")
samples = synthetic_clips(8, seed=7, seconds=4.0, blank=0, silent=0, matching=0)
heard = [model.prepare(one.clip, one.ask("sound").question) for one in samples]
seen = [model.prepare(one.clip, one.ask("object").question) for one in samples]
heard[0]

# %% [markdown]
# ## A heard answer goes from sound to pictures, and the last token needs the question
#
# Two layers at a time, over eight clips, with bootstrap intervals. Random cuts of as many pairs (dotted) say what cutting as such does.

# %%
edges = ["audio -> last", "video -> last", "audio -> question", "question -> last", "video <-> audio"]
flow = information_flow(model, heard, edges, window=2, controls=Controls(2, "same_queries"))
views.plot(flow)

# %% [markdown]
# Cutting sound from the last token, or from the question, costs nothing. Cutting sound and pictures from each other costs 41 % of the
# probability around layer 3, and as many random pairs nothing: the sound goes through the pictures. In its first two layers the last
# token must read the question, to know what is asked: without it nothing is left. (The dotted line at -49 % is the control of
# `video -> last`: 36 random keys often hit the six of the question.)
#
# ## A seen answer does not need that way as much

# %%
other = information_flow(model, seen, edges, window=2)
views.plot(other)

# %%
for edge in edges:
    (layer, heard_change), (other_layer, seen_change) = flow.peak(edge), other.peak(edge)
    print(f"{edge:18} heard {heard_change:z6.1f} % at {layer}   seen {seen_change:z6.1f} % at {other_layer}")

# %% [markdown]
# ## Attention alone would have said something else
#
# Where each group looks, by layer. In layers 2 and 3 the last position looks at the sound above all, and cutting that costs nothing: attention
# that is paid is not information that is used.

# %%
mass = attention_by_group(model, heard[0])
views.plot(mass)

# %% [markdown]
# ## From layer 4 on all sound and pictures can go
#
# Once a modality's tokens have been read they can leave the sequence, which saves their cost in every later layer. Leaving at layer 1 or 2
# keeps a quarter of the answers, at 3 seven of eight, at 4 all of them. As many random tokens, which leave some of each kind behind, can go
# at any layer: what the clip says is held more than once.

# %%
n_layers = model.cfg.n_layers
plans = {f"audio and video leave at {layer}": leaving({"audio": layer, "video": layer}) for layer in range(1, n_layers)}
plans |= {
    f"as many at random, at {layer}": leaving_at_random({"audio": layer, "video": layer})
    for layer in range(1, n_layers)
}
kept = compare_discarding(model, heard, plans)
views.plot(kept)

# %% [markdown]
# ## How this misleads
#
# A cut says what the answer needs of one edge while all others remain: where information takes several routes, cutting one of them
# changes nothing. Cut them together (`"audio -> text"`), or leave one alone (`sweep="inverse"`). A window that is too narrow lets
# information pass before and after it; the width belongs to the result and stands below the axis.
