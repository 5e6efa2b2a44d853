"""How does a page play a clip from the token that a reader clicks on?

The clip stands in the page and is played from memory. What plays is what the model was given: the clip's own
file only if it still holds these frames and this sound. A silenced, cut or noised clip remembers the file it came
from, but is written anew. What is too heavy for a page is made lighter (see `avlens.media.preview`).
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from avlens.errors import MediaError, ViewError
from avlens.media import Clip
from avlens.media.codec import resize
from avlens.media.preview import is_light, write_preview
from avlens.views.packing import packed

_MOST_BYTES = 100 * 2**20
_COARSE, _APART = 16, 16  # cells per side and levels of 255: what scaling twice may change
_TYPES = {".mp4": "mp4", ".webm": "webm", ".m4a": "mp4", ".mp3": "mpeg", ".wav": "wav"}


@dataclass(frozen=True)
class Recording:
    """A clip as a browser plays it.

    Attributes:
        content: The file.
        kind: Its MIME type.
    """

    content: bytes
    kind: str


def recording(clip: Clip) -> Recording:
    """The clip's own file where it holds what the clip holds, else its frames and samples as mp4; in both cases light.

    Raises:
        ViewError: If it is too big for a page.
        MediaError: If it cannot be written.
    """
    medium, path = "video" if clip.has_video else "audio", clip.source
    with tempfile.TemporaryDirectory() as folder:
        if path is None or not path.is_file() or not _holds(path, clip):
            path = clip.to_file(Path(folder) / "clip.mp4")
        if not is_light(path, clip.seconds):
            light = Path(folder) / "light.mp4"
            write_preview(light, path)
            path = light
        if path.stat().st_size > _MOST_BYTES:
            raise ViewError(
                f"{clip!r} takes {path.stat().st_size / 2**20:.0f} MiB as a file; a page holds {_MOST_BYTES / 2**20:.0f}. "
                "Pass a part, such as clip.cut(0, 60), prepared anew."
            )
        return Recording(path.read_bytes(), f"{medium}/{_TYPES[path.suffix.lower()]}")


def media(played: Recording, media_id: str) -> str:
    """HTML that carries the file; players show it by its id."""
    return f"<script type='text/plain' id='{media_id}' data-kind='{played.kind}'>{packed(played.content)}</script>"


def player(played: Recording, key: str = "") -> str:
    """HTML of a player; its key tells it from others of the page."""
    tag = played.kind.split("/")[0]
    return (
        f"<{tag} id='avlens-player{key}' class='avlens-player' aria-label='the clip' controls preload='auto'></{tag}>"
        f"<p id='avlens-problem{key}' hidden>This browser cannot play the clip's format.</p>"
    )


def synced(plot: str, plot_id: str, media_id: str, key: str = "") -> str:
    """A plot over seconds, as HTML, that seeks the player of its key on a click and shows where it is by a line.

    The script that carries the file stands before it in the page.
    """
    return (
        f"<div id='avlens-synced{key}' class='avlens-synced'>{plot}<div id='avlens-cursor{key}' class='avlens-cursor' hidden>"
        f"</div></div><script>{_SCRIPT.replace('PLOT_ID', plot_id).replace('MEDIA_ID', media_id).replace('KEY', key)}</script>"
    )


def _holds(path: Path, clip: Clip) -> bool:
    """Whether a file, read again, gives these frames and this sound, up to what scaling changes."""
    n = 2 if clip.frames is None else len(clip.frames)
    try:
        again = Clip.from_file(
            path, fps=clip.fps or 2.0, min_frames=n, max_frames=max(2, n), max_pixels=64 * 64,
            sample_rate=clip.sample_rate or 16000,
        )  # fmt: skip
    except MediaError:
        return False
    return _same_sound(again.waveform, clip.waveform) and _same_frames(again.frames, clip.frames)


def _same_sound(one: Float32[Tensor, " some"] | None, other: Float32[Tensor, " others"] | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-3)


def _same_frames(
    small: UInt8[Tensor, "frame 3 h w"] | None, frames: UInt8[Tensor, "frames 3 height width"] | None
) -> bool:
    if small is None or frames is None:
        return small is frames
    if len(small) != len(frames):
        return False
    apart = resize(frames, _COARSE, _COARSE).float() - resize(small, _COARSE, _COARSE).float()
    return float(apart.abs().max()) < _APART


_SCRIPT = """
(() => {
  const player = document.getElementById("avlens-playerKEY"), plot = document.getElementById("PLOT_ID");
  const cursor = document.getElementById("avlens-cursorKEY"), box = document.getElementById("avlens-syncedKEY");
  const media = document.getElementById("MEDIA_ID");
  const bytes = avlens.unpacked(media.textContent);
  player.addEventListener("error", () => { document.getElementById("avlens-problemKEY").hidden = false; });
  player.src = URL.createObjectURL(new Blob([bytes], {type: media.dataset.kind}));
  const place = () => {
    const areas = [...plot.querySelectorAll(".nsewdrag")].map(area => area.getBoundingClientRect());
    const range = plot.layout?.xaxis.range ?? [0, 1], outer = box.getBoundingClientRect();
    const share = (player.currentTime - range[0]) / (range[1] - range[0]);
    cursor.hidden = !areas.length || share < 0 || share > 1;
    if (cursor.hidden) return;
    const top = Math.min(...areas.map(area => area.top)), bottom = Math.max(...areas.map(area => area.bottom));
    cursor.style.left = `${areas[0].left - outer.left + box.scrollLeft + share * areas[0].width}px`;
    cursor.style.top = `${top - outer.top}px`;
    cursor.style.height = `${bottom - top}px`;
  };
  const follow = () => { place(); if (!player.paused) requestAnimationFrame(follow); };
  player.addEventListener("play", () => {
    for (const other of document.querySelectorAll(".avlens-player")) if (other !== player) other.pause();
    follow();
  });
  for (const event of ["timeupdate", "seeked"]) player.addEventListener(event, place);
  addEventListener("resize", () => setTimeout(place, 300));
  plot.addEventListener("avlens-drawn", () => {
    place();
    plot.on("plotly_afterplot", place);
    plot.on("plotly_click", event => {
      const point = event.points[0], told = point.customdata;
      player.currentTime = Math.max(0, Array.isArray(told) ? told[told.length - 1] : point.x);
      player.play().catch(() => {});
    });
  });
})();
"""
