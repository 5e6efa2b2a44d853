"""What does the model see and hear: frames, a waveform, and when each of them is?"""

from avlens.media.clip import Clip
from avlens.media.thumbnails import jpeg_bytes, png_bytes

__all__ = ["Clip", "jpeg_bytes", "png_bytes"]
