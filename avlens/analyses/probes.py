"""Linear probes: at which layer, and at which tokens, can a label be read off the residual stream by a straight line?

For each layer and each set of tokens the mean of the activations over the set is one vector per clip. A logistic regression is
fitted on most clips and judged on the others, fold by fold, so that each clip is judged once:

    accuracy      share of clips judged right, in [0, 1]
    control       the same with the labels shuffled among the clips: what the probe alone can learn
    selectivity   accuracy - control
    majority      what guessing the commonest label would give

What a probe reads need not be what the model uses; patching tells that.

Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes", arXiv:1610.01644; Hewitt and
Liang 2019, "Designing and Interpreting Probes with Control Tasks", arXiv:1909.03368 (selectivity).

Differs from the sources: the control shuffles labels among clips (there: a random label for each word type).
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from avlens import display, names
from avlens.cache import reduce
from avlens.errors import HookError, MetricError, PositionError
from avlens.hooks import FwdHook
from avlens.inputs import AVInputs
from avlens.metrics.effects import Interval, bootstrap_mean
from avlens.tokens import TokenMap, TokenSet

Where = Mapping[str, Callable[[TokenMap], TokenSet]]
"""Sets of tokens by name, each as a function of a prompt's TokenMap."""


def by_modality(tokens: TokenMap) -> dict[str, TokenSet]:
    """Video, audio and the last token: where probes look by default."""
    return {"video": tokens.video, "audio": tokens.audio, "last": tokens.last}


@dataclass(frozen=True, eq=False)
class Features:
    """What is probed.

    Attributes:
        x: The mean activation over each set; NaN where a clip has no such token.
        sets: The first axis.
        layers: The second axis, 0-based.
        site: The activation.
        made_by: What made it.
    """

    x: Float[Tensor, "set layer clip d"]
    sets: tuple[str, ...]
    layers: tuple[int, ...]
    site: str
    made_by: Mapping[str, Any]


def probe_features(
    model: Any,
    prompts: Sequence[AVInputs],
    where: Where | None = None,
    *,
    site: str = "resid_post",
    layers: names.Layers = "all",
    fwd_hooks: Sequence[FwdHook] = (),
    progress: bool = False,
) -> Features:
    """Run each prompt once, and keep the mean activation of each set in each layer.

    Args:
        model: A HookedAVModel.
        prompts: One per clip, of any layout.
        where: The sets, such as `{"last second": lambda tokens: tokens.audio & tokens.seconds(2, 3)}`; by default `by_modality`.
        site: Short name of an activation with positions second.
        layers: Blocks to probe, 0-based.
        fwd_hooks: Edits to run with.
        progress: Whether to show a bar.

    Raises:
        HookError: If `site` has no position axis.
        MetricError: If there are no prompts.
    """
    if site in ("attn_scores", "pattern"):
        raise HookError(f"{site} has no axis of positions. Probe an activation such as resid_post or z.")
    if not prompts:
        raise MetricError("there are no prompts to probe. Pass one per clip.")
    chosen = list(range(model.cfg.n_layers)) if layers == "all" else names.checked_layers(layers)
    runs = tqdm(prompts, desc="features", unit="prompt", disable=not progress)
    rows = [_means(model, inputs, where, site, chosen, fwd_hooks) for inputs in runs]
    sets = tuple(rows[0])
    x = torch.stack([torch.stack([row[name] for row in rows], dim=1) for name in sets])
    return Features(x, sets, tuple(chosen), site, model.made_by(AVInputs.batch(list(prompts)), site=site))


@dataclass(frozen=True, eq=False)
class Probes:
    """How well labels can be read.

    Attributes:
        right: Whether each clip was judged right by the probe that had not seen it; NaN where a clip has no such token.
        control: The mean accuracy with shuffled labels.
        sets: The first axis.
        layers: The second axis, 0-based.
        labels: The labels.
        majority: The share of the commonest.
        groups: Which clips were kept together, in one fold and in one draw; None: each by itself.
        folds: How many folds.
        n_shuffles: How often labels were shuffled.
        made_by: What made it.
    """

    right: Float[Tensor, "set layer clip"]
    control: Float[Tensor, "set layer"]
    sets: tuple[str, ...]
    layers: tuple[int, ...]
    labels: tuple[str, ...]
    majority: float
    groups: tuple[Hashable, ...] | None
    folds: int
    n_shuffles: int
    made_by: Mapping[str, Any]

    @property
    def accuracy(self) -> Float[Tensor, "set layer"]:
        """The share of clips judged right."""
        return self.right.nanmean(-1)

    @property
    def selectivity(self) -> Float[Tensor, "set layer"]:
        """Accuracy beyond what shuffled labels give."""
        return self.accuracy - self.control

    def interval(self, name: str, layer: int, *, n_draws: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
        """An accuracy with its bootstrap interval over clips."""
        values = self.right[self.sets.index(name), self.layers.index(layer)]
        return bootstrap_mean(values, clusters=self.groups, n_draws=n_draws, level=level, seed=seed)

    def to_frame(self) -> pd.DataFrame:
        """One row per set and layer."""
        rows = []
        for i, name in enumerate(self.sets):
            for j, layer in enumerate(self.layers):
                found, control = self.interval(name, layer), float(self.control[i, j])
                row = {"set": name, "layer": layer, "accuracy": found.estimate, "low": found.low, "high": found.high}
                row |= {"control": control, "selectivity": found.estimate - control, "majority": self.majority}
                rows.append(row | {"clips": found.n})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        best = {name: float(row.max()) for name, row in zip(self.sets, self.accuracy, strict=True)}
        said = ", ".join(f"{name} {value:.2f}" for name, value in best.items())
        of = f"{len(set(self.labels))} labels of {len(self.labels)} clips"
        return f"Probes({of}; best layers: {said}; majority {self.majority:.2f})"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


def linear_probes(
    features: Features,
    labels: Sequence[str],
    *,
    groups: Sequence[Hashable] | None = None,
    folds: int = 5,
    n_shuffles: int = 3,
    strength: float = 1.0,
    max_iterations: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Probes:
    """Fit a logistic regression on each set and layer, by cross-validation.

    Args:
        features: What `probe_features` returned.
        labels: What each clip is to be told by, such as its sound.
        groups: Which clips belong together, such as those cut from one video: they are never split between fitting and judging.
        folds: Into how many parts the clips are dealt, each label alike.
        n_shuffles: How often labels are shuffled for the control; 0 leaves it NaN.
        strength: Inverse of the ridge penalty, scikit-learn's C; features are scaled to variance 1 first.
        max_iterations: Of the optimiser.
        seed: Of folds and shuffles.
        progress: Whether to show a bar.

    Raises:
        MetricError: If scikit-learn is not installed, or labels and clips do not fit each other.
    """
    told = [str(label) for label in labels]
    _check(features, told, groups, folds)
    generator = np.random.default_rng(seed)
    shuffles = [[told[i] for i in generator.permutation(len(told))] for _ in range(n_shuffles)]
    shape = features.x.shape[:3]
    right, control = torch.full(shape, torch.nan), torch.full(shape[:2], torch.nan)
    each = [(i, j) for i in range(shape[0]) for j in range(shape[1])]
    for i, j in tqdm(each, desc="probes", unit="probe", disable=not progress):
        x = features.x[i, j].double().numpy()
        known = ~np.isnan(x).any(1)
        judge = _Judge(x[known], _those(groups, known), folds, strength, max_iterations, seed)
        right[i, j, torch.from_numpy(known)] = judge.right(_those(told, known)).float()
        if shuffles:
            control[i, j] = torch.stack([judge.right(_those(one, known)).float().mean() for one in shuffles]).mean()
    return Probes(
        right=right, control=control, sets=features.sets, layers=features.layers, labels=tuple(told),
        majority=max(Counter(told).values()) / len(told), groups=None if groups is None else tuple(groups), folds=folds,
        n_shuffles=n_shuffles, made_by={**features.made_by, "seed": seed, "strength": strength},
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Judge:
    """Cross-validation on one set and layer."""

    x: Float[np.ndarray, "clip d"]
    groups: list[Any] | None
    folds: int
    strength: float
    max_iterations: int
    seed: int

    def right(self, labels: list[Any]) -> Bool[Tensor, " clip"]:
        """Whether each clip is judged right by the probe of its fold."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if min(Counter(labels).values()) < self.folds:
            raise MetricError(
                f"the label {min(Counter(labels).items(), key=lambda item: item[1])[0]!r} has fewer clips than there are folds "
                f"({self.folds}). Pass fewer folds, or leave rare labels out."
            )
        kind = StratifiedKFold if self.groups is None else StratifiedGroupKFold
        parts = kind(self.folds, shuffle=True, random_state=self.seed)
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=self.strength, max_iter=self.max_iterations))
        judged = cross_val_predict(probe, self.x, labels, groups=self.groups, cv=parts)
        return torch.from_numpy(np.asarray(judged == np.asarray(labels)))


def _means(
    model: Any, inputs: AVInputs, where: Where | None, site: str, layers: list[int], fwd_hooks: Sequence[FwdHook]
) -> dict[str, Float[Tensor, "layer d"]]:
    """The mean over each set of one prompt."""
    tokens = inputs.tokens
    sets = by_modality(tokens) if where is None else {name: choose(tokens) for name, choose in where.items()}
    for chosen in sets.values():
        tokens.check_own(chosen)
        if chosen.open_ended:
            raise PositionError("positions that are not yet generated cannot be probed. Pass positions of the prompt.")
    keep = [reduce(site, f"at_{i}", _mean_at(chosen)) for i, chosen in enumerate(sets.values())]
    _, cache = model.run_with_cache(
        inputs, names_filter=[], reductions=keep, fwd_hooks=fwd_hooks, logits_at=tokens.last
    )
    cache.require_positions(f"{names.at(site, layer)}.at_{i}" for layer in layers for i in range(len(sets)))
    return {
        name: torch.stack([cache[f"{site}.at_{i}", layer][0, 0].cpu() for layer in layers])
        for i, name in enumerate(sets)
    }


def _mean_at(chosen: TokenSet) -> Callable[[Tensor], Tensor]:
    """The mean over the set as one position, with what comes after the position axis flattened; NaN without a token."""
    return lambda x: x[:, chosen.positions.to(x.device)].float().mean(1, keepdim=True).flatten(2)


def _those(values: Sequence[Any] | None, known: Bool[np.ndarray, " clip"]) -> Any:
    return None if values is None else [value for value, keep in zip(values, known, strict=True) if keep]


def _check(features: Features, labels: list[str], groups: Sequence[Hashable] | None, folds: int) -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MetricError("linear probes need scikit-learn, which is not installed. Install avlens[probes].") from error
    n = features.x.shape[2]
    if len(labels) != n or (groups is not None and len(groups) != n):
        raise MetricError(
            f"{len(labels)} labels were given for {n} clips. Pass one label, and one group, for each clip."
        )
    if len(set(labels)) < 2 or folds < 2:
        raise MetricError(
            f"{len(set(labels))} labels and {folds} folds leave nothing to tell apart. Pass two or more of each."
        )
