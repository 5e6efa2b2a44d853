"""What the experiments of these tests measure. Workers import it."""

import os
import time
from pathlib import Path

import torch

from avlens.errors import CheckpointError, PromptError
from avlens.experiments import Experiment
from avlens.samples import Sample
from avlens.testing import tiny_clip, tiny_model


def no_model():
    raise CheckpointError("there is no such model. Pass another.")


def no_model_at_length():
    raise RuntimeError("missing key " + "x" * 200_000)


def small_model():
    return tiny_model(n_layers=1, d_model=32, n_heads=2, n_key_value_heads=1, d_mlp=32)


def samples(n):
    return [Sample(f"clip-{i:03d}", Path(), "what do you hear ?", record={"index": i}) for i in range(n)]


def read(sample):
    return tiny_clip(0.5, size=(28, 28), seed=sample.record["index"])


def loudness(model, opened, condition):
    """Something of the model, something of the clip, and something drawn."""
    logits = model(model.prepare(opened.clip, opened.sample.question))[0, -1]
    best = {"token": int(logits.argmax()), "logit": logits.max(), "drawn": float(torch.rand(()))}
    return [
        best | {"part": i, "loud": opened.clip.waveform[i::2].abs().mean()} for i in range(condition.get("parts", 2))
    ]


def of_each_kind(model, opened, condition):
    """Goes wrong in another way with each sample."""
    kind = opened.sample.record["index"] % 8
    if kind == 1:
        raise PromptError("no such prompt. Write another.")
    if kind == 2:
        raise ZeroDivisionError("division by zero")
    if kind == 3:
        return [{"x": float("nan"), "y": torch.tensor(float("nan"))}]
    if kind == 4 and condition.get("at_once") != 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")
    if kind == 5:
        raise MemoryError
    if kind == 6:
        return [{"x": model}]
    return [{"x": 1.0, "y": float("nan") if kind == 7 else 2.0}]


def deadly(model, opened, condition):
    """Kills whoever measures the fourth sample, and whoever first measures the sixth."""
    index, once = opened.sample.record["index"], Path(condition["once"])
    if index == 3:
        os.kill(os.getpid(), 9)
    if index == 5 and not once.exists():
        once.touch()
        os.kill(os.getpid(), 9)
    return loudness(model, opened, {})


def whereabouts(model, opened, condition):
    """Which GPUs the worker sees, and where it put its model; slow enough for each worker to get an item."""
    time.sleep(0.5)
    return [{"sees": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "on": model.was_put_on, "pid": os.getpid()}]


def model_for_any_device():
    """A model that says it is where it was put, and stays on the CPU."""
    model = small_model()
    model.was_put_on = "cpu"

    def to(device):
        model.was_put_on = str(device)
        return model

    object.__setattr__(model, "to", to)
    return model


def deadly_experiment(folder):
    """An experiment that kills workers, and a folder where it notes that it did."""
    return Experiment("deadly", deadly, {"": {"once": str(folder / "once")}})


LOUDNESS = Experiment("loudness", loudness, {"two": {"parts": 2}, "one": {"parts": 1}}, seeds=(0, 1))
EACH_KIND = Experiment("of each kind", of_each_kind, when_memory_is_short=({"at_once": 4}, {"at_once": 1}))
WHEREABOUTS = Experiment("whereabouts", whereabouts)
