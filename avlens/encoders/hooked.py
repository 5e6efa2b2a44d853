"""How can a stock encoder be read and edited block by block?

The stock tower stays as it is. A torch hook on each of its blocks passes the block's output through a HookPoint, so that
`vision.blocks.{i}.hook_resid_post` and `audio.blocks.{i}.hook_resid_post` are as writable as the decoder's. Where
someone listens at `attn.hook_pattern`, that block's attention is computed explicitly, by a function registered with
transformers; the other blocks keep the kernel they had. A module that has one way to attend is caught at its softmax.

Towers attend in groups that do not see each other: windows of a frame, whole frames, pieces of sound. A pattern is that of
one or more groups, `[group, head, query_pos, key_pos]`, and a hook is called for each call of the stock attention, so
that no pattern between groups, which would be all zeros, is ever made. Which rows of `hook_resid_post` a group's queries
and keys are is what `hooks.query_positions` and `hooks.key_positions` tell, in the tower's natural order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface

from avlens.hooks import HookPoint, at_places, through, watched


class EncoderAttention(nn.Module):
    """The hook point of a block's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_pattern = HookPoint()


class EncoderBlock(nn.Module):
    """The hook points of one block of a tower."""

    attn: EncoderAttention

    def __init__(self, *, attends: bool) -> None:
        super().__init__()
        self.hook_resid_post = HookPoint()
        if attends:
            self.attn = EncoderAttention()


class HookedEncoder(nn.Module):
    """A stock tower with hook points at its blocks.

    Attributes:
        tower: The stock module.
        blocks: One set of hook points per block.
        order: Where the tower shuffles its positions, the natural position of each row it holds; set before a call.
    """

    tower: Any
    order: Int[Tensor, " encoder_pos"] | None

    def __init__(
        self, tower: nn.Module, blocks: Sequence[nn.Module], attention: Sequence["nn.Module | InBlocks"] = ()
    ) -> None:
        super().__init__()
        self.tower = tower
        self.order = None
        self.blocks = nn.ModuleList(EncoderBlock(attends=bool(attention)) for _ in blocks)
        for points, block in zip(self.blocks, blocks, strict=True):
            block.register_forward_hook(_Through(self, points.hook_resid_post))
        for points, module in zip(self.blocks if attention else (), attention, strict=True):
            assert isinstance(points, EncoderBlock)
            if isinstance(module, InBlocks):
                watch_softmax(module, points.attn.hook_pattern)
            else:
                watch_pattern(self, module, points.attn.hook_pattern)

    @property
    def watched(self) -> bool:
        """Whether anything listens at a block."""
        return any(watched(module) for module in self.blocks.modules() if isinstance(module, HookPoint))

    def natural(self, rows: Int[Tensor, "group pos"]) -> Int[Tensor, "group pos"]:
        """The natural positions of rows that the tower holds."""
        return rows if self.order is None else self.order.cpu()[rows]


@dataclass(frozen=True, eq=False)
class _Through:
    """Passes what a block of a tower returns through its hook point."""

    encoder: HookedEncoder
    point: Any

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        if not watched(self.point):
            return None
        order = self.encoder.order
        inside = output[0] if isinstance(output, tuple) else output
        # A tower that works in chunks or frames holds one batch row for each; a hook sees them in a line.
        rows = inside.flatten(0, -2)
        if order is not None:
            rows = rows[torch.argsort(order)]
        line = torch.arange(len(rows))[None]
        with at_places(self.point, line, line):
            edited = self.point(rows[None])[0]
        if order is not None:
            edited = edited[order]
        edited = edited.view_as(inside)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited


def watch_pattern(encoder: HookedEncoder, module: nn.Module, point: HookPoint) -> None:
    """Let a stock attention module pass its pattern through a hook point, while anything listens there.

    The module must find its attention function by the name in its config, as transformers' modules do.
    """
    module.register_forward_pre_hook(_Begin(encoder, point))
    module.register_forward_hook(_end, always_call=True)


@dataclass(frozen=True, eq=False)
class _Begin:
    """Has a stock attention module compute its pattern explicitly, for one call."""

    encoder: HookedEncoder
    point: HookPoint

    def __call__(self, module: Any, _args: Any) -> None:
        if watched(self.point):
            module.avlens_watch = _Watch(self.point, self.encoder.natural, module.config._attn_implementation)
            module.config._attn_implementation = _EXPLICIT


def _end(module: Any, _args: Any, _output: Any) -> None:
    if (watch := module.__dict__.pop("avlens_watch", None)) is not None:
        module.config._attn_implementation = watch.usual


Natural = Callable[[Int[Tensor, "group pos"]], Int[Tensor, "group pos"]]


class _Watch:
    """One call of a stock attention module that someone watches: how many rows it has come to."""

    def __init__(self, point: HookPoint, natural: Natural, usual: str | None) -> None:
        self.point, self.natural, self.usual = point, natural, usual
        self.n_query, self.n_key = 0, 0

    def places(self, n_groups: int, n_query: int, n_key: int) -> tuple[Tensor, Tensor]:
        """The natural positions of the next groups' queries and keys."""
        queries = torch.arange(n_groups * n_query).view(n_groups, n_query) + self.n_query
        keys = torch.arange(n_groups * n_key).view(n_groups, n_key) + self.n_key
        self.n_query, self.n_key = self.n_query + queries.numel(), self.n_key + keys.numel()
        return (self.natural(queries), self.natural(keys)) if n_query == n_key else (queries, keys)


def _explicit(
    module: Any,
    q: Float[Tensor, "group head query_pos d_head"],
    k: Float[Tensor, "group key_value_head key_pos d_head"],
    v: Float[Tensor, "group key_value_head key_pos d_head"],
    mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "group query_pos head d_head"], None]:
    """Attention as transformers' eager functions compute it, by way of the watched point."""
    watch: _Watch = module.avlens_watch
    if (shared := q.shape[1] // k.shape[1]) > 1:
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    scores = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    pattern = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    with at_places(watch.point, *watch.places(q.shape[0], q.shape[2], k.shape[2])):
        pattern = through(watch.point, pattern)
    return (pattern @ v).transpose(1, 2).contiguous(), None


@dataclass(frozen=True, eq=False)
class InBlocks:
    """A stock attention module that looks up no function: each block of queries reads itself and some keys before it.

    Attributes:
        module: The module, whose softmax makes the pattern, [batch, head, block, query, key].
        past: How many keys before its block a query may read.
    """

    module: nn.Module
    past: int


def watch_softmax(attention: InBlocks, point: HookPoint) -> None:
    """Let what the softmax of a stock attention module returns pass through a hook point, while anything listens there.

    The groups are the blocks; places of rows and keys that are none are -1.
    """
    attention.module.register_forward_pre_hook(_BeginSoftmax(point, attention.past), with_kwargs=True)
    attention.module.register_forward_hook(_end_softmax, always_call=True)


@dataclass(frozen=True, eq=False)
class _BeginSoftmax:
    point: HookPoint
    past: int

    def __call__(self, module: Any, args: Any, kwargs: Any) -> None:
        if watched(self.point):
            rows = kwargs.get("hidden_states", args[0] if args else None).shape[1]
            module.avlens_watch = _Softmax(self.point, self.past, rows)
            module.avlens_watch.__enter__()


def _end_softmax(module: Any, _args: Any, _output: Any) -> None:
    if (watch := module.__dict__.pop("avlens_watch", None)) is not None:
        watch.__exit__(None, None, None)


class _Softmax(TorchFunctionMode):
    """While it is entered, softmaxes return what a hook point makes of them."""

    def __init__(self, point: HookPoint, past: int, rows: int) -> None:
        super().__init__()
        self.point, self.past, self.rows = point, past, rows

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is not torch.nn.functional.softmax:
            return out
        batch, _, n_blocks, n_query, n_key = out.shape
        first = torch.arange(batch * n_blocks)[:, None] * n_query
        places = [first + torch.arange(n_query), first - self.past + torch.arange(n_key)]
        places = [place.masked_fill((place < 0) | (place >= self.rows), -1) for place in places]
        with at_places(self.point, *places):
            pattern = through(self.point, out.transpose(1, 2).flatten(0, 1))
        return pattern.unflatten(0, (batch, n_blocks)).transpose(1, 2)


_EXPLICIT = "avlens_explicit"
AttentionInterface.register(_EXPLICIT, _explicit)
