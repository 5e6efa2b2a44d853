"""The model families that avlens knows: one file each. A new family is one more file and its line here."""

from avlens.families.qwen2_5_omni import Qwen25Omni
from avlens.family import Family

FAMILIES: tuple[type[Family], ...] = (Qwen25Omni,)
