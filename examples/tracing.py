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
# # Which tokens carry the answer?
#
# A model hears a clip and answers. Silence the clip and it answers something else. Causal tracing asks which tokens of the
# clean run, put into the silenced one, bring the answer back: all of them do; which ones suffice? Everything runs on the
# embedded model, whose clips, questions and answers are known: sounds that do not fit what is seen, so that a model which does not listen is wrong.

# %%
from avlens import HookedAVModel, views
from avlens.analyses.controls import matched_draws
from avlens.analyses.tracing import causal_trace, trace_layers
from avlens.datasets.synthetic import synthetic_clips
from avlens.hubs import find_hubs
from avlens.tables import trace_table

model = HookedAVModel.from_pretrained("avlens-tiny")
samples = synthetic_clips(12, seed=7, seconds=4.0, blank=0, silent=0, matching=0)
sample, question = samples[0], samples[0].ask("sound").question
print(sample.content)
clean = model.prepare(sample.clip, question)
corrupt = model.prepare(sample.clip.silenced(), question)
clean

# %% [markdown]
# ## Fifteen sinks restore as much as all the sound
#
# Sets are made by saying what is meant. A set of random tokens, as many and of the same modality, says what the count alone does. The
# indirect effect of a set is how much of the answer's probability it restores; the dotted lines are the total effects, what a
# perfect patch would reach.


# %%
def sets_of(inputs):
    """What may carry the answer, and what should not."""
    tokens, hubs = inputs.tokens, find_hubs(model, inputs).hubs
    halves = {
        "sound, first half": tokens.audio & tokens.seconds(0, 2),
        "sound, second half": tokens.audio & tokens.seconds(2, 4),
    }
    sinks = hubs.cross | hubs.uni
    sets = {"all sound": tokens.audio, **halves, "pictures": tokens.video, "question": tokens.question, "sinks": sinks}
    control = matched_draws(halves["sound, first half"], n=1, within=tokens.audio)[0]
    return sets | {"random sound": control}


trace = causal_trace(model, clean, corrupt, sets_of(clean))
views.plot(trace)

# %% [markdown]
# The sinks suffice, and so does the first half of the sound, while the second half does next to nothing. But as many random tokens of sound
# restore a third: half of the sound is a lot. Patching the pictures restores what they have read of the sound, for the pictures
# themselves were never silenced.

# %%
trace

# %% [markdown]
# ## The sound is handed on early
#
# All the sound's tokens, one layer at a time. They carry the answer as they enter layer 0; layer by layer others read it, and from layer 3 on
# patching them is too late.

# %%
by_layer = trace_layers(model, clean, corrupt, clean.tokens.audio)
views.plot(by_layer)

# %% [markdown]
# Who has it then? Not the last position, which writes the answer: it carries nothing as it enters any layer, the last included. Whatever it
# reads, it reads in the last layer.

# %%
read = trace_layers(model, clean, corrupt, clean.tokens.last)
views.plot(read)

# %% [markdown]
# ## The pictures hold it in between
#
# Every layer and group by itself: the explorer runs each cell once, and keeps it. The last two steps of video carry the answer from
# layer 3 on.

# %%
explorer = views.PatchExplorer(model, clean, corrupt, clip=sample.clip, group="overview", frames_per_row=2)
grid = explorer.sweep()
views.plot(grid)

# %% [markdown]
# ## Over clips it holds for sinks, and less for halves
#
# One clip shows nothing but that clip. Over twelve, with bootstrap intervals: sinks restore the total effect in all of them. That the
# first half beats the second holds too, but as many random tokens are hardly worse than the first half: what counted was to have some of
# the first seconds, not the first seconds themselves.

# %%
traces = []
for one in samples:
    pair = [model.prepare(clip, one.ask("sound").question) for clip in (one.clip, one.clip.silenced())]
    traces.append(causal_trace(model, *pair, sets_of(pair[0])))
table = trace_table(traces, n_draws=2000)
views.plot(table)

# %% [markdown]
# ## How this misleads
#
# A patch that restores an answer shows that these tokens suffice *in this run*; that they are needed, a knockout or the other
# direction shows (`direction="noise"`, below: silenced activations patched into the clean run destroy the answer). Probability of an answer
# that both runs give, or whose total effect is near zero, says nothing: look at `trace.te_clean` first. Large sets restore more by
# being large: compare with random sets of the same size.

# %%
needed = causal_trace(model, clean, corrupt, sets_of(clean), direction="noise")
views.plot(needed)
