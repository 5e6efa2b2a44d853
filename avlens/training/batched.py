"""How does a batch of clips of one length run fast: the thinker's forward pass, written for one shared layout.

The same mathematics as transformers' modules, on the same weights (a test holds them equal), without the bookkeeping for
rows of different shapes. A row holds one clip and several questions: each question and its answer see the clip and what
comes before it, but not each other, so that every one of them is exactly the prompt that `model.prepare` makes.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as stock

from avlens.datasets.synthetic import Asked
from avlens.encoders.patches import cut_patches
from avlens.media import Clip
from avlens.model import HookedAVModel
from avlens.training.recipe import FRAMES_PER_SECOND, PATCHES_PER_SECOND, SIDE


@dataclass(frozen=True, eq=False)
class Layout:
    """What is where in the prompt of a clip of some length, up to the question.

    Attributes:
        ids: Token ids before the question.
        positions: Their position ids.
        video: Positions of video tokens.
        audio: Positions of audio tokens.
        start: Position id of the question's first token.
    """

    ids: Int[Tensor, " pos"]
    positions: Int[Tensor, "3 pos"]
    video: Int[Tensor, " video"]
    audio: Int[Tensor, " audio"]
    start: int


def layout_of(model: HookedAVModel, seconds: int) -> Layout:
    """The layout that `model.prepare` gives a clip."""
    frames = torch.zeros(seconds * FRAMES_PER_SECOND, 3, SIDE, SIDE, dtype=torch.uint8)
    clip = Clip(frames, FRAMES_PER_SECOND, torch.zeros(seconds * 16000), 16000)
    prompt = model.prepare(clip, "describe the clip .").prompt
    at = int(prompt.tokens.question.positions[0])
    return Layout(
        prompt.ids[:at], prompt.positions[:, :at], prompt.tokens.video.positions, prompt.tokens.audio.positions,
        int(prompt.positions[0, at]),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Rows:
    """Questions and answers of a batch, packed behind the clips.

    Attributes:
        ids: Token ids of whole rows; padding is the tokenizer's.
        labels: The next token where it belongs to an answer, else -100.
        positions: Position ids, the same in every row.
        visible: Which keys each query may read, the same in every row.
        branch: Which question each position belongs to; -1 before the questions.
        options: At the last token of each answer option, whether it is the right one, 1 or 0; -100 elsewhere.
    """

    ids: Int[Tensor, "row pos"]
    labels: Int[Tensor, "row pos"]
    positions: Int[Tensor, "3 pos"]
    visible: Bool[Tensor, "pos pos"]
    branch: Int[Tensor, " pos"]
    options: Int[Tensor, "row pos"]


def pack(model: HookedAVModel, layout: Layout, asked: list[list[Asked]]) -> Rows:
    """Pack questions, one list per row, of the same number each."""
    pad = model.tokenizer.pad_token_id
    n_rows, ids, labels = len(asked), [layout.ids.expand(len(asked), -1)], []
    labels = [torch.full((n_rows, len(layout.ids)), -100)]
    options = [labels[0]]
    positions, branch = [layout.positions], [torch.full((len(layout.ids),), -1)]
    for number, slot in enumerate(zip(*asked, strict=True)):
        pieces = [_turn(model.tokenizer, one) for one in slot]
        length = max(len(question) + len(answer) for question, answer in pieces) - 1
        rows, said = torch.full((n_rows, length), pad), torch.full((n_rows, length), -100)
        right = said.clone()
        for row, ((question, answer), one) in enumerate(zip(pieces, slot, strict=True)):
            whole = torch.tensor(question + answer)
            rows[row, : len(whole) - 1] = whole[:-1]
            said[row, len(question) - 1 : len(whole) - 1] = torch.tensor(answer)
            for i, end in enumerate(_option_ends(model.tokenizer, one)):
                right[row, end] = int(one.answer == chr(65 + i))
        ids.append(rows)
        labels.append(said)
        options.append(right)
        positions.append((layout.start + torch.arange(length)).expand(3, -1))
        branch.append(torch.full((length,), number))
    of = torch.cat(branch)
    visible = ((of[:, None] == of) | (of == -1)[None]).tril()
    return Rows(torch.cat(ids, 1), torch.cat(labels, 1), torch.cat(positions, 1), visible, of, torch.cat(options, 1))


def _turn(tokenizer: Any, asked: Asked) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of a question with its options up to the answer, and of the answer with its end."""
    question = f"{_listed(asked, len(asked.options))}<|im_end|>\n<|im_start|>assistant\n"
    return _ids(tokenizer, question), _ids(tokenizer, f"{asked.answer}<|im_end|>")


def _option_ends(tokenizer: Any, asked: Asked) -> list[int]:
    """Where in the question the last token of each option stands."""
    return [len(_ids(tokenizer, _listed(asked, n))) - 1 for n in range(1, len(asked.options) + 1)]


def _listed(asked: Asked, n: int) -> str:
    """The question and its first options."""
    return asked.question + "".join(f"\n{chr(65 + i)}. {option}" for i, option in enumerate(asked.options[:n]))


@cache
def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def see(model: HookedAVModel, frames: UInt8[Tensor, "clip frame 3 side side"]) -> Float[Tensor, "clip video d_model"]:
    """The vision tower on clips of one length."""
    tower: Any = model.stock.encoders["vision"]
    family: Any = model.family
    pixels = cut_patches(frames.flatten(0, 1), family.reading.rules, SIDE**2, SIDE**2).pixels
    weight = tower.patch_embed.proj.weight
    x = F.linear(pixels.view(-1, PATCHES_PER_SECOND, pixels.shape[-1]), weight.view(weight.shape[0], -1))
    places = stock.get_vision_position_ids(torch.tensor([[1, 6, 6]]), 2)
    cos, sin = tower.rotary_pos_emb(x, places)
    for block in tower.blocks:
        h, attn = block.norm1(x), block.attn
        q, k, v = (linear(h).unflatten(-1, (attn.num_heads, -1)) for linear in (attn.q, attn.k, attn.v))
        q, k = stock.apply_rotary_pos_emb_vision(q, k, cos, sin)
        z = F.scaled_dot_product_attention(*(one.transpose(1, 2) for one in (q, k, v)))
        x = x + attn.proj(z.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    merged: Tensor = tower.merger(x.flatten(0, 1))
    return merged.view(len(frames), -1, merged.shape[-1])


def hear(model: HookedAVModel, mel: Float[Tensor, "clip mel mel_pos"]) -> Float[Tensor, "clip audio d_model"]:
    """The audio tower on clips of one length, of at most one window."""
    tower: Any = model.stock.encoders["audio"]
    x = F.gelu(tower.conv2(F.gelu(tower.conv1(mel)))).transpose(1, 2)
    x = x + tower.positional_embedding.positional_embedding[: x.shape[1]]
    for layer in tower.layers:
        h, attn = layer.self_attn_layer_norm(x), layer.self_attn
        q, k, v = (
            linear(h).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
            for linear in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        x = x + attn.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
    heard: Tensor = tower.proj(tower.ln_post((x[:, 0::2] + x[:, 1::2]) / 2))
    return heard


def embed(
    model: HookedAVModel,
    layout: Layout,
    rows: Rows,
    seen: Float[Tensor, "row video d_model"],
    heard: Float[Tensor, "row audio d_model"],
) -> Float[Tensor, "row pos d_model"]:
    """What enters the first block."""
    embeds = model.stock.embed(rows.ids).clone()
    embeds[:, layout.video], embeds[:, layout.audio] = seen, heard
    return embeds


def decode(
    model: HookedAVModel,
    embeds: Float[Tensor, "row pos d_model"],
    rows: Rows,
    visible: Bool[Tensor, "pos pos"],
    streams: list[Tensor] | None = None,
    exchanged: Int[Tensor, " exchanged"] | None = None,
) -> Float[Tensor, "row pos d_model"]:
    """The decoder's last, normalised, residual stream.

    Args:
        model: The model.
        embeds: What enters the first block.
        rows: Their positions.
        visible: Which keys each query may read.
        streams: If given, the stream before each block is appended.
        exchanged: Positions at which, before each block, the second half of the rows takes over the stream of the first.
    """
    decoder = model.stock.whole.model.language_model
    cfg, x = model.cfg, embeds
    half, n_qk = cfg.d_head // 2, cfg.n_heads + cfg.n_key_value_heads
    cos, sin = (table[:, None] for table in decoder.rotary_emb(x[:1, :1], rows.positions[:, None]))
    sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)
    for layer in decoder.layers:
        x = x if exchanged is None else _exchange(x, exchanged)
        if streams is not None:
            streams.append(x)
        attn, mlp = layer.self_attn, layer.mlp
        maps = attn.q_proj, attn.k_proj, attn.v_proj
        h = _norm(x, layer.input_layernorm)
        qkv = F.linear(h, torch.cat([one.weight for one in maps]), torch.cat([one.bias for one in maps]))
        qkv = qkv.unflatten(-1, (-1, cfg.d_head)).transpose(1, 2)
        qk = qkv[:, :n_qk]
        qk = qk * cos + qk.roll(half, -1) * sin
        z = F.scaled_dot_product_attention(
            qk[:, : cfg.n_heads], qk[:, cfg.n_heads :], qkv[:, n_qk:], attn_mask=visible, enable_gqa=True
        )
        x = x + attn.o_proj(z.transpose(1, 2).flatten(2))
        h = _norm(x, layer.post_attention_layernorm)
        x = x + mlp.down_proj(F.silu(mlp.gate_proj(h)) * mlp.up_proj(h))
    return _norm(x, decoder.norm)


def _exchange(
    x: Float[Tensor, "row pos d_model"], positions: Int[Tensor, " exchanged"]
) -> Float[Tensor, "row pos d_model"]:
    source, target = x.chunk(2)
    target = target.clone()
    target[:, positions] = source[:, positions]
    return torch.cat([source, target])


def _norm(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
