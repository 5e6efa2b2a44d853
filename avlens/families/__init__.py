"""The model families that avlens knows: one file each. A new family is one more file and its line here."""

from avlens.families.gemma4 import Gemma4
from avlens.families.qwen2_5_omni import Qwen25Omni
from avlens.families.qwen3_omni import Qwen3Omni
from avlens.families.video_salmonn2_plus import VideoSalmonn2Plus
from avlens.families.video_salmonn_o1 import VideoSalmonnO1
from avlens.family import Family

FAMILIES: tuple[type[Family], ...] = (Qwen25Omni, Qwen3Omni, VideoSalmonn2Plus, VideoSalmonnO1, Gemma4)
