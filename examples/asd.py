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
# # Adaptive Sink-guided Decoding
#
# A model that describes a clip may write of what is not there. ASD runs a second, calibrated stream that attends more to cross-modal
# sinks and less to unimodal ones, and mixes it in: the more attention drifts to unimodal sinks, the more it guides. This notebook looks
# at what that does step by step, on the embedded model. Whether it helps is a question for captions of real models.

# %%
from avlens import HookedAVModel, views
from avlens.analyses.dynamics import attention_dynamics
from avlens.choices import decoding_choices
from avlens.datasets.synthetic import synthetic_clips
from avlens.decoding import ASD
from avlens.hubs import find_hubs

model = HookedAVModel.from_pretrained("avlens-tiny")
samples = synthetic_clips(12, seed=21, seconds=4.0, blank=0, silent=0, matching=0)
sample = samples[0]
inputs = model.prepare(sample.clip, sample.ask("describe").question)
inputs

# %% [markdown]
# ## Half of the sinks of each modality are cross-modal
#
# The split is by the median, so it is half by definition; which half is what was found.

# %%
found = find_hubs(model, inputs)
views.plot(found.hubs)

# %%
plain = model.generate(inputs, 16)
guided = model.generate(inputs, 16, decoding=ASD(alpha=0.5))
print("right:  ", sample.ask("describe").answer)
print("greedy: ", plain.text)
print("ASD:    ", guided.text)

# %% [markdown]
# ## The second stream counts little, as little attention drifts to unimodal sinks
#
# `gamma` is how much the calibrated stream counts at each step: the share of unimodal sinks in the attention that sinks get. Hollow is the
# model alone, after the same text; filled, with the second stream.

# %%
choices = decoding_choices(model, inputs, ASD(alpha=0.5), 16)
views.plot(choices)

# %% [markdown]
# ## A cross-modal sink is read more than other media
#
# Mean attention per token while the plain stream writes, mean over heads and layers:

# %%
tokens = inputs.tokens
sets = {
    "video": tokens.video,
    "audio": tokens.audio,
    "question": tokens.question,
    "cross-modal sinks": found.hubs.cross,
}
dynamics = attention_dynamics(
    model, inputs, sets, words=[sample.content.shape, sample.content.sound], max_new_tokens=16
)
views.plot(dynamics)

# %% [markdown]
# ## It breaks nothing here, and has nothing to mend
#
# The share of words of the right answer that are written, over twelve clips, for increasing strength. At `alpha=0` nothing is edited and ASD
# writes what greedy decoding writes.


# %%
def share_right(decoding):
    """How many of the right answer's words were written, over all clips."""
    right = written = 0
    for one in samples:
        asked = one.ask("describe")
        text = model.generate(model.prepare(one.clip, asked.question), 16, decoding=decoding).text.split()
        right += len(set(asked.answer.split()) & set(text))
        written += len(set(asked.answer.split()))
    return right / written


{"greedy": share_right(None)} | {f"ASD, alpha={alpha:g}": share_right(ASD(alpha=alpha)) for alpha in (0, 0.2, 0.5, 1.0)}

# %% [markdown]
# ## How this misleads
#
# The embedded model was trained to describe exactly these clips and has little to gain; its sinks are planted. That ASD changes what is written shows that it
# acts, not that it helps: count objects that are not in the clip (`avlens.metrics`), over many clips, with intervals, and against a
# method that needs no sinks (`VCD`, `PAI`).
