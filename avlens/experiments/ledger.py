"""What does a piece of work multiply, and what would the same take in a model of other widths, on another device?

    with Ledger() as ledger:
        experiment.measure(thin, opened, condition)
    work = ledger.work().widened(Widths.of(thin), QWEN2_5_OMNI["7B"])
    work.operations, work.seconds(H100)

A thin model has the depth and the prompts of a real one, and small widths. What it multiplies differs from what the real one
would in nothing but these, which are known by where they stand in a product's shape. Of a product of [rows, in] and [in, out],

    operations   2 rows in out; of attention 4 heads d_head for each pair of a query and a key, masked or not
    seconds      max(operations / (peak share), in out bytes / (bandwidth share), host)

so that a pass over one row is bound by reading the weights, and a small product by the host that launches it.
"""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

from avlens.errors import ExperimentError

Where = Literal["decoder", "vision", "audio"]


@dataclass(frozen=True)
class Device:
    """What a device can do, and how much of it is taken to be reached.

    Attributes:
        name: Of the device.
        peak: Operations a second, dense, in bf16.
        bandwidth: Bytes a second of its memory.
        share: Of both, an assumption; `measure` replaces it.
        host: Seconds that a product takes at least, since something has to launch it and all that goes with it; the same.
    """

    name: str
    peak: float
    bandwidth: float
    share: float = 0.4
    host: float = 6e-5


H100 = Device("H100 SXM", 989e12, 3.35e12)
H200 = Device("H200 SXM", 989e12, 4.8e12)
"""Source: NVIDIA's data sheets, which give 1,979 TFLOPS with sparsity, half of it without."""


@dataclass(frozen=True)
class Widths:
    """The widths of a model of the Qwen2.5-Omni kind, and its depth.

    Attributes:
        n_layers: Blocks of the decoder.
        d_model: Of the residual stream.
        d_head: Of a head.
        n_heads: Query heads.
        n_key_value_heads: Key and value heads.
        d_mlp: Inside the MLP.
        d_vocab: Of the unembedding.
        vision: Of the vision encoder.
        vision_mlp: Inside its MLP.
        audio: Of the audio encoder.
        audio_mlp: Inside its MLP.
    """

    n_layers: int
    d_model: int
    d_head: int
    n_heads: int
    n_key_value_heads: int
    d_mlp: int
    d_vocab: int
    vision: int = 1280
    vision_mlp: int = 3420
    audio: int = 1280
    audio_mlp: int = 5120

    @classmethod
    def of(cls, model: Any) -> "Widths":
        """Those of a loaded model.

        Raises:
            ExperimentError: If its encoders are of another kind.
        """
        cfg = model.cfg
        towers: list[Any] = [model.stock.encoders.get(name) for name in ("vision", "audio")]
        vision, audio = (getattr(tower, "config", None) for tower in towers)
        if vision is None or audio is None or not hasattr(vision, "out_hidden_size") or not hasattr(audio, "d_model"):
            raise ExperimentError(
                f"{cfg.model_name} has other encoders than Qwen2.5-Omni, whose widths are not known here. Count a model of that "
                "kind."
            )
        return cls(
            cfg.n_layers, cfg.d_model, cfg.d_head, cfg.n_heads, cfg.n_key_value_heads, cfg.d_mlp, cfg.d_vocab,
            vision.hidden_size, vision.intermediate_size, audio.d_model, audio.encoder_ffn_dim,
        )  # fmt: skip

    def known(self, where: Where) -> tuple[int, ...]:
        """The widths that may stand in a product's shape there."""
        if where == "vision":
            return (self.vision, self.vision_mlp, 4 * self.vision, self.d_model)
        if where == "audio":
            return (self.audio, self.audio_mlp, self.d_model)
        heads = (self.n_heads * self.d_head, self.n_key_value_heads * self.d_head)
        return (self.d_model, *heads, self.d_mlp, self.d_vocab)

    def of_heads(self, where: Where) -> int:
        """The widths of all query heads together."""
        return {"decoder": self.n_heads * self.d_head, "vision": self.vision, "audio": self.audio}[where]


QWEN2_5_OMNI: Mapping[str, Widths] = {
    "3B": Widths(36, 2048, 128, 16, 2, 11008, 151936),
    "7B": Widths(28, 3584, 128, 28, 4, 18944, 152064),
}
"""Source: the released configurations."""


class Product(NamedTuple):
    """A product that was computed.

    Attributes:
        where: In which part of the model.
        rows: Of the first factor; of attention, pairs of a query and a key times what heads are wide, together.
        into: Width of what comes in, 0 for attention.
        out: Width of what comes out, 0 for attention.
        window: How many neighbours a convolution takes in; 1 elsewhere.
    """

    where: Where
    rows: float
    into: int
    out: int
    window: int = 1

    @property
    def operations(self) -> float:
        """A multiplication and an addition each counting one."""
        return 2 * self.rows * (self.into * self.out * self.window or 1)


@dataclass(frozen=True, eq=False)
class Work:
    """Products, and how often each was computed."""

    products: Mapping[Product, int]

    @property
    def operations(self) -> float:
        """Of all of them."""
        return sum(product.operations * times for product, times in self.products.items())

    def operations_in(self, where: Where) -> float:
        """Of those in a part of the model."""
        return sum(product.operations * times for product, times in self.products.items() if product.where == where)

    def seconds(self, device: Device, *, weight_bytes: int = 2) -> float:
        """How long a device would take, by the formula above.

        Args:
            device: What computes it.
            weight_bytes: Of a number of the weights.
        """
        return sum(_seconds(product, device, weight_bytes) * times for product, times in self.products.items())

    def widened(self, own: Widths, other: Widths) -> "Work":
        """The same in a model of other widths.

        Raises:
            ExperimentError: If its depth is another, or a width of the first can mean two of the other.
        """
        if own.n_layers != other.n_layers:
            raise ExperimentError(
                f"the work was counted in {own.n_layers} layers, the other model has {other.n_layers}. Count in a thin model "
                "of that depth."
            )
        found: Counter[Product] = Counter()
        for product, times in self.products.items():
            found[_widened(product, own, other)] += times
        return Work(found)

    def __add__(self, other: "Work") -> "Work":
        return Work(Counter(self.products) + Counter(other.products))

    def __repr__(self) -> str:
        parts = ", ".join(f"{part} {self.operations_in(part) / 1e12:.3g}" for part in _PARTS)
        return f"Work({self.operations / 1e12:.3g} TFLOP: {parts})"


class Ledger(TorchDispatchMode):
    """Notes matrix products while it is open."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._products: Counter[Product] = Counter()
        self._modules: Any = ModuleTracker()

    def work(self) -> Work:
        """What was noted."""
        return Work(dict(self._products))

    def __enter__(self) -> "Ledger":
        self._modules.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._modules.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Torch calls this for each operation."""
        result = func(*args, **(kwargs or {}))
        if note := _NOTED.get(func.overloadpacket.__name__):
            inside = " ".join(self._modules.parents).lower()
            where: Where = "vision" if "vision" in inside else "audio" if "audio" in inside else "decoder"
            self._products[note(where, result, args)] += 1
        return result


_PARTS: tuple[Where, ...] = ("decoder", "vision", "audio")


def _mm(where: Where, result: Tensor, args: tuple[Tensor, ...]) -> Product:
    into, out = args[-1].shape  # Of mm the second factor, of addmm the third argument.
    return Product(where, result.numel() / out, into, out)


def _bmm(where: Where, result: Tensor, args: tuple[Tensor, ...]) -> Product:
    return Product(where, result.numel() * args[0].shape[2], 0, 0)


def _fused(where: Where, result: Any, args: tuple[Any, ...]) -> Product:  # noqa: ARG001 - as the others
    queries, keys, values = args[:3]
    return Product(where, queries.shape[:3].numel() * keys.shape[2] * (queries.shape[3] + values.shape[3]), 0, 0)


def _convolution(where: Where, result: Tensor, args: tuple[Any, ...]) -> Product:
    out, into, *window = args[1].shape
    return Product(where, result.numel() / out, into, out, math.prod(window))


_NOTED: Mapping[str, Any] = {
    "mm": _mm, "addmm": _mm, "bmm": _bmm, "convolution": _convolution,
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
        ),
        _fused,
    ),
}  # fmt: skip


def _widened(product: Product, own: Widths, other: Widths) -> Product:
    if not product.into:
        share = other.of_heads(product.where) / own.of_heads(product.where)
        return product._replace(rows=product.rows * share)
    wide: dict[int, int] = {}
    for width, its in zip(own.known(product.where), other.known(product.where), strict=True):
        if wide.setdefault(width, its) != its:
            raise ExperimentError(
                f"the width {width} stands for {wide[width]} and for {its} in the {product.where}. Give the thin model other "
                "widths."
            )
    return product._replace(into=wide.get(product.into, product.into), out=wide.get(product.out, product.out))


def _seconds(product: Product, device: Device, weight_bytes: int) -> float:
    computing = product.operations / (device.peak * device.share)
    reading = product.into * product.out * product.window * weight_bytes / (device.bandwidth * device.share)
    return max(computing, reading, device.host)


def measure(model: Any, inputs: Any, device: Device, *, steps: int = 8, repeats: int = 5) -> Device:
    """The device with what a loaded model reaches on it: the share in a pass over a prompt, the host in passes over one row.

    Args:
        model: A HookedAVModel, where it is to be run.
        inputs: One prompt, as long as those of the experiments.
        device: Its peak.
        steps: How many tokens are written.
        repeats: How often each is timed; the median counts.
    """

    def prompt() -> None:
        model(inputs, logits_at=inputs.tokens.last)

    def write(n: int) -> None:
        model.generate(inputs, n, min_new_tokens=n)

    prompt()  # Now the clip is encoded, and what is loaded at first use is loaded.
    works = []
    for run in (prompt, lambda: write(1), lambda: write(2)):
        with Ledger() as ledger:
            run()
        works.append(ledger.work())
    seconds, one, several = (_median(run, repeats) for run in (prompt, lambda: write(1), lambda: write(1 + steps)))
    per_step = sum(works[2].products.values()) - sum(works[1].products.values())
    host = max(0.0, several - one) / (steps * per_step)
    return replace(device, share=works[0].operations / (seconds * device.peak), host=host)


def _median(run: Callable[[], None], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        _wait()
        began = time.perf_counter()
        run()
        _wait()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
