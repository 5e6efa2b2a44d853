"""How does a chat with clips in it become token ids, position ids and a TokenMap?

The tokenizer's own chat template writes the text with one placeholder per clip; the text is tokenised; each
placeholder is replaced by the tokens of its `Medium`. What every character belongs to is known from where it was
put, so that segments are never guessed from token ranges.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from avlens.errors import PromptError
from avlens.family import Part, PromptOptions
from avlens.inputs import Media, Prompt
from avlens.media import Clip
from avlens.tokens import Modality, Segment, TokenMap


@dataclass(frozen=True, eq=False)
class Medium:
    """A clip's or image's tokens in a prompt.

    Attributes:
        tokens: In order, markers that the chat template does not write included.
        positions: Their position ids, counted from the next free one.
        media: What encoders read, by modality; their outputs go to the tokens of that modality, in order. Separators
            are the sight's.
        advance: How far the text after them goes on.
        closes_with_next: Whether the next token shares the last one's position id.
    """

    tokens: TokenMap
    positions: Real[Tensor, "axis pos"]
    media: Sequence[tuple[Modality, dict[str, Tensor]]]
    advance: float
    closes_with_next: bool = False


@dataclass
class ChatText:
    """A prompt's text and which characters belong to which segment."""

    text: str
    spans: list[tuple[Segment, int, int]] = field(default_factory=list)

    def mark(self, segment: Segment, start: int, text: str) -> None:
        """Say that `text`, which stands at `start`, belongs to a segment."""
        self.spans.append((segment, start, start + len(text)))

    def segment_of(self, span: tuple[int, int]) -> Segment:
        """The segment that a token's characters overlap; the template where none does."""
        hits = [segment for segment, start, end in self.spans if span[0] < end and span[1] > start]
        return hits[0] if hits else Segment.TEMPLATE


def write_chat(tokenizer: Any, parts: Sequence[Part], question: str, options: PromptOptions) -> ChatText:
    """The text of one prompt, as the tokenizer's chat template writes it.

    Raises:
        PromptError: If the template changed a text, so that it cannot be found again.
    """
    content = [_content(part) for part in parts]
    listed = "".join(f"\n{chr(65 + i)}. {option}" for i, option in enumerate(options.options))
    asking = [{"type": "text", "text": question + listed}] if question + listed else []
    content = content + asking if options.order == "media_first" else asking + content
    messages = [{"role": "user", "content": content}]
    if options.system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": options.system}]})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    chat = ChatText(text + options.answer_prefix)
    if system := re.search(r"<\|im_start\|>system\s(.*?)<\|im_end\|>", text, re.DOTALL):
        chat.mark(Segment.SYSTEM, system.start(1), system.group(1))
    at = max(0, text.find("<|im_start|>user"))
    for piece in content:
        if piece["type"] == "text":
            at = _find(chat.text, piece["text"], at)
            is_question = bool(asking) and piece is asking[0]
            chat.mark(
                Segment.QUESTION if is_question else Segment.CONTEXT, at, question if is_question else piece["text"]
            )
            if is_question:
                chat.mark(Segment.OPTION, at + len(question), listed)
            at += len(piece["text"])
    chat.mark(Segment.ANSWER, len(text), options.answer_prefix)
    return chat


def assemble(tokenizer: Any, chat: ChatText, media: Sequence[Medium], placeholders: set[int]) -> Prompt:
    """Tokenise the text and put each medium's tokens in the place of its placeholder.

    Raises:
        PromptError: If the text holds placeholders of its own, or nothing at all.
    """
    encoded = tokenizer(chat.text, return_offsets_mapping=True, add_special_tokens=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if (found := sum(token in placeholders for token in ids)) != len(media):
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(placeholders)))
        raise PromptError(
            f"the prompt's text holds {found} media placeholders for {len(media)} clips and images. "
            f"Leave {names} out of the question and of the system message."
        )
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    line, queue = _Line(), list(media)
    for token, span in zip(ids, offsets, strict=True):
        if token in placeholders:
            line.medium(queue.pop(0))
        else:
            segment = Segment.TEMPLATE if token in special else chat.segment_of(span)
            modality = Modality.SPECIAL if token in special else Modality.TEXT
            line.word(_word(tokenizer, token, modality, segment, span))
    return line.prompt(chat.text)


def marker(tokenizer: Any, string: str) -> TokenMap:
    """A special token that the chat template does not write, such as `<|audio_bos|>`."""
    return _word(tokenizer, tokenizer.convert_tokens_to_ids(string), Modality.SPECIAL, Segment.TEMPLATE, (-1, -1))


class _Line:
    """A prompt while it is put together."""

    def __init__(self) -> None:
        self.runs: list[TokenMap] = []
        self.positions: list[Tensor] = []
        self.media: list[Media] = []
        self.at: float = 0
        self.length, self.shares = 0, False

    def word(self, run: TokenMap) -> None:
        self.at += 0 if self.shares else 1
        self.shares = False
        self._append(run, torch.full((3, 1), self.at - 1))

    def medium(self, medium: Medium) -> None:
        for modality, tensors in medium.media:
            kinds = [modality] if modality == Modality.AUDIO else [modality, Modality.SEPARATOR]
            where = torch.isin(medium.tokens.modality, torch.tensor(kinds)).nonzero()[:, 0]
            self.media.append(Media(modality, tensors, where + self.length, int(medium.tokens.clip[where[0]])))
        self._append(medium.tokens, medium.positions + self.at)
        self.at, self.shares = self.at + medium.advance, medium.closes_with_next

    def prompt(self, text: str) -> Prompt:
        if not self.runs:
            raise PromptError("the prompt is empty. Pass a clip, an image or a question.")
        tokens, positions = TokenMap.join(self.runs, text), torch.cat(self.positions, dim=1)
        return Prompt(tokens.ids, tokens, tuple(self.media), positions, positions.max().item() + 1)

    def _append(self, run: TokenMap, positions: Tensor) -> None:
        self.runs.append(run)
        self.positions.append(positions)
        self.length += len(run)


def _word(tokenizer: Any, token: int, modality: Modality, segment: Segment, span: tuple[int, int]) -> TokenMap:
    string = tokenizer.decode([token])
    return TokenMap.of(torch.tensor([token]), [string], modality, segment, offsets=torch.tensor([span]))


def _content(part: Part) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Clip):
        return {"type": "image"}
    return {"type": "video" if part.frames is not None else "audio"}


def _find(text: str, piece: str, start: int) -> int:
    at = text.find(piece, start)
    if at < 0:
        raise PromptError(f"the chat template changed the text {piece!r}. Write it as the template leaves it.")
    return at


# What the tokens of a clip or image are, for families whose encoders cut frames into patches.


def media_of(parts: Sequence[Part]) -> list[Any]:
    """The clips and images among the parts of a prompt."""
    return [part for part in parts if not isinstance(part, str)]


def grid_tokens(
    grid: tuple[int, int, int], modality: Modality, clip: int, token: int, string: str, **columns: Tensor
) -> TokenMap:
    """One token for each merged patch, by frame, row and column."""
    index = torch.cartesian_prod(*(torch.arange(n) for n in grid)).view(-1, 3)
    columns = {"frame": index[:, 0], "row": index[:, 1], "col": index[:, 2], **columns}
    count = len(index)
    return TokenMap.of(
        torch.full((count,), token),
        [string] * count,
        modality,
        Segment.MEDIA,
        clip=torch.full((count,), clip),
        **columns,
    )


def grid_edges(clip: Clip, temporal: int, n_grids: int) -> Float[Tensor, " edge"]:
    """True seconds at which each group of `temporal` frames begins, and the last one ends."""
    assert clip.frame_seconds is not None and clip.fps is not None
    starts = clip.frame_seconds.double()[::temporal][:n_grids]
    end = len(clip.frame_seconds) / clip.fps
    end = end if end > float(clip.frame_seconds[-1]) else float(clip.frame_seconds[-1]) + 1 / clip.fps
    return torch.cat([starts, torch.tensor([end], dtype=torch.float64)])


def text_prompts(tokenizer: Any, ids: Int[Tensor, "batch pos"]) -> tuple[Prompt, ...]:
    """Bare token ids as prompts of text."""
    rows = []
    for row in ids.cpu().long():
        strings = tokenizer.convert_ids_to_tokens(row.tolist())
        strings = [string or f"<{token}>" for string, token in zip(strings, row.tolist(), strict=True)]
        tokens = TokenMap.of(row, strings, Modality.TEXT, Segment.QUESTION)
        rows.append(Prompt(row, tokens, (), torch.arange(len(row)).expand(3, -1), len(row)))
    return tuple(rows)
