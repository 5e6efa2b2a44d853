"""How do thousands of tokens become some fifty rows that can be read?

Each position belongs to one group. A map of attention over positions becomes one over groups by the mean over a
group's queries and the sum over a group's keys, so that rows still sum to 1:

    A'[g, h] = 1/|g| sum_{q in g} sum_{k in h} A[q, k].

So a group of many keys looks heavy by its size alone. The first token and every sink stay alone, with a star: each
takes much of the attention and would paint whatever group it is in. The last position, which answers, stays alone too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avlens.errors import ViewError
from avlens.tokens import Modality, Segment, TokenMap, TokenSet

Grouping = Literal["overview", "regions", "sinks", "modality", "token"]
RowOrder = Literal["sequence", "modality"]


@dataclass(frozen=True, eq=False)
class Group:
    """Positions that share a row.

    Attributes:
        label: Without spaces; a single position's ends in `@` and the position.
        modality: Of its first position.
        positions: In the order of the prompt.
    """

    label: str
    modality: Modality
    positions: Int[Tensor, " member"]


def group(
    tokens: TokenMap,
    *,
    by: Grouping = "overview",
    sinks: TokenSet | None = None,
    order: RowOrder = "sequence",
    audio_seconds: float | int = 1.0,
    frames_per_row: int = 1,
) -> list[Group]:
    """Every position of the prompt, in groups.

    Args:
        tokens: The prompt.
        by: `overview`: frames, stretches of sound, and each word of the question and after. `regions`: quarters of
            frames, stretches of sound, text by part of the prompt. `modality`: one group for each part of the prompt
            and modality. `sinks`: the same, for a look at the sinks, which must be given. `token`: each alone.
        sinks: Positions that stay alone, as does the first.
        order: By first position, or all text before the media, then video, images, audio, and the text after them.
        audio_seconds: How long a stretch of sound is.
        frames_per_row: How many neighbouring frames are one group.

    Raises:
        ViewError: If a choice does not exist, or nothing is left to group by.
        PositionError: If `sinks` belongs to a prompt of another layout.
    """
    _check(by, order, sinks, audio_seconds, frames_per_row)
    alone = {0}
    if sinks is not None:
        tokens.check_own(sinks)
        alone |= set(sinks)
    key_of = _keys(tokens, by, audio_seconds, frames_per_row)
    members: dict[_Key, list[int]] = {}
    for position in range(len(tokens)):
        key = _Key("starred", position) if position in alone else key_of(position)
        members.setdefault(key, []).append(position)
    groups = [
        Group(_label(tokens, key, positions, audio_seconds), _modality(tokens, positions[0]), torch.tensor(positions))
        for key, positions in members.items()
    ]
    return sorted(groups, key=lambda g: (_rank(tokens, g), int(g.positions[0]))) if order == "modality" else groups


def aggregate(
    pattern: Float[Tensor, "head query_pos key_pos"], groups: Sequence[Group]
) -> Float[Tensor, "head query_group key_group"]:
    """The pattern between groups: mean over queries, sum over keys, in fp32."""
    of = torch.full((pattern.shape[-1],), -1)
    for i, one in enumerate(groups):
        of[one.positions] = i
    if (of < 0).any():
        raise ViewError(
            f"the groups leave out {int((of < 0).sum())} of {len(of)} positions, so that rows would not sum to 1. "
            "Pass all that group(tokens) returns."
        )
    return torch.stack([_between(head, of.to(pattern.device), len(groups)) for head in pattern])


def _between(
    head: Float[Tensor, "query_pos key_pos"], of: Int[Tensor, " pos"], n: int
) -> Float[Tensor, "query_group key_group"]:
    to_keys = torch.zeros(len(of), n, device=head.device).index_add_(1, of, head.float())
    summed = torch.zeros(n, n, device=head.device).index_add_(0, of, to_keys)
    return summed / of.bincount(minlength=n)[:, None]


def named_alone(tokens: TokenMap, position: int, *, starred: bool = False) -> str:
    """A position's label with its place in the prompt, such as `v3[2,5]@453`."""
    return f"{'★' if starred else ''}{''.join(tokens.labels[position].split())}@{position}"


def _check(by: str, order: str, sinks: TokenSet | None, audio_seconds: float | int, frames_per_row: int) -> None:
    if by not in get_args(Grouping):
        raise ViewError(f"tokens cannot be grouped by {by!r}. Group by {', '.join(map(repr, get_args(Grouping)))}.")
    if order not in get_args(RowOrder):
        raise ViewError(f"rows cannot be ordered by {order!r}. Order by {', '.join(map(repr, get_args(RowOrder)))}.")
    if by == "sinks" and not sinks:
        raise ViewError("grouping by 'sinks' was asked without any sink. Pass sinks=find_sinks(...).tokens.")
    if not audio_seconds > 0 or frames_per_row < 1:
        raise ViewError(
            f"audio_seconds is {audio_seconds} and frames_per_row {frames_per_row}. Pass more than 0 seconds and at "
            "least 1 frame."
        )


class _Key(NamedTuple):
    """What the members of a group have in common; -1 where that says nothing."""

    kind: Literal["starred", "alone", "text", "all", "stretch", "frames", "quarter"]
    number: int = -1
    clip: int = -1
    modality: int = -1
    quarter: str = ""


def _keys(tokens: TokenMap, by: Grouping, audio_seconds: float | int, frames_per_row: int) -> Callable[[int], _Key]:
    modality, segment, clip = tokens.modality.tolist(), tokens.segment.tolist(), tokens.clip.tolist()
    frame, start, quarter = tokens.frame.tolist(), tokens.start.tolist(), _quarters(tokens)
    words, run = _words(tokens).tolist(), _runs(tokens)

    def key(i: int) -> _Key:
        is_text = modality[i] in (Modality.TEXT, Modality.SPECIAL)
        if by == "token" or i == len(tokens) - 1 or (by == "overview" and words[i]):
            return _Key("alone", i)
        if is_text:
            return _Key("text", run[i], modality=segment[i])
        if by in ("sinks", "modality"):
            return _Key("all", clip=clip[i], modality=modality[i])
        if modality[i] == Modality.AUDIO:
            # a token that starts on the border, up to rounding, belongs to what follows
            return _Key("stretch", int(start[i] / audio_seconds + 1e-6), clip[i], modality[i])
        if by == "regions" and modality[i] != Modality.SEPARATOR:
            return _Key("quarter", frame[i] // frames_per_row, clip[i], modality[i], quarter[i])
        return _Key("frames", frame[i] // frames_per_row, clip[i], modality[i])

    return key


def _words(tokens: TokenMap) -> Bool[Tensor, " pos"]:
    """Text that is read word by word: all but system and template, and what follows the last of it and of the media."""
    said = _is_said(tokens)
    anchors = (said | _is_media(tokens)).nonzero()[:, 0]
    after = int(anchors[-1]) + 1 if len(anchors) else 0
    return said | (torch.arange(len(tokens)) >= after)


def _runs(tokens: TokenMap) -> list[int]:
    """How often the part of the prompt has changed before each position: a row of text is one run of one part."""
    changed = tokens.segment[1:] != tokens.segment[:-1]
    runs: list[int] = torch.cat([torch.zeros(1, dtype=torch.long), changed.long().cumsum(0)]).tolist()
    return runs


def _is_said(tokens: TokenMap) -> Bool[Tensor, " pos"]:
    told = (Segment.CONTEXT, Segment.QUESTION, Segment.OPTION, Segment.ANSWER)
    return torch.isin(tokens.segment, torch.tensor([int(part) for part in told])) & ~_is_media(tokens)


def _is_media(tokens: TokenMap) -> Bool[Tensor, " pos"]:
    kinds = (Modality.AUDIO, Modality.VIDEO, Modality.IMAGE, Modality.SEPARATOR)
    return torch.isin(tokens.modality, torch.tensor([int(kind) for kind in kinds]))


def _quarters(tokens: TokenMap) -> list[str]:
    """Top or bottom, left or right, of the patch grid of each position's own clip."""
    found = [""] * len(tokens)
    for clip in tokens.clip.unique().tolist():
        for kind in (Modality.VIDEO, Modality.IMAGE):
            mine = ((tokens.clip == clip) & (tokens.modality == kind)).nonzero()[:, 0]
            if len(mine):
                low = 2 * tokens.row[mine] > tokens.row[mine].max()
                right = 2 * tokens.col[mine] > tokens.col[mine].max()
                for position, is_low, is_right in zip(mine.tolist(), low.tolist(), right.tolist(), strict=True):
                    found[position] = "TB"[is_low] + "LR"[is_right]
    return found


def _modality(tokens: TokenMap, position: int) -> Modality:
    return Modality(int(tokens.modality[position]))


def _label(tokens: TokenMap, key: _Key, positions: list[int], audio_seconds: float | int) -> str:
    if key.kind in ("starred", "alone"):
        return named_alone(tokens, positions[0], starred=key.kind == "starred")
    clip, count = f"c{key.clip}." if key.clip > 0 else "", f"·×{len(positions)}"
    if key.kind == "text":
        return Segment(key.modality).name.lower() + count
    kind = Modality(key.modality)
    if key.kind == "stretch":
        return f"{clip}a·{key.number * audio_seconds:g}-{(key.number + 1) * audio_seconds:g}s{count}"
    quarter = f"·{key.quarter}" if key.quarter else ""
    if key.kind == "all" or kind != Modality.VIDEO:
        return f"{clip}{kind.name.lower()}{quarter}{count}"
    first, last = int(tokens.frame[positions].min()), int(tokens.frame[positions].max())
    seconds = f"{float(tokens.start[positions].min()):.4g}-{float(tokens.end[positions].max()):.4g}s"
    return f"{clip}v{first}{f'-{last}' if last > first else ''}·{seconds}{quarter}{count}"


def _rank(tokens: TokenMap, one: Group) -> int:
    ranks = {Modality.VIDEO: 1, Modality.IMAGE: 2, Modality.SEPARATOR: 2, Modality.AUDIO: 3}
    if one.modality in ranks:
        return ranks[one.modality]
    media = tokens.media.positions
    return 0 if not len(media) or int(one.positions[0]) < int(media[0]) else 4
