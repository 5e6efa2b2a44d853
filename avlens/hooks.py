"""What is a hook, and what may it know about the run that calls it?

A hook is TransformerLens's: `fn(tensor, hook) -> tensor | None`, given as `(name or predicate, fn)`. While a
HookedAVModel runs, `hook.ctx["run"]` is a `Run`, which tells where the tensor's rows stand in their prompts;
a hook reads it through the functions below and then works in prefill, in decoding and in padded batches alike.
On any other TransformerLens model there is no `Run`, and position i is row i.

This is the only file that imports transformer_lens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import ActivationCache, patching
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.utilities import Slice

from avlens.errors import BatchError, HookError, PositionError
from avlens.names import HookName
from avlens.tokens import TokenSet

__all__ = ["ActivationCache", "HookPoint", "HookedRootModule", "Slice", "patching"]

HookFn = Callable[..., Tensor | None]
FwdHook = tuple[HookName, HookFn]


@runtime_checkable
class RowWise(Protocol):
    """An edit or a recording of attention that treats each query row by itself.

    Only where every hook at an activation declares this is attention computed in chunks of query rows; such a hook sees
    some query rows, and the keys up to the last of them.
    """

    row_wise: bool


@runtime_checkable
class Declared(Protocol):
    """An edit that says which positions it touches, so that a sweep computes only what it can change.

    What it leaves at a position depends on nothing but what was there, so that it acts alike on all rows of a prompt and
    on some of them.

    Attributes:
        touches: Positions that it may change (of scores and patterns: queries); None if it cannot say.
        overwrites: Whether what it leaves there does not even depend on what was there.
    """

    touches: TokenSet | None
    overwrites: bool


@runtime_checkable
class FromTable(Declared, Protocol):
    """An edit that overwrites with rows of a table, which has one for each position of the prompt.

    What it would write elsewhere is known then, so that edits by the same table share what a model makes of it.

    Attributes:
        table: The rows; None if only those of the positions it touches are known.
    """

    table: Tensor | None

    def __call__(self, x: Tensor, hook: HookPoint) -> Tensor | None:
        """What is left of the activation."""
        ...

    def at(self, tokens: TokenSet) -> "FromTable":
        """The same edit at other positions."""
        ...


Again = Callable[[Sequence[int], Sequence[FwdHook]], Float[Tensor, "row d_vocab"]]
"""Reads prompts and what was written after them a second time, from the start, with a method's own edits, which no
other hook sees. Given which prompt each row reads, and the edits; the logits of each row's next token come back."""


@runtime_checkable
class DecodingRun(Protocol):
    """A decoding method at work on one batch of prompts: its streams, their edits, and how their logits mix.

    The rows of a pass go by stream, then by prompt. Stream 0 is the original.

    Attributes:
        n_streams: How many streams there are.
        n_hooked: How many of them, from the first on, a user's hooks act on: one, unless all are parts of one run.
    """

    n_streams: int
    n_hooked: int

    def prompts(self, stream: int) -> Any:
        """What a stream reads: AVInputs of as many prompts as the original's, none longer than the longest of those."""
        ...

    def hooks(self) -> list[FwdHook]:
        """The method's edits, and what it reads; `on_rows` and `stream_rows` bind them to a stream."""
        ...

    def mix(self, logits: Float[Tensor, "stream batch d_vocab"], again: Again) -> Float[Tensor, "batch d_vocab"]:
        """The logits of the next token."""
        ...

    def records(self) -> dict[str, Any]:
        """What the method decided at each step; `streams`, if it is there, names them."""
        ...


@runtime_checkable
class DecodingMethod(Protocol):
    """A way to choose tokens from one or more streams of the same prompt."""

    def start(self, model: Any, inputs: Any) -> DecodingRun:
        """Look at the prompts and say how to decode them."""
        ...


@dataclass
class Run:
    """Where a forward pass stands. Tensor positions count padding; a prompt's own positions do not.

    Attributes:
        padding: Left padding of each row of the batch.
        layouts: The layout of each row's prompt (`TokenMap.layout`).
        query_index: Tensor position of each query row that is being computed.
        key_index: Tensor position of each key that those queries may read.
        keep: Set by an edit that discards tokens, with query_index: which of the block's input rows remain.
        media_row: While an encoder runs: the row of the batch whose sound, video or image it reads.
        discarded: Whether tokens of the prompt have left the sequence.
        again: Whether a decoding method reads the text a second time, which no hook bound to rows sees.
        values: While a block of the decoder attends: the values that its queries may read.
        rows: While a hook that is bound to some rows of the batch is called: these.
        notes: What hooks leave for later ones of the same pass.
    """

    padding: Int[Tensor, " batch"]
    layouts: tuple[str, ...]
    query_index: Int[Tensor, " query_pos"]
    key_index: Int[Tensor, " key_pos"]
    keep: Int[Tensor, " kept"] | None = None
    media_row: int | None = None
    again: bool = False
    discarded: bool = False
    values: Float[Tensor, "_batch _key_value_head _key d_head"] | None = None
    rows: tuple[int, ...] | None = None
    notes: dict[Any, Any] = field(default_factory=dict)


@contextmanager
def running(points: Sequence[HookPoint], run: Run) -> Iterator[None]:
    """Tell `points` where the run stands, while it lasts."""
    for point in points:
        point.ctx["run"] = run
    try:
        yield
    finally:
        for point in points:
            point.ctx.pop("run", None)


@contextmanager
def at_places(
    point: HookPoint, query: Int[Tensor, "group query_pos"], key: Int[Tensor, "group key_pos"]
) -> Iterator[None]:
    """Tell a hook point of an encoder which positions of the encoder it sees, while it is called."""
    point.ctx["places"] = query, key
    try:
        yield
    finally:
        point.ctx.pop("places", None)


def current_run(hook: HookPoint) -> Run | None:
    """The run that is calling `hook`, or None on a model that is not a HookedAVModel."""
    return hook.ctx.get("run")


def first_query_pos(hook: HookPoint) -> int:
    """Tensor position of the first row that the hook sees: 0 in prefill, the new token's in decoding."""
    run = current_run(hook)
    return 0 if run is None else int(run.query_index[0])


def query_positions(hook: HookPoint, x: Tensor, *, dim: int = 1) -> Int[Tensor, "batch query_pos"]:
    """Position of each row of `x` along `dim` in its own prompt; negative where the row is padding.

    In an encoder, whose positions are not the prompt's: the position in the encoder, of each group.
    """
    if "places" in hook.ctx:
        return hook.ctx["places"][0].to(x.device)
    run = current_run(hook)
    if run is None:
        return torch.arange(x.shape[dim], device=x.device)[None]
    return (run.query_index[None] - run.padding[:, None]).to(x.device)


def key_positions(hook: HookPoint, x: Tensor, *, dim: int = -1) -> Int[Tensor, "batch key_pos"]:
    """Position of each key of attention scores or a pattern in its own prompt; negative where it is padding.

    In an encoder: its position in the encoder, of each group.
    """
    if "places" in hook.ctx:
        return hook.ctx["places"][1].to(x.device)
    run = current_run(hook)
    if run is None:
        return torch.arange(x.shape[dim], device=x.device)[None]
    return (run.key_index[None] - run.padding[:, None]).to(x.device)


def rows_of(hook: HookPoint, tokens: TokenSet) -> Bool[Tensor, " batch"]:
    """Rows of the batch whose prompt has the layout that `tokens` speaks of (one True where no run tells).

    Raises:
        PositionError: If no row has it.
    """
    run = current_run(hook)
    if run is None:
        return torch.ones(1, dtype=torch.bool)
    rows = torch.tensor([layout == tokens.layout for layout in run.layouts])
    if not rows.any():
        raise PositionError(
            f"{tokens!r} belongs to a prompt of another layout than the one that runs at {hook.name}. "
            "Take the set from the inputs.tokens of this prompt."
        )
    return rows


def head_mask(heads: tuple[int, ...] | None, scores: Tensor) -> Bool[Tensor, "#head 1 1"]:
    """True at the chosen heads.

    Raises:
        PositionError: If there is no such head.
    """
    if heads is None:
        return torch.ones(1, 1, 1, dtype=torch.bool, device=scores.device)
    n_heads = scores.shape[1]
    if wrong := [head for head in heads if not 0 <= head < n_heads]:
        raise PositionError(f"there is no head {wrong[0]}: the layer has {n_heads} (0 to {n_heads - 1}).")
    mask = torch.zeros(n_heads, dtype=torch.bool, device=scores.device)
    mask[list(heads)] = True
    return mask[:, None, None]


@dataclass(frozen=True)
class OnRows:
    """A hook that sees and edits some rows of the batch only."""

    fn: HookFn
    rows: tuple[int, ...]

    @property
    def row_wise(self) -> bool:
        """Whether the hook inside works query row by query row."""
        return is_row_wise(self.fn)

    def __call__(self, x: Tensor, hook: HookPoint) -> Tensor | None:
        run = current_run(hook)
        if run is not None and (run.again or (run.media_row is not None and run.media_row not in self.rows)):
            return None
        if run is not None and run.media_row is not None:
            return self.fn(x, hook=hook)
        if self.rows[-1] >= x.shape[0]:
            raise BatchError(f"a hook is bound to row {self.rows[-1]}, but the batch at {hook.name} has {x.shape[0]}.")
        if run is not None:
            layouts = tuple(run.layouts[row] for row in self.rows)
            values = None if run.values is None else run.values[self._where]
            padding = run.padding[self._where]
            hook.ctx["run"] = replace(run, padding=padding, layouts=layouts, values=values, rows=self.rows)
        try:
            # A copy: what is kept of it must not keep the other rows, nor an edit in place reach them.
            edited = self.fn(x[self._where].clone(), hook=hook)
        finally:
            if run is not None:
                hook.ctx["run"] = run
        if edited is None:
            return None
        if edited.shape[1:] != x.shape[1:] or len(edited) != len(self.rows):
            raise BatchError(
                f"an edit at {hook.name} turned rows of shape {list(x.shape[1:])} into {list(edited.shape[1:])}, but it acts on "
                "some rows of the batch only. Discard from whole batches, without a decoding method."
            )
        out = x.clone()
        out[self._where] = edited
        return out

    @cached_property
    def _where(self) -> slice | list[int]:
        """The rows as an index, a slice where they are neighbours."""
        first, last = self.rows[0], self.rows[-1]
        return slice(first, last + 1) if last - first + 1 == len(self.rows) else list(self.rows)


def on_rows(hooks: Sequence[FwdHook], rows: Sequence[int]) -> list[FwdHook]:
    """`hooks`, applied to these rows of the batch only."""
    return [(name, OnRows(fn, tuple(sorted(rows)))) for name, fn in hooks]


def stream_rows(stream: int, n_prompts: int) -> range:
    """The rows of a stream of a decoding method that runs `n_prompts` prompts."""
    return range(stream * n_prompts, (stream + 1) * n_prompts)


def through(point: HookPoint, x: Tensor) -> Tensor:
    """An activation after its hooks.

    Raises:
        HookError: If a hook gave it another shape.
    """
    out: Tensor = point(x)
    if out.shape != x.shape:
        raise HookError(
            f"a hook at {point.name} returned shape {list(out.shape)}, but the activation has {list(x.shape)}. "
            "Return a tensor of the same shape, or None to leave it."
        )
    return out


def is_row_wise(fn: Any) -> bool:
    """Whether a hook declares that it treats each query row by itself."""
    return isinstance(fn, RowWise) and bool(fn.row_wise)


def watched(point: HookPoint) -> bool:
    """Whether anything listens at a hook point."""
    return bool(point._forward_hooks or point._backward_hooks or point._forward_pre_hooks)


def unseen(*points: HookPoint) -> bool:
    """Whether nothing listens there and no gradient is taken, so that what is between them may be overwritten."""
    return not torch.is_grad_enabled() and not any(map(watched, points))


def edited(point: HookPoint) -> bool:
    """Whether something listens at a hook point that may edit what it is given: anything but a recording of ours."""
    fns = [handle.user_hook for handle in point.fwd_hooks]
    ours = len(fns) == len(point._forward_hooks) and all(getattr(fn, "reads_only", False) for fn in fns)
    return watched(point) and not ours


def only_row_wise(point: HookPoint) -> bool:
    """Whether everything that listens at a hook point works query row by query row."""
    fns = [handle.user_hook for handle in point.fwd_hooks]
    plain = len(fns) == len(point._forward_hooks) and not point._backward_hooks and not point._forward_pre_hooks
    return plain and all(is_row_wise(fn) for fn in fns)
