"""What should it cost, and what does it cost? One goal for each line of the table.

A goal is a bound on a ratio of two times or two sizes. What is missed is explained by `missed`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from tests.benchmarks.compare import LENGTHS
from tests.benchmarks.found import Found, operations
from tests.benchmarks.peers import PEERS
from tests.benchmarks.tasks import TASKS
from tests.benchmarks.workload import SHAPES, leaving_at

NAN = float("nan")
SHAPES_PARTS = ("1024", "2048", "wide")


@dataclass(frozen=True)
class Goal:
    """A bound on what something costs.

    Attributes:
        name: As others call it.
        says: What is compared.
        wanted: The bound.
        ratio: From records, part and peer to what was measured.
        parts: Where it is measured.
        least: The lower bound, if there is one.
        missed: Why, if it is missed.
    """

    name: str
    says: str
    wanted: float
    ratio: Callable[[Found, str, str], float]
    parts: tuple[str, ...] = SHAPES_PARTS
    least: float = 0.0
    missed: str = ""

    def met(self, ratio: float) -> bool:
        """Whether a ratio is within the bounds."""
        return self.least <= ratio <= self.wanted


def to_stock(task: str) -> Callable[[Found, str, str], float]:
    """Times of a stock forward pass."""
    return lambda found, part, who: found.ratio(part, who, task)


def to(other: str, task: str) -> Callable[[Found, str, str], float]:
    """Times of another's time for the same."""
    return lambda found, part, who: (
        NAN if who == other else found.ratio(part, who, task) / found.ratio(part, other, task)
    )


def to_best_peer(task: str) -> Callable[[Found, str, str], float]:
    """Times of the time of the fastest of the others."""

    def ratio(found: Found, part: str, who: str) -> float:
        if who != "avlens":
            return NAN
        others = [found.ratio(part, peer, task) for peer in PEERS if peer != "avlens"]
        return found.ratio(part, who, task) / min((one for one in others if one == one), default=NAN)

    return ratio


def of_patterns(found: Found, part: str, who: str) -> float:
    """Extra peak of sinks and dominance above that of a forward pass, as a share of one layer's pattern."""
    length = int(part.split()[1])
    extra = found.peak(part, who, "sinks and dominance") - found.peak(part, who, "forward")
    return extra / (SHAPES["narrow"].n_heads * length**2 * 4 / 2**20)


def of_operations(when: str) -> Callable[[Found, str, str], float]:
    """The share of a prompt's time that is left when media leave, beside the share of its operations."""

    def ratio(found: Found, part: str, who: str) -> float:
        shape, length = (SHAPES["wide"], 1024) if part == "wide" else (SHAPES["narrow"], int(part))
        share = operations(shape, length, leaving_at(shape)[when]) / operations(shape, length)
        return found.ratio(part, who, f"prompt, media leave at {when}") / found.ratio(part, who, "prompt") / share

    return ratio


def of_vanilla(found: Found, part: str, who: str) -> float:
    """Time of a later token of Adaptive Sink-guided Decoding beside a vanilla one; `part` is the kind of number."""
    if who != "avlens" or not found.of("decoding", part):
        return NAN
    methods = found.of("decoding", part)[0]["methods"]
    return median(ours[1] / theirs[1] for ours, theirs in zip(methods["ASD"], methods["vanilla"], strict=True))


def of_weights(found: Found, part: str, who: str) -> float:
    """The most that loading a family holds, beside its weights: the largest of all ways to load."""
    ways = [way for one in found.of("loading", part) for way in one.values()] if who == "avlens" else []
    return max((peak / weights for weights, peak in ways), default=NAN)


def growth(found: Found, task: str) -> float:
    """The ratio to the stock forward pass at the longest length, beside that at the shortest."""
    first, last = (found.ratio(f"length {n}", "avlens", task) for n in (LENGTHS[0], LENGTHS[-1]))
    return last / first


def of_growth(found: Found, part: str, who: str) -> float:
    """The largest growth of any task."""
    grown = [growth(found, task) for task in TASKS] if who == "avlens" else []
    return max((one for one in grown if one == one), default=NAN)


SCATTERED = "half of the sets are scattered, and every row after a set's first position and outside it must be computed"
FEW = "the clean run comes first, and of each set the rows outside it, after its first position, are computed anew"
TWICE = (
    "every row's attention is needed a second time, as probabilities, which is work that grows with the square of the length, "
    "while much of a forward pass grows with the length"
)
LONG = (
    "sinks and dominance need every row's attention a second time, and the patch grid computes the prompt's last rows anew, "
    "which read most keys: both hold more attention, which grows with the square of the length, than a forward pass does"
)
ROWS = "in fp32 two rows through this processor's matrix product cost more than one, whatever a method does with them"
KERNELS = "operations do not all cost the same time: a product of few rows costs more of it for each operation than one of many"


def _traces(kind: str, says: str, hooks: float, published: float, missed: str) -> list[Goal]:
    """The same trace beside plain hooks and beside the published procedure."""
    bounds = {"plain hooks": hooks, "published procedure": published}
    return [
        Goal("G4", f"trace of 16 {says} / {who}", bound, to(who, f"trace, {kind}"), missed=missed)
        for who, bound in bounds.items()
    ]


def _discards(when: str) -> Goal:
    says = f"media leave at {when}: share of time / share of operations"
    return Goal("G8", says, 1.1, of_operations(when), least=0.9, missed=KERNELS)


GOALS = (
    Goal("G1", "idle forward / stock forward", 1.02, to_stock("forward")),
    Goal("G2", "every `resid_pre` kept / stock forward", 1.05, to_stock("every `resid_pre`")),
    Goal("G2", "every `resid_pre` kept / the fastest peer's", 1.0, to_best_peer("every `resid_pre`")),
    Goal("G3", "sinks and dominance / stock forward", 1.2, to_stock("sinks and dominance"), missed=TWICE),
    Goal("G3", "their extra memory at S = 8192 / one layer's pattern", 0.1, of_patterns, ("memory 8192",)),
    *_traces("20 %", "sets of 20 %", 0.6, 0.35, SCATTERED),
    *_traces("80 %", "sets of 80 %", 0.25, 0.15, FEW),
    *_traces("modalities", "whole modalities", 0.2, 0.12, FEW),
    Goal("G5", "knockouts of the last position, 1 group / plain hooks", 0.1, to("plain hooks", "knockouts, 1 group")),
    Goal(
        "G5", "knockouts of the last position, 3 groups / plain hooks", 0.035, to("plain hooks", "knockouts, 3 groups")
    ),
    Goal("G6", "patch grid / plain hooks", 0.4, to("plain hooks", "patch grid")),
    Goal("G7", "a token of ASD / vanilla, fp32, d_model 512", 1.3, of_vanilla, ("float32",), missed=ROWS),
    Goal("G7", "a token of ASD / vanilla, bf16, d_model 1024, bound by memory", 1.15, of_vanilla, ("bfloat16",)),
    *map(_discards, ("a quarter", "half", "three quarters")),
    Goal("G9", "peak of loading / the weights, every way to load", 1.1, of_weights, ("qwen2_5_omni", "qwen3_omni")),
    Goal(
        "G10",
        "growth from S = 512 to 8192 / the stock forward's, of any work",
        1.0,
        of_growth,
        ("length",),
        missed=LONG,
    ),
)
