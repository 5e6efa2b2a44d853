import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import avlens
from avlens.errors import MediaError
from avlens.media import Clip, png_bytes
from avlens.media.codec import as_frames


def tone(seconds, rate, *, amplitudes=(0.4,), hz=440.0):
    t = np.arange(round(seconds * rate)) / rate
    return np.stack([a * np.sin(2 * np.pi * hz * t) for a in amplitudes]).astype(np.float32)


def numbered(n, height=16, width=16):
    """Pictures that carry their own number in red and green."""
    pictures = np.zeros((n, height, width, 3), np.uint8)
    pictures[..., 0], pictures[..., 1] = (np.arange(n) % 256)[:, None, None], (np.arange(n) // 256)[:, None, None]
    return pictures


def write(
    path, *, sound=None, rate=16000, codec=None, layout="mono", pictures=None, fps=24, times=None, late=0.0, **video
):
    """A media file: sound [channel, sample] that starts `late` seconds, pictures that do not."""
    with av.open(str(path), "w", options=video.pop("options", {})) as file:
        streams, frames = {}, []
        if pictures is not None:
            streams[av.VideoFrame] = stream = file.add_stream(video.get("video_codec", "ffv1"), rate=Fraction(fps))
            stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], video.get("pix_fmt", "bgr0")
            if "rotation" in video:
                stream.set_display_rotation(video["rotation"])
            if times is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            frames += [_picture(p, i, fps, times) for i, p in enumerate(pictures)]
        if sound is not None:
            streams[av.AudioFrame] = file.add_stream(codec or "aac", rate=rate, layout=layout)
            frames += _samples(sound, rate, layout, late, {"pcm_u8": "u8"}.get(codec, "flt"))
        for frame in sorted(frames, key=lambda f: f.pts * f.time_base):
            file.mux(streams[type(frame)].encode(frame))
        for stream in streams.values():
            file.mux(stream.encode(None))
    return path


def _picture(pixels, i, fps, times):
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    frame.time_base = 1 / Fraction(fps) if times is None else Fraction(1, 1000)
    frame.pts = i if times is None else round(times[i] * 1000)
    return frame


def _samples(sound, rate, layout, late, kind):
    for at in range(0, sound.shape[1], 1024):
        packed = np.ascontiguousarray(sound[:, at : at + 1024].T).reshape(1, -1)
        if kind == "u8":
            packed = (packed * 128 + 128).round().clip(0, 255).astype(np.uint8)
        frame = av.AudioFrame.from_ndarray(packed, format=kind, layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), at + round(late * rate)
        yield frame


def amplitude(waveform, rate=16000, hz=440.0):
    """Of a tone, from its middle."""
    w = waveform[len(waveform) // 4 : -len(waveform) // 4].double()
    return 2 * float((w * torch.exp(-2j * math.pi * hz / rate * torch.arange(len(w)))).mean().abs())


def clip(n=6, height=20, width=30, seconds=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)
    waveform = 0.1 * torch.randn(round(16000 * seconds), generator=generator)
    return Clip(frames=frames, fps=2.0, waveform=waveform, sample_rate=16000)


# ------------------------------------------------------------------------------------ choice of frames


def qwen_choice(total, rate, fps, least=4, most=768):
    """smart_nframes and linspace, line by line as in qwen-vl-utils; one picture gives itself."""
    if total == 1:
        return [0]
    n = total / rate * fps
    n = min(min(max(n, math.ceil(least / 2) * 2), math.floor(min(most, total) / 2) * 2), total)
    return torch.linspace(0, total - 1, math.floor(n / 2) * 2).round().long().tolist()


@pytest.mark.parametrize(
    ("total", "rate", "settings"),
    [(1, 24, {}), (2, 24, {}), (3, 10, {}), (5, 2, {}), (29, 10, {"fps": 1.0}), (50, 24, {}), (121, 24, {"fps": 4.0})]
    + [(300, 30, {"max_frames": 7}), (33, 10, {"fps": 0.5, "min_frames": 9}), (70, 10, {"fps": 60.0, "max_frames": 40})]
    + [(90, Fraction(30000, 1001), {})],
)
def test_the_frames_chosen_are_those_that_qwen_chooses(tmp_path, total, rate, settings):
    path = write(tmp_path / "film.mkv", pictures=numbered(total), fps=rate)
    c = Clip.from_file(path, **settings)
    least, most = settings.get("min_frames", 4), settings.get("max_frames", 768)
    expected = qwen_choice(total, float(rate), settings.get("fps", 2.0), least, most)
    assert (c.frames[:, 0, 0, 0] + 256 * c.frames[:, 1, 0, 0].int()).tolist() == expected
    assert c.fps == pytest.approx(len(expected) / total * float(rate))
    assert c.seconds == pytest.approx(total / float(rate))
    torch.testing.assert_close(c.frame_seconds, torch.tensor(expected).double() / float(rate), atol=6e-4, rtol=0)


def test_times_are_true_where_the_rate_varies(tmp_path):
    times = [0, 0.1, 0.2, 0.3, 1.0, 2.0, 3.0, 3.5]
    c = Clip.from_file(write(tmp_path / "film.mkv", pictures=numbered(8), times=times), fps=100)
    assert c.frame_seconds.tolist() == pytest.approx(times)
    assert c.fps == pytest.approx(8 / 3.5, rel=0.02)
    cut = Clip.from_file(tmp_path / "film.mkv", fps=100, start=1.5, end=3.2)
    assert cut.frame_seconds.tolist() == pytest.approx([0.5, 1.5])
    between = Clip.from_file(tmp_path / "film.mkv", start=1.2, end=1.3)
    assert between.frames[:, 0, 0, 0].tolist() == [4] and between.frame_seconds.tolist() == [0.0]


@pytest.mark.parametrize("ext", ["mp4", "mkv"])
def test_a_late_piece_holds_the_frames_of_that_piece(tmp_path, ext):
    grey = (5 * (np.arange(150) - 100)).clip(0, 255).astype(np.uint8)
    pictures = np.broadcast_to(grey[:, None, None, None], (150, 32, 32, 3))
    path = write(tmp_path / f"film.{ext}", pictures=pictures, fps=10, video_codec="libx264", pix_fmt="yuv420p")
    c = Clip.from_file(path, start=12.0, end=14.0, fps=5)
    shown = (c.frames.float().mean((1, 2, 3)) / 5 + 100).round().tolist()
    assert shown == [120, 122, 124, 126, 128, 131, 133, 135, 137, 139]
    assert c.frame_seconds[[0, -1]].tolist() == pytest.approx([0.0, 1.9], abs=2e-3)


def test_large_frames_are_shrunk_and_too_many_are_refused(tmp_path):
    path = write(tmp_path / "film.mkv", pictures=numbered(8, 90, 160))
    small = Clip.from_file(path, max_pixels=5000)
    assert small.frames.shape == (4, 3, 52, 94)
    with pytest.raises(
        MediaError, match=r"4 frames of 90x160 from .*film.mkv need .* Lower fps, max_frames or max_pix"
    ):
        Clip.from_file(path, max_bytes=100_000)
    assert Clip.from_file(path, max_bytes=100_000, max_pixels=5000).has_video


def test_a_phone_held_upright_gives_upright_frames(tmp_path):
    pictures = np.zeros((4, 32, 64, 3), np.uint8)
    pictures[:, :16, :32] = 255  # top left
    path = write(tmp_path / "film.mp4", pictures=pictures, video_codec="libx264", pix_fmt="yuv420p", rotation=-90)
    frames = Clip.from_file(path).frames.float()
    assert frames.shape == (4, 3, 64, 32)
    assert frames[:, :, 4:28, 20:].min() > 250 > 5 > frames[:, :, 4:28, :12].max()  # turned clockwise: top right


# ---------------------------------------------------------------------------------------------- sound


@pytest.mark.parametrize(
    ("name", "codec", "layout", "rate", "amplitudes", "error"),
    [
        ("sound.wav", "pcm_u8", "mono", 8000, [0.4], 0.01),
        ("sound.wav", "pcm_s16le", "stereo", 44100, [0.4, 0.2], 0.001),
        ("sound.wav", "pcm_s24le", "stereo", 48000, [0.4, -0.2], 0.001),
        ("sound.wav", "pcm_f32le", "5.1", 48000, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 0.001),
        ("sound.flac", "flac", "stereo", 22050, [0.4, 0.2], 0.001),
        ("sound.mp3", "libmp3lame", "stereo", 44100, [0.4, 0.2], 0.06),  # LAME itself turns it down by 5 %
        ("sound.m4a", "aac", "stereo", 44100, [0.4, 0.2], 0.01),
        ("sound.m4a", "aac", "7.1", 44100, [0.4, 0.3, 0.2, 0.0, 0.4, 0.3, 0.2, 0.1], 0.02),
        ("sound.m4a", "aac", "mono", 16000, [0.4], 0.01),
        ("sound.ogg", "libopus", "mono", 48000, [0.4], 0.01),
    ],
)
def test_sound_keeps_its_length_and_loudness(tmp_path, name, codec, layout, rate, amplitudes, error):
    path = write(tmp_path / name, sound=tone(3.0, rate, amplitudes=amplitudes), rate=rate, codec=codec, layout=layout)
    c = Clip.from_file(path)
    assert not c.has_video and len(c.waveform) == pytest.approx(48000, abs=16)
    assert amplitude(c.waveform) == pytest.approx(sum(amplitudes) / len(amplitudes), rel=error)


@pytest.mark.parametrize(("ext", "codec"), [("mp4", "aac"), ("mov", "aac"), ("mkv", "aac"), ("webm", "libopus")])
def test_sound_under_film_is_as_long_as_it_was_and_in_time(tmp_path, ext, codec):
    sound = np.zeros((1, 240_000), np.float32)  # 5 s at 48 kHz
    sound[0, 96_000:96_005] = 0.9  # a click at 2 s
    video = {"video_codec": "libvpx" if ext == "webm" else "libx264", "pix_fmt": "yuv420p"}
    path = write(tmp_path / f"film.{ext}", sound=sound, rate=48000, codec=codec, pictures=numbered(120), **video)
    c = Clip.from_file(path)
    assert len(c.waveform) == pytest.approx(80_000, abs=16) and c.seconds == pytest.approx(5.0, abs=1e-3)
    assert int(c.waveform.abs().argmax()) == pytest.approx(32_000, abs=16)
    alone = Clip.from_file(path, video=False)
    assert not alone.has_video and torch.equal(alone.waveform, c.waveform)
    assert torch.equal(alone.waveform, c.without_video().waveform)


@pytest.mark.parametrize("ext", ["mp4", "mkv"])
def test_sound_that_is_longer_or_later_than_the_film_is_kept(tmp_path, ext):
    longer = write(tmp_path / f"longer.{ext}", sound=tone(3.0, 16000), pictures=numbered(24), **H264)
    assert len(Clip.from_file(longer).waveform) == pytest.approx(48_000, abs=160)
    later = write(
        tmp_path / f"later.{ext}", sound=tone(1.0, 48000), rate=48000, pictures=numbered(48), late=0.75, **H264
    )
    waveform = Clip.from_file(later).waveform
    assert int((waveform.abs() > 0.05).int().argmax()) / 16000 == pytest.approx(0.75, abs=2e-3)
    assert len(waveform) == pytest.approx(28_000, abs=50)


H264 = {"video_codec": "libx264", "pix_fmt": "yuv420p"}


def test_a_piece_of_a_file_is_the_piece_of_its_clip(tmp_path):
    path = write(tmp_path / "film.mp4", sound=tone(4.0, 44100), rate=44100, pictures=numbered(60), fps=10, **H264)
    piece, whole = Clip.from_file(path, start=1.3, end=2.55), Clip.from_file(path).cut(1.3, 2.55)
    assert torch.equal(piece.waveform, whole.waveform) and len(piece.waveform) == 20_000
    assert piece.frame_seconds.tolist() == pytest.approx([0.0, 0.4, 0.8, 1.2], abs=1e-3)
    tail = Clip.from_file(path, start=5)  # only the film goes on until there
    assert tail.has_video and not tail.has_audio and tail.seconds == pytest.approx(1.0)
    with pytest.raises(MediaError, match="start=7 is beyond the end of .*film.mp4, which is 6.000 s long"):
        Clip.from_file(path, start=7)
    with pytest.raises(MediaError, match=r"film.mp4, which is 6.000 s long. Give seconds with 0 <= start < end"):
        Clip.from_file(path, start=3, end=3)


def test_a_cover_picture_is_not_a_film(tmp_path):
    write(tmp_path / "plain.mp3", sound=tone(1.0, 44100), rate=44100, codec="libmp3lame")
    picture = b"\0image/png\0\3\0" + png_bytes(torch.zeros(8, 8, 3, dtype=torch.uint8))
    frame = b"APIC" + len(picture).to_bytes(4, "big") + b"\0\0" + picture
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    mp3 = tmp_path / "cover.mp3"
    mp3.write_bytes(b"ID3\3\0\0" + size + frame + (tmp_path / "plain.mp3").read_bytes()[45:])
    with av.open(str(mp3)) as file:
        assert len(file.streams.video) == 1
    c = Clip.from_file(mp3)
    assert not c.has_video and c.seconds == pytest.approx(1.0, abs=0.06)


# ------------------------------------------------------------------------------------ files that fail


def test_what_is_not_a_media_file_is_refused_by_name(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "words.mp4").write_text("These are words.\n" * 50)
    (tmp_path / "words.txt").write_text("These are words.\n" * 50)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(0).integers(0, 256, 9999, dtype=np.uint8).tobytes())
    whole = write(tmp_path / "whole.mp4", pictures=numbered(20), **H264)
    (tmp_path / "half.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    told = {"empty.mp4": "0 bytes", "words.txt": "is text", "": "is a folder", "none.mp4": "does not exist"}
    for name in ("words.mp4", "list.m3u8", "noise.mp3", "half.mp4"):
        told[name] = "cannot be opened"
    for name, reason in told.items():
        with pytest.raises(MediaError, match=f"{tmp_path.name}.*{name}.*{reason}"):
            Clip.from_file(tmp_path / name)


def test_a_part_that_a_file_does_not_have_is_none_and_asking_for_nothing_is_refused(tmp_path):
    film = write(tmp_path / "film.mkv", pictures=numbered(20))
    sound = write(tmp_path / "sound.wav", sound=tone(0.5, 16000), codec="pcm_s16le")
    assert Clip.from_file(film).waveform is None and Clip.from_file(sound).frames is None
    for path, part in ((film, "video"), (sound, "audio")):
        with pytest.raises(MediaError, match=f"{path.name}.* asked for: .*Ask for a part that it has"):
            Clip.from_file(path, **{part: False})
    bad = {"fps": 0}, {"fps": math.nan}, {"max_frames": 1}, {"max_pixels": 1}, {"sample_rate": -1}
    for setting in bad:
        with pytest.raises(MediaError, match=next(iter(setting))):
            Clip.from_file(film, **setting)


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "sound.wav", "sound.flac"])
def test_a_file_that_breaks_off_is_read_to_there_with_a_warning(tmp_path, name):
    codec = {"wav": "pcm_s16le", "flac": "flac"}.get(name[-3:].strip("."), "aac")
    codec = "flac" if name.endswith("flac") else codec
    film = {"pictures": numbered(150, 64, 64), **H264} if name.startswith("film") else {}
    options = {"movflags": "+faststart"} if name.endswith("mp4") else {}
    path = write(tmp_path / name, sound=tone(6.0, 16000), codec=codec, options=options, **film)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.warns(
        UserWarning, match=rf"{name} is damaged: .* s that it says it holds are not there. Read: .*sound"
    ):
        c = Clip.from_file(path)
    assert 2.0 < c.seconds < 5.5 and c.has_video == name.startswith("film")


def test_a_film_that_is_damaged_inside_is_read_around_that(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
    path = write(tmp_path / "film.mp4", pictures=pictures, sound=tone(4.0, 16000), **H264)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"film.mp4 is damaged: \d+ of its packets could not be decoded"):
        c = Clip.from_file(path)
    assert len(c.frames) >= 4 and c.frame_seconds[-1] > 3.9 and len(c.waveform) == pytest.approx(64_000, abs=16)


# ------------------------------------------------------------------------------------------ the clip


def test_arrays_become_a_clip():
    frames, whole = np.zeros((3, 3, 4, 6), np.uint8), np.array([[-32768, 16384], [0, 16384]], dtype=">i2")
    frames.flags.writeable = False
    c = Clip(frames=frames[:, ::-1], fps=2, waveform=whole, sample_rate=np.int64(8000), source="a/dog.mp4")
    assert c.waveform.tolist() == [-0.5, 0.5] and c.waveform.dtype == torch.float32
    assert c.frame_seconds.tolist() == [0.0, 0.5, 1.0] and c.seconds == 1.5 and isinstance(c.sample_rate, int)
    assert repr(c) == "Clip(dog.mp4: 1.5 s, 3 frames 4x6 at 2.0 fps, sound 8 kHz)"
    assert Clip(waveform=np.array([0, 128, 255], np.uint8), sample_rate=9).waveform.tolist() == [-1, 0, 127 / 128]
    assert Clip(waveform=torch.tensor([2**30], dtype=torch.int32), sample_rate=9).waveform.tolist() == [0.5]
    assert Clip(waveform=torch.zeros(9).double(), sample_rate=9).waveform.dtype == torch.float32
    assert repr(Clip(waveform=torch.zeros(44100), sample_rate=44100)) == "Clip(1.0 s, no video, sound 44.1 kHz)"


FRAMES = torch.zeros(2, 3, 4, 6, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ({}, "Give one, with its rate"),
        ({"frames": FRAMES}, r"Give fps=\.\.\. as well"),
        ({"frames": FRAMES, "fps": 0.0}, "Give a positive number"),
        ({"frames": FRAMES, "fps": 2.0, "sample_rate": 16000}, "Give both or neither"),
        ({"frames": FRAMES.permute(0, 2, 3, 1), "fps": 2.0}, r"permute\(0, 3, 1, 2\)"),
        ({"frames": FRAMES[0], "fps": 2.0}, r"frames\[None\]"),
        ({"frames": FRAMES[:, :1], "fps": 2.0}, "three channels"),
        ({"frames": FRAMES[:0], "fps": 2.0}, "at least one frame"),
        ({"frames": FRAMES / 255, "fps": 2.0}, r"\(frames \* 255\)"),
        ({"frames": FRAMES.int(), "fps": 2.0}, r"frames.to\(torch.uint8\)"),
        ({"frames": FRAMES, "fps": 2.0, "frame_seconds": torch.zeros(3)}, "one for each of the 2 frames"),
        ({"frames": FRAMES, "fps": 2.0, "frame_seconds": torch.tensor([1.0, 0.0])}, "Sort the frames"),
        ({"waveform": torch.zeros(8)}, r"Give sample_rate=\.\.\."),
        ({"waveform": torch.zeros(0), "sample_rate": 16000}, "at least one sample"),
        ({"waveform": torch.zeros(100, 2), "sample_rate": 16000}, r"waveform\.T"),
        ({"waveform": torch.zeros(8).long(), "sample_rate": 16000}, r"torch\.int16"),
        ({"waveform": torch.tensor([0, math.nan]), "sample_rate": 16000}, "1 NaN or infinite of 2"),
        ({"waveform": torch.tensor([0, 2000.0]), "sample_rate": 16000}, "Divide by 32768"),
        ({"waveform": torch.zeros(8), "sample_rate": 0.5}, "Round it"),
    ],
)
def test_arrays_that_are_no_clip_are_refused_with_the_remedy(arguments, advice):
    with pytest.raises(MediaError, match=advice):
        Clip(**arguments)


def test_a_list_is_no_array():
    with pytest.raises(MediaError, match="given: list. Convert it"):
        as_frames([[1, 2]])


def layout(c):
    return c.frames.shape, len(c.waveform), c.fps, c.sample_rate, c.frame_seconds.tolist()


def test_corrupting_a_clip_keeps_its_layout():
    c, other = clip(), clip(n=4, height=33, width=17, seconds=1.25, seed=1).resampled(24000)
    changed = c.silenced(), c.blanked(), c.noised(500), c.with_audio_of(other), c.with_video_of(other), other
    assert all(layout(x) == layout(c) for x in changed[:-1])
    assert len({x.sha256 for x in (c, *changed)}) == 7
    silent, black, _, heard, seen, _ = changed
    assert not silent.waveform.any() and torch.equal(silent.frames, c.frames)
    assert not black.frames.any() and torch.equal(black.waveform, c.waveform)
    assert heard.waveform[:20_000].std() > 0.05 and not heard.waveform[20_000:].any()
    assert torch.equal(seen.frames[3], seen.frames[5]) and not torch.equal(seen.frames[2], seen.frames[3])
    assert torch.equal(c.with_video_of(clip(n=9)).frames.shape and c.with_audio_of(c).waveform, c.waveform)


def test_a_part_can_be_dropped_but_not_twice():
    assert not clip().without_audio().has_audio and not clip().without_video().has_video
    for method in ("without_video", "silenced", "to_file"):
        with pytest.raises(MediaError, match=f"{method} needs sound, which Clip.* has not"):
            getattr(clip().without_audio(), method)(*(["x.wav"] if method == "to_file" else []))
    with pytest.raises(MediaError, match="with_video_of needs frames"):
        clip().with_video_of(clip().without_video())


def test_noise_follows_the_schedule_and_its_seed():
    frames = torch.full((2, 3, 40, 40), 128, dtype=torch.uint8)
    c = Clip(frames=frames, fps=2.0, waveform=torch.from_numpy(tone(1.0, 16000))[0], sample_rate=16000)
    assert torch.equal(c.noised(500, seed=3).frames, c.noised(500, seed=3).frames)
    assert torch.equal(c.noised(500, audio=False).frames, c.noised(500).frames)
    assert torch.equal(c.noised(500, audio=False).waveform, c.waveform)
    assert not torch.equal(c.noised(500, seed=1).waveform, c.noised(500).waveform)
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, 1000))) * (0.5e-2 - 1e-5) + 1e-5
    for step in (0, 200, 600, 999):
        kept = np.prod(1 - betas[: step + 1])
        assert amplitude(c.noised(step).waveform) == pytest.approx(0.4 * math.sqrt(kept), abs=0.01)
        noise = c.noised(200 if step > 200 else step).frames.float() / 127.5 - 1
        spread = math.sqrt(1 - np.prod(1 - betas[: min(step, 200) + 1]))
        assert float(noise.std()) == pytest.approx(spread, abs=0.02)
    for step in (-1, 1000):
        with pytest.raises(MediaError, match="from 0"):
            c.noised(step)
    with pytest.raises(MediaError, match="Set one to True"):
        c.noised(1, video=False, audio=False)


def test_cutting_starts_time_again():
    c = clip().cut(0.6, 2.0)
    assert c.frame_seconds.tolist() == pytest.approx([0.4, 0.9]) and len(c.waveform) == 22_400
    assert c.seconds == pytest.approx(1.4)
    assert clip().cut(0.6, 0.9).frame_seconds.tolist() == [0.0]
    assert clip(seconds=1.0).cut(2.0).waveform is None
    assert clip().cut().sha256 == clip().sha256
    tenths = Clip(frames=torch.zeros(40, 3, 2, 2, dtype=torch.uint8), fps=10.0)
    assert all(len(tenths.cut(i / 10, (i + 3) / 10).frames) == 3 for i in range(37))
    for start, end in ((2, 1), (3, None), (-1, 2), (math.nan, 2)):
        with pytest.raises(MediaError, match="3.000 s long"):
            clip().cut(start, end)


def test_resampling_keeps_the_sound():
    c = Clip(waveform=torch.from_numpy(tone(2.0, 44100))[0], sample_rate=44100)
    assert c.resampled(44100) is c
    lower = c.resampled(16000)
    assert len(lower.waveform) == 32_000 and lower.seconds == c.seconds
    expected = torch.from_numpy(tone(2.0, 16000))[0]
    torch.testing.assert_close(lower.waveform[200:-200], expected[200:-200], atol=1e-4, rtol=0)
    with pytest.raises(MediaError, match="sample_rate=0"):
        c.resampled(0)


# -------------------------------------------------------------------------------- writing and drawing


@pytest.mark.parametrize("fps", [2.0, 1.8237, 0.5, 29.97])
def test_a_written_film_comes_back(tmp_path, fps):
    ramp = torch.arange(90).expand(61, 90) + 20
    frames = torch.stack([torch.stack([ramp + 10 * i, ramp, 200 - ramp]) for i in range(9)]).to(torch.uint8)
    c = Clip(frames=frames, fps=fps, waveform=torch.from_numpy(tone(9 / fps, 16000))[0], sample_rate=16000)
    path = c.to_file(tmp_path / "film.mp4")
    back = Clip.from_file(path, fps=fps * 1.2)
    assert back.seconds == pytest.approx(c.seconds, abs=2e-3) and back.frames.shape == (8, 3, 62, 90)
    assert (back.frames[0, :, :61].int() - frames[0].int()).abs().float().mean() < 4
    assert amplitude(back.waveform) == pytest.approx(0.4, rel=0.02)
    assert len(back.waveform) == pytest.approx(len(c.waveform), abs=16)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as file:
        video, audio = file.streams.video[0].codec_context, file.streams.audio[0].codec_context
        assert (video.name, video.pix_fmt, audio.name) == ("h264", "yuv420p", "aac")


def test_a_written_sound_comes_back(tmp_path):
    c = clip().without_video()
    torch.testing.assert_close(Clip.from_file(c.to_file(tmp_path / "a.wav")).waveform, c.waveform, atol=2e-5, rtol=0)
    odd = c.resampled(11000).to_file(tmp_path / "a.mp4")
    assert Clip.from_file(odd).seconds == pytest.approx(3.0, abs=1e-3)
    with pytest.raises(MediaError, match="End it in .mp4 or .wav"):
        c.to_file(tmp_path / "a.gif")
    with pytest.raises(MediaError, match="nowhere.*Check that its folder exists"):
        c.to_file(tmp_path / "nowhere" / "a.wav")


def test_a_png_holds_its_pixels(tmp_path):
    pixels = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "a.png").write_bytes(png_bytes(pixels))
    assert torch.equal(Clip.from_file(tmp_path / "a.png").frames[0].permute(1, 2, 0), pixels)


def test_a_notebook_shows_frames_and_sound():
    page = clip()._repr_html_()
    assert "data:image/png;base64," in page and "<svg" in page and "6 frames 20x30" in page and "<script" not in page
    assert len(page) < 200_000
    assert "<img" not in clip().without_video()._repr_html_() and "<svg" not in clip().without_audio()._repr_html_()


def test_importing_media_stays_light():
    heavy = {"transformers", "plotly", "pandas", "PIL", "torchvision"}
    code = f"import sys, avlens.media; print(*({heavy} & {{*sys.modules}}))"
    root = Path(avlens.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=root)
    assert done.stdout.strip() == ""
