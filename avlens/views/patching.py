"""What does the answer become when these tokens are patched, or not read, in these layers?

A grid has a cell for each layer and group of tokens. To *patch* a cell puts the group's activations in a window of
layers of one run into the other (see `avlens.interventions.patch`); to *knock out* a cell forbids every other
position to read the group in those layers (`avlens.interventions.knockout`). What is measured is the probability of
each answer's first token right after the prompt, and how it changes against the run that is edited:

    effect(cell, answer) = P_edited[answer] - P_run[answer],   in [-1, 1].

Patches go into the corrupted run (`direction="denoise"`) or into the clean one (`"noise"`). A knockout acts on the clean
run; together with patches, on the run that they go into. What was computed once is kept.

Source: Meng et al. 2022, arXiv:2202.05262 (patching); Geva et al. 2023, arXiv:2304.14767 (knockout).
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from avlens import display, names
from avlens.cache import AVCache
from avlens.contrast import Direction
from avlens.engine import sweep
from avlens.errors import LayerError, PromptError, ViewError
from avlens.hooks import FwdHook
from avlens.inputs import AVInputs
from avlens.interventions import knockout, patch
from avlens.tokens import TokenSet

Kind = Literal["patch", "knockout"]
SITES: Mapping[str, tuple[str, ...]] = {
    "resid_pre": ("resid_pre",),
    "ln1.normalized": ("ln1.normalized",),
    "k, v": ("k", "v"),
    "attn_out": ("attn_out",),
    "mlp_out": ("mlp_out",),
}
"""What can be patched, by what it is called."""

_ANSWERS = 5


class Edit(NamedTuple):
    """A cell with what is done there.

    Attributes:
        kind: Whether the group is patched or knocked out.
        layer: The first block of the window, 0-based.
        group: Which group of tokens, 0-based.
        window: How many blocks, fewer at the end.
        site: What is patched, one of `SITES`; nothing of a knockout.
    """

    kind: Kind
    layer: int
    group: int
    window: int = 1
    site: str = ""


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """Effects of patching and of knocking out each cell; NaN where that was not asked for.

    Attributes:
        patched: Change of the followed answer's probability.
        knocked_out: The same for knockouts, against the clean run.
        groups: The tokens of each column, by label.
        answer: The answer that is followed.
        direction: Of the patches.
        site: What is patched.
        window: How many layers at a time, from the cell's on.
        p_clean: Probability of the answer in the clean run.
        p_corrupt: The same in the corrupted run.
        made_by: What made it.
    """

    patched: Float[Tensor, "layer group"]
    knocked_out: Float[Tensor, "layer group"]
    groups: Mapping[str, TokenSet]
    answer: str
    direction: Direction
    site: str
    window: int
    p_clean: float
    p_corrupt: float
    made_by: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row for each cell that was patched or knocked out."""
        index = pd.MultiIndex.from_product([range(len(self.patched)), self.groups], names=["layer", "group"])
        columns = {"patched": self.patched.flatten().numpy(), "knocked_out": self.knocked_out.flatten().numpy()}
        return pd.DataFrame(columns, index=index).dropna(how="all")

    def __repr__(self) -> str:
        return f"PatchGrid({len(self.to_frame())} cells of {tuple(self.patched.shape)}, change of P({self.answer!r}))"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


@dataclass
class Bench:
    """Two runs of one prompt and what edits of them answer. Every edit is run once; threads wait for each other.

    Attributes:
        model: A HookedAVModel.
        clean: One prompt.
        corrupt: The same prompt on a corrupted clip.
        groups: The tokens of each column, by label.
        answers: First token ids of each answer, by what it is called.
        p_clean: Probability of each answer in the clean run.
        p_corrupt: The same in the corrupted run.
    """

    model: Any
    clean: AVInputs
    corrupt: AVInputs
    groups: Mapping[str, TokenSet]
    answers: Mapping[str, tuple[int, ...]]
    p_clean: Float[Tensor, " answer"]
    p_corrupt: Float[Tensor, " answer"]
    _known: dict[tuple[Direction, frozenset[Edit]], Tensor] = field(default_factory=dict)
    _caches: dict[tuple[Direction, str], AVCache] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def of(
        cls, model: Any, clean: AVInputs, corrupt: AVInputs, groups: Mapping[str, TokenSet], answers: Sequence[str] | None
    ) -> "Bench":  # fmt: skip
        """Both runs.

        Args:
            model: A HookedAVModel.
            clean: One prompt.
            corrupt: The same prompt on a corrupted clip: same layout, same text.
            groups: The tokens of each column, by label.
            answers: Words whose probability is told; by default the likeliest of both runs.

        Raises:
            PromptError: If the prompts differ in more than their media, or answers cannot be told apart.
            PositionError: If a group belongs to a prompt of another layout.
            ViewError: If there is nothing to patch.
        """
        if clean.prompt.tokens.layout != corrupt.prompt.tokens.layout or not torch.equal(clean.ids, corrupt.ids):
            raise PromptError(
                f"the clean prompt ({clean.tokens!r}) and the corrupted one ({corrupt.tokens!r}) must have the same layout "
                "and text. Corrupt the clip with silenced(), blanked(), noised() or with_audio_of(), and ask the same question."
            )
        for tokens in groups.values():
            clean.tokens.check_own(tokens)
        if not groups or not all(groups.values()):
            raise ViewError(f"the groups {list(groups)} leave nothing to patch. Pass sets of at least one token each.")
        runs = [model(inputs, logits_at=inputs.tokens.last)[0, 0].float().softmax(-1) for inputs in (clean, corrupt)]
        chosen = _likeliest(model, *runs) if answers is None else {word: _first_ids(model, word) for word in answers}
        if not chosen or sum(map(len, chosen.values())) > len({one for ids in chosen.values() for one in ids}):
            raise PromptError(
                f"the answers {list(chosen)} do not begin with tokens of their own. Pass words that begin differently."
            )
        p_clean, p_corrupt = (_of_answers(p, chosen) for p in runs)
        return cls(model, clean, corrupt, groups, chosen, p_clean, p_corrupt)

    @property
    def n_layers(self) -> int:
        """How many rows the grid has."""
        return int(self.model.cfg.n_layers)

    def checked(self, edit: Edit) -> Edit:
        """The edit, if its cell exists.

        Raises:
            LayerError: If the layer or the window does not exist.
            ViewError: If the group or the site does not.
        """
        if not 0 <= edit.layer < self.n_layers or edit.window < 1:
            raise LayerError(
                f"layer {edit.layer} with a window of {edit.window} is not in the grid. Pass a layer from 0 to "
                f"{self.n_layers - 1} and a window of at least 1."
            )
        if not 0 <= edit.group < len(self.groups):
            raise ViewError(
                f"there is no group {edit.group}: the grid has {len(self.groups)} (0 to {len(self.groups) - 1})."
            )
        if edit.kind not in get_args(Kind) or (edit.kind == "patch") != (edit.site in SITES):
            raise ViewError(f"{edit} cannot be done. Patch one of {', '.join(map(repr, SITES))}, or knock out no site.")
        return edit

    def known(self, edits: Sequence[Edit], direction: Direction) -> Float[Tensor, " answer"] | None:
        """What was found for these edits together, if it was."""
        if not edits:
            return self._unedited(edits, direction)
        return self._known.get((direction, frozenset(edits)))

    def run(self, wanted: Sequence[Sequence[Edit]], direction: Direction) -> Float[Tensor, "wanted answer"]:
        """Probability of each answer under each of these, where edits that stand together act together.

        Raises:
            LayerError: If a layer does not exist.
            ViewError: If a group or site does not.
        """
        with self._lock:
            new = {f"{i}": edits for i, edits in enumerate(wanted) if self.known(edits, direction) is None}
            for base in (self.clean, self.corrupt):
                mine = {name: edits for name, edits in new.items() if self._base(edits, direction) is base}
                if mine:
                    hooks = {name: self._hooks(edits, direction) for name, edits in mine.items()}
                    logits = sweep(self.model, base, hooks, logits_at=base.tokens.last)
                    for edits, row in zip(mine.values(), logits, strict=True):
                        self._known[direction, frozenset(edits)] = _of_answers(row[0].float().softmax(-1), self.answers)
            found = [self.known(edits, direction) for edits in wanted]
            return torch.stack([p for p in found if p is not None])

    def effect(self, edits: Sequence[Edit], direction: Direction) -> Float[Tensor, " answer"] | None:
        """How the probability of each answer changes against the run that is edited, if it is known."""
        found = self.known(edits, direction)
        return None if found is None else found - self._unedited(edits, direction)

    def code(self, edits: Sequence[Edit], direction: Direction) -> str:
        """Python that does the same, given `model`, `clean` and `corrupt`."""
        source, target = ("clean", "corrupt") if direction == "denoise" else ("corrupt", "clean")
        patches = [edit for edit in edits if edit.kind == "patch"]
        target = target if patches else "clean"
        sites = dict.fromkeys(site for edit in patches for site in SITES[edit.site])
        lines = ["from avlens import knockout, patch", "", "tokens = clean.tokens"]
        named = {edit.group: f"group_{edit.group}" for edit in edits}
        labels = list(self.groups)
        for group, name in named.items():
            lines.append(f"{name} = tokens.at({_positions(self.groups[labels[group]])})  # {labels[group]}")
        if sites:
            lines.append(f"_, cache = model.run_with_cache({source}, names_filter={list(sites)})")
        terms = [term for edit in edits for term in self._terms(edit, named[edit.group])]
        lines += ["hooks = [", *(f"    *{term}," for term in terms), "]"] if terms else ["hooks = []"]
        lines += [
            f"logits = model.run_with_hooks({target}, fwd_hooks=hooks, logits_at=tokens.last)",
            "p = logits[0, 0].float().softmax(-1)",
            f"answers = { ({name: list(ids) for name, ids in self.answers.items()})!r}",
            "print({answer: float(p[ids].max()) for answer, ids in answers.items()})",
        ]
        return "\n".join(lines)

    def _terms(self, edit: Edit, group: str) -> Iterator[str]:
        span = _layers(edit, self.n_layers)
        layers = f"range({span.start}, {span.stop})" if len(span) > 1 else f"[{span.start}]"
        if edit.kind == "knockout":
            yield f"knockout(tokens.all - {group}, {group}, layers={layers})"
        else:
            for site in SITES[edit.site]:
                yield f"patch(cache, {group}, layers={layers}, site={site!r})"

    def _hooks(self, edits: Sequence[Edit], direction: Direction) -> list[FwdHook]:
        hooks: list[FwdHook] = []
        sets = list(self.groups.values())
        for edit in map(self.checked, edits):
            group, layers = sets[edit.group], _layers(edit, self.n_layers)
            if edit.kind == "knockout":
                hooks += knockout(self.clean.tokens.all - group, group, layers=layers)
            else:
                cache = self._cache(direction, edit.site)
                hooks += [hook for site in SITES[edit.site] for hook in patch(cache, group, layers=layers, site=site)]
        return hooks

    def _cache(self, direction: Direction, site: str) -> AVCache:
        if (direction, site) not in self._caches:
            source = self.clean if direction == "denoise" else self.corrupt
            wanted = [names.at(one, layer) for one in SITES[site] for layer in range(self.n_layers)]
            _, cache = self.model.run_with_cache(source, names_filter=wanted, logits_at=source.tokens.last)
            self._caches[direction, site] = cache
        return self._caches[direction, site]

    def _base(self, edits: Sequence[Edit], direction: Direction) -> AVInputs:
        patched = any(edit.kind == "patch" for edit in edits)
        return self.corrupt if direction == "denoise" and (patched or not edits) else self.clean

    def _unedited(self, edits: Sequence[Edit], direction: Direction) -> Float[Tensor, " answer"]:
        return self.p_clean if self._base(edits, direction) is self.clean else self.p_corrupt


def _layers(edit: Edit, n_layers: int) -> range:
    return range(edit.layer, min(edit.layer + edit.window, n_layers))


def _likeliest(model: Any, clean: Tensor, corrupt: Tensor) -> dict[str, tuple[int, ...]]:
    """The answer of each run, and what else either holds likely; blank text, or text that another has, with its number."""
    first = dict.fromkeys([int(clean.argmax()), int(corrupt.argmax())])
    others = torch.maximum(clean, corrupt).topk(min(2 * _ANSWERS, len(clean))).indices.tolist()
    found: dict[str, tuple[int, ...]] = {}
    for one in list(dict.fromkeys([*first, *others]))[:_ANSWERS]:
        written = model.to_string(torch.tensor(one))
        text = written.strip()
        found[text if text and text not in found else f"{written!r} #{one}"] = (one,)
    return found


def _first_ids(model: Any, word: str) -> tuple[int, ...]:
    """The first tokens of a word without and with a space in front."""
    if not word.strip():
        raise PromptError("an answer is empty. Pass words, such as answers=['siren', 'bell'].")
    forms = (word.strip(), f" {word.strip()}")
    return tuple(sorted({model.tokenizer(form, add_special_tokens=False)["input_ids"][0] for form in forms}))


def _of_answers(p: Float[Tensor, " d_vocab"], answers: Mapping[str, tuple[int, ...]]) -> Float[Tensor, " answer"]:
    return torch.stack([p[list(ids)].max() for ids in answers.values()]).cpu()


def _positions(tokens: TokenSet) -> str:
    """Positions as Python, neighbours as ranges."""
    runs: list[list[int]] = []
    for position in sorted(tokens):
        if runs and position == runs[-1][1] + 1:
            runs[-1][1] = position
        else:
            runs.append([position, position])
    if len(runs) == 1 and runs[0][0] < runs[0][1]:
        return f"range({runs[0][0]}, {runs[0][1] + 1})"
    return "[" + ", ".join(f"*range({a}, {b + 1})" if b > a else str(a) for a, b in runs) + "]"
