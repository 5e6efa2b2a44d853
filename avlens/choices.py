"""Which tokens does a decoding method choose otherwise than the model by itself would, and what is read meanwhile?

A method writes an answer, P_t its distribution at step t. The same answer is written once more by the model alone, P0_t, so that
both have seen the same text. What the checkpoint's generation config makes of logits (`repetition_penalty`, `suppress_tokens`,
`no_repeat_ngram_size`) is in both. Of each step

    changed   the token written is not the likeliest of P0
    rival     the likeliest other token of P0: what the model alone would have written, where the choice was changed
    reads     the attention of the row that predicts the token to video (images included), audio, and everything else,
              mean over heads and layers, summed over tokens, in [0, 1]: in each of the method's streams, and alone

The shift of P against P0 is that of `analyses/shift`. All attention is computed explicitly, in both runs.

A method that reads the prompts ahead (ASD) reads them in the loop here, so that the first step is seen too. What a method reads
in a second pass (AVCD) is not in `reads`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avlens import display
from avlens.analyses.shift import TokenShift, shift_of
from avlens.decoding.avcd import members
from avlens.decoding.last_row import LastRow
from avlens.generation import Generation, refuse_no_method
from avlens.hooks import Again, DecodingMethod, DecodingRun, FwdHook, on_rows
from avlens.inputs import AVInputs

KINDS = ("video", "audio", "other")
"""What is read: video and images, audio, and everything else, what was written included."""


@dataclass(frozen=True, eq=False)
class DecodingChoices:
    """What a decoding method wrote, and what the model alone holds of it.

    Attributes:
        text: What was written.
        method: The method and its settings.
        shift: The method against the model alone, token by token; the end mark is one.
        rivals: The likeliest token but the written one by the model alone, as text.
        p_rival: What the method gives it.
        p_rival_base: What the model alone gives it.
        streams: What the method calls its streams.
        reads: Attention of each stream to `KINDS`.
        reads_base: That of the model alone.
        decided: Numbers that the method took at each step, by their names in its records, such as ASD's `gamma`.
        made_by: What made it.
    """

    text: str
    method: str
    shift: TokenShift
    rivals: tuple[str, ...]
    p_rival: Float[Tensor, " step"]
    p_rival_base: Float[Tensor, " step"]
    streams: tuple[str, ...]
    reads: Float[Tensor, "stream step kind"]
    reads_base: Float[Tensor, "step kind"]
    decided: Mapping[str, Float[Tensor, " step"]]
    made_by: Mapping[str, Any]

    @property
    def changed(self) -> Bool[Tensor, " step"]:
        """Which tokens the model alone would not have written."""
        return self.shift.rank > 1

    def to_frame(self) -> pd.DataFrame:
        """One row per token."""
        frame = self.shift.to_frame()[["token", "rank", "KL", "P", "P base"]]
        frame.insert(1, "changed", self.changed.numpy())
        frame["rival"], frame["P rival"], frame["P base rival"] = (
            self.rivals,
            self.p_rival.numpy(),
            self.p_rival_base.numpy(),
        )
        for i, kind in enumerate(KINDS[:2]):
            frame[f"reads {kind}, base"] = self.reads_base[:, i].numpy()
            for name, reads in zip(self.streams, self.reads, strict=True):
                frame[f"reads {kind}, {name}"] = reads[:, i].numpy()
        return frame.assign(**{name: values.numpy() for name, values in self.decided.items()})

    def __repr__(self) -> str:
        return f"DecodingChoices({self.text!r}, {int(self.changed.sum())} of {len(self.rivals)} tokens changed by {self.method})"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


def decoding_choices(
    model: Any, inputs: AVInputs, decoding: DecodingMethod, max_new_tokens: int = 64
) -> DecodingChoices:
    """Let a method write greedily, and compare each of its choices with the model's own after the same text.

    It takes the method's time, with attention computed explicitly, and the time in which the model alone writes so much. A
    `max_time` of the checkpoint's generation config ends neither: both must write as much.

    Args:
        model: A HookedAVModel.
        inputs: One prompt.
        decoding: The method, such as `VCD()`.
        max_new_tokens: How long the answer may be.

    Raises:
        BatchError: If there are several prompts.
        DecodingError: If it is no method, or refuses the prompt.
    """
    refuse_no_method(decoding)
    inputs.tokens  # noqa: B018 - refuses several prompts before anything runs
    out, own = _written(model, inputs, decoding, max_new_tokens)
    ids = out.tokens[0].cpu()
    alone, other = _written(model, inputs, _Alone(), max_new_tokens, ids)
    shift = shift_of(ids, own, other, model.tokenizer.decode, made_by={**out.made_by, "base": "without the method"})
    rivals = other.scatter(-1, ids[:, None], -torch.inf).argmax(-1)
    p, p_base = (logits.softmax(-1).gather(-1, rivals[:, None])[:, 0] for logits in (own, other))
    reads, names = out.records["reads"], tuple(out.records.get("streams", ()))
    return DecodingChoices(
        text=out.text, method=repr(decoding), shift=shift,
        rivals=tuple(model.tokenizer.decode([token]) for token in rivals.tolist()), p_rival=p, p_rival_base=p_base,
        streams=names[: len(reads)] if len(names) >= len(reads) else tuple(f"stream {i}" for i in range(len(reads))),
        reads=reads, reads_base=alone.records["reads"][0],
        decided={name: value[0].cpu() for name, value in out.records.items() if _is_series(value, len(ids))},
        made_by=out.made_by,
    )  # fmt: skip


def _is_series(value: object, steps: int) -> bool:
    """Whether a record is one number for each step."""
    return isinstance(value, Tensor) and value.shape == (1, steps) and value.is_floating_point()


def _written(
    model: Any, inputs: AVInputs, decoding: DecodingMethod, max_new_tokens: int, ids: Tensor | None = None
) -> tuple[Generation, Float[Tensor, "step d_vocab"]]:
    """What a method writes, or how it reads what is given, and what each token was chosen from."""
    choosing = _Choosing(ids)
    out = model.generate(
        inputs, max_new_tokens, decoding=_Watched(decoding), logits_processor=[choosing], max_time=None
    )  # Both must write as much.
    return out, torch.stack(choosing.seen)


@dataclass(eq=False)
class _Choosing:
    """A logits processor, the last of all: it keeps what the others made of the logits, and may say what is written."""

    ids: Int[Tensor, " step"] | None
    seen: list[Float[Tensor, " d_vocab"]] = field(default_factory=list)

    def __call__(self, _: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch d_vocab"]) -> Tensor:
        step = len(self.seen)
        self.seen.append(scores[0].float().cpu())
        if self.ids is None:
            return scores
        written = torch.full_like(scores, -torch.inf)
        written[0, self.ids[step]] = 0.0
        return written


@dataclass(frozen=True, eq=False)
class _Watched:
    """A decoding method whose streams are watched; else it is the same."""

    method: DecodingMethod

    def start(self, model: Any, inputs: AVInputs) -> "_WatchedRun":
        run = self.method.start(model, inputs)
        prompts = [run.prompts(stream) for stream in range(run.n_streams)]
        return _WatchedRun(run, LastRow(range(model.cfg.n_layers)), prompts)

    def __repr__(self) -> str:
        return repr(self.method)


@dataclass(eq=False)
class _WatchedRun:
    """The method at work. It has no `hand_over`, so that the loop reads the prompts, and what they read is seen."""

    run: DecodingRun
    last_row: LastRow
    streams: list[AVInputs]
    reads: list[Float[Tensor, "stream kind"]] = field(default_factory=list)

    @property
    def n_streams(self) -> int:
        return self.run.n_streams

    @property
    def n_hooked(self) -> int:
        return self.run.n_hooked

    @property
    def prompts(self) -> Callable[[int], AVInputs]:
        return self.run.prompts

    def hooks(self) -> list[FwdHook]:
        return [*self.run.hooks(), *on_rows(self.last_row.hooks(), range(len(self.streams)))]

    def mix(self, logits: Float[Tensor, "stream batch d_vocab"], again: Again) -> Float[Tensor, "batch d_vocab"]:
        # Before the method mixes: a second pass is none of the streams.
        padding = AVInputs.batch(self.streams).padding
        rows = [self.last_row.of(row, padding).mean(0).cpu() for row in range(len(self.streams))]
        groups = [members(one.tokens, len(row)).float() for one, row in zip(self.streams, rows, strict=True)]
        self.reads.append(torch.stack([group @ row for group, row in zip(groups, rows, strict=True)]))
        return self.run.mix(logits, again)

    def records(self) -> dict[str, Any]:
        return {**self.run.records(), "reads": torch.stack(self.reads, dim=1)}


@dataclass(frozen=True)
class _Alone:
    """The method that does nothing."""

    def start(self, model: Any, inputs: AVInputs) -> "_AloneRun":  # noqa: ARG002
        return _AloneRun(inputs)


@dataclass(eq=False)
class _AloneRun:
    """One stream, as it is."""

    inputs: AVInputs
    n_streams: int = 1
    n_hooked: int = 1

    def prompts(self, stream: int) -> AVInputs:  # noqa: ARG002
        return self.inputs

    def hooks(self) -> list[FwdHook]:
        return []

    def mix(self, logits: Float[Tensor, "stream batch d_vocab"], again: Again) -> Float[Tensor, "batch d_vocab"]:  # noqa: ARG002
        return logits[0]

    def records(self) -> dict[str, Any]:
        return {}
