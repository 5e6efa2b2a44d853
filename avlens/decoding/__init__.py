"""Ways to choose tokens from several streams of one prompt: one file, one method."""

from avlens.decoding.asd import ASD
from avlens.decoding.avcd import AVCD
from avlens.decoding.fmd import FMD
from avlens.decoding.pai import PAI
from avlens.decoding.vcd import VCD

__all__ = ["ASD", "AVCD", "FMD", "PAI", "VCD"]
