"""A decoder block that is normed before and after its parts, with windows, shared keys, and an input of its own.

    resid_mid  = resid_pre + ln1_post(attn(ln1(resid_pre)))
    resid_post = resid_scale * (resid_mid + ln2_post(mlp(ln2(resid_mid))) + layer_input_out)

Local blocks read a window of the last positions; global ones read all, with heads and rotary frequencies of their own. Scores
are not scaled, since queries, keys and values are normed per head. Some of the last blocks make no keys: they read those of the
last block of their kind that did, through hook points of their own (`hook_rot_k`, `hook_v`), so that an edit there is theirs
alone, while an edit where the keys were made reaches all who read them. `layer_input_out` is a gated projection of what
`LayerInputs` embeds for this block alone (`hook_layer_input`).

`hook_attn_out` and `hook_mlp_out` are what is added to the stream, so after their second norm; `hook_result` adds up to what is
before it, and `hook_v` is normed, as the pattern sums it.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from avlens.decoder import (
    DecoderConfig,
    HookedAttention,
    HookedMLP,
    HookedRMSNorm,
    Pass,
    at_hand,
    device_of,
    enter,
    rotate,
)
from avlens.hooks import HookPoint, through, watched


class LayerInputs(nn.Module):
    """What is embedded for each block by itself: of the token, and of what enters the first block.

        (norm(project(embed) / sqrt(d_model)) + embed_per_layer(token)) / sqrt(2)

    Attributes:
        media: Ids that stand for media, which have no token and count as padding.
    """

    def __init__(
        self, embed: nn.Module, project: nn.Module, norm: nn.Module, *, n_layers: int, media: Sequence[int], pad: int
    ) -> None:
        super().__init__()
        self.embed, self.project, self.norm = embed, project, norm
        self.n_layers, self.media, self.pad = n_layers, list(media), pad

    def forward(
        self, ids: Int[Tensor, "batch pos"], embeds: Float[Tensor, "batch pos d_model"]
    ) -> tuple[Float[Tensor, "batch pos d_layer_input"], ...]:
        """One for each block."""
        ids = ids.masked_fill(torch.isin(ids, torch.tensor(self.media, device=ids.device)), self.pad)
        embeds = embeds.to(device_of(self.project))
        context = self.project(embeds) * embeds.shape[-1] ** -0.5
        context = self.norm(context.unflatten(-1, (self.n_layers, -1)))
        tokens = self.embed(ids.to(device_of(self.embed))).unflatten(-1, (self.n_layers, -1))
        layers: tuple[Tensor, ...] = ((context + tokens.to(context.device)) * 2**-0.5).unbind(2)
        return layers


class SandwichAttention(HookedAttention):
    """Attention with norms of queries, keys and values, in a window or over all, on keys of its own or another block's.

    Attributes:
        source: The block whose keys and values it reads; None where it makes its own.
        is_source: Whether another block reads its own.
    """

    scale = 1.0

    def __init__(self, stock: Any, cfg: DecoderConfig, layer: int) -> None:
        nn.Module.__init__(self)
        is_local = _kind(cfg, layer) == "local"
        self.cfg, self.layer, self.source = cfg, layer, _source(cfg, layer)
        self.is_source = any(_source(cfg, other) == layer for other in range(cfg.n_layers))
        self.window = cfg.window_size if is_local else None
        wide = cfg.d_head_global or cfg.d_head
        self.d_head = cfg.d_head if is_local else wide
        self.turns = slice(0, cfg.d_head) if is_local else slice(cfg.d_head, cfg.d_head + wide)
        self.q_proj, self.o_proj = stock.q_proj, stock.o_proj
        self.q_norm = HookedRMSNorm(stock.q_norm, cfg.eps)
        self.hook_q, self.hook_rot_q, self.hook_rot_k, self.hook_v = (HookPoint() for _ in range(4))
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()
        self.hook_z, self.hook_result = HookPoint(), HookPoint()
        if self.source is None:
            self.k_proj, self.v_proj, self.hook_k = stock.k_proj, stock.v_proj, HookPoint()
            self.k_norm, self.v_norm = HookedRMSNorm(stock.k_norm, cfg.eps), HookedRMSNorm(stock.v_norm, cfg.eps)

    def forward(self, x: Float[Tensor, "batch pos d_model"], at: Pass) -> Float[Tensor, "batch pos d_model"]:
        """What the heads say, before it is normed."""
        cos, sin = at.cos[..., self.turns], at.sin[..., self.turns]
        q = self.q_norm(through(self.hook_q, self.q_proj(x).unflatten(-1, (self.cfg.n_heads, self.d_head))))
        q = through(self.hook_rot_q, rotate(q, cos, sin)).transpose(1, 2)
        k, v = self._make(x, cos, sin) if self.source is None else at.made[self.source]
        k = through(self.hook_rot_k, k.transpose(1, 2)).transpose(1, 2)
        v = through(self.hook_v, v.transpose(1, 2)).transpose(1, 2)
        if self.is_source:
            at.made[self.layer] = k, v
        z = through(self.hook_z, self._attend(q, *at.read(self.layer, k, v), at).transpose(1, 2))
        if watched(self.hook_result):
            return through(self.hook_result, torch.einsum("bphd,hdm->bphm", z, self.W_O.to(z.dtype))).sum(2) + self.b_O
        out: Tensor = self.o_proj(z.flatten(2))
        return out

    def _make(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Its own keys, rotated, and values, normed."""
        groups = (self.cfg.n_key_value_heads, self.d_head)
        k = self.k_norm(through(self.hook_k, self.k_proj(x).unflatten(-1, groups)))
        v = self.v_norm(self.v_proj(x).unflatten(-1, groups))
        return rotate(k, cos, sin).transpose(1, 2), v.transpose(1, 2)


class OutScale(nn.Module):
    """What a block's stream is multiplied by: a buffer of the stock layer, which follows the block's device and dtype."""

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that the layer's parameters are not counted twice.
        self._stock = (stock,)

    @property
    def value(self) -> Tensor:
        """The scale."""
        return at_hand(self._stock[0], "layer_scalar")

    def _apply(self, fn: Any, recurse: bool = True) -> "OutScale":  # noqa: ARG002
        self._stock[0]._buffers["layer_scalar"] = fn(self._stock[0]._buffers["layer_scalar"])
        return self


class SandwichBlock(nn.Module):
    """One block, on the device its weights are on.

    Attributes:
        plain: No: it may read another's keys, and what its heads say is normed before the stream gains it.
    """

    plain: ClassVar[bool] = False
    hook_out_is_single_residual_stream: ClassVar[bool] = True
    """TransformerLens's logit lens asks."""

    def __init__(self, stock: Any, cfg: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.out_scale = layer, OutScale(stock)
        self.ln1 = HookedRMSNorm(stock.input_layernorm, cfg.eps)
        self.attn = SandwichAttention(stock.self_attn, cfg, layer)
        self.ln1_post = HookedRMSNorm(stock.post_attention_layernorm, cfg.eps)
        self.ln2 = HookedRMSNorm(stock.pre_feedforward_layernorm, cfg.eps)
        self.mlp = HookedMLP(stock.mlp)
        self.ln2_post = HookedRMSNorm(stock.post_feedforward_layernorm, cfg.eps)
        self.hook_resid_pre, self.hook_attn_out, self.hook_resid_mid = HookPoint(), HookPoint(), HookPoint()
        self.hook_mlp_out, self.hook_resid_post = HookPoint(), HookPoint()
        if cfg.d_layer_input is not None:
            self.gate, self.act_fn = stock.per_layer_input_gate, stock.act_fn
            self.project = stock.per_layer_projection
            self.ln_layer_input = HookedRMSNorm(stock.post_per_layer_input_norm, cfg.eps)
            self.hook_layer_input, self.hook_layer_input_out = HookPoint(), HookPoint()

    @property
    def resid_scale(self) -> Tensor:
        """What the stream is multiplied by as it leaves the block."""
        return self.out_scale.value

    def forward(self, x: Float[Tensor, "batch pos d_model"], at: Pass) -> Float[Tensor, "batch pos_kept d_model"]:
        """The residual stream after this block."""
        device = device_of(self.attn.q_proj)
        at.to(device)
        resid_pre = enter(self.hook_resid_pre, x.to(device), at)
        attn_out = through(self.hook_attn_out, self.ln1_post(self.attn(self.ln1(resid_pre), at)))
        resid_mid = through(self.hook_resid_mid, resid_pre + attn_out)
        out = resid_mid + through(self.hook_mlp_out, self.ln2_post(self.mlp(self.ln2(resid_mid))))
        if at.additions:
            own = through(self.hook_layer_input, at.additions[self.layer].to(device, out.dtype))
            said = self.ln_layer_input(self.project(self.act_fn(self.gate(out)) * own))
            out = out + through(self.hook_layer_input_out, said)
        return through(self.hook_resid_post, out * self.resid_scale.to(device))


def _kind(cfg: DecoderConfig, layer: int) -> str:
    return "global" if cfg.attn_types is None else cfg.attn_types[layer]


def _source(cfg: DecoderConfig, layer: int) -> int | None:
    """The block whose keys a block reads; None where it makes its own."""
    first = cfg.n_layers - cfg.n_shared
    if layer < first:
        return None
    return max(other for other in range(first) if _kind(cfg, other) == _kind(cfg, layer))
