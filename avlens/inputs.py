"""What does a model see of a prompt?

A `Prompt` is one row: token ids, the tensors that its encoders read, where their outputs go, position ids, and the
TokenMap. `AVInputs` are one or more prompts, left-padded to one length when a model runs them. All of it lives on
the CPU until it is used.
"""

import hashlib
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int, Real
from torch import Tensor

from avlens import display
from avlens.errors import BatchError, PromptError
from avlens.tokens import Modality, Segment, TokenMap


@dataclass(frozen=True, eq=False)
class Media:
    """One sound, video or image as its encoder reads it.

    Attributes:
        modality: Audio, video or image.
        tensors: What the encoder is given, by the family's names.
        positions: Where its encoded tokens stand in the prompt, in order.
        clip: Which clip of the prompt it comes from.
    """

    modality: Modality
    tensors: Mapping[str, Tensor]
    positions: Int[Tensor, " media_pos"]
    clip: int

    @cached_property
    def key(self) -> str:
        """A fingerprint of the content: equal media are encoded once."""
        digest = hashlib.sha256(self.modality.name.encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name].contiguous()
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else str(tensor.item()).encode())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt.

    Attributes:
        ids: Token ids; -1 where a position has none.
        tokens: What each position is.
        media: What its encoders read.
        positions: Position ids, one row per rotary axis; some families count in fractions.
        next_position: Position id of the first generated token.
        record: What made it: question, order, clips' hashes, options.
    """

    ids: Int[Tensor, " pos"]
    tokens: TokenMap
    media: tuple[Media, ...]
    positions: Real[Tensor, "axis pos"]
    next_position: float
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class AVInputs:
    """One or more prompts for a model.

    Attributes:
        prompts: The rows.
        stock_kwargs: How the family writes them as keyword arguments of the stock transformers model.
    """

    prompts: tuple[Prompt, ...]
    stock_kwargs: Callable[["AVInputs"], dict[str, Any]]

    @classmethod
    def batch(cls, inputs: Sequence["AVInputs"]) -> "AVInputs":
        """Several inputs as the rows of one, in order.

        Raises:
            BatchError: If there are none.
        """
        if not inputs:
            raise BatchError("AVInputs.batch([]) has no prompts. Pass at least one.")
        return cls(sum((one.prompts for one in inputs), ()), inputs[0].stock_kwargs)

    @property
    def prompt(self) -> Prompt:
        """The only prompt.

        Raises:
            BatchError: If there are several.
        """
        if len(self.prompts) > 1:
            raise BatchError(f"these inputs hold {len(self.prompts)} prompts. Choose one, such as inputs[0].")
        return self.prompts[0]

    @property
    def key(self) -> str:
        """A fingerprint of what is read, row by row: equal prompts give equal activations."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(prompt.ids.numpy().tobytes() + prompt.positions.numpy().tobytes() + b"|")
            digest.update("".join(f"{media.key}{media.positions.tolist()}" for media in prompt.media).encode())
        return digest.hexdigest()

    @property
    def tokens(self) -> TokenMap:
        """The TokenMap of the only prompt; of several, take `inputs[0].tokens`."""
        return self.prompt.tokens

    @property
    def record(self) -> Mapping[str, Any]:
        """What made the only prompt."""
        return self.prompt.record

    @property
    def shape(self) -> torch.Size:
        """Batch and padded length."""
        return torch.Size((len(self.prompts), max(len(prompt.ids) for prompt in self.prompts)))

    @property
    def padding(self) -> Int[Tensor, " batch"]:
        """Left padding of each row."""
        return torch.tensor([self.shape[1] - len(prompt.ids) for prompt in self.prompts])

    @property
    def ids(self) -> Int[Tensor, "batch pos"]:
        """Token ids, padded with 0; -1 where a position has none."""
        return torch.stack([F.pad(p.ids, (pad, 0)) for p, pad in self._padded()])

    @property
    def attention_mask(self) -> Int[Tensor, "batch pos"]:
        """1 at the prompts' positions, 0 at padding."""
        return torch.stack([F.pad(torch.ones_like(p.ids), (pad, 0)) for p, pad in self._padded()])

    @property
    def positions(self) -> Real[Tensor, "axis batch pos"]:
        """Position ids; 1 at padding."""
        return torch.stack([F.pad(p.positions, (pad, 0), value=1) for p, pad in self._padded()], dim=1)

    @property
    def next_positions(self) -> Real[Tensor, " batch"]:
        """Position id of each row's first generated token."""
        return torch.tensor([prompt.next_position for prompt in self.prompts])

    @property
    def layouts(self) -> tuple[str, ...]:
        """The fingerprint of each row's layout."""
        return tuple(prompt.tokens.layout for prompt in self.prompts)

    def hf_kwargs(self) -> dict[str, Any]:
        """The same prompts as keyword arguments of the stock transformers model.

        Raises:
            PromptError: If the stock model cannot take them.
        """
        return self.stock_kwargs(self)

    def with_answer(self, ids: Int[Tensor, " step"], strings: Sequence[str] | None = None) -> "AVInputs":
        """The only prompt and, after it, an answer that is already written: one longer prompt, for teacher forcing.

        The row that predicts the answer's first token is the last of the shorter prompt.

        Args:
            ids: The answer's token ids.
            strings: Their texts, which label the positions.

        Raises:
            PromptError: If there are not as many strings as ids.
            BatchError: If there are several prompts.
        """
        prompt, step = self.prompt, torch.arange(len(ids))
        texts = ["."] * len(ids) if strings is None else list(strings)
        if len(texts) != len(ids):
            raise PromptError(f"an answer of {len(ids)} tokens was given {len(texts)} strings. Pass one for each.")
        answer = TokenMap.of(ids.cpu(), texts, Modality.TEXT, Segment.ANSWER)
        ahead = (prompt.next_position + step).to(prompt.positions.dtype).expand(len(prompt.positions), -1)
        longer = replace(
            prompt, ids=torch.cat([prompt.ids, ids.cpu()]), tokens=TokenMap.join([prompt.tokens, answer], prompt.tokens.prompt),
            positions=torch.cat([prompt.positions, ahead], dim=1), next_position=prompt.next_position + len(ids),
        )  # fmt: skip
        return AVInputs((longer,), self.stock_kwargs)

    def __getitem__(self, row: int) -> "AVInputs":
        return AVInputs((self.prompts[row],), self.stock_kwargs)

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator["AVInputs"]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        if len(self.prompts) > 1:
            return f"AVInputs({len(self.prompts)} prompts of {', '.join(str(len(p.ids)) for p in self.prompts)} tokens)"
        return f"AVInputs({self.tokens!r}, {len(self.prompts[0].media)} encoder inputs)"

    def _repr_html_(self) -> str:
        return display.framed("".join(_as_html(prompt) for prompt in self.prompts))

    def _padded(self) -> Iterator[tuple[Prompt, int]]:
        return zip(self.prompts, self.padding.tolist(), strict=True)


def _as_html(prompt: Prompt) -> str:
    question = html.escape(str(prompt.record.get("question", "")))
    asked = f"<div>“{question}”</div>" if question else ""
    return asked + prompt.tokens._repr_html_()
