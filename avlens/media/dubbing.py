"""How do a video file's pictures get other sound without being encoded again?"""

from fractions import Fraction
from pathlib import Path

from jaxtyping import Float32
from torch import Tensor

from avlens.errors import MediaError
from avlens.media.codec import at_aac_rate, audio_frames, created, fit
from avlens.media.scanning import opened, pick


def write_dubbed(path: Path, video: Path, sound: tuple[Float32[Tensor, " sample"], int]) -> None:
    """Copy the pictures of a video file packet by packet, with sound beside them that is cut or followed by silence to fit.

    Raises:
        MediaError: If the video cannot be read or holds no pictures, or the file cannot be written.
    """
    with opened(video) as source, created(path, {"movflags": "+faststart"}) as container:
        pictures = pick(source.streams.video)
        if pictures is None:
            raise MediaError(f"{video} holds no pictures to keep. Give a video.")
        copied = container.add_stream_from_template(pictures)
        waveform, rate = at_aac_rate(*sound)
        heard = container.add_stream("aac", rate=rate, layout="mono")
        seconds = Fraction(0)
        for packet in source.demux(pictures):
            if packet.dts is not None:
                seconds = max(seconds, ((packet.pts or 0) + (packet.duration or 0)) * packet.time_base)
                packet.stream = copied
                container.mux(packet)
        for frame in audio_frames(fit(waveform, max(1, round(seconds * rate))), rate, "flt"):
            container.mux(heard.encode(frame))
        container.mux(heard.encode(None))
