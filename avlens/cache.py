"""What did a run leave behind?

An `AVCache` is TransformerLens's ActivationCache that knows its prompt. It holds activations under their full names
and, under `name.label`, what a `Reduction` made of an activation while the model ran, so that the activation itself
was never kept:

    model.run_with_cache(inputs, names_filter=["resid_pre"], reductions=[attention_received(tokens.audio, "by_audio")])
    cache["resid_pre", 3]      cache["pattern.by_audio", 3]
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from avlens import display, names
from avlens.errors import BatchError, HookError, MissingActivationError, PositionError
from avlens.hooks import (
    ActivationCache,
    FwdHook,
    HookPoint,
    Slice,
    current_run,
    key_positions,
    query_positions,
    rows_of,
)
from avlens.tokens import TokenMap, TokenSet


class AVCache(ActivationCache):  # type: ignore[misc]
    """Activations of one run, by TransformerLens's names.

    Attributes:
        token_maps: The TokenMap of each row.
        made_by: What made it: model, prompt, options, versions.
        shortened: Activations of a run in which tokens had been discarded: their rows are not the prompt's positions.
    """

    def __init__(
        self,
        cache_dict: dict[str, Tensor],
        model: Any,
        token_maps: Sequence[TokenMap] = (),
        made_by: Mapping[str, Any] | None = None,
        calls: Mapping[str, tuple[Tensor, ...]] | None = None,
        shortened: Iterable[str] = (),
    ) -> None:
        super().__init__(cache_dict, model)
        self.token_maps, self.made_by = tuple(token_maps), dict(made_by or {})
        self._calls = dict(calls or {})
        self.shortened = frozenset(shortened)

    @property
    def tokens(self) -> TokenMap:
        """The TokenMap of the only prompt.

        Raises:
            BatchError: If the cache holds several prompts, or a run on bare token ids.
        """
        if len(self.token_maps) != 1:
            raise BatchError(f"this cache holds {len(self.token_maps)} prompts. Choose one, such as cache.row(0).")
        return self.token_maps[0]

    def __getitem__(self, key: str | tuple[Any, ...]) -> Tensor:
        """An activation by full name, or by short name and layer (negative counts from the end).

        Raises:
            MissingActivationError: If the cache does not hold it.
        """
        full = self._full_name(key)
        if full in self.cache_dict:
            return self.cache_dict[full]
        try:
            found: Tensor = super().__getitem__(key)
        except (KeyError, TypeError, IndexError):
            raise MissingActivationError(self._missing(full)) from None
        return found

    def layers(self, short: str) -> list[int]:
        """The layers of which the cache holds an activation, by its short name (or `short.label` of a reduction)."""
        found = {names.layer_of(name) for name in self.cache_dict if names.short_name(name) == short}
        return sorted(layer for layer in found if layer is not None)

    def calls(self, name: str) -> tuple[Tensor, ...]:
        """What a hook point saw at each call: one tensor per sound or video for encoders, per step in decoding."""
        return self._calls.get(name) or (self[name],)

    def require_batch_axis(self) -> None:
        """Refuse a cache whose batch axis was dropped, as TransformerLens's `remove_batch_dim` does.

        Raises:
            BatchError: If it was.
        """
        if not self.has_batch_dim:
            raise BatchError("this cache has lost its batch axis. Run again without remove_batch_dim.")

    def require_positions(self, names_: Iterable[str]) -> None:
        """Refuse activations whose rows are not the prompt's positions.

        Raises:
            BatchError: If the batch axis was dropped.
            PositionError: If tokens had been discarded before one of them.
        """
        self.require_batch_axis()
        if short := [name for name in names_ if name in self.shortened]:
            raise PositionError(
                f"{short[0]} was recorded after tokens had been discarded, so that its rows are not the prompt's positions. "
                "Record a run without discard, or layers before it."
            )

    # TransformerLens's decompositions, with what its models do not have.

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: str = "all",
        apply_ln: bool = False,
        pos_slice: Any = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Any:
        """TransformerLens's; beside the embeddings stands what encoders add to the stream before later blocks ("1_deepstack").

        Raises:
            HookError: If the parts do not add up to the stream, as in blocks that scale it.
            MissingActivationError: If the cache lacks a part.
        """
        self._require_parts("decompose_resid")
        parts, labels = super().decompose_resid(layer, mlp_input, mode, apply_ln, pos_slice, incl_embeds, True)
        if incl_embeds:
            parts, labels = self._with_later(parts, labels, layer, mlp_input, apply_ln, pos_slice, None)
        return (parts, labels) if return_labels else parts

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Any = None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
    ) -> Any:
        """TransformerLens's, by heads and neurons; errors and what is beside the embeddings as in `decompose_resid`."""
        self._require_parts("get_full_resid_decomposition")
        parts, labels = super().get_full_resid_decomposition(
            layer, mlp_input, expand_neurons, apply_ln, pos_slice, True, project_output_onto
        )
        parts, labels = self._with_later(parts, labels, layer, mlp_input, apply_ln, pos_slice, project_output_onto)
        return (parts, labels) if return_labels else parts

    def _require_parts(self, what: str) -> None:
        if (refuse := getattr(self.model, "require_plain_blocks", None)) is not None:
            refuse(what)

    def _with_later(
        self,
        parts: Tensor,
        labels: list[str],
        layer: int | None,
        mlp_input: bool,
        apply_ln: bool,
        pos_slice: Any,
        onto: Tensor | None,
    ) -> tuple[Tensor, list[str]]:
        """The parts of the stream that enters a layer, with those that encoders add after block 0."""
        seen = any(len(tokens.video) or len(tokens.image) for tokens in self.token_maps)
        entered = self.model.cfg.n_layers if layer in (None, -1) else layer
        later = [at for at in range(1, entered + 1) if seen and at <= getattr(self.model.cfg, "n_deepstack", 0)]
        if not later:
            return parts, labels
        kept = pos_slice if isinstance(pos_slice, Slice) else Slice(pos_slice)
        added = torch.stack([kept.apply(self["deepstack", at], dim=-2) for at in later])
        if apply_ln:
            added = self.apply_ln_to_stack(added, layer, mlp_input=mlp_input, pos_slice=kept)
        if onto is not None:
            added = added @ onto
        return torch.cat([parts, added]), [*labels, *(f"{at}_deepstack" for at in later)]

    def row(self, row: int) -> "AVCache":
        """One prompt of a batch, without its padding, in memory of its own.

        Raises:
            BatchError: If there is no such row, or the batch axis was dropped.
        """
        self.require_batch_axis()
        if not 0 <= row < len(self.token_maps):
            raise BatchError(f"there is no row {row}: this cache holds {len(self.token_maps)} prompts.")
        longest = max(len(tokens) for tokens in self.token_maps)
        pad = longest - len(self.token_maps[row])
        kept = {}
        for name, tensor in self.cache_dict.items():
            if tensor.shape[0] == len(self.token_maps) and not names.of_encoder(name):
                kept[name] = _unpadded(name, tensor[row : row + 1], pad).clone()
        return AVCache(kept, self.model, [self.token_maps[row]], self.made_by, shortened=self.shortened)

    def at(self, tokens: TokenSet) -> dict[str, Tensor]:
        """Each activation with a position axis, at these positions of the only prompt, in memory of its own.

        An encoder's activations, whose positions are not the prompt's, are left out.

        Raises:
            BatchError: If there are several prompts, or the batch axis was dropped.
            PositionError: If the set is of another layout, or tokens had been discarded.
        """
        self.require_positions(self.cache_dict)
        self.tokens.check_own(tokens)
        length = len(self.tokens)
        found = {}
        for name, tensor in self.cache_dict.items():
            axis = _position_axis(name)
            inside = name.split(".")[0] in ("blocks", "ln_final", "hook_embed", "hook_token_embed")
            if inside and tensor.ndim > axis and tensor.shape[axis] >= length:
                found[name] = tensor.index_select(axis, tokens.positions.to(tensor.device))
        return found

    def save(self, path: str | Path) -> None:
        """Write activations, TokenMaps and what made them as one safetensors file.

        Raises:
            BatchError: If the batch axis was dropped.
        """
        self.require_batch_axis()
        tensors = {name: tensor.contiguous() for name, tensor in self.cache_dict.items()}
        strings = []
        for row, tokens in enumerate(self.token_maps):
            strings.append({"strings": tokens.strings, "prompt": tokens.prompt})
            tensors |= {f"tokens.{row}.{name}": getattr(tokens, name).clone() for name in _TOKEN_COLUMNS}
        about = {"token_maps": strings, "made_by": self.made_by, "shortened": sorted(self.shortened)}
        metadata = {"avlens": json.dumps(about, default=str)}
        # Tensors that share memory are written once each.
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path, model: Any = None) -> "AVCache":
        """Read what `save` wrote; with the model, TransformerLens's methods that need weights work too."""
        try:
            with safe_open(path, framework="pt") as file:
                meta = json.loads((file.metadata() or {})["avlens"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise HookError(f"{path} is no cache that avlens saved ({error}). Load what AVCache.save wrote.") from error
        maps = []
        for row, written in enumerate(meta["token_maps"]):
            columns = {name: tensors.pop(f"tokens.{row}.{name}") for name in _TOKEN_COLUMNS}
            maps.append(TokenMap(strings=tuple(written["strings"]), prompt=written["prompt"], **columns))
        return cls(tensors, model, maps, meta["made_by"], shortened=meta["shortened"])

    @property
    def nbytes(self) -> int:
        """How much memory the activations take."""
        return sum(tensor.nbytes for tensor in self.cache_dict.values())

    def __repr__(self) -> str:
        shorts = dict.fromkeys(names.short_name(name) for name in self.cache_dict)
        prompts = self.token_maps[0] if len(self.token_maps) == 1 else f"{len(self.token_maps)} prompts"
        return f"AVCache({len(self)} activations, {self.nbytes / 2**20:.1f} MiB: {', '.join(shorts)}; {prompts})"

    def to_frame(self) -> pd.DataFrame:
        """One row per kind of activation: of how many layers it is held, its shape, number type and size in MiB."""
        rows: dict[str, dict[str, Any]] = {}
        for name, tensor in self.cache_dict.items():
            row = rows.setdefault(names.short_name(name), {"held": 0, "shape": "", "dtype": "", "MiB": 0.0})
            size = tensor.nelement() * tensor.element_size() / 2**20
            row |= {
                "held": row["held"] + 1,
                "shape": str(list(tensor.shape)),
                "dtype": str(tensor.dtype)[6:],
                "MiB": row["MiB"] + size,
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("activation")

    def _repr_html_(self) -> str:
        return display.table(f"AVCache, {self.nbytes / 2**20:.1f} MiB", self.to_frame(), self.made_by)

    def _full_name(self, key: str | tuple[Any, ...]) -> str:
        if isinstance(key, str):
            return key
        short, layer = key[0], key[1] if len(key) > 1 else None
        stem, _, label = str(short).rpartition(".")
        if layer is None or (short not in names.SITES and stem not in names.SITES):
            return str(key)
        layer = layer if layer >= 0 or self.model is None else self.model.cfg.n_layers + layer
        return names.at(short, layer) if short in names.SITES else f"{names.at(stem, layer)}.{label}"

    def _missing(self, full: str) -> str:
        held = list(self.cache_dict)
        such = f"which holds {len(held)} activations such as {held[0]!r}" if held else "which is empty"
        known = held if self.model is None else list(self.model.hook_dict)
        if full in known:
            remedy = f"Run again with run_with_cache(inputs, names_filter=[..., {full!r}])."
        else:
            remedy = names.nearest(full, known)
        return f"{full!r} is not in this cache, {such}. {remedy}"


_TOKEN_COLUMNS = tuple(field.name for field in fields(TokenMap) if field.name not in ("strings", "prompt"))


@dataclass(frozen=True, eq=False)
class Reduction:
    """What to keep of an activation instead of the activation, computed where it is made.

    Attributes:
        activation: Its short name.
        label: Under which the result is kept: `cache["{activation}.{label}", layer]`.
        fn: From the activation (or some query rows of it) and the hook point to the result, batch first.
        combine: How results of chunks of query rows, or of decoding steps, become one: `cat` along positions, or `sum`.
        row_wise: Whether attention may be handed over in chunks of query rows.
    """

    activation: str
    label: str
    fn: Callable[[Tensor, HookPoint], Tensor]
    combine: Literal["cat", "sum"] = "cat"
    row_wise: bool = True


def reduce(activation: str, label: str, fn: Callable[[Tensor], Tensor], *, row_wise: bool = False) -> Reduction:
    """Keep `fn` of an activation, such as its norm: one result per position.

    Batch stays first, and positions where the activation has them: second, of scores and pattern (queries) third.

    Args:
        activation: Its short name.
        label: Under which the result is kept.
        fn: The function.
        row_wise: Of scores and pattern: whether `fn` treats each query row by itself and keeps the rows third, so that it
            may be given some rows at a time; else it is given all of them at once, which takes their memory.
    """
    return Reduction(activation, label, lambda x, hook: fn(x), row_wise=row_wise)  # noqa: ARG005


def attention_received(queries: TokenSet, label: str) -> Reduction:
    """Keep, for each head and key, the sum of the attention that later `queries` pay to it: [batch, head, key_pos].

    Strictly later: what a token pays to itself does not count. Rows of other layouts get 0.
    """
    # One entry per position of the prompt, one for those after it, and, where -1 points, one for those before it.
    holds = torch.cat([queries.mask, torch.tensor([queries.open_ended, False])]).float()

    def received(
        pattern: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint
    ) -> Float[Tensor, "batch head key_pos"]:
        query, key = query_positions(hook, pattern, dim=2), key_positions(hook, pattern)
        asked = holds.to(query.device)[query.clamp(-1, len(queries.tokens))]
        asked = (asked * rows_of(hook, queries).to(query.device)[:, None])[:, None, None]
        # Only keys from the first query row on can be a row's own or later ones.
        clear = int((key[0] < query[0, 0]).sum())
        later = query[0, :, None] > key[0, None, clear:]
        before = asked @ pattern[..., :clear].float()
        return torch.cat([before, asked @ (pattern[..., clear:].float() * later)], dim=-1)[:, :, 0]

    return Reduction("pattern", label, received, "sum")


class Recorder:
    """Hooks that keep activations and reductions of a run, then a cache of them."""

    def __init__(
        self, full_names: Sequence[str], reductions: Sequence[Reduction], device: Any, *, detach: bool
    ) -> None:
        self.device, self.detach = device, detach
        self.parts: dict[str, list[Tensor]] = {}
        self.full_names, self.reductions = list(full_names), list(reductions)
        self.shortened: set[str] = set()
        labels = [(one.activation, one.label) for one in reductions]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise HookError(
                f"two reductions of {twice[0][0]} are called {twice[0][1]!r}. Give each a label of its own."
            )

    def hooks(self) -> list[FwdHook]:
        """What to run the model with."""
        keep: list[FwdHook] = [(name, _Keep(self, name)) for name in self.full_names]
        return keep + [(names.EveryLayer(r.activation), _Reduce(self, r)) for r in self.reductions]

    def add(self, name: str, tensor: Tensor, hook: HookPoint, *, total: bool = False) -> None:
        """Keep one more part of an activation."""
        run = current_run(hook)
        if run is not None and run.discarded:
            self.shortened.add(name)
        tensor = tensor.detach() if self.detach else tensor
        tensor = tensor if self.device is None else tensor.to(self.device)
        parts = self.parts.setdefault(name, [])
        if total and parts and parts[0].shape[-1] == tensor.shape[-1]:
            parts[0] = parts[0] + tensor
        elif total and parts:
            parts[0] = F.pad(parts[0], (0, tensor.shape[-1] - parts[0].shape[-1])) + tensor
        else:
            parts.append(tensor)

    def cache(self, model: Any, token_maps: Sequence[TokenMap], made_by: Mapping[str, Any]) -> AVCache:
        """All that was kept; parts of one activation are joined along positions."""
        whole = {name: parts[0] if len(parts) == 1 else _joined(name, parts) for name, parts in self.parts.items()}
        calls = {name: tuple(parts) for name, parts in self.parts.items() if len(parts) > 1}
        return AVCache(whole, model, token_maps, made_by, calls, self.shortened)


@dataclass(frozen=True, eq=False)
class _Keep:
    """Keeps a whole activation."""

    recorder: Recorder
    name: str
    reads_only: bool = True

    def __call__(self, x: Tensor, hook: HookPoint) -> None:
        self.recorder.add(self.name, x, hook)


@dataclass(frozen=True, eq=False)
class _Reduce:
    """Keeps a function of an activation, in chunks of query rows where attention is computed so."""

    recorder: Recorder
    reduction: Reduction
    reads_only: bool = True

    @property
    def row_wise(self) -> bool:
        """Whether the reduction takes some query rows at a time."""
        return self.reduction.row_wise

    def __call__(self, x: Tensor, hook: HookPoint) -> None:
        total = self.reduction.combine == "sum"
        self.recorder.add(f"{hook.name}.{self.reduction.label}", self.reduction.fn(x, hook), hook, total=total)


def _position_axis(name: str) -> int:
    return 2 if names.short_name(name).split(".")[0] in ("attn_scores", "pattern") else 1


def _unpadded(name: str, tensor: Tensor, pad: int) -> Tensor:
    axis = _position_axis(name)
    attention_like = axis == 2
    if pad and tensor.ndim > axis:
        tensor = tensor.narrow(axis, pad, tensor.shape[axis] - pad)
    if pad and attention_like and tensor.ndim > 3:
        tensor = tensor.narrow(3, pad, tensor.shape[3] - pad)
    return tensor


def _joined(name: str, parts: list[Tensor]) -> Tensor:
    if names.of_encoder(name) and parts[0].ndim == 4:
        rows, keys = (max(part.shape[axis] for part in parts) for axis in (2, 3))
        return torch.cat([F.pad(part, (0, keys - part.shape[3], 0, rows - part.shape[2])) for part in parts])
    axis = _position_axis(name)
    if axis == 2 and parts[0].ndim == 4:
        longest = max(part.shape[3] for part in parts)
        filler = -torch.inf if names.short_name(name) == "attn_scores" else 0.0
        parts = [F.pad(part, (0, longest - part.shape[3]), value=filler) for part in parts]
    return torch.cat(parts, dim=axis)
