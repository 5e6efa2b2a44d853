"""Sweeps: many edits of one prompt, computing only what an edit can change."""

from avlens.engine.estimate import estimate_run
from avlens.engine.plan import Plan, plan_sweep
from avlens.engine.sweep import read_edited, sweep

__all__ = ["Plan", "estimate_run", "plan_sweep", "read_edited", "sweep"]
