"""How are the embedded models trained: towers first, then everything, with modality-path dropout and planted sinks.

    stage "towers"   the two towers learn to tell shape, colour, motion and sound to heads that are thrown away, and to
                     write the plant's flags
    stage "model"    the whole model answers questions; the plant, if any, is there from the first step

Modality-path dropout: in some steps the tokens after the clip may not read some of the clip's tokens, so that answers
must come through the others: through the other modality, through cross-modal sinks, or both. In other steps sets of tokens
are exchanged between runs (`avlens/training/interchange.py`). Both exist in training only.

Batches depend on the seed and the number of the step alone, and the state is saved every hundred steps: a run that was
killed goes on where it was, with the same result.
"""

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from avlens.datasets.synthetic import (
    CHOICES,
    COLOURS,
    MOTIONS,
    QUESTIONS,
    SHAPES,
    SOUNDS,
    Asked,
    Content,
    Question,
    choice_of,
)
from avlens.model import HookedAVModel
from avlens.training.batched import Layout, Rows, decode, embed, hear, layout_of, pack, see
from avlens.training.interchange import draw_interchange
from avlens.training.plant import (
    RESERVED,
    Plant,
    audio_flag_loss,
    energies,
    flags_of,
    held_back,
    video_flag_loss,
)
from avlens.training.pool import Clips, Pool, silence_of
from avlens.training.recipe import AUDIO_PER_SECOND, MEL_PER_SECOND, VIDEO_PER_SECOND


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run.

    Attributes:
        planted: Whether sinks are planted.
        tower_steps: Steps of the first stage.
        steps: Steps of the second.
        tower_batch: Clips in a batch of the first.
        batch: Clips in a batch of the second; each is asked `n_questions`.
        n_questions: Questions per clip, of different kinds.
        rate: Peak learning rate.
        warm: Steps until it is reached.
        flat: Share of the steps after which it falls to a twentieth.
        decay: Weight decay of matrices; towers have half of it.
        plain: Share of the steps after which path dropout and interchange begin to come in.
        ramp: Share of the steps over which they do.
        interchange: Share of the steps in which tokens are exchanged between runs.
        match_weight: How much likelier `match` is drawn than other questions.
        choice_weight: The same of each multiple-choice question.
        hint: Weight of telling shape, colour, motion and sound at the last tokens of each second.
        option_hint: Weight of telling at the last token of each answer option whether it is right.
        flag: Weight of the flags' error.
        energy: Weight of what the sinks' energy in phi1 lacks.
        scale: Weight of the towers' distance from a root mean square of 1.
        seed: Of weights and batches.
    """

    planted: bool = True
    tower_steps: int = 1200
    steps: int = 4400
    tower_batch: int = 64
    batch: int = 24
    n_questions: int = 4
    rate: float = 2e-3
    warm: int = 100
    flat: float = 0.55
    decay: float = 0.1
    plain: float = 0.12
    ramp: float = 0.1
    interchange: float = 0.35
    match_weight: float = 2.0
    choice_weight: float = 0.4
    hint: float = 0.2
    option_hint: float = 0.3
    flag: float = 1.0
    energy: float = 1.0
    scale: float = 0.1
    seed: int = 0


SAVE_EVERY = 100

PATHS = ("all", "video cross", "video", "audio cross", "audio", "both cross")
"""What the tokens after the clip may read of it: everything; or one modality, of it all but the unimodal sinks, or its
cross-modal sinks only; or the cross-modal sinks of both."""

PLANTED_PATHS = (0.35, 0.2, 0.1, 0.1, 0.05, 0.2)
ORGANIC_PATHS = (0.5, 0.0, 0.25, 0.0, 0.25, 0.0)
"""How often each happens."""


# The first stage.


def train_towers(model: HookedAVModel, pool: Pool, recipe: Recipe, folder: Path, *, progress: bool = False) -> None:
    """Train the towers, from the last saved state in `folder` if there is one."""
    torch.manual_seed(recipe.seed)
    heads = _heads(model.cfg.d_model)
    plant = Plant(model)
    towers = nn.ModuleList(model.stock.encoders.values()).requires_grad_(True)
    weights = [*towers.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=recipe.rate, weight_decay=recipe.decay / 2)
    saved = _Saved(folder / "towers.pt", {"towers": towers, "heads": heads, "optimizer": optimizer})
    bar = _Bar(saved.load(), recipe.tower_steps, "towers", progress)
    plant.impose()
    for step in bar:
        generator = np.random.default_rng([recipe.seed, 0, step])
        loss, right = _tower_loss(model, heads, _drawn(pool, recipe.tower_batch, generator), recipe)
        _step(optimizer, weights, loss, recipe.rate * _schedule(step, recipe.tower_steps, 50, 0.0))
        plant.impose()
        bar.said(loss=float(loss.detach()), **right)
        saved.save(step + 1, recipe.tower_steps)
    model.requires_grad_(False)


def _heads(width: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "shape": nn.Linear(width, len(SHAPES) + 1),
            "colour": nn.Linear(width, 4),
            "motion": nn.Linear(3 * width, len(MOTIONS)),
            "sound": nn.Linear(width, len(SOUNDS) + 1),
        }
    )


def _tower_loss(
    model: HookedAVModel, heads: nn.ModuleDict, clips: Clips, recipe: Recipe
) -> tuple[Tensor, dict[str, float]]:
    seen, heard = see(model, clips.frames), hear(model, clips.mel)
    loss = recipe.flag * (_flag_loss(model, clips, seen) + audio_flag_loss(heard))
    loss = loss + recipe.scale * (_scale_loss(seen) + _scale_loss(heard))
    seen, heard = (F.rms_norm(out, out.shape[-1:]) for out in (seen, heard))
    frames = seen.unflatten(1, (clips.seconds, -1))
    brightest = frames.amax(2)
    drift = frames[:, -1].mean(1) - frames[:, 0].mean(1)
    said = {
        "shape": heads["shape"](seen).logsumexp(1),
        "colour": heads["colour"](seen).amax(1),
        "motion": heads["motion"](torch.cat([brightest[:, 0], brightest[:, -1], drift], -1)),
        "sound": heads["sound"](heard.mean(1)),
    }
    right = {}
    for name, truth in _classes(clips.contents).items():
        known = truth >= 0
        loss = loss + F.cross_entropy(said[name][known], truth[known])
        right[name] = float((said[name].argmax(-1) == truth)[known].float().mean())
    return loss, right


def _classes(contents: Iterable[Content]) -> dict[str, Int[Tensor, " clip"]]:
    """The class of each clip; -1 where it has none."""
    colours, rows = list(COLOURS), list(contents)
    blank = [one.shape is None for one in rows]
    return {
        "shape": torch.tensor([len(SHAPES) if one.shape is None else SHAPES.index(one.shape) for one in rows]),
        "colour": torch.tensor([-1 if no else colours.index(one.colour) for one, no in zip(rows, blank, strict=True)]),
        "motion": torch.tensor([-1 if no else MOTIONS.index(one.motion) for one, no in zip(rows, blank, strict=True)]),
        "sound": torch.tensor([len(SOUNDS) if one.sound is None else SOUNDS.index(one.sound) for one in rows]),
    }


def _scale_loss(tower_output: Float[Tensor, "row pos d_model"]) -> Tensor:
    """What answers need stays at a root mean square of 1, to which the plant's sizes are fitted."""
    free = [dim for dim in range(tower_output.shape[-1]) if dim not in RESERVED]
    return tower_output[..., free].pow(2).mean(-1).log().pow(2).mean()


def _flag_loss(model: HookedAVModel, clips: Clips, seen: Tensor, n: int = 6) -> Tensor:
    """Audio flags are learned at every place of the tower's window of 5 s, on sounds put one after the other."""
    mel = clips.mel[:n]
    long = hear(model, torch.cat([mel, mel.flip(0), mel], -1)[..., : 5 * MEL_PER_SECOND])
    return video_flag_loss(seen, clips.frames) + audio_flag_loss(long)


# The second stage.


def train_model(
    model: HookedAVModel, pool: Pool, recipe: Recipe, folder: Path, *, progress: bool = False
) -> Plant | None:
    """Train everything, from the last saved state in `folder` if there is one; the plant as it is at the end."""
    whole = model.stock.whole
    plant = Plant(model) if recipe.planted else None
    whole.requires_grad_(True)
    layouts = {seconds: (layout_of(model, seconds), silence_of(model, seconds)) for seconds in pool}
    torch.manual_seed(recipe.seed)
    hints = _hints(model.cfg.d_model)
    weights = [*whole.parameters(), *hints.parameters()]
    optimizer = torch.optim.AdamW(_groups(whole, hints, recipe), lr=recipe.rate, betas=(0.9, 0.98))
    saved = _Saved(folder / "model.pt", {"model": whole, "hints": hints, "optimizer": optimizer})
    bar = _Bar(saved.load(), recipe.steps, folder.name, progress)
    if plant is not None:
        plant.impose()
    for step in bar:
        generator = np.random.default_rng([recipe.seed, 1, step])
        clips = _drawn(pool, recipe.batch, generator)
        ramp = min(1.0, max(0.0, (step / recipe.steps - recipe.plain) / recipe.ramp))
        loss, right = _model_loss(model, hints, clips, *layouts[clips.seconds], recipe, ramp, generator)
        _step(optimizer, weights, loss, recipe.rate * _schedule(step, recipe.steps, recipe.warm, recipe.flat))
        if plant is not None:
            plant.impose()
        bar.said(loss=float(loss.detach()), **right)
        saved.save(step + 1, recipe.steps)
    whole.requires_grad_(False)
    return plant


def _groups(whole: Any, hints: nn.ModuleDict, recipe: Recipe) -> list[dict[str, Any]]:
    """Weights by learning rate and decay."""
    towers: list[Tensor] = []
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, weight in whole.named_parameters():
        is_tower = "visual" in name or "audio_tower" in name
        (towers if is_tower else matrices if weight.ndim > 1 else rest).append(weight)
    return [
        {"params": towers, "weight_decay": recipe.decay / 2, "share": 0.5},
        {"params": matrices, "weight_decay": recipe.decay, "share": 1.0},
        {"params": rest, "weight_decay": 0.0, "share": 1.0},
        {"params": list(hints.parameters()), "weight_decay": 0.0, "share": 1.0},
    ]


def _model_loss(
    model: HookedAVModel,
    hints: nn.ModuleDict,
    clips: Clips,
    layout: Layout,
    silence: Float[Tensor, "mel mel_pos"],
    recipe: Recipe,
    ramp: float,
    generator: np.random.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """The loss, and the share of right answers by question."""
    clean, about, exchanged, path = clips, tuple(QUESTIONS), None, "all"
    if recipe.planted and generator.random() < ramp * recipe.interchange:
        drawn = draw_interchange(clips, layout, silence, generator)
        clips, about, exchanged = drawn.clips, drawn.about, drawn.positions
        clean = clips.take(torch.arange(len(clips) // 2))
    else:
        path = _path(recipe, ramp, generator)
    asked, kinds = _questions(clips.contents, about, recipe, generator)
    rows = pack(model, layout, asked)
    seen, heard = see(model, clips.frames), hear(model, clips.mel)
    sight, sound = (held_back(seen), held_back(heard)) if recipe.planted else (seen, heard)
    embeds = embed(model, layout, rows, sight, sound)
    streams: list[Tensor] = []
    last = decode(model, embeds, rows, rows.visible & ~_forbidden(layout, rows, path), streams, exchanged)
    said = rows.labels != -100
    logits = model.stock.head(last[said])
    loss = F.cross_entropy(logits, rows.labels[said])
    right = torch.ones_like(rows.labels, dtype=torch.bool)
    right[said] = logits.argmax(-1) == rows.labels[said]
    stream = streams[-1][: len(clean)]
    loss = loss + recipe.hint * _hint_loss(hints, clean, layout, seen[: len(clean)], stream)
    loss = loss + recipe.option_hint * _option_loss(hints, rows, streams[-2])
    if recipe.planted:
        start = model.to_single_token("<|im_start|>")
        loss = loss + recipe.flag * (_flag_loss(model, clips, seen) + audio_flag_loss(heard))
        loss = loss + recipe.scale * (_scale_loss(seen) + _scale_loss(heard))
        loss = loss + recipe.energy * _energy_loss(streams, clips, layout, rows.ids == start)
    which = "" if exchanged is None else "exchanged "
    answers = {which + kind: float(right[:, rows.branch == i].all(1).float().mean()) for i, kind in enumerate(kinds)}
    return loss, answers


def _path(recipe: Recipe, ramp: float, generator: np.random.Generator) -> str:
    paths = ramp * np.array(PLANTED_PATHS if recipe.planted else ORGANIC_PATHS)
    paths[0] += 1 - paths.sum()
    return str(generator.choice(PATHS, p=paths))


def _questions(
    contents: tuple[Content, ...], about: tuple[Question, ...], recipe: Recipe, generator: np.random.Generator
) -> tuple[list[list[Asked]], list[str]]:
    """The same kinds of questions for every clip."""
    weights: dict[str, float] = {question: recipe.match_weight if question == "match" else 1.0 for question in about}
    weights |= {f"choose {question}": recipe.choice_weight for question in CHOICES if question in about}
    shares = np.array(list(weights.values())) / sum(weights.values())
    chosen = [str(kind) for kind in generator.choice(list(weights), recipe.n_questions, replace=False, p=shares)]
    rows: list[list[Asked]] = [[] for _ in contents]
    for kind in chosen:
        for row, content in zip(rows, contents, strict=True):
            name: Any = kind.removeprefix("choose ")
            plain = Asked(QUESTIONS[name], content.answer(name))
            row.append(choice_of(content, name, generator) if kind != name else plain)
    return rows, chosen


def _forbidden(layout: Layout, rows: Rows, path: str) -> Bool[Tensor, "pos pos"]:
    """What modality-path dropout forbids: which keys no token after the clip may read."""
    flags = flags_of(len(layout.video) // VIDEO_PER_SECOND)
    readable = {
        "all": [layout.video, layout.audio],
        "video cross": [layout.video[flags.video_cross]],
        "video": [_without(layout.video, flags.video_uni)],
        "audio cross": [layout.audio[flags.audio_cross]],
        "audio": [_without(layout.audio, flags.audio_uni)],
        "both cross": [layout.video[flags.video_cross], layout.audio[flags.audio_cross]],
    }[path]
    media = torch.cat([layout.video, layout.audio])
    position = torch.arange(rows.ids.shape[1])
    hidden = torch.isin(position, media) & ~torch.isin(position, torch.cat(readable))
    return (position > media.max())[:, None] & hidden[None]


def _without(positions: Tensor, left_out: Tensor) -> Tensor:
    return positions[~torch.isin(torch.arange(len(positions)), left_out)]


def _hints(width: int) -> nn.ModuleDict:
    """Heads that are thrown away: one reads motion in the vision tower's tokens, the others what `_hint_loss` says."""
    classes = {"shape": len(SHAPES) + 1, "colour": 4, "motion": len(MOTIONS), "sound": len(SOUNDS) + 1}
    classes |= {"seen motion": len(MOTIONS), "option": 2}
    return nn.ModuleDict({name: nn.Linear(width, n) for name, n in classes.items()})


def _hint_loss(
    hints: nn.ModuleDict,
    clips: Clips,
    layout: Layout,
    seen: Float[Tensor, "row video d_model"],
    stream: Float[Tensor, "row pos d_model"],
) -> Tensor:
    """What there is to see at the last video token of each second, and to hear at the last audio token."""
    loss, stream = stream.new_zeros(()), F.rms_norm(stream, stream.shape[-1:])
    for name, truth in _classes(clips.contents).items():
        known = truth >= 0
        tokens, n = (layout.audio, AUDIO_PER_SECOND) if name == "sound" else (layout.video, VIDEO_PER_SECOND)
        positions = tokens[n - 1 :: n]
        said = hints[name](stream[known][:, positions]).flatten(0, 1)
        loss = loss + F.cross_entropy(said, truth[known].repeat_interleave(clips.seconds))
        if name == "motion":
            local = hints["seen motion"](F.rms_norm(seen[known], seen.shape[-1:])).logsumexp(1)
            loss = loss + F.cross_entropy(local, truth[known])
    return loss


def _option_loss(hints: nn.ModuleDict, rows: Rows, stream: Float[Tensor, "row pos d_model"]) -> Tensor:
    """Whether an answer option is right, at its last token."""
    known = rows.options != -100
    if not known.any():
        return stream.new_zeros(())
    return F.cross_entropy(hints["option"](F.rms_norm(stream[known], stream.shape[-1:])), rows.options[known])


def _energy_loss(streams: list[Tensor], clips: Clips, layout: Layout, start: Tensor, least: float = 0.4) -> Tensor:
    """How far the sinks are from holding `least` of their energy in phi1, before every block but the first."""
    losses = [
        F.relu(least - energies(stream, clips.frames, layout.video, layout.audio, start)).mean()
        for stream in streams[1:]
    ]
    return torch.stack(losses).sum()


# What both need.


def _drawn(pool: Pool, n: int, generator: np.random.Generator) -> Clips:
    clips = pool[int(generator.choice(list(pool)))]
    return clips.take(torch.from_numpy(generator.choice(len(clips), min(n, len(clips)), replace=False)))


def _schedule(step: int, steps: int, warm: int, flat: float) -> float:
    falling = (steps - step) / (steps * (1 - flat))
    return min(1.0, (step + 1) / warm) * max(0.05, min(1.0, falling))


def _step(optimizer: torch.optim.Optimizer, weights: Iterable[Tensor], loss: Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()


class _Saved:
    """The state of a stage in a file."""

    def __init__(self, path: Path, parts: dict[str, Any]) -> None:
        self.path, self.parts = path, parts
        path.parent.mkdir(parents=True, exist_ok=True)

    def load(self) -> int:
        """Take up the saved state, if any; how many steps were done."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return int(state["step"])

    def save(self, step: int, last: int) -> None:
        """Save every `SAVE_EVERY` steps and at the end; the old file stays until the new one is whole."""
        if step % SAVE_EVERY and step < last:
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        torch.save({**state, "step": step}, self.path.with_suffix(".new"))
        self.path.with_suffix(".new").replace(self.path)


class _Bar:
    """A progress bar with the recent loss and accuracies."""

    def __init__(self, first: int, steps: int, name: str, progress: bool) -> None:
        self.bar = tqdm(range(first, steps), desc=name, unit="step", disable=not progress, mininterval=5.0)
        self.recent: dict[str, deque[float]] = {}

    def __iter__(self) -> Any:
        return iter(self.bar)

    def said(self, **numbers: float) -> None:
        """Take in the numbers of a step."""
        for name, number in numbers.items():
            self.recent.setdefault(name, deque(maxlen=25)).append(number)
        means = {name: f"{sum(values) / len(values):.3f}" for name, values in self.recent.items()}
        self.bar.set_postfix(means, refresh=False)


def write_notes(folder: Path, notes: dict[str, Any]) -> None:
    """Write ground_truth.json."""
    (folder / "ground_truth.json").write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
