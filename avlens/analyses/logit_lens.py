"""Logit lens: what would the model say if it stopped after this layer, at this token?

The residual stream after each block is read as the last one is:

    logits[layer, pos] = unembed(norm(lens(resid_post[layer, pos], layer)))

where the logit lens changes nothing, and a tuned lens (`avlens.analyses.tuned_lens`) translates each layer first. At audio and
video positions, whose own predictions nobody asked for, decoded tokens show what a token means in the terms of words: *latent
understanding* is the share of clips whose sound is named at any of their audio tokens, from the middle layer on.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens"; the layer-wise probing of "Do Audio-Visual Large Language Models
Really See and Hear?", its released code, src/logitlens_experiment.py.

Differs from that code, which applies no final norm (`norm=False` does as it does; the norm's weight changes which token is
first), and from that paper, which does not say when a decoded token names a sound: here `names_keyword` does, and the rate
comes with that of the other clips' sounds as a control.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avlens import display, names
from avlens.errors import HookError, MetricError, PositionError, PromptError
from avlens.hooks import FwdHook, HookPoint, query_positions
from avlens.inputs import AVInputs
from avlens.metrics.effects import Interval, bootstrap_mean
from avlens.metrics.vocabulary import singular
from avlens.tokens import Modality, TokenSet

SITES = ("resid_post", "resid_pre", "resid_mid", "attn_out", "mlp_out")
"""What can be read: activations that live where the residual stream does."""

AT_ONCE = 64
"""How many positions are unembedded together, which bounds the memory: their logits are d_vocab wide."""

SHORTEST_PIECE = 4
"""A decoded token of at least so many letters names the keyword that it begins."""


@runtime_checkable
class Lens(Protocol):
    """What of the residual stream after a block is read by the final norm and the unembedding."""

    def __call__(self, resid: Float[Tensor, "pos d_model"], layer: int) -> Float[Tensor, "pos d_model"]:
        """The stream as the last block might have left it."""
        ...


@dataclass(frozen=True, eq=False)
class LogitLens:
    """What each layer says at each token.

    Attributes:
        tokens: Where it was read.
        layers: The blocks, 0-based.
        top_ids: The likeliest tokens, the first first.
        top_p: Their probabilities.
        top_strings: Their texts, by id.
        entropy: Of the whole distribution, in nats.
        words: Words that were followed.
        p_words: Probability of each word's first token, the likeliest of its forms.
        rank_words: Its rank, from 1.
        kl: KL(the model's last layer || this layer), in nats, if it was asked for.
        site: What was read.
        norm: Whether the final norm was applied.
        made_by: What made it.
    """

    tokens: TokenSet
    layers: tuple[int, ...]
    top_ids: Int[Tensor, "layer token k"]
    top_p: Float[Tensor, "layer token k"]
    top_strings: Mapping[int, str] = field(repr=False)
    entropy: Float[Tensor, "layer token"]
    words: tuple[str, ...]
    p_words: Float[Tensor, "layer token word"]
    rank_words: Int[Tensor, "layer token word"]
    kl: Float[Tensor, "layer token"] | None
    site: str
    norm: bool
    made_by: Mapping[str, Any]

    def at(self, tokens: TokenSet) -> "LogitLens":
        """The same at some of its tokens, in the order in which it has them."""
        self.tokens.tokens.check_own(tokens)
        keep = tokens.holds(self.tokens.positions).nonzero()[:, 0]
        cut = {name: getattr(self, name)[:, keep] for name in ("top_ids", "top_p", "entropy", "p_words", "rank_words")}
        kl = None if self.kl is None else self.kl[:, keep]
        return LogitLens(
            tokens=self.tokens & tokens, layers=self.layers, top_strings=self.top_strings, words=self.words, kl=kl,
            site=self.site, norm=self.norm, made_by=self.made_by, **cut,
        )  # fmt: skip

    def hits(self, keywords: Collection[str], *, k: int | None = None) -> Bool[Tensor, "layer token"]:
        """Where one of the `k` likeliest tokens (all that are held, by default) names a keyword."""
        named = [token for token, text in self.top_strings.items() if names_keyword(text, keywords)]
        return torch.isin(self.top_ids[..., :k], torch.tensor(named, dtype=torch.long)).any(-1)

    def common(self, layer: int, n: int = 5) -> list[tuple[str, int]]:
        """The tokens that are first at most positions of a layer, with how many."""
        first = self.top_ids[self.layers.index(layer), :, 0].tolist()
        return Counter(self.top_strings[token] for token in first).most_common(n)

    def table(self) -> pd.DataFrame:
        """The likeliest token of each layer, one row per position: the released code's table."""
        ids = self.top_ids[..., 0].T.tolist()
        columns = [f"Layer_{layer}" for layer in self.layers]
        texts = pd.DataFrame([[self.top_strings[token] for token in row] for row in ids], columns=columns)
        kinds = [Modality(code).name.lower() for code in self.tokens.tokens.modality[self.tokens.positions].tolist()]
        texts.insert(0, "Token_Position", list(self.tokens))
        texts.insert(1, "Token_Type", kinds)
        return texts

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and token: the likeliest tokens with the first's probability, and the words that were followed."""
        rows = []
        for i, layer in enumerate(self.layers):
            for j, (position, label) in enumerate(zip(self.tokens, self._labels, strict=True)):
                row: dict[str, Any] = {"layer": layer, "position": position, "label": label}
                row["top"] = tuple(self.top_strings[token] for token in self.top_ids[i, j].tolist())
                row |= {"p": float(self.top_p[i, j, 0]), "entropy": float(self.entropy[i, j])}
                row |= {} if self.kl is None else {"KL": float(self.kl[i, j])}
                for n, word in enumerate(self.words):
                    row |= {f"P({word})": float(self.p_words[i, j, n]), f"rank({word})": int(self.rank_words[i, j, n])}
                rows.append(row)
        return pd.DataFrame(rows)

    @cached_property
    def _labels(self) -> list[str]:
        return self.tokens.labels

    def __repr__(self) -> str:
        return f"LogitLens({len(self.layers)} layers at {self.tokens!r})"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


def logit_lens(
    model: Any,
    inputs: AVInputs,
    tokens: TokenSet | None = None,
    *,
    layers: names.Layers = "all",
    site: str = "resid_post",
    lens: Lens | None = None,
    norm: bool = True,
    k: int = 5,
    words: Sequence[str] = (),
    divergence: bool = False,
    fwd_hooks: Sequence[FwdHook] = (),
) -> LogitLens:
    """Read the residual stream of one prompt as words, layer by layer, in one pass (two with `divergence`).

    Nothing of the size of the vocabulary is kept.

    Args:
        model: A HookedAVModel.
        inputs: One prompt.
        tokens: Where to read; by default at audio, video and image tokens and the last.
        layers: Blocks to read, 0-based.
        site: What to read, one of `SITES`.
        lens: A `Lens`, such as a `TunedLens`; by default the stream is read as it is.
        norm: Whether the final norm is applied. Without it, as in the released code of the paper on audio-visual models.
        k: How many of the likeliest tokens to keep.
        words: Words to follow: the probability and rank of the first token of each.
        divergence: Whether to tell how far each layer is from the last, which takes a second pass.
        fwd_hooks: Edits to run with.

    Raises:
        HookError: If `site` does not live in the residual stream, or `k` is none.
        LayerError: If the model has no such layer.
        PositionError: If there is no token to read at, or one has been discarded.
        PromptError: If a word is empty.
    """
    chosen = inputs.tokens.media | inputs.tokens.last if tokens is None else tokens
    inputs.tokens.check_own(chosen)
    _check(model, chosen, site, k, words)
    wanted = list(range(model.cfg.n_layers)) if layers == "all" else names.checked_layers(layers)
    last = _last_stream(model, inputs, chosen, fwd_hooks) if divergence else None
    forms = [model.to_first_tokens(word) for word in words]
    readers = [_Reader(model, chosen, layer, lens, norm, k, forms, last) for layer in wanted]
    hooks: list[FwdHook] = [(names.at(site, reader.layer), reader) for reader in readers]
    model.run_with_hooks(inputs, [*fwd_hooks, *hooks], logits_at=inputs.tokens.last)
    read = {name: torch.stack([reader.found[name] for reader in readers]) for name in readers[0].found}
    strings = {token: model.tokenizer.decode([token]) for token in read["top_ids"].unique().tolist()}
    made_by = model.made_by(
        inputs, site=site, norm=norm, lens=type(lens).__name__ if lens is not None else "logit lens"
    )
    return LogitLens(
        tokens=chosen, layers=tuple(wanted), top_strings=strings, words=tuple(words), site=site, norm=norm, made_by=made_by,
        kl=read.pop("kl", None), **read,
    )  # fmt: skip


def names_keyword(decoded: str, keywords: Collection[str]) -> bool:
    """Whether a decoded token names one of the keywords, which are given with their synonyms.

    It does if, in lower case and without spaces, it is the keyword, singular or plural, or the keyword's beginning in at
    least four letters, since tokens are pieces of words.
    """
    said = decoded.strip().lower()
    if not said:
        return False
    for keyword in (word.strip().lower() for word in keywords):
        if singular(said) == singular(keyword) or (len(said) >= SHORTEST_PIECE and keyword.startswith(said)):
            return True
    return False


@dataclass(frozen=True, eq=False)
class LatentUnderstanding:
    """How many clips' media tokens name what the clip holds, layer by layer.

    Attributes:
        hit: Whether any token of the clip does.
        share: The share of its tokens that do.
        control: Of the other clips, whose content is another, the share whose content its tokens name too: what chance and
            the model's habits give. NaN where there is no such clip.
        layers: The blocks, 0-based.
        from_layer: The first layer that counts for `rate`.
        rate: The share of clips named in any layer from there on, over clips.
        control_rate: The same of other clips' content.
        modality: Whose tokens were read.
        made_by: What made it.
    """

    hit: Bool[Tensor, "clip layer"]
    share: Float[Tensor, "clip layer"]
    control: Float[Tensor, "clip layer"]
    layers: tuple[int, ...]
    from_layer: int
    rate: Interval
    control_rate: Interval
    modality: Modality
    made_by: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: the share of clips named, that of other clips' content, and the mean share of the tokens."""
        columns = {
            "named": self.hit.double().mean(0), "control": self.control.double().nanmean(0), "tokens": self.share.double().mean(0)
        }  # fmt: skip
        return pd.DataFrame({k: v.numpy() for k, v in columns.items()}, index=pd.Index(self.layers, name="layer"))

    def __repr__(self) -> str:
        return f"LatentUnderstanding({self.modality.name.lower()}: {self.rate!r}, control {self.control_rate!r})"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


def latent_understanding(
    lenses: Sequence[LogitLens],
    truths: Sequence[Collection[str]],
    *,
    modality: Modality = Modality.AUDIO,
    from_layer: int | None = None,
    k: int = 1,
    seed: int = 0,
) -> LatentUnderstanding:
    """How often the tokens of a modality name what the clip holds.

    Args:
        lenses: One per clip, read at tokens of the modality among others, in the same layers.
        truths: For each, what its content is called, with synonyms, such as `{"dog", "bark", "barking"}`.
        modality: Whose tokens count.
        from_layer: The first layer that counts for the rate; by default the middle one.
        k: How many of the likeliest tokens count.
        seed: Of the bootstrap.

    Raises:
        MetricError: If there are no lenses, not as many truths, or lenses of different layers.
        PositionError: If a lens was not read at the modality's tokens.
    """
    if not lenses or len(lenses) != len(truths) or len({lens.layers for lens in lenses}) != 1:
        raise MetricError(
            f"{len(lenses)} lenses cannot be scored against {len(truths)} truths. Pass one for each, read in the same layers."
        )
    layers = lenses[0].layers
    first = (max(layers) + 1) // 2 if from_layer is None else from_layer
    late = torch.tensor([layer >= first for layer in layers])
    if not late.any():
        raise MetricError(
            f"from_layer is {first}, but the lenses were read in layers {list(layers)}. Pass one of them."
        )
    cut = [_of_modality(lens, modality) for lens in lenses]
    own = torch.stack([_named(lens, truth, k) for lens, truth in zip(cut, truths, strict=True)])
    others = [_control(lens, truth, truths, k) for lens, truth in zip(cut, truths, strict=True)]
    prompts = [prompt for lens in lenses for prompt in lens.made_by["prompts"]]
    return LatentUnderstanding(
        hit=own > 0, share=own, control=torch.stack([named.mean(0) for named in others]), layers=layers, from_layer=first,
        rate=bootstrap_mean((own[:, late] > 0).any(-1).double(), seed=seed), modality=modality,
        control_rate=bootstrap_mean(torch.stack([_any(named[:, late]) for named in others]), seed=seed),
        made_by={**lenses[0].made_by, "prompts": prompts, "k": k},
    )  # fmt: skip


@dataclass(eq=False)
class _Reader:
    """Reads one layer where it is made, some positions at a time."""

    model: Any
    tokens: TokenSet
    layer: int
    lens: Lens | None
    norm: bool
    k: int
    forms: Sequence[Sequence[int]]
    last: Float[Tensor, "token d_model"] | None
    found: dict[str, Tensor] = field(default_factory=dict)
    reads_only: bool = True

    def __call__(self, x: Float[Tensor, "batch pos d_model"], hook: HookPoint) -> None:
        parts = [self._read(*part) for part in self._parts(_rows(x, hook, self.tokens))]
        self.found = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}

    def _parts(self, resid: Float[Tensor, "token d_model"]) -> Iterator[tuple[Tensor, Tensor | None]]:
        lasts = [None] * len(resid) if self.last is None else self.last.split(AT_ONCE)
        yield from zip(resid.split(AT_ONCE), lasts, strict=False)

    def _read(self, resid: Float[Tensor, "part d_model"], last: Tensor | None) -> dict[str, Tensor]:
        seen = resid if self.lens is None else self.lens(resid, self.layer)
        log_p = self.model.read_out(seen, norm=self.norm).float().log_softmax(-1)
        top, p = log_p.topk(self.k, dim=-1), log_p.exp()
        read = {"top_ids": top.indices, "top_p": top.values.exp(), "entropy": -(p * log_p).nan_to_num().sum(-1)}
        best = [log_p[:, list(form)].amax(-1) for form in self.forms]
        words = torch.stack(best, dim=-1) if best else log_p[:, :0]
        read |= {"p_words": words.exp(), "rank_words": 1 + (log_p[:, :, None] > words[:, None]).sum(1)}
        if last is not None:
            final = self.model.read_out(last).float().log_softmax(-1)
            read["kl"] = (final.exp() * (final - log_p)).nan_to_num().sum(-1).clamp(min=0)
        return read


def _rows(x: Float[Tensor, "batch pos d_model"], hook: HookPoint, tokens: TokenSet) -> Float[Tensor, "token d_model"]:
    """The rows of the tokens, in their order."""
    own = query_positions(hook, x)[0].tolist()
    where = {position: row for row, position in enumerate(own)}
    if gone := [position for position in tokens if position not in where]:
        raise PositionError(f"position {gone[0]} has been discarded before {hook.name}. Read at tokens that remain.")
    return x[0, [where[position] for position in tokens]]


def _check(model: Any, tokens: TokenSet, site: str, k: int, words: Sequence[str]) -> None:
    if site not in SITES:
        raise HookError(f"{site!r} does not live in the residual stream. Read one of {', '.join(SITES)}.")
    if not 1 <= k <= model.cfg.d_vocab:
        raise HookError(f"k is {k}. Keep from 1 to {model.cfg.d_vocab} tokens.")
    if not len(tokens) or tokens.open_ended:
        raise PositionError(
            f"a lens cannot be read at {tokens!r}. Pass positions of the prompt, such as inputs.tokens.audio."
        )
    if isinstance(words, str) or any(not word.strip() for word in words):
        raise PromptError(f"words is {words!r}. Pass a list of words, such as ['dog'].")


def _last_stream(
    model: Any, inputs: AVInputs, tokens: TokenSet, fwd_hooks: Sequence[FwdHook]
) -> Float[Tensor, "token d_model"]:
    """What the last block leaves at the tokens."""
    kept: list[Tensor] = []
    name = names.at("resid_post", model.cfg.n_layers - 1)
    keep: FwdHook = (name, lambda x, hook: kept.append(_rows(x, hook, tokens)))
    model.run_with_hooks(inputs, [*fwd_hooks, keep], logits_at=inputs.tokens.last)
    return kept[0]


def _of_modality(lens: LogitLens, modality: Modality) -> LogitLens:
    tokens = lens.tokens.tokens
    its = tokens.at((tokens.modality == modality).nonzero()[:, 0].tolist()) & lens.tokens
    if not its:
        raise PositionError(f"{lens!r} was read at no {modality.name.lower()} token. Read it at some.")
    return lens.at(its)


def _named(lens: LogitLens, truth: Collection[str], k: int) -> Float[Tensor, " layer"]:
    """The share of tokens that name the truth."""
    return lens.hits(truth, k=k).float().mean(-1)


def _control(
    lens: LogitLens, truth: Collection[str], truths: Sequence[Collection[str]], k: int
) -> Float[Tensor, "other layer"]:
    """1 where any token names the content of another clip that is something else."""
    others = [frozenset(other) for other in truths if not set(other) & set(truth)]
    hits = {other: (_named(lens, other, k) > 0).float() for other in others}
    return torch.stack([hits[other] for other in others]) if others else torch.zeros(0, len(lens.layers))


def _any(named: Float[Tensor, "other late"]) -> Float[Tensor, ""]:
    """The share of the others that are named in any layer; NaN where there is none."""
    return (named > 0).any(-1).float().mean()
