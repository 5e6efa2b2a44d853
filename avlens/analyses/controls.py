"""Is it the set, or only how many, where and how often: which random sets is a set of tokens to be compared with?

Each draw has as many positions of each modality as the set, and each position is the nearest there is to one of the set in
what is matched, at random among equals:

    count          nothing but the modality
    chunk          the run of neighbours of one modality and clip
    later_queries  how many audio and video tokens of the other modality come later, which could read it
    frequency      in how many layers it is a sink

Source: the position confounds of sinks in Jung et al. 2026, arXiv:2605.10815, whose random baseline is one unseeded draw matched
in count.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avlens.errors import PositionError
from avlens.inputs import AVInputs
from avlens.tokens import Modality, TokenMap, TokenSet

Match = Literal["count", "chunk", "later_queries", "frequency"]


def matched_draws(
    like: TokenSet,
    match: Match = "count",
    *,
    n: int = 10,
    seed: int = 0,
    within: TokenSet | None = None,
    frequency: Int[Tensor, " pos"] | None = None,
) -> list[TokenSet]:
    """`n` random sets that are like a set in its modalities and in what is matched.

    Args:
        like: The set to be compared.
        match: What to match.
        n: How many draws.
        seed: Of the draws.
        within: Where to draw from; by default every other position of the prompt.
        frequency: For `frequency`: in how many layers each position is a sink (`Sinks.frequency`).

    Raises:
        PositionError: If a modality has too few positions to draw from, or frequencies are missing.
    """
    tokens = like.tokens
    pool = tokens.all - like if within is None else within
    tokens.check_own(pool)
    value = _value(tokens, match, frequency)
    generator = torch.Generator().manual_seed(seed)
    return [tokens.at(sorted(_draw(like, pool, value, generator))) for _ in range(n)]


def causally_idle(clean: AVInputs, corrupt: AVInputs) -> TokenSet:
    """The positions before the first sound or video that differs: patching them into the other run changes nothing.

    Raises:
        PositionError: If the prompts have different layouts.
    """
    tokens = clean.tokens
    tokens.check_own(corrupt.tokens.all)
    pairs = zip(clean.prompt.media, corrupt.prompt.media, strict=True)
    differ = [int(ours.positions.min()) for ours, theirs in pairs if ours.key != theirs.key]
    return tokens.at(range(min(differ, default=len(tokens))))


def later_queries(tokens: TokenMap) -> Int[Tensor, " pos"]:
    """How many tokens of the other modality come after each audio and video token; 0 elsewhere."""
    count = torch.zeros(len(tokens), dtype=torch.long)
    for mine, others in ((Modality.VIDEO, Modality.AUDIO), (Modality.AUDIO, Modality.VIDEO)):
        of_others = (tokens.modality == others).long()
        after = of_others.flip(0).cumsum(0).flip(0) - of_others
        count = torch.where(tokens.modality == mine, after, count)
    return count


def _value(tokens: TokenMap, match: Match, frequency: Tensor | None) -> Float[Tensor, " pos"]:
    if match == "frequency":
        if frequency is None or len(frequency) != len(tokens):
            raise PositionError("matching by frequency needs one number per position. Pass frequency=sinks.frequency.")
        return frequency.double()
    values = {"count": torch.zeros(len(tokens)), "chunk": tokens.chunk, "later_queries": later_queries(tokens)}
    if match not in values:
        raise PositionError(f"match is {match!r}. Match by {', '.join([*values, 'frequency'])}.")
    return values[match].double()


def _draw(like: TokenSet, pool: TokenSet, value: Float[Tensor, " pos"], generator: torch.Generator) -> list[int]:
    """For each position of the set, in random order, the nearest free one of its modality, at random among equals."""
    kinds, free, drawn = like.tokens.modality, torch.zeros(len(value), dtype=torch.bool), []
    free[pool.positions] = True
    order = torch.randperm(len(like), generator=generator)
    for position in like.positions[order].tolist():
        candidates = (free & (kinds == kinds[position])).nonzero()[:, 0]
        if len(candidates) == 0:
            name = Modality(int(kinds[position])).name.lower()
            raise PositionError(f"there are fewer {name} positions to draw from than in {like!r}. Widen `within`.")
        distance = (value[candidates] - value[position]).abs()
        nearest = candidates[distance == distance.min()]
        chosen = int(nearest[torch.randint(len(nearest), (1,), generator=generator)])
        free[chosen] = False
        drawn.append(chosen)
    return drawn
