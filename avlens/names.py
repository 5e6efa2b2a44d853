"""What is each activation called, and what is its shape?

One name per activation, TransformerLens's. A *short name* is what follows `hook_` (`"resid_pre"`), with the
norm in front where a block has two (`"ln1.normalized"`). Short names mean the decoder; an encoder's
activations have its name in front (`"audio.resid_post"`).

    hook_embed                              batch pos d_model         what enters block 0: all modalities merged
    hook_token_embed                        batch pos d_model         embeddings of token ids, before media are merged
    hook_audio_embed, hook_video_embed,     batch media_pos d_model   one encoded sound, video or image: called once for
      hook_image_embed                                                each of them, so batch is 1
    blocks.{i}.hook_resid_pre, hook_resid_mid, hook_resid_post,
      hook_attn_out, hook_mlp_out           batch pos d_model
    blocks.{i}.ln1.hook_scale, ln2, ln_final            batch pos 1         sqrt(mean(x^2) + eps)
    blocks.{i}.ln1.hook_normalized, ln2, ln_final       batch pos d_model   before the norm's weight
    blocks.{i}.attn.hook_q, hook_z, hook_rot_q          batch pos head d_head
    blocks.{i}.attn.hook_k, hook_v, hook_rot_k          batch pos key_value_head d_head
    blocks.{i}.attn.hook_attn_scores, hook_pattern      batch head query_pos key_pos    before, after the softmax
    blocks.{i}.attn.hook_result             batch pos head d_model
    blocks.{i}.mlp.hook_pre, hook_pre_linear, hook_post batch pos d_mlp     gate, up, act(gate) * up
  where a family has them:
    blocks.{i}.hook_deepstack               batch pos d_model         what an encoder adds to the stream before this block
    blocks.{i}.attn.q_norm.hook_scale, hook_normalized, k_norm        as ln1's, per head: batch pos head d_head
    blocks.{i}.attn.v_norm.hook_scale, hook_normalized                as k_norm's; hook_v is what is left of it
    blocks.{i}.ln1_post.hook_scale, hook_normalized, ln2_post,        as ln1's: what attention, MLP and the block's own input say
      ln_layer_input                                                    is normed before it is added to the stream
    blocks.{i}.hook_layer_input             batch pos d_layer_input   what is embedded for this block alone
    blocks.{i}.hook_layer_input_out         batch pos d_model         what it adds to the stream, after the MLP
    blocks.{i}.mlp.hook_router_logits, hook_expert_weights            batch pos expert      before, after the softmax
    blocks.{i}.mlp.hook_expert_indices      batch pos slot            the chosen experts
    blocks.{i}.mlp.hook_expert_out          batch pos slot d_model    what each says, before it is weighted
  encoders:
    vision.blocks.{i}.hook_resid_post       batch patch d_vision      patches in the order of frame, row, column
    audio.blocks.{i}.hook_resid_post        batch mel_pos d_audio
    qformer.blocks.{i}.hook_resid_post      batch media_pos d_qformer   where a Q-Former makes the audio tokens
    vision.blocks.{i}.attn.hook_pattern,    group head query_pos key_pos      of what attends among itself: a window, a
      audio                                                             frame, a piece of sound; called once or more for each
                                                                        medium; joined in a cache, the shorter filled with 0
    qformer.blocks.{i}.attn.hook_pattern    window head query key_pos   what its query reads of each window of sound
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

from avlens.errors import HookError, LayerError

Layers = Literal["all"] | Sequence[int]
"""Which blocks, 0-based: `"all"`, a list, or a range."""

NamesFilter = str | Sequence[str] | Callable[[str], bool] | None
"""Which activations: a short or full name, several, a predicate on full names, or None for the default."""

HookName = str | Callable[[str], bool]
"""Where a hook goes: a full name, or a predicate on full names."""

LARGE = ("attn_scores", "pattern", "result", "expert_out")
"""Activations of size head x pos x pos, head x pos x d_model or slot x pos x d_model, kept only when they are named."""

_PARTS = {
    "attn": ("q", "k", "v", "z", "rot_q", "rot_k", "attn_scores", "pattern", "result"),
    "mlp": ("pre", "pre_linear", "post", "router_logits", "expert_weights", "expert_indices", "expert_out"),
    "": (
        "resid_pre",
        "resid_mid",
        "resid_post",
        "attn_out",
        "mlp_out",
        "deepstack",
        "layer_input",
        "layer_input_out",
    ),
    "attn.q_norm": ("q_norm.scale", "q_norm.normalized"),
    "attn.k_norm": ("k_norm.scale", "k_norm.normalized"),
    "attn.v_norm": ("v_norm.scale", "v_norm.normalized"),
    "ln1": ("ln1.scale", "ln1.normalized"),
    "ln2": ("ln2.scale", "ln2.normalized"),
    "ln1_post": ("ln1_post.scale", "ln1_post.normalized"),
    "ln2_post": ("ln2_post.scale", "ln2_post.normalized"),
    "ln_layer_input": ("ln_layer_input.scale", "ln_layer_input.normalized"),
}
SITES = {short: (part, short.split(".")[-1]) for part, shorts in _PARTS.items() for short in shorts}
"""Every activation of a block: short name -> (part of the block, name after `hook_`)."""

BEFORE_KEYS = (
    "deepstack",
    "resid_pre",
    "ln1.scale",
    "ln1.normalized",
    "k",
    "v",
    "k_norm.scale",
    "k_norm.normalized",
    "rot_k",
)
"""Activations of a block from which its keys and values are made: what they hold, later rows read. The others concern
their own row alone."""


def at(short: str, layer: int) -> str:
    """The full name of a block's activation: `at("pattern", 3)` is `"blocks.3.attn.hook_pattern"`.

    Raises:
        HookError: If no activation of a block has that short name.
    """
    if short not in SITES:
        raise HookError(f"{short!r} is no activation of a block. {nearest(short, SITES)}")
    part, last = SITES[short]
    return ".".join(piece for piece in ("blocks", str(layer), part, f"hook_{last}") if piece)


def hook_names(short: str, layers: Layers) -> list[HookName]:
    """Where a hook for `short` goes: a predicate for `"all"`, else one full name per layer.

    Raises:
        HookError: If no activation of a block has that short name.
        LayerError: If `layers` is neither `"all"` nor a sequence of 0-based layers.
    """
    at(short, 0)
    if layers == "all":
        return [EveryLayer(short)]
    return [at(short, layer) for layer in checked_layers(layers)]


class EveryLayer:
    """True for the full names of `short` in any block. Prints as what it is."""

    def __init__(self, short: str) -> None:
        self.short = short

    def __call__(self, name: str) -> bool:
        """Whether a full name is one of them."""
        return layer_of(name) is not None and name == at(self.short, layer_of(name) or 0)

    def __repr__(self) -> str:
        return f"every {self.short}"


def checked_layers(layers: Sequence[int]) -> list[int]:
    """`layers` as a list.

    Raises:
        LayerError: If it is not a sequence of integers from 0 up, or empty.
    """
    if isinstance(layers, (str, bytes)) or not isinstance(layers, Iterable):
        raise LayerError(f"layers is {layers!r}. Pass 'all', a list such as [3] or a range such as range(8, 15).")
    if wrong := [layer for layer in layers if not isinstance(layer, (int, np.integer)) or layer < 0]:
        raise LayerError(f"layers holds {wrong[0]!r}. Layers are integers counted from 0.")
    if len(chosen := [int(layer) for layer in layers]) == 0:
        raise LayerError(
            f"layers is {layers!r}, which holds none. Pass 'all', a list such as [3] or a range such as range(8, 15)."
        )
    return chosen


def layer_of(name: str) -> int | None:
    """The block a full name belongs to, 0-based, or None outside the decoder's blocks."""
    pieces = name.split(".")
    return int(pieces[1]) if pieces[0] == "blocks" and len(pieces) > 2 and pieces[1].isdigit() else None


def of_encoder(name: str) -> bool:
    """Whether a full name is of a block of an encoder."""
    return ".blocks." in name


def short_name(name: str) -> str:
    """The short name of a full one: `"blocks.3.ln1.hook_scale"` gives `"ln1.scale"`."""
    pieces = [piece.removeprefix("hook_") for piece in name.split(".") if not piece.isdigit()]
    kept = [piece for piece in pieces if piece not in ("blocks", "attn", "mlp")]
    return ".".join(kept)


def matching(names_filter: NamesFilter, names: Iterable[str]) -> list[str]:
    """The full names that a filter chooses among `names`, in their order.

    None chooses all but the large ones (`LARGE`).

    Raises:
        HookError: If the filter, or one of the names in it, matches nothing.
    """
    names = list(names)
    if names_filter is None:
        return [name for name in names if short_name(name).split(".")[-1] not in LARGE]
    if callable(names_filter):
        chosen = [name for name in names if names_filter(name)]
        if not chosen:
            raise HookError(
                f"the names_filter {names_filter!r} matches none of {len(names)} activations, {_few(names)}."
            )
        return chosen
    wanted = [names_filter] if isinstance(names_filter, str) else list(names_filter)
    chosen_names = {name for want in wanted for name in _named(want, names)}
    if not chosen_names:
        raise HookError("names_filter is empty. Name an activation such as 'resid_pre', or pass None for the default.")
    return [name for name in names if name in chosen_names]


def _named(want: str, names: list[str]) -> list[str]:
    found = [name for name in names if name == want or short_name(name) == want]
    if not found:
        raise HookError(f"no activation is called {want!r}. {nearest(want, names)}")
    return found


def nearest(want: str, names: Iterable[str]) -> str:
    """Advice on a name that is not among `names`: those near it, or some of those there are."""
    known = sorted({short_name(name) for name in names} | set(names))
    near = difflib.get_close_matches(want, known, n=3, cutoff=0.5)
    if near:
        return f"Near names: {', '.join(near)}."
    return f"There are {len(known)}, {_few([name for name in known if '.' not in name] or known)}."


def _few(names: list[str]) -> str:
    return "such as " + ", ".join(names[:6])
