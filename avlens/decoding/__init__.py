"""Ways to choose tokens from several streams of one prompt: one file, one method."""

from avlens.decoding.asd import ASD

__all__ = ["ASD"]
