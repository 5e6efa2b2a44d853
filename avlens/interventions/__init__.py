"""Edits of a run, as lists of hooks that add up: `patch(...) + knockout(...)`. One file, one kind of edit."""

from avlens.interventions.ablate import ablate
from avlens.interventions.discard import discard, fastv
from avlens.interventions.knockout import (
    knockout,
    knockout_across,
    knockout_pairs,
    knockout_types,
    random_keys,
    random_pairs,
)
from avlens.interventions.patch import patch
from avlens.interventions.path_patch import open_path, path_patch
from avlens.interventions.reweight import reweight

__all__ = [
    "ablate", "discard", "fastv", "knockout", "knockout_across", "knockout_pairs", "knockout_types", "open_path",
    "patch", "path_patch", "random_keys", "random_pairs", "reweight",
]  # fmt: skip
