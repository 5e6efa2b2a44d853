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
# # Add an analysis of your own
#
# An analysis is a function from a run to a frozen dataclass; a view is a function from that dataclass to a figure. Here is one of
# each, from the question to the test, in some forty lines. The question: **how evenly does each head spread its attention over a
# clip?** A head that reads one token has an entropy of 0 bits, one that reads n tokens alike of log2(n).

# %%
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from avlens import Clip, HookedAVModel, display, reduce, views
from avlens.datasets.synthetic import synthetic_clips

# %% [markdown]
# ## The formula, as a function of tensors
#
# It takes what it needs and no more, so that its value can be derived by hand.


# %%
def entropy_bits(pattern: Float[Tensor, "batch head query_pos key_pos"]) -> Float[Tensor, "batch head query_pos"]:
    """Entropy of each row, in bits; 0 log 0 is 0."""
    return -torch.special.xlogy(pattern, pattern).sum(-1) / torch.log(torch.tensor(2.0))


rows = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]])[None, None]
assert torch.allclose(entropy_bits(rows), torch.tensor([0.0, 2.0]))  # one token: 0 bits, four alike: 2 bits

# %% [markdown]
# ## The result
#
# Tensors with named axes, what made them, and a table. `_repr_html_` shows it in a notebook.


# %%
@dataclass(frozen=True, eq=False)
class AttentionEntropy:
    """Entropy of the last position's attention, in bits."""

    bits: Float[Tensor, "layer head"]
    layers: tuple[int, ...]
    made_by: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row per layer, one column per head."""
        return pd.DataFrame(self.bits.numpy(), index=pd.Index(self.layers, name="layer")).add_prefix("head ")

    def _repr_html_(self) -> str:
        return display.table("AttentionEntropy, bits", self.to_frame(), self.made_by)


def attention_entropy(model: HookedAVModel, inputs: Any) -> AttentionEntropy:
    """Run one prompt; the entropy is taken where the pattern is made, and no pattern is kept."""
    _, cache = model.run_with_cache(inputs, names_filter=[], reductions=[reduce("pattern", "entropy", entropy_bits)])
    layers = tuple(cache.layers("pattern.entropy"))
    return AttentionEntropy(
        torch.stack([cache["pattern.entropy", layer][0, :, -1] for layer in layers]), layers, cache.made_by
    )


model = HookedAVModel.from_pretrained("avlens-tiny")
clip = synthetic_clips(1, seed=4, seconds=4.0, blank=0, silent=0)[0].clip
inputs = model.prepare(clip, "describe the clip .")
result = attention_entropy(model, inputs)
result

# %% [markdown]
# ## The view
#
# `figure` gives the common style; `views.plot.register` makes `views.plot` know it.

# %%
from avlens.views.style import SEQUENTIAL, figure, origin


@views.plot.register
def plot_entropy(entropy: AttentionEntropy):
    """Bits by layer and head."""
    fig = figure("How evenly does the last token read?", note=origin(entropy.made_by), height=360)
    fig.add_heatmap(
        z=entropy.bits.tolist(),
        y=list(entropy.layers),
        colorscale=SEQUENTIAL,
        zmin=0,
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": "bits"}, "thickness": 12},
        hovertemplate="layer %{y}, head %{x}: %{z:.2f} bits<extra></extra>",
    )
    return fig.update_layout(
        xaxis={"title": "head", "dtick": 1}, yaxis={"title": "layer", "dtick": 1, "autorange": "reversed"}
    )


views.plot(result)

# %% [markdown]
# ## The laws
#
# What must hold whatever the model: entropy lies between 0 and log2 of how many tokens can be read, and a head that may read one
# token only has none. The second is a causal check: it edits the model and predicts what is measured.

# %%
from avlens import knockout

n, last = len(inputs.tokens), inputs.tokens.last
assert float(result.bits.min()) >= 0 and float(result.bits.max()) <= torch.tensor(float(n)).log2() + 1e-4

only_itself = knockout(last, inputs.tokens.all - last)
keep = [reduce("pattern", "entropy", entropy_bits)]
_, blind = model.run_with_cache(inputs, names_filter=[], reductions=keep, fwd_hooks=only_itself)
assert float(blind["pattern.entropy", 0][0, :, -1].abs().max()) < 1e-5

# %% [markdown]
# To make it part of avlens: the formula, the result and the function are one file in `avlens/analyses/`, with the question, the formula, its
# range and its source on top; the view is one file in `avlens/views/` and a line in its `__init__`; the assertions above are its test. A
# page of the documentation says how to read it and how it misleads.
#
# The same on a real model is one other name: `HookedAVModel.from_pretrained("Qwen/Qwen2.5-Omni-7B", dtype="bfloat16", device_map="auto")`.

# %%
silent = attention_entropy(model, model.prepare(Clip(frames=clip.frames, fps=clip.fps), "describe the clip ."))
print(f"with sound {float(result.bits.mean()):.2f} bits on average, without {float(silent.bits.mean()):.2f}")
