"""One pre-norm decoder with grouped-query attention, with TransformerLens's hook points, over stock modules.

    resid_mid  = resid_pre + attn(ln1(resid_pre))
    resid_post = resid_mid + mlp(ln2(resid_mid))

What families vary is said by `DecoderConfig`: 1-D, sectioned or interleaved rotary positions, norms of queries and
keys, experts instead of one MLP, and encoder outputs that are added to the stream before some blocks (deepstack).

The blocks hold the checkpoint's own linear and norm modules, so weights are not copied and quantised linears keep
working; TransformerLens's weight names (`W_Q`, `W_O`, ...) are views of them. Attention runs in a fused kernel
unless someone listens at the scores or the pattern of that very layer.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import linear
from transformers.activations import SiLUActivation
from transformers.cache_utils import DynamicCache

from avlens import attention
from avlens.errors import CheckpointError, HookError
from avlens.hooks import HookPoint, Run, edited, only_row_wise, through, unseen, watched

AttentionMode = Literal["auto", "eager", "sdpa"]

MLP_BYTES = 64 * 2**20
"""How large one activation inside an MLP may be where nobody looks at it, so that long prompts go through it some rows at a
time, on a CPU."""

DEVICE_MLPS = 16
"""How many times that it may be on other devices."""


KEPT_MASKS = 16 * 2**20
"""How large the masks of a pass's rows may be to be kept from one block to the next; larger ones are made anew, in chunks."""

T = TypeVar("T")


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder's shape, in TransformerLens's field names.

    Attributes:
        n_ctx: Longest prompt it was made for, in positions.
        rotary_base: Base of the rotary frequencies.
        mrope_section: How many rotary frequencies follow time, row and column; None for 1-D positions.
        mrope_interleaved: Whether the axes take turns (time, row, column, time, ...) instead of one section each.
        use_qk_norm: Whether queries and keys are normalised per head before they are rotated.
        num_experts: How many experts the MLP has; None for one plain MLP.
        experts_per_token: How many of them each position is sent to.
        norm_topk_prob: Whether the chosen experts' weights are scaled to sum to 1.
        n_deepstack: Before how many blocks, from the second on, encoder outputs are added to the stream.
        use_normalization_before_and_after: Whether attention and MLP are normed again before they enter the stream.
        attn_types: Of each block, `global`, or `local` where it reads only the last `window_size` positions; None: all global.
        window_size: How many positions local blocks read.
        d_head_global: Dimensions of a head of global blocks, where they are not d_head.
        rotary_base_local: Base of the rotary frequencies of local blocks, where it is another.
        rotary_share_global: How many of the rotary frequencies of global blocks turn.
        n_shared: How many blocks, from the last down, read the keys and values of the last block of their kind before them.
        d_layer_input: Width of what is embedded for each block by itself; None for nothing.
        output_logits_soft_cap: c where logits are c tanh(logits / c); -1 for none.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    eps: float
    rotary_base: float
    mrope_section: tuple[int, ...] | None
    act_fn: str
    model_name: str
    original_architecture: str
    normalization_type: str = "RMS"
    positional_embedding_type: str = "rotary"
    gated_mlp: bool = True
    attn_only: bool = False
    final_rms: bool = True
    default_prepend_bos: bool = False
    mrope_interleaved: bool = False
    use_qk_norm: bool = False
    num_experts: int | None = None
    experts_per_token: int | None = None
    norm_topk_prob: bool = True
    n_deepstack: int = 0
    use_normalization_before_and_after: bool = False
    attn_types: tuple[str, ...] | None = None
    window_size: int | None = None
    d_head_global: int | None = None
    rotary_base_local: float | None = None
    rotary_share_global: float = 1.0
    n_shared: int = 0
    d_layer_input: int | None = None
    output_logits_soft_cap: float = -1.0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def check(self) -> None:
        """Refuse a shape that does not add up.

        Raises:
            CheckpointError: With the numbers.
        """
        if self.n_heads % self.n_key_value_heads:
            raise CheckpointError(
                f"config.json shares {self.n_key_value_heads} key and value heads among {self.n_heads} heads, which is no whole "
                "number for each. Download it again."
            )
        sections = self.mrope_section
        if self.d_head % 2 or (sections is not None and 2 * sum(sections) != self.d_head):
            raise CheckpointError(
                f"config.json rotates {self.d_head} dimensions of each head in sections of {sections} pairs, which do not add "
                "up. Download it again."
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    @property
    def rotary_dim(self) -> int:
        """How many dimensions of a head are rotated: all."""
        return self.d_head


class KeyValues(DynamicCache):  # type: ignore[misc]
    """Keys and values of what was read, per layer; a layer after a discard holds fewer.

    Attributes:
        seen: Tensor positions read so far, discarded ones included.
        key_index: Tensor positions of the keys of each layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.key_index: dict[int, Int[Tensor, " key_pos"]] = {}

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """How many positions were read."""
        return self.seen

    def extend(self, layer: int, k: Tensor, v: Tensor, index: Int[Tensor, " pos"]) -> tuple[Tensor, Tensor, Tensor]:
        """Append to a layer; all its keys, values and tensor positions come back."""
        k, v = self.update(k, v, layer)
        past = self.key_index.get(layer)
        self.key_index[layer] = index if past is None else torch.cat([past, index])
        return k, v, self.key_index[layer]

    def first(self, n: int) -> "KeyValues":
        """What was read of the first `n` tensor positions, from which another run may go on."""
        kept = KeyValues()
        for layer, index in self.key_index.items():
            held = int((index < n).sum())
            keys, values = self.layers[layer].keys, self.layers[layer].values
            kept.extend(layer, keys[:, :, :held], values[:, :, :held], index[:held])
        kept.seen = min(n, self.seen)
        return kept

    def fill(self, rows: Sequence["KeyValues"]) -> None:
        """Take over what several runs read whole, as rows of one batch, padded on the left; this must be empty."""
        self.seen = max(row.seen for row in rows)
        for layer in rows[0].key_index:
            held = [(row.layers[layer], self.seen - row.seen) for row in rows]
            k = torch.cat([F.pad(one.keys, (0, 0, padding, 0)) for one, padding in held])
            v = torch.cat([F.pad(one.values, (0, 0, padding, 0)) for one, padding in held])
            self.extend(layer, k, v, torch.arange(self.seen))


@runtime_checkable
class Past(Protocol):
    """Keys and values that the rows of a pass may read beside their own."""

    def extend(self, layer: int, k: Tensor, v: Tensor, index: Int[Tensor, " pos"]) -> tuple[Tensor, Tensor, Tensor]:
        """Given the rows' own of a layer and their tensor positions: all that may be read, in ascending order."""
        ...


@dataclass
class Pass:
    """One forward pass through the blocks: where it stands, and what its geometry needs.

    Attributes:
        run: What hooks are told.
        cos: Cosines of the rotary angles of the rows.
        sin: Their sines.
        past: Keys and values of earlier passes, which this one extends.
        mode: Which attention to use.
        additions: What is added to the stream before the second block, the third, ...; or each block's own input.
        asked: Tensor positions of the rows that the next block computes beyond their keys and values; all by default.
        made: Keys and values of the rows, by the block that made them, for blocks that read another's.
    """

    run: Run
    cos: Float[Tensor, "batch pos 1 d_head"]
    sin: Float[Tensor, "batch pos 1 d_head"]
    past: Past | None
    mode: AttentionMode
    additions: tuple[Float[Tensor, "batch pos d_model"], ...] = ()
    asked: Int[Tensor, " asked"] | None = None
    made: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)
    masks: dict[Any, tuple[tuple[Tensor, Tensor], Any]] = field(default_factory=dict, init=False)
    going_on: Int[Tensor, " asked"] | None = field(default=None, init=False)

    def to(self, device: torch.device) -> None:
        """Follow the blocks to another device."""
        if self.cos.device != device:
            self.cos, self.sin = self.cos.to(device), self.sin.to(device)

    def drop(self) -> None:
        """Let go of the rows that an edit discarded."""
        keep, self.run.keep = self.run.keep, None
        if keep is not None:
            self.cos, self.sin = self.cos[:, keep], self.sin[:, keep]
            self.additions = tuple(addition[:, keep.to(addition.device)] for addition in self.additions)
            self.made = {layer: (k[:, :, keep], v[:, :, keep]) for layer, (k, v) in self.made.items()}

    def ask(self, x: Tensor) -> Tensor:
        """Of the rows whose keys and values were read, those that go on."""
        if self.asked is None or torch.equal(self.run.query_index, self.asked):
            return x
        self.going_on = torch.isin(self.run.query_index, self.asked).nonzero()[:, 0]
        self.run.query_index = self.run.query_index[self.going_on]
        self.cos, self.sin = self.cos[:, self.going_on], self.sin[:, self.going_on]
        return x[:, self.going_on]

    def asked_of(self, x: Tensor) -> Tensor:
        """The same rows of the stream; the next block computes all again."""
        rows, self.going_on, self.asked = self.going_on, None, None
        return x if rows is None else x[:, rows]

    def read(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values that the rows may read in a layer, which the run then tells its hooks."""
        if self.past is None:
            self.run.key_index = self.run.query_index
            return k, v
        k, v, self.run.key_index = self.past.extend(layer, k, v, self.run.query_index)
        return k, v

    def mask(self) -> Tensor:
        """Which keys each row may read."""
        device = self.cos.device
        return self._made(
            ("whole", device),
            lambda run: attention.visible_keys(
                *(at.to(device) for at in (run.query_index, run.key_index, run.padding))
            ),
        )

    def chunks(self, window: int | None, like: Tensor) -> Iterable[tuple[int, Tensor]]:
        """The rows in chunks, as `attention.row_chunks` cuts them."""
        run = self.run
        if len(run.query_index) * len(run.key_index) * like.itemsize > KEPT_MASKS:
            return attention.row_chunks(run.query_index, run.key_index, run.padding, window, like)
        return self._made(
            (window, like.device, like.dtype),
            lambda run: list(attention.row_chunks(run.query_index, run.key_index, run.padding, window, like)),
        )

    def _made(self, kind: Hashable, make: Callable[[Run], T]) -> T:
        """What is made of rows and keys, made anew only where they are others than before."""
        # The run's indices stay on the CPU, where looking at them costs no synchronisation.
        now = self.run.query_index, self.run.key_index
        if kind in self.masks:
            then, made = self.masks[kind]
            if all(one is other or torch.equal(one, other) for one, other in zip(now, then, strict=True)):
                return made
        self.masks[kind] = now, make(self.run)
        return self.masks[kind][1]

    def hides_keys(self) -> bool:
        """Whether a row may not read some key for another reason than that it comes before it in a prompt read in one piece."""
        query, key = self.run.query_index, self.run.key_index
        reads_all = len(query) == 1 and bool(query[0] >= key[-1])
        return bool(self.run.padding.any()) or not (reads_all or len(query) == len(key))


class HookedRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32 until the weight is applied, where there is one."""

    def __init__(self, stock: nn.Module, eps: float) -> None:
        super().__init__()
        self.stock, self.eps = stock, eps
        self.hook_scale, self.hook_normalized = HookPoint(), HookPoint()

    @property
    def w(self) -> Float[Tensor, " d_model"]:
        """The norm's weight."""
        return weight_of(self.stock)

    def forward(self, x: Float[Tensor, "batch pos *head d_model"]) -> Float[Tensor, "batch pos *head d_model"]:
        """Normalise each row."""
        wide = x.float()
        scale = through(self.hook_scale, (wide.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        # Times the reciprocal, which rounds as the stock model's rsqrt does.
        normalized = through(self.hook_normalized, (wide * (1 / scale)).to(x.dtype))
        if not hasattr(self.stock, "weight"):
            return normalized
        return (
            normalized.mul_(self.w) if unseen(self.hook_normalized) and self.w.dtype == x.dtype else self.w * normalized
        )


class HookedAttention(nn.Module):
    """Grouped-query attention with rotary positions.

    Attributes:
        scale: What scores are multiplied by; None for 1 / sqrt(d_head).
        window: How many of the last positions are read; None for all.
    """

    scale: float | None = None
    window: int | None = None

    def __init__(self, stock: Any, cfg: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = stock.q_proj, stock.k_proj, stock.v_proj, stock.o_proj
        self.cfg, self.layer = cfg, layer
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_rot_q, self.hook_rot_k = HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()
        self.hook_z, self.hook_result = HookPoint(), HookPoint()
        if cfg.use_qk_norm:
            self.q_norm, self.k_norm = HookedRMSNorm(stock.q_norm, cfg.eps), HookedRMSNorm(stock.k_norm, cfg.eps)

    def forward(self, x: Float[Tensor, "batch pos d_model"], at: Pass) -> Float[Tensor, "batch asked d_model"]:
        """What the heads write into the residual stream."""
        k, v = self.keys_and_values(x, at)
        k, v = at.read(self.layer, k.transpose(1, 2), v.transpose(1, 2))
        q = through(self.hook_q, self.q_proj(at.ask(x)).unflatten(-1, (self.cfg.n_heads, self.cfg.d_head)))
        q = through(self.hook_rot_q, rotate(self.q_norm(q) if self.cfg.use_qk_norm else q, at.cos, at.sin))
        at.run.values = v
        z = self._attend(q.transpose(1, 2), k, v, at).transpose(1, 2)
        at.run.values = None
        z = through(self.hook_z, z)
        if watched(self.hook_result):
            return through(self.hook_result, torch.einsum("bphd,hdm->bphm", z, self.W_O.to(z.dtype))).sum(2) + self.b_O
        out: Tensor = self.o_proj(z.flatten(2))
        return out

    def keys_and_values(
        self, x: Float[Tensor, "batch pos d_model"], at: Pass
    ) -> tuple[Float[Tensor, "batch pos key_value_head d_head"], Float[Tensor, "batch pos key_value_head d_head"]]:
        """Rotated keys, and values, of the rows."""
        groups = (self.cfg.n_key_value_heads, self.cfg.d_head)
        k = through(self.hook_k, self.k_proj(x).unflatten(-1, groups))
        v = through(self.hook_v, self.v_proj(x).unflatten(-1, groups))
        return through(self.hook_rot_k, rotate(self.k_norm(k) if self.cfg.use_qk_norm else k, at.cos, at.sin)), v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, at: Pass) -> Float[Tensor, "batch head pos d_head"]:
        points = [point for point in (self.hook_attn_scores, self.hook_pattern) if watched(point)]
        if points and at.mode == "sdpa":
            raise HookError(
                f"a hook listens at {points[0].name}, but attention is pinned to 'sdpa', which never computes it. "
                "Run with attn='auto' or attn='eager'."
            )
        if not points and at.mode != "eager":
            if at.hides_keys() or (self.window is not None and len(at.run.key_index) > self.window):
                return attention.fused_in_chunks(q, k, v, at.chunks(self.window, q), scale=self.scale)
            return attention.fused(q, k, v, causal=q.shape[2] > 1, scale=self.scale)
        if points and q.shape[2] > 1 and all(only_row_wise(point) for point in points):
            return self._in_chunks(q, k, v, at)
        return attention.explicit(q, k, v, self._near(at.mask(), at.run), **self._edits())

    def _near(self, visible: Tensor, run: Run) -> Tensor:
        """Of the visible keys, those in the window."""
        return (
            visible if self.window is None else attention.within(visible, run.query_index, run.key_index, self.window)
        )

    def _edits(self) -> dict[str, Any]:
        """Where the scores and the pattern pass on their way, and how scores are scaled."""
        on_scores, on_pattern = partial(through, self.hook_attn_scores), partial(through, self.hook_pattern)
        return {"on_scores": on_scores, "on_pattern": on_pattern, "scale": self.scale}

    def _in_chunks(self, q: Tensor, k: Tensor, v: Tensor, at: Pass) -> Float[Tensor, "batch head pos d_head"]:
        """Explicit attention, some query rows at a time: no tensor of size head x pos x pos is made."""
        run, rows, keys = at.run, at.run.query_index, at.run.key_index
        n = attention.chunk_rows(q.shape[0] * q.shape[1], k.shape[2], q.shape[2], q.device.type)
        padded = bool(run.padding.any())
        k, v = k.contiguous(), v.contiguous()  # else each product would copy them
        parts = []
        try:
            for chunk, index in zip(q.split(n, dim=2), rows.split(n), strict=True):
                # Keys after the chunk's last row are visible to none of it.
                seen = int(torch.searchsorted(keys, index[-1], right=True))
                run.query_index, run.key_index = index, keys[:seen]
                where = (index, run.key_index, run.padding)
                visible = self._near(attention.visible_keys(*(one.to(q.device) for one in where)), run)
                clear = 0 if padded or self.window is not None else int(torch.searchsorted(keys, index[0]))
                edits = self._edits()
                parts.append(attention.explicit(chunk, k[:, :, :seen], v[:, :, :seen], visible, clear=clear, **edits))
        finally:
            run.query_index, run.key_index = rows, keys
        return torch.cat(parts, dim=2)

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:  # noqa: N802
        """Query weights, a view."""
        return weight_of(self.q_proj).unflatten(0, (self.cfg.n_heads, -1)).transpose(1, 2)

    @property
    def W_K(self) -> Float[Tensor, "key_value_head d_model d_head"]:  # noqa: N802
        """Key weights, a view."""
        return weight_of(self.k_proj).unflatten(0, (self.cfg.n_key_value_heads, -1)).transpose(1, 2)

    @property
    def W_V(self) -> Float[Tensor, "key_value_head d_model d_head"]:  # noqa: N802
        """Value weights, a view."""
        return weight_of(self.v_proj).unflatten(0, (self.cfg.n_key_value_heads, -1)).transpose(1, 2)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:  # noqa: N802
        """Output weights, a view."""
        return weight_of(self.o_proj).T.unflatten(0, (self.cfg.n_heads, -1))

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:  # noqa: N802
        """Query bias."""
        return bias_of(self.q_proj).unflatten(0, (self.cfg.n_heads, -1))

    @property
    def b_K(self) -> Float[Tensor, "key_value_head d_head"]:  # noqa: N802
        """Key bias."""
        return bias_of(self.k_proj).unflatten(0, (self.cfg.n_key_value_heads, -1))

    @property
    def b_V(self) -> Float[Tensor, "key_value_head d_head"]:  # noqa: N802
        """Value bias."""
        return bias_of(self.v_proj).unflatten(0, (self.cfg.n_key_value_heads, -1))

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:  # noqa: N802
        """Output bias."""
        return bias_of(self.o_proj)


def mlp_bytes(device: str) -> int:
    """How large one activation inside an MLP may be on a kind of device."""
    return MLP_BYTES * (1 if device == "cpu" else DEVICE_MLPS)


class HookedMLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = stock.gate_proj, stock.up_proj, stock.down_proj
        self.act_fn = stock.act_fn
        self.hook_pre, self.hook_pre_linear, self.hook_post = HookPoint(), HookPoint(), HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What the neurons write into the residual stream."""
        if not unseen(self.hook_pre, self.hook_pre_linear, self.hook_post):
            gate = self.act_fn(through(self.hook_pre, self.gate_proj(x)))
            out: Tensor = self.down_proj(through(self.hook_post, gate * through(self.hook_pre_linear, self.up_proj(x))))
            return out
        row = len(x) * x.itemsize * self.up_proj.out_features
        n = max(1, mlp_bytes(x.device.type) // row)
        parts = [self._unseen(rows) for rows in x.split(n, dim=1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _unseen(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The same where nobody looks inside: in place."""
        gate = self.gate_proj(x)  # one name, so that what enters the activation is let go of
        gate = F.silu(gate, inplace=True) if isinstance(self.act_fn, (nn.SiLU, SiLUActivation)) else self.act_fn(gate)
        out: Tensor = self.down_proj(gate.mul_(self.up_proj(x)))
        return out

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"]:  # noqa: N802
        """Gate weights, a view."""
        return weight_of(self.gate_proj).T

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:  # noqa: N802
        """Input weights, a view."""
        return weight_of(self.up_proj).T

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:  # noqa: N802
        """Output weights, a view."""
        return weight_of(self.down_proj).T

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """Output bias."""
        return bias_of(self.down_proj)


class HookedExperts(nn.Module):
    """A router that sends each position to a few of many MLPs: sum over the chosen e of weight_e * mlp_e(x).

    `hook_router_logits` is what the router says of every expert, `hook_expert_weights` its softmax in fp32,
    `hook_expert_indices` which experts are chosen, and `hook_expert_out` what each of them says before it is weighted.
    The stock experts run in one piece unless someone listens there.
    """

    def __init__(self, stock: Any, cfg: DecoderConfig) -> None:
        super().__init__()
        self.gate, self.experts, self.cfg = stock.gate, stock.experts, cfg
        self.hook_router_logits, self.hook_expert_weights = HookPoint(), HookPoint()
        self.hook_expert_indices, self.hook_expert_out = HookPoint(), HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What the chosen experts write into the residual stream."""
        logits = through(self.hook_router_logits, linear(x, weight_of(self.gate).to(x.device)))
        weights = through(self.hook_expert_weights, logits.float().softmax(-1))
        assert self.cfg.experts_per_token is not None
        chosen = through(self.hook_expert_indices, weights.topk(self.cfg.experts_per_token, dim=-1).indices)
        shares = weights.gather(-1, chosen)
        if self.cfg.norm_topk_prob:
            shares = shares / shares.sum(-1, keepdim=True)
        shares = shares.to(logits.dtype)
        if watched(self.hook_expert_out):
            said = through(self.hook_expert_out, self._each(x, chosen))
            return (said * shares[..., None]).sum(2).to(x.dtype)
        out: Tensor = self.experts(x.flatten(0, 1), chosen.flatten(0, 1), shares.flatten(0, 1))
        return out.view_as(x)

    def _each(self, x: Tensor, chosen: Int[Tensor, "batch pos slot"]) -> Float[Tensor, "batch pos slot d_model"]:
        """What each chosen expert says, by itself."""
        said = x.new_zeros(*chosen.shape, x.shape[-1])
        into, out = (at_hand(self.experts, name).to(x.device) for name in ("gate_up_proj", "down_proj"))
        for expert in chosen.unique().tolist():
            where = chosen == expert
            rows = x[:, :, None].expand_as(said)[where]
            gate, up = linear(rows, into[expert]).chunk(2, dim=-1)
            said[where] = linear(self.experts.act_fn(gate) * up, out[expert])
        return said

    @property
    def W_gate(self) -> Float[Tensor, "expert d_model d_mlp"]:  # noqa: N802
        """Gate weights, a view."""
        return at_hand(self.experts, "gate_up_proj").chunk(2, dim=1)[0].transpose(1, 2)

    @property
    def W_in(self) -> Float[Tensor, "expert d_model d_mlp"]:  # noqa: N802
        """Input weights, a view."""
        return at_hand(self.experts, "gate_up_proj").chunk(2, dim=1)[1].transpose(1, 2)

    @property
    def W_out(self) -> Float[Tensor, "expert d_mlp d_model"]:  # noqa: N802
        """Output weights, a view."""
        return at_hand(self.experts, "down_proj").transpose(1, 2)

    @property
    def W_router(self) -> Float[Tensor, "d_model expert"]:  # noqa: N802
        """Router weights, a view."""
        return weight_of(self.gate).T

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """Output bias: none, so zeros."""
        return torch.zeros(self.cfg.d_model, device=device_of(self.gate), dtype=weight_of(self.gate).dtype)


class HookedBlock(nn.Module):
    """One block, on the device its weights are on.

    Attributes:
        plain: Whether it makes its own keys, and the stream gains just what its heads and its MLP say.
        resid_scale: What the stream is multiplied by as it leaves the block.
    """

    plain: ClassVar[bool] = True
    hook_out_is_single_residual_stream: ClassVar[bool] = True
    """TransformerLens's logit lens asks."""

    resid_scale: float | Tensor = 1.0

    mlp: HookedMLP | HookedExperts

    def __init__(self, stock: Any, cfg: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.ln1 = HookedRMSNorm(stock.input_layernorm, cfg.eps)
        self.attn = HookedAttention(stock.self_attn, cfg, layer)
        self.ln2 = HookedRMSNorm(stock.post_attention_layernorm, cfg.eps)
        self.mlp = HookedMLP(stock.mlp) if cfg.num_experts is None else HookedExperts(stock.mlp, cfg)
        self.layer = layer
        if 1 <= layer <= cfg.n_deepstack:
            self.hook_deepstack = HookPoint()
        self.hook_resid_pre, self.hook_attn_out, self.hook_resid_mid = HookPoint(), HookPoint(), HookPoint()
        self.hook_mlp_out, self.hook_resid_post = HookPoint(), HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"], at: Pass) -> Float[Tensor, "batch pos_kept d_model"]:
        """The residual stream after this block, at the rows that are asked for."""
        resid_pre = self._enter(x, at)
        attn_out = through(self.hook_attn_out, self.attn(self.ln1(resid_pre), at))
        resid_mid = through(self.hook_resid_mid, at.asked_of(resid_pre) + attn_out)
        out: Tensor = through(
            self.hook_resid_post, resid_mid + through(self.hook_mlp_out, self.mlp(self.ln2(resid_mid)))
        )
        return out

    def keys_and_values(
        self, x: Float[Tensor, "batch pos d_model"], at: Pass
    ) -> tuple[Float[Tensor, "batch pos key_value_head d_head"], Float[Tensor, "batch pos key_value_head d_head"]]:
        """Rotated keys, and values, of rows that go no further."""
        return self.attn.keys_and_values(self.ln1(self._enter(x, at)), at)

    def _enter(self, x: Tensor, at: Pass) -> Float[Tensor, "batch pos_kept d_model"]:
        device = device_of(self.attn.q_proj)
        at.to(device)
        x = x.to(device)
        if 1 <= self.layer <= len(at.additions):
            x = x + through(self.hook_deepstack, at.additions[self.layer - 1].to(x.device, x.dtype))
        return enter(self.hook_resid_pre, x, at)


def enter(point: HookPoint, x: Float[Tensor, "batch pos d_model"], at: Pass) -> Float[Tensor, "batch pos_kept d_model"]:
    """The stream that enters a block, after its hooks, without the rows that one of them discarded."""
    # An edit in place must not reach what was recorded of the same tensor: the block before's resid_post.
    resid_pre: Tensor = point(x.clone() if edited(point) else x)
    if at.run.keep is None and resid_pre.shape != x.shape:
        raise HookError(
            f"a hook at {point.name} returned shape {list(resid_pre.shape)}, but the activation has {list(x.shape)}. "
            "Return a tensor of the same shape; to drop tokens, use discard."
        )
    at.drop()
    return resid_pre


def rotary(
    positions: Real[Tensor, "axis batch pos"], cfg: DecoderConfig, dtype: torch.dtype
) -> tuple[Float[Tensor, "batch pos 1 d_head"], Float[Tensor, "batch pos 1 d_head"]]:
    """Cosines and sines of the rotary angles, each frequency following the axis its section says.

    Of a decoder with local blocks: those of local blocks, then those of global ones.
    """
    if cfg.attn_types is not None:
        return _rotary_by_kind(positions[0], cfg, dtype)
    angles = positions[..., None].float() * _frequencies(cfg.d_head, cfg.rotary_base, positions.device)
    if cfg.mrope_section is None:
        by_axis = angles[0]
    elif cfg.mrope_interleaved:
        by_axis = angles[0].clone()
        for axis in range(1, len(positions)):
            turns = slice(axis, 3 * cfg.mrope_section[axis], 3)
            by_axis[..., turns] = angles[axis][..., turns]
    else:
        sections = angles.split(list(cfg.mrope_section), dim=-1)
        by_axis = torch.cat([section[i % len(positions)] for i, section in enumerate(sections)], dim=-1)
    both = torch.cat([by_axis, by_axis], dim=-1)[:, :, None]
    return both.cos().to(dtype), both.sin().to(dtype)


def _rotary_by_kind(
    positions: Real[Tensor, "batch pos"], cfg: DecoderConfig, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    wide = cfg.d_head_global or cfg.d_head
    near = _frequencies(cfg.d_head, cfg.rotary_base_local or cfg.rotary_base, positions.device)
    far = _frequencies(wide, cfg.rotary_base, positions.device)
    far[int(cfg.rotary_share_global * wide // 2) :] = 0
    angles = positions[..., None, None].float() * torch.cat([near, near, far, far])
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _frequencies(d_head: int, base: float, device: torch.device) -> Float[Tensor, " half_d_head"]:
    exponents = torch.arange(0, d_head, 2, device=device, dtype=torch.float32) / d_head
    frequencies: Tensor = 1.0 / base**exponents
    return frequencies


def rotate(
    x: Float[Tensor, "batch pos head d_head"], cos: Tensor, sin: Tensor
) -> Float[Tensor, "batch pos head d_head"]:
    """Turn each pair of dimensions (i, i + d_head / 2) by its angle."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x * cos + turned * sin if torch.is_grad_enabled() else (x * cos).add_(turned.mul_(sin))


def device_of(module: nn.Module) -> torch.device:
    """The device a module computes on, also where accelerate keeps its weights elsewhere between calls."""
    offload = getattr(module, "_hf_hook", None)
    execution = getattr(offload, "execution_device", None)
    if execution is not None:
        return torch.device(execution)
    return next(module.parameters()).device


def weight_of(module: nn.Module) -> Tensor:
    """A module's weight, fetched where accelerate keeps it elsewhere between calls.

    Raises:
        HookError: If the weight is quantised, so that there is no plain matrix to look at.
    """
    weight = at_hand(module, "weight")
    if not weight.is_floating_point():
        raise HookError(
            f"the weight of {type(module).__name__} is quantised ({weight.dtype}), so it has no view as a matrix. "
            "Read activations instead of weights, or load the model without quantisation."
        )
    return weight


def bias_of(module: Any) -> Tensor:
    """A linear module's bias; zeros where it has none."""
    if isinstance(module.bias, Tensor):
        return at_hand(module, "bias")
    dtype = module.weight.dtype if module.weight.is_floating_point() else None
    return torch.zeros(module.out_features, device=device_of(module), dtype=dtype)


def at_hand(module: Any, name: str) -> Tensor:
    """A parameter, fetched where accelerate keeps it elsewhere between calls."""
    weight: Tensor = getattr(module, name)
    if weight.device.type != "meta" or not hasattr(module, "_hf_hook"):
        return weight
    from accelerate.utils import align_module_device

    with align_module_device(module):
        return getattr(module, name).detach().clone()
