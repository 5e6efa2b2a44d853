"""Token-distribution shift: which words would a model have written without the other modality, or without its training?

An answer y is read twice, token by token (teacher forcing): by the model, P, and by a base, P0, which may be the model that it
was trained from, or itself on a prompt without sound. Of each token

    rank   1 + how many tokens the base holds likelier than y_t: 1 is *unshifted*, 2 and 3 *marginal*, above 3 *shifted*
    KL     sum P log(P / P0), and the other way round, in nats, from 0

so that an answer which the base would have written too is unshifted throughout. Of the words that only sound can tell, few
should be.

Source: Lin et al. 2023, "The Unlocking Spell on Base LLMs" (URIAL), arXiv:2312.01552 (ranks); the token-distribution shift of
"Do Audio-Visual Large Language Models Really See and Hear?", where the base is the vision-language model of the same size, and
which gives no direction of its divergence: both are here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avlens import display
from avlens.errors import MetricError, PromptError
from avlens.inputs import AVInputs
from avlens.metrics.effects import Interval, bootstrap_mean
from avlens.tokens import word_spans

Shift = Literal["unshifted", "marginal", "shifted"]
SHIFTS: tuple[Shift, ...] = ("unshifted", "marginal", "shifted")

MARGINAL = 3
"""The last rank that is not shifted."""

Reader = Callable[[Int[Tensor, " step"]], Float[Tensor, "step d_vocab"]]
"""Another model that reads an answer: given its token ids, the logits that predict each of them."""


@dataclass(frozen=True, eq=False)
class TokenShift:
    """How the base sees an answer, token by token.

    Attributes:
        tokens: The answer's token ids.
        strings: The same as text.
        rank: Of each token among the base's, from 1.
        kl: KL(model || base), in nats.
        kl_reverse: KL(base || model), in nats.
        p: What the model gives each token.
        p_base: What the base gives it.
        base_strings: What the base would have written in its place.
        words: For each word that was looked for, the steps that wrote it, one tuple per occurrence.
        made_by: What made it.
    """

    tokens: Int[Tensor, " step"]
    strings: tuple[str, ...]
    rank: Int[Tensor, " step"]
    kl: Float[Tensor, " step"]
    kl_reverse: Float[Tensor, " step"]
    p: Float[Tensor, " step"]
    p_base: Float[Tensor, " step"]
    base_strings: tuple[str, ...]
    words: Mapping[str, tuple[tuple[int, ...], ...]]
    made_by: Mapping[str, Any]

    @property
    def shifts(self) -> tuple[Shift, ...]:
        """What each token is."""
        return tuple(SHIFTS[0 if rank == 1 else 1 if rank <= MARGINAL else 2] for rank in self.rank.tolist())

    @property
    def in_words(self) -> Bool[Tensor, " step"]:
        """Which tokens write one of the words."""
        inside = torch.zeros(len(self.tokens), dtype=torch.bool)
        inside[sorted({step for spans in self.words.values() for span in spans for step in span})] = True
        return inside

    def to_frame(self) -> pd.DataFrame:
        """One row per token."""
        columns = {
            "token": self.strings, "base": self.base_strings, "rank": self.rank.numpy(), "shift": self.shifts,
            "KL": self.kl.numpy(), "KL reverse": self.kl_reverse.numpy(), "P": self.p.numpy(), "P base": self.p_base.numpy(),
            "in words": self.in_words.numpy(),
        }  # fmt: skip
        return pd.DataFrame(columns).rename_axis("step")

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.shifts.count(shift)} {shift}" for shift in SHIFTS)
        return f"TokenShift({len(self.tokens)} tokens: {counts}; mean KL {float(self.kl.mean()):.3f} nats)"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


def token_distribution_shift(
    model: Any,
    inputs: AVInputs,
    base_inputs: AVInputs | None = None,
    *,
    base: Any | Reader | None = None,
    answer: str | Int[Tensor, " step"] | None = None,
    max_new_tokens: int = 64,
    words: Sequence[str] = (),
) -> TokenShift:
    """Read one answer with the model and with its base.

    Args:
        model: A HookedAVModel.
        inputs: One prompt.
        base_inputs: The same request as the base gets it, such as `model.prepare(clip.without_audio(), question)`.
        base: The base: another HookedAVModel, which reads `base_inputs`; or a `Reader`, such as `stock_reader` makes, which
            reads what it will. By default the model itself.
        answer: What is read, text or token ids; by default what the model writes greedily, without its end mark.
        max_new_tokens: How long that may be.
        words: Words to look for in the answer, whole words, whatever their case.

    Raises:
        PromptError: If there is no base prompt, the answer is empty, or the base has another vocabulary.
    """
    ids = _answer(model, inputs, answer, max_new_tokens)
    reads = _reader(model if base is None else base, model, base_inputs)
    own, other = _shared(_read(model, inputs, ids), reads(ids).detach().float().cpu(), ids)
    made_by = model.made_by(inputs, base=_named(base, model), base_prompt=_asked(base_inputs))
    return shift_of(ids, own, other, model.tokenizer.decode, words=words, made_by=made_by)


def shift_of(
    ids: Int[Tensor, " step"],
    own: Float[Tensor, "step d_vocab"],
    other: Float[Tensor, "step d_vocab"],
    decode: Callable[[list[int]], str],
    *,
    words: Sequence[str] = (),
    made_by: Mapping[str, Any] | None = None,
) -> TokenShift:
    """The shift of an answer that was read twice.

    Args:
        ids: The answer's token ids.
        own: The model's logits that predict each of them; -inf for what it can not write.
        other: The base's.
        decode: From token ids to text.
        words: Words to look for.
        made_by: What made it.
    """
    log_p, log_base = own.log_softmax(-1), other.log_softmax(-1)
    written = log_base.gather(-1, ids[:, None])
    strings = tuple(decode([token]) for token in ids.tolist())
    return TokenShift(
        tokens=ids, strings=strings, rank=1 + (log_base > written).sum(-1), kl=_kl(log_p, log_base),
        kl_reverse=_kl(log_base, log_p), p=log_p.gather(-1, ids[:, None])[:, 0].exp(), p_base=written[:, 0].exp(),
        base_strings=tuple(decode([token]) for token in log_base.argmax(-1).tolist()),
        words={word: word_spans(word, strings) for word in words}, made_by=made_by or {},
    )  # fmt: skip


def stock_reader(model: Any, **prompt: Any) -> Reader:
    """A stock transformers model, such as Qwen2.5-VL, as a base.

    Args:
        model: The model.
        prompt: What its processor returns for one prompt: `input_ids` and the rest.

    Raises:
        PromptError: If it is not one prompt.
    """
    if prompt["input_ids"].shape[0] != 1:
        raise PromptError(f"the base was given {prompt['input_ids'].shape[0]} prompts. Pass one.")

    def read(ids: Int[Tensor, " step"]) -> Float[Tensor, "step d_vocab"]:
        longer = {name: _extended(name, value, prompt["input_ids"], ids) for name, value in prompt.items()}
        with torch.no_grad():
            logits: Tensor = model(**longer).logits
        return logits[0, -len(ids) - 1 : -1]

    return read


@dataclass(frozen=True)
class ShiftTable:
    """Shifts of many answers, for `all` tokens, those that write one of the `words`, and the `others`.

    Attributes:
        shares: The share of the tokens that each shift has, with an interval over answers.
        kl: Mean KL(model || base), in nats.
        kl_reverse: Mean KL(base || model), in nats.
    """

    shares: Mapping[str, Mapping[Shift, Interval]]
    kl: Mapping[str, Interval]
    kl_reverse: Mapping[str, Interval]

    def to_frame(self) -> pd.DataFrame:
        """One row per kind of token; NaN where there is none."""
        rows = [
            {"kind": kind, "tokens": self.kl[kind].n, "answers": self.kl[kind].n_clusters}
            | {shift: share.estimate for shift, share in shares.items()}
            | {"KL": self.kl[kind].estimate, "KL reverse": self.kl_reverse[kind].estimate}
            for kind, shares in self.shares.items()
        ]
        return pd.DataFrame(rows).set_index("kind")

    def __repr__(self) -> str:
        return self.to_frame().to_string(float_format=lambda x: f"{x:.3f}")

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame())


def shift_table(
    shifts: Sequence[TokenShift], *, n_draws: int = 10_000, level: float = 0.95, seed: int = 0
) -> ShiftTable:
    """The shifts of many answers as one table; its intervals draw whole answers.

    Args:
        shifts: One per answer.
        n_draws: Bootstrap draws.
        level: Of the intervals.
        seed: Of the bootstrap.

    Raises:
        MetricError: If there are none.
    """
    if not shifts:
        raise MetricError("there are no shifts to sum up. Pass those of one answer or more.")
    answer = torch.cat([torch.full((len(one.tokens),), i) for i, one in enumerate(shifts)])
    inside = torch.cat([one.in_words for one in shifts])
    rank, kl, reverse = (torch.cat([getattr(one, name) for one in shifts]) for name in ("rank", "kl", "kl_reverse"))
    hits = {"unshifted": rank == 1, "marginal": (rank > 1) & (rank <= MARGINAL), "shifted": rank > MARGINAL}

    def mean(values: Tensor, chosen: Bool[Tensor, " token"]) -> Interval:
        clusters = answer[chosen].tolist()
        return bootstrap_mean(values[chosen].double(), clusters=clusters, n_draws=n_draws, level=level, seed=seed)

    kinds = {"all": torch.ones_like(inside), "words": inside, "others": ~inside}
    return ShiftTable(
        {kind: {shift: mean(hits[shift], chosen) for shift in SHIFTS} for kind, chosen in kinds.items()},
        {kind: mean(kl, chosen) for kind, chosen in kinds.items()},
        {kind: mean(reverse, chosen) for kind, chosen in kinds.items()},
    )


def _answer(
    model: Any, inputs: AVInputs, answer: str | Int[Tensor, " step"] | None, max_new_tokens: int
) -> Int[Tensor, " step"]:
    if isinstance(answer, str):
        ids = torch.tensor(model.tokenizer(answer, add_special_tokens=False)["input_ids"], dtype=torch.long)
    elif answer is None:
        written = model.generate(inputs, max_new_tokens).tokens[0].cpu()
        special = torch.isin(written, torch.tensor(model.tokenizer.all_special_ids))
        ids = written[: int(special.long().argmax()) if special.any() else len(written)]
    else:
        ids = answer.long().cpu()
    if not len(ids):
        raise PromptError("the answer is empty, so that nothing can have shifted. Pass one as `answer`.")
    return ids


def _is_reader(base: Any) -> bool:
    return callable(base) and not hasattr(base, "run_with_hooks")


def _reader(base: Any, model: Any, base_inputs: AVInputs | None) -> Reader:
    if _is_reader(base):
        reads: Reader = base
        return reads
    if base_inputs is None:
        raise PromptError(
            "the base has no prompt. Pass base_inputs, such as base.prepare(clip.without_audio(), question)."
        )
    if base is not model and base.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise PromptError("the base has another vocabulary, so that ranks and divergences mean nothing. Pass a kin.")
    return lambda ids: _read(base, base_inputs, ids)


def _read(model: Any, inputs: AVInputs, ids: Int[Tensor, " step"]) -> Float[Tensor, "step d_vocab"]:
    """The logits that predict each token of the answer."""
    longer = inputs.with_answer(ids)
    first = len(inputs.tokens) - 1
    asked = longer.tokens.at(range(first, first + len(ids)))
    logits: Tensor = model(longer, logits_at=asked)
    return logits[0].float().cpu()


def _shared(
    own: Float[Tensor, "step d_vocab"], other: Float[Tensor, "base_step d_base"], ids: Int[Tensor, " step"]
) -> tuple[Float[Tensor, "step d_both"], Float[Tensor, "step d_both"]]:
    """Both over the smaller vocabulary: checkpoints of one kin pad theirs to different sizes."""
    n = min(own.shape[1], other.shape[1])
    if len(other) != len(own) or int(ids.max()) >= n:
        raise PromptError(
            f"the base returned logits {list(other.shape)} for {len(ids)} tokens up to id {int(ids.max())}. Return one row "
            "per token, over the model's vocabulary."
        )
    return own[:, :n], other[:, :n]


def _kl(log_p: Float[Tensor, "step d"], log_q: Float[Tensor, "step d"]) -> Float[Tensor, " step"]:
    # What P cannot write counts nothing, even where Q cannot write it either; what only Q cannot makes it infinite.
    return torch.where(log_p.isneginf(), 0, log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)


def _extended(name: str, value: Any, prompt: Int[Tensor, "1 pos"], ids: Int[Tensor, " step"]) -> Any:
    """A part of a stock prompt, with the answer after it where it has one value per position."""
    if not isinstance(value, Tensor) or value.shape != prompt.shape:
        return value
    more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}.get(name, torch.zeros_like(ids))
    return torch.cat([value, more[None].to(value.device, value.dtype)], dim=1)


def _named(base: Any, model: Any) -> str:
    if base is None or base is model:
        return "itself"
    return "a reader" if _is_reader(base) else str(base.cfg.model_name)


def _asked(base_inputs: AVInputs | None) -> dict[str, Any] | None:
    return None if base_inputs is None else dict(base_inputs.record)
