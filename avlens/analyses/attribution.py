"""Direct logit attribution: which component writes the answer into the last position, and from which tokens did it read it?

The logit of a token is a sum over what was written into the residual stream of the position that predicts it,

    logit = sum over components c of  c . direction / scale,     direction = ln_final.w * W_U[:, token],  scale = the final norm's

where the components are the embedding, every layer's MLP, and every head's output split by the groups of tokens that it reads:

    head[layer, h, group] = sum over keys k of the group of  pattern[last, k] v_k W_O

so that what comes from audio, video and text is told apart. The parts add up to the logit; `error` says by how much they do not.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; the split of heads by what they read, Kobayashi
et al. 2020, "Attention is Not Only a Weight", arXiv:2004.10102.

A direct effect is not all of an effect: what a head writes may be read by later layers first. Patching tells that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from avlens import display
from avlens.cache import AVCache, Reduction, reduce
from avlens.edges import Groups, groups_of
from avlens.errors import PositionError, PromptError
from avlens.hooks import HookPoint, query_positions
from avlens.inputs import AVInputs
from avlens.tokens import TokenSet

REST = "rest"
"""The group of all positions that are in no other."""


@dataclass(frozen=True, eq=False)
class LogitAttribution:
    """What each component adds to the logit of the answer, or to its difference from another's, in logits.

    Attributes:
        heads: Of each head, what it read at each group.
        mlp: Of each layer.
        embed: Of what enters the first block.
        bias: Of the attention's output biases, of each layer.
        added: Of what encoders add to the stream before later blocks, of each layer; 0 where they add nothing.
        unembed_bias: Of the unembedding's bias.
        groups: What was read, by name; a partition of the prompt.
        logit: What all should add up to.
        answer: The token, as text.
        against: The token whose logit is subtracted, as text; empty without one.
        made_by: What made it.
    """

    heads: Float[Tensor, "layer head group"]
    mlp: Float[Tensor, " layer"]
    embed: float
    bias: Float[Tensor, " layer"]
    added: Float[Tensor, " layer"]
    unembed_bias: float
    groups: Mapping[str, TokenSet]
    logit: float
    answer: str
    against: str
    made_by: Mapping[str, Any]

    @property
    def by_group(self) -> dict[str, float]:
        """What all heads read at each group."""
        return dict(zip(self.groups, self.heads.sum((0, 1)).tolist(), strict=True))

    @property
    def error(self) -> float:
        """By how much the parts miss the logit: rounding."""
        parts = self.heads.sum() + self.mlp.sum() + self.bias.sum() + self.added.sum()
        return float(parts) + self.embed + self.unembed_bias - self.logit

    def to_frame(self) -> pd.DataFrame:
        """One row per component: the sum, and for heads what comes from each group."""
        rows: list[dict[str, Any]] = [{"component": "embed", "logit": self.embed}]
        for layer in range(len(self.mlp)):
            for head, parts in enumerate(self.heads[layer].tolist()):
                rows.append(
                    {"component": f"L{layer}H{head}", "logit": sum(parts), **dict(zip(self.groups, parts, strict=True))}
                )
            rows.append({"component": f"mlp {layer}", "logit": float(self.mlp[layer])})
            rows.append({"component": f"bias {layer}", "logit": float(self.bias[layer])})
            rows.append({"component": f"added {layer}", "logit": float(self.added[layer])})
        rows.append({"component": "unembed bias", "logit": self.unembed_bias})
        frame = pd.DataFrame(rows).set_index("component")
        return frame[(frame["logit"] != 0) | frame.index.str.startswith(("L", "mlp", "embed"))]

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {value:+.2f}" for name, value in self.by_group.items())
        other = f" - {self.against!r}" if self.against else ""
        return f"LogitAttribution({self.answer!r}{other}: {self.logit:.2f}; heads read {said}; MLPs {float(self.mlp.sum()):+.2f})"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


def direct_logit_attribution(
    model: Any,
    inputs: AVInputs,
    *,
    answer: str | int | None = None,
    against: str | int | None = None,
    groups: Groups | None = None,
) -> LogitAttribution:
    """Split the logit of an answer's first token by component and by what heads read, at the last position.

    Args:
        model: A HookedAVModel.
        inputs: One prompt.
        answer: A word or token id; by default the token that the model holds likeliest. Of a word's forms, without and with a
            space in front, the likelier counts.
        against: A word or token id whose logit is subtracted, so that what both share cancels.
        groups: What may be read, by name, without common positions; by default `avlens.groups.token_groups`. Positions in none
            are the group `rest`.

    Raises:
        HookError: If the model's blocks do not just add up what heads and MLPs say.
        PromptError: If the answer and what it is compared with begin with the same token.
        PositionError: If two groups share a position.
    """
    model.require_plain_blocks("direct logit attribution")
    parts = _partition(inputs, groups_of(groups, inputs))
    logits, cache = _run(model, inputs)
    first = _token(model, answer, logits)
    second = None if against is None else _token(model, against, logits)
    if first == second:
        told = f"the answer {answer!r}" if answer is not None else "the model's own answer"
        raise PromptError(f"{told} and against={against!r} begin with the same token. Pass two that differ.")
    direction = _direction(model, first, second) / cache["ln_final.hook_scale"][0, -1].float().cpu()
    layers = range(model.cfg.n_layers)
    written = [_by_head(model, cache, layer, parts) @ direction for layer in layers]
    mlp, entering, left = (
        torch.stack([cache[f"{site}.last", layer][0, 0].float().cpu() for layer in layers])
        for site in ("mlp_out", "resid_pre", "resid_post")
    )
    # What a block finds beyond what the one before it left is what an encoder has added.
    added = torch.cat([torch.zeros_like(left[:1]), entering[1:] - left[:-1]]) @ direction
    biases = torch.stack([block.attn.b_O.float().cpu() for block in model.blocks]) @ direction
    b_u = model.b_U.float().cpu()
    return LogitAttribution(
        heads=torch.stack(written), mlp=mlp @ direction, embed=float(entering[0] @ direction), bias=biases, added=added,
        unembed_bias=float(b_u[first] - (0 if second is None else b_u[second])), groups=parts,
        logit=float(logits[first] - (0 if second is None else logits[second])), answer=model.to_string(torch.tensor(first)),
        against="" if second is None else model.to_string(torch.tensor(second)), made_by=model.made_by(inputs),
    )  # fmt: skip


def _run(model: Any, inputs: AVInputs) -> tuple[Float[Tensor, " d_vocab"], AVCache]:
    """The logits of the last position; its rows of the pattern and of what is written; and values everywhere."""
    length = len(inputs.tokens)

    def last_row(
        pattern: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint
    ) -> Float[Tensor, "batch head key_pos"]:
        rows = (query_positions(hook, pattern, dim=2)[0] == length - 1).nonzero()[:, 0]
        if not len(rows):
            return pattern.new_zeros(*pattern.shape[:2], pattern.shape[3])
        return pattern[:, :, int(rows[0])]

    keep = [Reduction("pattern", "last", last_row, "sum")]
    keep += [reduce(site, "last", lambda x: x[:, -1:]) for site in ("mlp_out", "resid_pre", "resid_post")]
    logits, cache = model.run_with_cache(
        inputs, names_filter=["v", "ln_final.hook_scale"], reductions=keep, logits_at=inputs.tokens.last
    )
    return logits[0, 0].float().cpu(), cache


def _by_head(
    model: Any, cache: AVCache, layer: int, parts: Mapping[str, TokenSet]
) -> Float[Tensor, "head group d_model"]:
    """What each head writes into the last position, by the group that it reads."""
    pattern, v = cache["pattern.last", layer][0].float(), cache["v", layer][0].float()
    v = v.repeat_interleave(pattern.shape[0] // v.shape[1], dim=1)
    z = [
        torch.einsum("hk,khd->hd", pattern[:, t.positions.to(v.device)], v[t.positions.to(v.device)])
        for t in parts.values()
    ]
    w_o = model.blocks[layer].attn.W_O.float()
    return torch.einsum("hgd,hdm->hgm", torch.stack(z, dim=1).to(w_o.device), w_o).cpu()


def _direction(model: Any, first: int, second: int | None) -> Float[Tensor, " d_model"]:
    ids = torch.tensor([first] if second is None else [first, second])
    directions = model.tokens_to_residual_directions(ids).float().cpu()
    return directions[0] if second is None else directions[0] - directions[1]


def _token(model: Any, word: str | int | None, logits: Float[Tensor, " d_vocab"]) -> int:
    if word is None:
        return int(logits.argmax())
    if isinstance(word, int):
        return word
    forms = list(model.to_first_tokens(word))
    return forms[int(logits[forms].argmax())]


def _partition(inputs: AVInputs, groups: Mapping[str, TokenSet]) -> dict[str, TokenSet]:
    rest, parts = inputs.tokens.all, {}
    for name, tokens in groups.items():
        own = tokens & inputs.tokens.all
        if own - rest:
            raise PositionError(
                f"the group {name!r} shares {len(own - rest)} positions with another. Pass groups without common positions."
            )
        if own:
            parts[name], rest = own, rest - own
    return {**parts, REST: rest} if rest else parts
