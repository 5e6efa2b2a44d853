"""Which tokens does a decoding method choose otherwise than the model by itself would, and what is read meanwhile?

A method writes an answer, P_t its distribution at step t. The same answer is read once more by the model alone, P0_t, so that
both have seen the same text. Of each step

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
from jaxtyping import Bool, Float
from torch import Tensor

from avlens import display
from avlens.analyses.shift import TokenShift, shift_of
from avlens.cache import Reduction
from avlens.decoding.avcd import members
from avlens.decoding.last_row import LastRow
from avlens.generation import refuse_no_method
from avlens.hooks import Again, DecodingMethod, DecodingRun, FwdHook, HookPoint, on_rows, query_positions
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

    It takes the method's time, with attention computed explicitly, and one more pass over prompt and answer.

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
    out = model.generate(inputs, max_new_tokens, decoding=_Watched(decoding), keep_logits=True)
    ids, own = out.tokens[0].cpu(), out.logits[0].float().cpu()
    other, reads_base = _alone(model, inputs, ids)
    shift = shift_of(ids, own, other, model.tokenizer.decode, made_by={**out.made_by, "base": "without the method"})
    rivals = other.scatter(-1, ids[:, None], -torch.inf).argmax(-1)
    p, p_base = (logits.softmax(-1).gather(-1, rivals[:, None])[:, 0] for logits in (own, other))
    reads, n = out.records["reads"], out.records["reads"].shape[0]
    names = out.records.get("streams", [f"stream {i}" for i in range(n)])
    return DecodingChoices(
        text=out.text, method=repr(decoding), shift=shift,
        rivals=tuple(model.tokenizer.decode([token]) for token in rivals.tolist()), p_rival=p, p_rival_base=p_base,
        streams=tuple(names)[:n], reads=reads, reads_base=reads_base,
        decided={name: value[0].cpu() for name, value in out.records.items() if _is_series(value, len(ids))},
        made_by=out.made_by,
    )  # fmt: skip


def _is_series(value: object, steps: int) -> bool:
    """Whether a record is one number for each step."""
    return isinstance(value, Tensor) and value.shape == (1, steps) and value.is_floating_point()


def _alone(
    model: Any, inputs: AVInputs, ids: Tensor
) -> tuple[Float[Tensor, "step d_vocab"], Float[Tensor, "step kind"]]:
    """Logits that predict each token of the answer, and what is read for them, without a method."""
    longer, first = inputs.with_answer(ids), len(inputs.tokens) - 1
    groups = members(longer.tokens, len(longer.tokens)).float()

    def read(
        pattern: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint
    ) -> Float[Tensor, "batch kind step"]:
        asked = query_positions(hook, pattern, dim=2)[0]
        rows = pattern[:, :, (asked >= first) & (asked < first + len(ids))].float().mean(1)
        return torch.einsum("bqk,gk->bgq", rows, groups[:, : rows.shape[-1]].to(rows.device))

    at = longer.tokens.at(range(first, first + len(ids)))
    logits, cache = model.run_with_cache(longer, [], reductions=[Reduction("pattern", "reads", read)], logits_at=at)
    layers = [cache["pattern.reads", layer][0].cpu() for layer in cache.layers("pattern.reads")]
    return logits[0].float().cpu(), torch.stack(layers).mean(0).T


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
