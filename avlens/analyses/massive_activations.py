"""How large are the largest activations of the residual stream, in which dimension and at which token is each of them?

For each layer the k largest |h| over all positions and dimensions, and the median |h|, of h = resid_pre, which is not normalised.
The source calls an activation massive if it is above 100 and at least about 1,000 times the median; `ratio` tells the second.

Source: Sun et al. 2024, "Massive Activations in Large Language Models", arXiv:2402.17762, sections 2 and 3, figures 1 to 3.

Differs from the source: all positions of an audio-visual prompt are looked at, and each activation is told with its token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from avlens import display
from avlens.cache import AVCache
from avlens.errors import MissingActivationError, PositionError
from avlens.tokens import TokenMap


@dataclass(frozen=True, eq=False)
class MassiveActivations:
    """The largest activations of each layer.

    Attributes:
        size: |h|, largest first.
        dims: The dimension of each.
        positions: The position of each.
        median: The median |h| of the layer.
        layers: The block of each row, 0-based.
        token_map: The prompt.
        made_by: What made it.
    """

    size: Float[Tensor, "layer k"]
    dims: Int[Tensor, "layer k"]
    positions: Int[Tensor, "layer k"]
    median: Float[Tensor, " layer"]
    layers: tuple[int, ...]
    token_map: TokenMap
    made_by: Mapping[str, Any]

    @property
    def ratio(self) -> Float[Tensor, "layer k"]:
        """How many times the layer's median each is; infinite where that is 0."""
        return self.size / self.median[:, None]

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and rank, from 1."""
        n_layers, k = self.size.shape
        index = pd.MultiIndex.from_product([self.layers, range(1, k + 1)], names=["layer", "rank"])
        at = self.positions.flatten().tolist()
        columns = {
            "size": self.size.flatten().numpy(), "ratio": self.ratio.flatten().numpy(), "dim": self.dims.flatten().numpy(),
            "position": at, "label": [self.token_map.labels[position] for position in at],
            "median": self.median.repeat_interleave(k).numpy(),
        }  # fmt: skip
        return pd.DataFrame(columns, index=index if n_layers else index[:0])

    def __repr__(self) -> str:
        largest = f", largest {float(self.size.max()):.4g}" if self.size.numel() else ""
        return f"MassiveActivations({self.size.shape[1]} of each of {len(self.layers)} layers{largest})"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


def massive_activations(cache: AVCache, *, k: int = 3) -> MassiveActivations:
    """The `k` largest activations of every layer that the cache holds.

    Args:
        cache: Holds `resid_pre`, for one prompt.
        k: How many; more than there are activations means all.

    Raises:
        MissingActivationError: If the cache does not hold `resid_pre`.
        PositionError: If `k` is none.
        BatchError: If the cache holds several prompts.
    """
    if k < 1:
        raise PositionError(f"k={k} leaves nothing to look at. Pass 1 or more.")
    layers = cache.layers("resid_pre")
    if not layers:
        raise MissingActivationError(
            "this cache holds no resid_pre. Run again with run_with_cache(inputs, names_filter=['resid_pre'])."
        )
    tokens, sizes, places, medians = cache.tokens, [], [], []
    for layer in layers:
        stream = cache["resid_pre", layer][0, : len(tokens)].float().abs()  # pos d_model
        found = stream.flatten().topk(min(k, stream.numel()))
        sizes.append(found.values.cpu())
        places.append(found.indices.cpu())
        medians.append(stream.median().cpu())
    at, d_model = torch.stack(places), stream.shape[-1]
    made_by = {**cache.made_by, "k": k}
    return MassiveActivations(
        torch.stack(sizes), at % d_model, at // d_model, torch.stack(medians), tuple(layers), tokens, made_by
    )
