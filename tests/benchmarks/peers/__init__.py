"""Who is measured, one file each: `tasks(work)` of a peer says which work it can do, and does it.

All are given the same weights and prompts (`workload`) and must agree on the numbers that they find.
"""

import importlib
from typing import Any

from tests.benchmarks.workload import Weights

PEERS = {
    "avlens": "ours:Ours",
    "stock": "stock:Stock",
    "plain hooks": "plain_hooks:PlainHooks",
    "TransformerLens": "bridge:Bridge",
    "nnsight": "with_nnsight:Nnsight",
    "pyvene": "with_pyvene:Pyvene",
    "published procedure": "published:Published",
}


def load(name: str, weights: Weights) -> Any:
    """A peer with its model; imports its package, which others should not pay for."""
    module, kind = PEERS[name].split(":")
    return getattr(importlib.import_module(f"tests.benchmarks.peers.{module}"), kind)(weights)
