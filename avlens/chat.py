"""How does a chat with clips in it become token ids, position ids and a TokenMap?

The tokenizer's own chat template writes the text with one placeholder per clip; the text is tokenised; each
placeholder is replaced by the tokens of its `Medium`. What every character belongs to is known from where it was
put, so that segments are never guessed from token ranges. Where that is, the template itself says: it is written
once more with a mark in place of each text.
"""

import re
from abc import abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, groupby
from typing import Any

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from avlens.errors import PromptError
from avlens.family import Family, Part, PromptOptions
from avlens.inputs import AVInputs, Media, Prompt
from avlens.media import Clip
from avlens.templates import render
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
    """A prompt's text and which characters belong to which segment, in the order of the text."""

    text: str
    spans: list[tuple[Segment, int, int]] = field(default_factory=list)

    def mark(self, segment: Segment, start: int, text: str) -> None:
        """Say that `text`, which stands at `start`, after all that is marked already, belongs to a segment."""
        if text:
            self.spans.append((segment, start, start + len(text)))

    def segment_of(self, span: tuple[int, int]) -> Segment:
        """The first segment that a token's characters overlap; the template where none does."""
        i = bisect_right(self.spans, span[0], key=lambda marked: marked[2])
        return self.spans[i][0] if i < len(self.spans) and self.spans[i][1] < span[1] else Segment.TEMPLATE


class ChatFamily(Family):
    """A family whose prompts are chats: it says what the tokens of each medium are, and which ids stand for media."""

    @abstractmethod
    def medium(self, part: Any, options: PromptOptions, clip: int) -> Medium:
        """A clip's or image's encoder tensors, and its tokens in order with their positions from 0."""

    @abstractmethod
    def holes(self) -> set[int]:
        """The ids that stand for media in the text of a prompt."""

    def prepare(self, parts: Sequence[Part], question: str, options: PromptOptions) -> AVInputs:
        """One prompt, as the family's own processor or inference code writes it."""
        chat = write_chat(self.tokenizer, parts, question, options)
        media = [self.medium(part, options, index) for index, part in enumerate(media_of(parts))]
        return AVInputs((assemble(self.tokenizer, chat, media, self.holes()),), self.stock_kwargs)

    def text_inputs(self, ids: Int[Tensor, "batch pos"]) -> AVInputs:
        """Bare token ids as prompts of text."""
        return AVInputs(text_prompts(self.tokenizer, ids), self.stock_kwargs)

    def stock_kwargs(self, inputs: AVInputs) -> dict[str, Any]:
        """Prompts as keyword arguments of the stock transformers model.

        Raises:
            PromptError: If there is none.
        """
        raise PromptError(
            f"transformers has no {self.title}, so these {len(inputs)} prompts have no stock keyword arguments. Its "
            "numbers are compared with the original code's in the tests of this family."
        )


def write_chat(tokenizer: Any, parts: Sequence[Part], question: str, options: PromptOptions) -> ChatText:
    """The text of one prompt, as the tokenizer's chat template writes it.

    Raises:
        PromptError: If the template changed a text, so that it cannot be found again; if there are more options than
            letters.
    """
    content, listed = [_content(part) for part in parts], _listed(options.options)
    asking = [{"type": "text", "text": question + listed}] if question + listed else []
    content = content + asking if options.order == "media_first" else asking + content
    given = [] if options.system is None else [{"type": "text", "text": options.system}]
    messages = [{"role": "system", "content": given}] if given else []
    text, outline = _written(tokenizer, [*messages, {"role": "user", "content": content}])
    chat = ChatText(text + options.answer_prefix)
    own = re.search(r"<\|im_start\|>system\s(.*?)<\|im_end\|>", outline[0], re.DOTALL)
    if own and not given:
        chat.mark(Segment.SYSTEM, own.start(1), own.group(1))
    for piece, at in _places(text, outline, [piece for piece in given + content if piece.get("text")]):
        if asking and piece is asking[0]:
            chat.mark(Segment.QUESTION, at, question)
            chat.mark(Segment.OPTION, at + len(question), listed)
        else:
            chat.mark(Segment.SYSTEM if given and piece is given[0] else Segment.CONTEXT, at, piece["text"])
    chat.mark(Segment.ANSWER, len(text), options.answer_prefix)
    return chat


def assemble(tokenizer: Any, chat: ChatText, media: Sequence[Medium], placeholders: set[int]) -> Prompt:
    """Tokenise the text and put each medium's tokens in the place of its placeholder.

    Raises:
        PromptError: If the text holds placeholders of its own, or nothing at all.
    """
    names = dict(zip(sorted(placeholders), tokenizer.convert_ids_to_tokens(sorted(placeholders)), strict=True))
    if unknown := [token for token, name in names.items() if name is None]:
        raise PromptError(
            f"config.json says that the token {unknown[0]} stands for media, but the tokenizer has none of this number. Download "
            "both again."
        )
    encoded = tokenizer(chat.text, return_offsets_mapping=True, add_special_tokens=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if (found := sum(token in placeholders for token in ids)) != len(media):
        raise PromptError(
            f"the prompt's text holds {found} media placeholders for {len(media)} clips and images. "
            f"Leave {', '.join(names.values())} out of the question and of the system message."
        )
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)

    def kind(word: tuple[int, tuple[int, int]]) -> tuple[Modality, Segment] | None:
        if word[0] in placeholders:
            return None
        if word[0] in special:
            return Modality.SPECIAL, Segment.TEMPLATE
        return Modality.TEXT, chat.segment_of(word[1])

    line, queue = _Line(), iter(media)
    for alike, words in groupby(zip(ids, offsets, strict=True), kind):
        if alike is None:
            for _ in words:
                line.medium(next(queue))
        else:
            line.text(_run(tokenizer, list(words), *alike))
    return line.prompt(chat.text)


def marker(tokenizer: Any, string: str) -> TokenMap:
    """A special token that the chat template does not write, such as `<|audio_bos|>`."""
    return _run(tokenizer, [(tokenizer.convert_tokens_to_ids(string), (-1, -1))], Modality.SPECIAL, Segment.TEMPLATE)


class _Line:
    """A prompt while it is put together."""

    def __init__(self) -> None:
        self.runs: list[TokenMap] = []
        self.positions: list[Tensor] = []
        self.media: list[Media] = []
        self.at: float = 0
        self.length, self.shares = 0, False

    def text(self, run: TokenMap) -> None:
        first = self.at - self.shares
        self._append(run, torch.tensor([first + i for i in range(len(run))]).expand(3, -1))
        self.at, self.shares = first + len(run), False

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


def _run(
    tokenizer: Any, words: Sequence[tuple[int, tuple[int, int]]], modality: Modality, segment: Segment
) -> TokenMap:
    """Neighbouring tokens, given by id and characters, of one modality and segment."""
    ids = [token for token, _ in words]
    strings = {token: tokenizer.decode([token]) for token in set(ids)}
    offsets = torch.tensor([span for _, span in words])
    return TokenMap.of(torch.tensor(ids), [strings[token] for token in ids], modality, segment, offsets=offsets)


def _content(part: Part) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Clip):
        return {"type": "image"}
    return {"type": "video" if part.frames is not None else "audio"}


def _listed(options: Sequence[str]) -> str:
    if len(options) > 26:
        raise PromptError(f"{len(options)} options were given, but they are lettered A to Z. Pass at most 26.")
    return "".join(f"\n{chr(65 + i)}. {option}" for i, option in enumerate(options))


def _written(tokenizer: Any, messages: Sequence[dict[str, Any]]) -> tuple[str, list[str]]:
    """What the template writes; and the same cut at its texts: what it writes of its own, a text's number, and so on."""
    counter = count()

    def marked(piece: dict[str, str]) -> dict[str, str]:
        # Private-use characters, which no template writes. An empty text stays: a template may leave its message out.
        return piece | {"text": f"\ue000{next(counter)}\ue001"} if piece.get("text") else piece

    outline = [message | {"content": [marked(piece) for piece in message["content"]]} for message in messages]
    given = {"tools": None, "documents": None, "add_generation_prompt": True, **tokenizer.special_tokens_map}
    try:
        template = tokenizer.get_chat_template()
        text, cut = (render(template, messages=_plain(chat), **given) for chat in (messages, outline))
    except PromptError:
        raise
    except Exception as error:  # A template is a program, and a library of programs runs it.
        raise PromptError(
            f"the checkpoint's chat template cannot write this prompt ({type(error).__name__}: {error}). Take the template "
            "from the released checkpoint."
        ) from error
    return text, re.split("\ue000([0-9]+)\ue001", cut)


def _plain(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Texts as plain ones: a template may call the methods of what it is given."""
    return [
        {
            "role": one["role"],
            "content": [{name: "".join(text) for name, text in piece.items()} for piece in one["content"]],
        }
        for one in messages
    ]


def _places(
    text: str, outline: Sequence[str], pieces: Sequence[dict[str, str]]
) -> Iterator[tuple[dict[str, str], int]]:
    """Each piece and where it stands in `text`, in the order of the text."""
    order, at = [int(number) for number in outline[1::2]], 0
    written = Counter(order)
    if lost := [piece for number, piece in enumerate(pieces) if written[number] != 1]:
        raise _changed(lost[0])
    for own, number in zip(outline[::2], order, strict=False):
        piece = pieces[number]
        if not text.startswith(own + piece["text"], at):
            raise _changed(piece)
        yield piece, at + len(own)
        at += len(own) + len(piece["text"])
    if text[at:] != outline[-1]:
        raise _changed(pieces[order[-1]])


def _changed(piece: dict[str, str]) -> PromptError:
    return PromptError(f"the chat template changed the text {piece['text']!r}. Write it as the template leaves it.")


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
