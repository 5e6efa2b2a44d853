"""How is one item measured, so that whatever goes wrong with it ends up in its record and nowhere else?

A clip that cannot be read, a prompt that cannot be made, a function that raises: the record says so, and the next item is
measured. Where memory runs out, what can be let go is let go, and the experiment's own settings for little memory are tried in
turn. Values that are NaN stay NaN; where all of them are, that is a problem too.
"""

import gc
import hashlib
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from avlens.errors import AVLensError, ExperimentError
from avlens.experiments.experiment import Experiment, Item
from avlens.media import Clip
from avlens.model import HookedAVModel
from avlens.records import Record, is_nan, nan_names, plain_row, readable
from avlens.samples import Sample, read_clip

Load = Callable[[], HookedAVModel]


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint and how to load it; each worker loads its own.

    Attributes:
        name: A name of the zoo, a folder, or a hub id.
        options: Those of `HookedAVModel.from_pretrained`: `device`, `dtype`, `device_map`, `attn`, `revision`, ...
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> HookedAVModel:
        """The model."""
        return HookedAVModel.from_pretrained(self.name, **self.options)


@dataclass(frozen=True)
class Work:
    """What a worker does.

    Attributes:
        experiment: What is measured.
        read: Opens a sample's clip; None reads files as the model's family samples them.
    """

    experiment: Experiment
    read: Callable[[Sample], Clip] | None = None


class Worker:
    """A model, and what it is there for.

    Attributes:
        made_by: Model, weights, dtype and versions.
    """

    def __init__(self, work: Work, model: HookedAVModel) -> None:
        self.experiment, self.model = work.experiment, model
        sampling: dict[str, Any] = dict(model.family.sampling)
        self.read = work.read or (lambda sample: read_clip(sample, **sampling))
        self.made_by = {name: value for name, value in model.made_by().items() if name != "prompts"}
        self.made_by["weights"] = weights_digest(model)

    def measure(self, item: Item, attempt: int = 0) -> Record:
        """The record of one item. Raises nothing but an interruption.

        Args:
            item: What to measure.
            attempt: How many workers may have died of it; from the first on, only the settings that need least memory are tried.
        """
        started = time.monotonic()
        _reset_peak()
        settings = dict(self.experiment.conditions[item.condition])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            rows, problem, notes = self._tried(item, settings, attempt)
        warned = (
            cut(f"{one.category.__name__}: {one.message}") for one in said if issubclass(one.category, UserWarning)
        )
        if not problem and rows and all(is_nan(value) for row in rows for value in row.values()):
            problem = f"every value is NaN: {', '.join(nan_names(rows))}"
        return Record(
            sample=item.sample.id, condition=item.condition, seed=item.seed, rows=rows, problem=problem,
            notes=(*notes, *dict.fromkeys(warned)), asks=item.sample.asks, settings=settings, made_by=self.made_by,
            seconds=time.monotonic() - started, memory=peak_memory(), clip=item.sample.clip,
        )  # fmt: skip

    def _tried(
        self, item: Item, settings: Mapping[str, Any], attempt: int
    ) -> tuple[tuple[dict[str, Any], ...], str, tuple[str, ...]]:
        """Rows, what went wrong, and what had to be changed."""
        ways = [{}, {}, *self.experiment.when_memory_is_short]  # The second time with all let go that can be.
        out_of_memory = ""
        for number in range(len(ways) - 1 if attempt else 0, len(ways)):
            way = dict(ways[number])
            notes = (f"memory was short: measured again{f' with {way}' if way else ''}",) if number else ()
            try:
                with _seeded(item.torch_seed):
                    rows = self.experiment.measure(
                        self.model, item.opened(self.read), {**settings, **way, "seed": item.seed}
                    )
                    return tuple(map(plain_row, _rows(rows))), "", notes
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever one item does, the others are measured
                if not is_out_of_memory(error):
                    return (), cut(f"{type(error).__name__}: {_said(error)}"), notes
                times = "once" if attempt else f"{len(ways)} times"
                out_of_memory = cut(f"out of memory, {times}: {_first_line(error)}")
            let_go(self.model)  # Not within except: there the traceback still holds what is to be let go.
        return (), out_of_memory, ()


DEATHS = 2
"""So many workers may die of one item, by itself, before it is given up."""

DIED = "the worker died each time, killed or for want of memory; its output may say why"


def lost(work: Work, item: Item, made_by: Mapping[str, Any], problem: str = DIED) -> Record:
    """The record of an item that no worker gave one of."""
    return Record(
        sample=item.sample.id, condition=item.condition, seed=item.seed, asks=item.sample.asks, made_by=made_by,
        settings=dict(work.experiment.conditions[item.condition]),
        problem=problem, clip=item.sample.clip,
    )  # fmt: skip


def weights_digest(model: HookedAVModel) -> str:
    """A fingerprint of the weights, from some values of each; the same wherever they lie."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype};".encode())
        flat = weight.detach().reshape(-1)
        if flat.numel() and not flat.is_meta:
            some = flat[:: max(1, flat.numel() // 16)][:16].float().cpu()
            digest.update(some.numpy().tobytes())
    return digest.hexdigest()[:16]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the GPU or in this process."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        said in _said(error) for said in ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
    )


def let_go(model: HookedAVModel) -> None:
    """Free what can be made again."""
    model.forget_encodings()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_memory() -> int:
    """The most bytes held: on the GPU since the item began, where there is one; else by this process ever."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _reset_peak() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for i in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(i)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The generators of torch, numpy and Python, seeded inside and as they were after."""
    before = np.random.get_state(), random.getstate()  # noqa: NPY002 - what others may draw from
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before[0])  # noqa: NPY002
            random.setstate(before[1])


def _rows(returned: Any) -> Iterator[Mapping[str, Any]]:
    """What a function that measures returned.

    Raises:
        ExperimentError: If it is no list of rows.
    """
    for row in returned if isinstance(returned, Iterable) and not isinstance(returned, Mapping) else [returned]:
        if not isinstance(row, Mapping) or not row or row is returned:
            raise ExperimentError(
                f'measuring returned {returned!r:.80}. Return a list of rows, such as [{{"x": 1.0}}].'
            )
        yield row


def described(error: BaseException) -> str:
    """What went wrong; who raised an error of avlens need not be said."""
    return cut(_said(error) if isinstance(error, AVLensError) else f"{type(error).__name__}: {_said(error)}")


def _said(error: BaseException) -> str:
    """What an error says, if it can be read at all."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an error of somebody else's, which must not end a run either
        return "(what it says cannot be read)"


LONGEST = 2000
"""Characters of what is said to be wrong: records are many, and a pipe between processes holds little."""


def cut(text: str) -> str:
    """The beginning of a text that is too long, in characters that can be written."""
    return readable(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")


def not_loaded(reason: str) -> ExperimentError:
    """The error of a run whose workers cannot load its model."""
    return ExperimentError(
        f"a worker could not load the model; each loads it by itself, where it runs. It said: {reason}"
    )


def _first_line(error: BaseException) -> str:
    return (_said(error).splitlines() or [type(error).__name__])[0]


def own_loader(model: Any) -> Load:
    """What loads a model in a worker: a name, or a function without arguments.

    Raises:
        ExperimentError: If it is a model already, which a worker cannot share.
    """
    if isinstance(model, str):
        return ModelSource(model)
    if isinstance(model, HookedAVModel) or not callable(model):
        raise ExperimentError(
            f"model is a {type(model).__name__}, but each worker needs its own. Pass a checkpoint's name, "
            "ModelSource(name, options), or a function that makes one."
        )
    load: Load = model
    return load
