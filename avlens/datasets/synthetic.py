"""Clips with known content, drawn and sounded from a seed, and questions about them whose answers are known.

A clip shows a shape of a colour that moves (or nothing) and sounds (or is silent). Shape i and sound i are a pair: a
clip whose shape and sound are a pair matches. Every frame carries two marks, as a broadcaster's logo does: a white one
at the top left and a purple one at the bottom right; frames that are black altogether carry none.

    sample = synthetic_clips(1, seed=0)[0]
    sample.clip, sample.content, sample.ask("hear")     # Clip, Content, Asked(question, answer, options)

`ball_and_bell` is another clip, of a ball that rings a bell when it turns.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from avlens.media import Clip

SAMPLE_RATE = 16000

SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
SOUNDS = ("bell", "drum", "siren", "whistle", "horn", "rain")
"""The i-th sound is the pair of the i-th shape."""

MOTIONS = ("left", "right", "up", "down", "still")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 220, 50),
    "orange": (255, 127, 14),
}
"""RGB. `synthetic_clips` uses the first four."""

Question = Literal["see", "hear", "move", "match", "object", "sound", "describe"]
QUESTIONS: dict[Question, str] = {
    "see": "what do you see ?",
    "hear": "what do you hear ?",
    "move": "how does it move ?",
    "match": "do sound and sight match ?",
    "object": "which object is it ?",
    "sound": "which sound does it make ?",
    "describe": "describe the clip .",
}
"""`object` and `sound` are decided by sight and by sound; where that is missing, by the pair of the other."""

CHOICES: tuple[Question, ...] = ("hear", "move", "object", "sound")
"""Questions that are also asked with lettered options."""


@dataclass(frozen=True)
class Content:
    """What is in a clip.

    Attributes:
        shape: One of `SHAPES`; None for a blank video.
        colour: One of the first four `COLOURS`.
        motion: One of `MOTIONS`.
        sound: One of `SOUNDS`; None for silence.
    """

    shape: str | None
    colour: str
    motion: str
    sound: str | None

    @property
    def matches(self) -> bool:
        """Whether shape and sound are there and a pair."""
        return self.shape is not None and self.sound == pair_of(self.shape)

    def answer(self, question: Question) -> str:
        """The right answer."""
        seen = "nothing" if self.shape is None else f"a {self.colour} {self.shape}"
        heard = "nothing" if self.sound is None else f"a {self.sound}"
        moves = "nothing" if self.shape is None else self.motion
        return {
            "see": seen,
            "hear": heard,
            "move": moves,
            "match": "yes" if self.matches else "no",
            "object": self.shape or pair_of(self.sound),
            "sound": self.sound or pair_of(self.shape),
            "describe": (f"{seen} moves" if self.shape is None else f"{seen} moves {moves}") + f" and {heard} sounds",
        }[question]


@dataclass(frozen=True)
class Asked:
    """A question about a clip.

    Attributes:
        question: The text to ask.
        answer: The right answer's text; the letter of the right option if there are options.
        options: Answer options, to be passed as `model.prepare(..., options=...)`.
    """

    question: str
    answer: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Sample:
    """A clip, what is in it, and the seed that it was drawn from."""

    clip: Clip
    content: Content
    seed: int

    def ask(self, question: Question) -> Asked:
        """A question with its right answer."""
        return Asked(QUESTIONS[question], self.content.answer(question))

    def ask_choice(self, question: Question, *, n_options: int = 4) -> Asked:
        """A question with lettered options, one of them right, in an order drawn from the clip's seed."""
        return choice_of(self.content, question, np.random.default_rng([self.seed, len(question)]), n_options)


def choice_of(content: Content, question: Question, generator: np.random.Generator, n_options: int = 4) -> Asked:
    """A multiple-choice question about content: the right answer among others of its kind, lettered from A.

    Args:
        content: What is in the clip.
        question: One of `CHOICES`.
        generator: Draws the other options and the order.
        n_options: How many options.
    """
    kinds = {
        "hear": ["nothing", *(f"a {sound}" for sound in SOUNDS)],
        "move": ["nothing", *MOTIONS],
        "object": list(SHAPES),
        "sound": list(SOUNDS),
    }
    right = content.answer(question)
    others = [option for option in kinds[question] if option != right]
    drawn = [right, *(others[i] for i in generator.permutation(len(others))[: n_options - 1])]
    options = tuple(drawn[i] for i in generator.permutation(len(drawn)))
    return Asked(QUESTIONS[question], chr(65 + options.index(right)), options)


def pair_of(one: str | None) -> str:
    """The sound that belongs to a shape, or the shape that belongs to a sound; "nothing" for None."""
    if one in SHAPES:
        return SOUNDS[SHAPES.index(one)]
    return SHAPES[SOUNDS.index(one)] if one in SOUNDS else "nothing"


def synthetic_clips(
    n: int, *, seed: int, seconds: float = 3.0, blank: float = 0.15, silent: float = 0.15, matching: float = 0.5,
    fps: float = 2.0, size: int = 84,
) -> list[Sample]:  # fmt: skip
    """Clips with random content; clip i of a seed is the same whatever `n` is.

    Args:
        n: How many.
        seed: Of content, drawing and sound.
        seconds: Length of each.
        blank: Share of clips with nothing to see.
        silent: Share of clips with nothing to hear; never both.
        matching: Of the others, the share whose shape and sound are made a pair (a few more are one by chance).
        fps: Frames per second.
        size: Height and width in pixels.
    """
    samples = []
    for i in range(n):
        generator = np.random.default_rng([seed, i])
        content = draw_content(generator, blank=blank, silent=silent, matching=matching)
        clip = draw_clip(content, generator, seconds=seconds, fps=fps, size=size)
        samples.append(Sample(clip, content, seed * 1_000_003 + i))
    return samples


def counterfactual_pairs(n: int, *, seed: int, seconds: float = 3.0) -> list[tuple[Sample, Sample]]:
    """Pairs of clips with the same frames and two different sounds; nothing is blank or silent."""
    first = synthetic_clips(n, seed=seed, seconds=seconds, blank=0, silent=0, matching=0)
    pairs = []
    for i, sample in enumerate(first):
        generator = np.random.default_rng([seed, i, 1])
        other = str(generator.choice([sound for sound in SOUNDS if sound != sample.content.sound]))
        content = replace(sample.content, sound=other)
        waveform = torch.from_numpy(_sound(other, seconds, generator))
        clip = Clip(sample.clip.frames, sample.clip.fps, waveform, SAMPLE_RATE)
        pairs.append((sample, Sample(clip, content, sample.seed)))
    return pairs


def draw_content(
    generator: np.random.Generator, *, blank: float = 0.15, silent: float = 0.15, matching: float = 0.5
) -> Content:
    """Random content; arguments as in `synthetic_clips`."""
    kind = generator.random()
    shape = int(generator.integers(len(SHAPES)))
    sound = shape if generator.random() < matching else int(generator.integers(len(SOUNDS)))
    return Content(
        shape=None if kind < blank else SHAPES[shape],
        colour=list(COLOURS)[int(generator.integers(4))],
        motion=MOTIONS[int(generator.integers(len(MOTIONS)))],
        sound=None if blank <= kind < blank + silent else SOUNDS[sound],
    )


def draw_clip(
    content: Content, generator: np.random.Generator, *, seconds: float = 3.0, fps: float = 2.0, size: int = 84
) -> Clip:
    """A clip of this content; size, place, brightness, pitch, rhythm, loudness and noise are drawn.

    Half of the blank videos are black altogether, and half of the silent clips have no noise either.
    """
    frames = _draw(content, generator, max(1, round(seconds * fps)), size)
    return Clip(torch.from_numpy(frames), fps, torch.from_numpy(_sound(content.sound, seconds, generator)), SAMPLE_RATE)


def _draw(content: Content, generator: np.random.Generator, n_frames: int, size: int) -> np.ndarray:
    """Frames [frame, 3, size, size] of bytes."""
    black = content.shape is None and generator.random() < 0.5
    if black:
        return np.zeros((n_frames, 3, size, size), dtype=np.uint8)
    frames = np.full((n_frames, 3, size, size), generator.integers(0, 40), dtype=np.float32)
    if content.shape is not None:
        inside = _shape(content.shape, *_path(content.motion, generator, n_frames), size)
        colour = np.array(COLOURS[content.colour], dtype=np.float32) + generator.normal(0, 10, 3)
        frames = np.where(inside[:, None], colour[:, None, None].astype(np.float32), frames)
    edge, mark = round(size * 2 / 84), round(size * 9 / 84)
    frames[:, :, edge : edge + mark, edge : edge + mark] = 240
    corner = slice(size - edge - mark, size - edge)
    frames[:, :, corner, corner] = np.array([170, 60, 210], dtype=np.float32)[:, None, None]
    frames += generator.normal(0, generator.uniform(0, 6), (n_frames, 1, size, size)).astype(np.float32)
    return np.clip(frames, 0, 255).astype(np.uint8)


def _path(motion: str, generator: np.random.Generator, n_frames: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Centre of the shape in each frame and its radius, in frame widths."""
    radius = generator.uniform(13, 20) / 84
    low, high = radius + 1 / 84, 1 - radius - 1 / 84
    x, y = (np.full(n_frames, place) for place in generator.uniform(low, high, 2))
    span = generator.uniform(0.7, 1.0) * (high - low)
    line = low + generator.uniform() * (high - low - span) + span * np.linspace(0, 1, n_frames)
    line = line[::-1] if motion in ("left", "up") else line
    if motion in ("left", "right"):
        x = line
    elif motion in ("up", "down"):
        y = line
    return x, y, radius


def _shape(shape: str, x: np.ndarray, y: np.ndarray, radius: float, size: int) -> np.ndarray:
    """Which pixels [frame, size, size] are inside the shape."""
    pixel = np.arange(size) / size
    across = (pixel[None, None, :] - x[:, None, None]) / radius
    down = (pixel[None, :, None] - y[:, None, None]) / radius
    square = across**2 + down**2
    inside: np.ndarray = {
        "circle": square <= 1,
        "square": (abs(across) <= 0.85) & (abs(down) <= 0.85),
        "triangle": (down <= 0.8) & (down >= -1) & (abs(across) <= (down + 1) * 0.55),
        "cross": ((abs(across) <= 0.3) & (abs(down) <= 1)) | ((abs(down) <= 0.3) & (abs(across) <= 1)),
        "ring": (square <= 1) & (square >= 0.55**2),
        "bar": (abs(across) <= 1) & (abs(down) <= 0.35),
    }[shape]
    return inside


def _sound(sound: str | None, seconds: float, generator: np.random.Generator) -> np.ndarray:
    """Samples in [-1, 1] as 32-bit floats."""
    n = round(seconds * SAMPLE_RATE)
    if sound is None and generator.random() < 0.5:
        return np.zeros(n, dtype=np.float32)
    if sound is None:
        return (generator.normal(0, 1, n) * 10 ** generator.uniform(-4.5, -3)).astype(np.float32)
    tone = _tone(sound, np.arange(n) / SAMPLE_RATE, generator)
    loud = tone * 0.8 * 10 ** generator.uniform(-1, -0.2)
    noise = generator.normal(0, 1, n) * 10 ** generator.uniform(-3.5, -2.3)
    return np.clip(loud + noise, -1, 1).astype(np.float32)


def _tone(sound: str, time: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    uniform, noise = generator.uniform, generator.normal(0, 1, len(time))
    tone: np.ndarray
    if sound == "bell":
        base, since = uniform(500, 900), _since_beat(time, uniform(0.45, 0.8), generator)
        partials = [np.sin(2 * np.pi * base * k * since) / i for i, k in enumerate((1, 2.76, 5.4), 1)]
        tone = np.exp(-6 * since) * sum(partials)
    elif sound == "drum":
        since = _since_beat(time, uniform(0.25, 0.4), generator)
        tone = np.exp(-25 * since) * (1.5 * np.sin(2 * np.pi * uniform(60, 110) * since) + 0.5 * noise)
    elif sound == "siren":
        low, high, rate = uniform(500, 700), uniform(1100, 1500), uniform(0.7, 1.5)
        pitch = low + (high - low) * (0.5 + 0.5 * np.sin(2 * np.pi * (rate * time + uniform())))
        tone = np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE)
    elif sound == "whistle":
        pitch = uniform(2000, 3200) * (1 + 0.01 * np.sin(2 * np.pi * 5 * time))
        tone = np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE)
    elif sound == "horn":
        tone = 2 * ((time * uniform(130, 240)) % 1) - 1
    else:  # rain
        tone = 0.7 * noise
    return tone


def _since_beat(time: np.ndarray, period: float, generator: np.random.Generator) -> np.ndarray:
    """Seconds since the last beat of a regular rhythm."""
    return (time + generator.uniform(0, period)) % period


def ball_and_bell(
    seconds: float = 6.0,
    *,
    fps: float = 10.0,
    size: tuple[int, int] = (168, 224),
    colour: str = "orange",
    seed: int = 0,
) -> Clip:
    """A ball that crosses the frame, back and forth, before a coloured sky; a bell rings at each turn.

    Args:
        seconds: Length.
        fps: Frames per second.
        size: Height and width in pixels.
        colour: Of the ball, one of `COLOURS`.
        seed: Of the bell's pitch, the ball's speed and the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    period = 2.0 + 1.5 * float(torch.rand(1, generator=generator))
    pitch = 500 + 500 * float(torch.rand(1, generator=generator))
    times = torch.arange(round(seconds * fps)) / fps
    turns = [k * period / 2 for k in range(1, int(2 * seconds / period) + 1)]
    return Clip(
        frames=_frames(times, period, size, COLOURS[colour]),
        fps=fps,
        waveform=_bell(seconds, turns, pitch, generator),
        sample_rate=SAMPLE_RATE,
    )


def _frames(
    times: Float[Tensor, " frame"], period: float, size: tuple[int, int], colour: tuple[int, int, int]
) -> UInt8[Tensor, "frame 3 height width"]:
    height, width = size
    rows, cols = torch.arange(height)[:, None] / height, torch.arange(width)[None] / width
    sky = torch.stack([60 + 60 * rows + 0 * cols, 150 + 30 * (1 - rows) + 0 * cols, 200 - 40 * rows + 20 * cols])
    ground = torch.tensor([70.0, 120.0, 60.0])[:, None, None].expand(-1, height, width)
    background = torch.where(rows > 0.75, ground, sky)
    phase = 2 * (times / period % 1)
    x = 0.12 + 0.76 * torch.where(phase < 1, phase, 2 - phase)
    y = 0.45 + 0.12 * torch.sin(2 * math.pi * times / period * 2)
    aspect = width / height
    inside = ((cols[None] - x[:, None, None]) * aspect) ** 2 + (rows[None] - y[:, None, None]) ** 2 < 0.13**2
    ball = torch.tensor(colour, dtype=torch.float32)[None, :, None, None]
    return torch.where(inside[:, None], ball, background[None]).to(torch.uint8)


def _bell(seconds: float, strikes: list[float], pitch: float, generator: torch.Generator) -> Float[Tensor, " sample"]:
    time = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    waveform = 0.002 * torch.randn(len(time), generator=generator)
    for strike in strikes:
        since = (time - strike).clamp(min=0)
        for partial, loudness in ((1.0, 0.30), (2.0, 0.15), (2.76, 0.12), (5.4, 0.06)):
            tone = torch.sin(2 * math.pi * pitch * partial * since) * torch.exp(-since * (4 + 2 * partial))
            waveform += loudness * tone * (time >= strike)
    return waveform.clamp(-1, 1).float()
