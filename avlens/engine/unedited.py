"""What does the unedited run leave for edited ones to build on: keys, values, and the stream where an edited run begins?

A `Splice` stands in for the keys and values of one pass: those of the unedited run, with the pass's own in their places.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avlens import names
from avlens.decoder import AttentionMode, KeyValues
from avlens.engine.brought import Brought
from avlens.engine.changes import Step
from avlens.hooks import FwdHook, HookPoint
from avlens.inputs import AVInputs
from avlens.interventions.discard import Discard
from avlens.model import HookedAVModel
from avlens.tokens import TokenSet

_READ = ("rot_k", "v")


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

    def read(self, layers: Iterable[int], into: KeyValues) -> None:
        """Hand over its keys and values of some layers."""
        for layer in layers:
            k, v = (self.kept[names.at(site, layer)].transpose(1, 2) for site in _READ)
            into.extend(layer, k, v, torch.arange(k.shape[2]))

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        return sum(tensor.nbytes for tensor in (self.logits, *self.kept.values()))


def run_unedited(
    model: HookedAVModel,
    inputs: AVInputs,
    streams: Mapping[int, Int[Tensor, " row"]],
    first: int,
    reach: int,
    *,
    logits_at: TokenSet,
    attn: AttentionMode | None,
    also: Sequence[FwdHook] = (),
) -> Unedited:
    """Run a prompt and keep what edited runs build on.

    Args:
        model: A HookedAVModel.
        inputs: One prompt.
        streams: Of which layers to keep the stream that enters, at which positions, ascending.
        first: From which layer on to keep keys and values.
        reach: How many positions to run, from the first on; fewer than all leave no logits that are asked for.
        logits_at: Positions to unembed.
        attn: Which attention runs.
        also: Hooks that only look on.
    """
    rows = {entering(layer): positions for layer, positions in streams.items()}
    keep = _Keep({}, rows)
    own = ("attn.hook_rot_k", "attn.hook_v", "hook_deepstack")
    wanted = [f"blocks.{layer}.{name}" for layer in range(first, model.cfg.n_layers) for name in own]
    hooks: list[FwdHook] = [(name, keep) for name in [*rows, *wanted] if name in model.hook_dict]
    if reach < len(tokens := inputs.prompt.tokens):
        hooks.append((names.at("resid_pre", 0), Discard(tokens.at(range(reach, len(tokens))))))
        logits_at = tokens.at([reach - 1])
    logits = model.run_with_hooks(inputs, [*hooks, *also], logits_at=logits_at, attn=attn)
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

    def __repr__(self) -> str:
        # A hook's name is its repr, which must not print what is kept.
        return f"_Keep({len(self.kept)} activations)"


@dataclass(frozen=True, eq=False)
class Splice:
    """Keys and values of one pass: a block's own rows, and those that edits bring, among the unedited run's.

    Attributes:
        unedited: The run that the others are from.
        brought: What edits bring.
        edits: Which edit each row of the batch is.
        step: What is computed.
        pasts: Where each edit's keys and values are kept, if they are.
    """

    unedited: Unedited
    brought: Brought
    edits: Sequence[int]
    step: Step
    pasts: Sequence[KeyValues] = ()

    def extend(self, layer: int, k: Tensor, v: Tensor, index: Int[Tensor, " pos"]) -> tuple[Tensor, Tensor, Tensor]:
        """All keys, values and positions up to the last row's; of the whole prompt where they are kept."""
        k, v, index = self._whole(layer, k, v, index)
        for row, past in enumerate(self.pasts):
            past.extend(layer, k[row : row + 1], v[row : row + 1], index)
        return k, v, index

    def _whole(self, layer: int, k: Tensor, v: Tensor, index: Int[Tensor, " pos"]) -> tuple[Tensor, Tensor, Tensor]:
        end = self.unedited.kept[names.at("v", layer)].shape[1] if self.pasts else int(index[-1]) + 1
        if len(index) == end:
            return k, v, index
        at = index.to(k.device)
        whole = [self._unedited(site, layer, len(k), end) for site in _READ]
        if len(self.step.brought):
            for row, edit in enumerate(self.edits):
                self.brought.put(layer, edit, self.step.brought, whole[0][row], whole[1][row])
        for into, rows in zip(whole, (k, v), strict=True):
            into.index_copy_(2, at, rows)
        positions = torch.arange(end)
        if len(self.step.gone):
            positions = (~torch.isin(positions, self.step.gone)).nonzero()[:, 0]
            whole = [one[:, :, positions.to(k.device)] for one in whole]
        return whole[0], whole[1], positions

    def _unedited(self, site: str, layer: int, n: int, end: int) -> Float[Tensor, "edit key_value_head pos d_head"]:
        """Heads come first, as attention reads them, so that no product copies them."""
        theirs = self.unedited.kept[names.at(site, layer)][:, :end].transpose(1, 2)
        whole = theirs.new_empty(n, theirs.shape[1], end, theirs.shape[3])
        whole[:, :, : theirs.shape[2]] = theirs
        return whole
