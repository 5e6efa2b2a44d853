"""Sweeps: many edits of one prompt, computing only what an edit can change."""

from avlens.engine.sweep import sweep

__all__ = ["sweep"]
