"""What does the unedited run leave for edited ones to build on: keys, values, and the stream where an edited run begins?

A `Splice` stands in for the keys and values of one pass: those of the unedited run, with the pass's own in their places.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avlens import names
from avlens.decoder import AttentionMode
from avlens.hooks import FwdHook, HookPoint
from avlens.inputs import AVInputs
from avlens.model import HookedAVModel
from avlens.tokens import TokenSet


@dataclass(frozen=True, eq=False)
class Unedited:
    """What one run left.

    Attributes:
        logits: At the positions that were asked for.
        kept: Rotated keys, values and additions of blocks, and the stream that enters them at some positions, by hook point.
        rows: Of each stream that was kept: which positions.
    """

    logits: Float[Tensor, "1 pos d_vocab"]
    kept: Mapping[str, Tensor]
    rows: Mapping[str, Int[Tensor, " row"]]

    def put_stream(self, layer: int, positions: Int[Tensor, " pos"], into: Float[Tensor, "edit pos d_model"]) -> None:
        """Write what enters a block at `positions` into a tensor of theirs, where it was kept."""
        name = entering(layer)
        if name in self.rows:
            hits = torch.isin(positions, self.rows[name])
            into[:, hits] = self.kept[name][:, torch.searchsorted(self.rows[name], positions[hits])].to(into)

    def added(
        self, layer: int, positions: Int[Tensor, " pos"], n: int
    ) -> tuple[Float[Tensor, "edit pos d_model"], ...]:
        """What is added to the stream that enters a block, of `n` edits, in the place where `Pass.additions` has it."""
        found = self.kept.get(f"blocks.{layer}.hook_deepstack")
        return () if found is None else (found[:, positions].expand(n, -1, -1),) * layer

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        return sum(tensor.nbytes for tensor in (self.logits, *self.kept.values()))


def run_unedited(
    model: HookedAVModel,
    inputs: AVInputs,
    streams: Mapping[int, Int[Tensor, " row"]],
    first: int,
    *,
    logits_at: TokenSet | None,
    attn: AttentionMode | None,
) -> Unedited:
    """Run a prompt and keep what edited runs build on.

    Args:
        model: A HookedAVModel.
        inputs: One prompt.
        streams: Of which layers to keep the stream that enters, at which positions, ascending.
        first: From which layer on to keep keys and values.
        logits_at: Positions to unembed.
        attn: Which attention runs.
    """
    rows = {entering(layer): positions for layer, positions in streams.items()}
    keep = _Keep({}, rows)
    own = ("attn.hook_rot_k", "attn.hook_v", "hook_deepstack")
    wanted = [f"blocks.{layer}.{name}" for layer in range(first, model.cfg.n_layers) for name in own]
    hooks: list[FwdHook] = [(name, keep) for name in [*rows, *wanted] if name in model.hook_dict]
    logits = model.run_with_hooks(inputs, hooks, logits_at=logits_at, attn=attn)
    return Unedited(logits, keep.kept, rows)


def entering(layer: int) -> str:
    """The hook point whose activation enters a block, before anything is added or edited there."""
    return "hook_embed" if layer == 0 else names.at("resid_post", layer - 1)


@dataclass(frozen=True, eq=False)
class _Keep:
    """Keeps an activation, or some rows of it."""

    kept: dict[str, Tensor]
    rows: Mapping[str, Int[Tensor, " row"]]
    reads_only: bool = True

    def __call__(self, x: Tensor, hook: HookPoint) -> None:
        rows = self.rows.get(str(hook.name))
        self.kept[str(hook.name)] = x if rows is None else x[:, rows.to(x.device)]


@dataclass(eq=False)
class Splice:
    """Keys and values of one pass: a block's own rows among the unedited run's.

    Attributes:
        unedited: The run that the others are from.
        gone: Positions that may not be read.
    """

    unedited: Unedited
    gone: Int[Tensor, " gone"]

    def extend(self, layer: int, k: Tensor, v: Tensor, index: Int[Tensor, " pos"]) -> tuple[Tensor, Tensor, Tensor]:
        """All keys, values and positions up to the last row's."""
        end = int(index[-1]) + 1
        if len(index) == end:
            return k, v, index
        k, v = (self._among(name, layer, own, index, end) for name, own in (("rot_k", k), ("v", v)))
        positions = torch.arange(end)
        if len(self.gone) == 0:
            return k, v, positions
        left = (~torch.isin(positions, self.gone)).nonzero()[:, 0]
        return k[:, :, left], v[:, :, left], left

    def _among(self, site: str, layer: int, own: Tensor, index: Int[Tensor, " pos"], end: int) -> Tensor:
        theirs = self.unedited.kept[names.at(site, layer)][:, :end].transpose(1, 2)
        whole = theirs.expand(len(own), -1, -1, -1).clone()
        whole[:, :, index] = own
        return whole
