"""Edits of a run, as lists of hooks that add up: `patch(...) + knockout(...)`. One file, one kind of edit."""

from avlens.interventions.ablate import ablate
from avlens.interventions.discard import discard
from avlens.interventions.knockout import knockout
from avlens.interventions.patch import patch
from avlens.interventions.reweight import reweight

__all__ = ["ablate", "discard", "knockout", "patch", "reweight"]
