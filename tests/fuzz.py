"""Damaged files: media that lie about themselves, and checkpoints whose config or index was changed at random.

    python -m tests.fuzz media --files 10000 --seed 0
    python -m tests.fuzz checkpoints --files 1000 --seed 0

Whatever is read, what comes out is a value or one of avlens's own errors, within ten seconds and bounded memory. A process of its
own reads, so that a crash or a hang is seen as one.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import av
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from avlens import Clip, HookedAVModel
from avlens.datasets.synthetic import synthetic_clips
from avlens.errors import AVLensError
from avlens.testing import tiny_model

SECONDS = 10.0
GIBIBYTES = 3


def media_seeds(folder):
    """Small files of several kinds, whose mutations are read."""
    clip = synthetic_clips(1, seed=0, seconds=1.0, blank=0, silent=0, size=56)[0].clip
    clip.to_file(folder / "seed.mp4"), clip.to_file(folder / "seed.wav")
    clip.without_audio().to_file(folder / "mute.mp4")
    for ending, video, audio in (("mkv", "libx264", "aac"), ("avi", "mpeg4", "mp3"), ("webm", "libvpx", "libopus")):
        _convert(folder / "seed.mp4", folder / f"seed.{ending}", video, audio)
    for ending, audio in (("mp3", "mp3"), ("flac", "flac"), ("ogg", "libopus")):
        _convert(folder / "seed.wav", folder / f"sound.{ending}", None, audio)
    return sorted(path for path in folder.iterdir() if path.stat().st_size)


def _convert(source, target, video, audio):
    """Write a file anew in another container; left out where this FFmpeg has no such encoder."""
    try:
        with av.open(str(source)) as old, av.open(str(target), "w") as new:
            outs = {}
            for stream in old.streams:
                if stream.type == "video" and video:
                    outs[stream.index] = new.add_stream(
                        video, rate=2, width=stream.width, height=stream.height, pix_fmt="yuv420p"
                    )
                if stream.type == "audio":
                    outs[stream.index] = new.add_stream(audio, rate=48000 if "opus" in audio else 16000)
            for packet in old.demux():
                if packet.stream.index in outs:
                    for frame in packet.decode():
                        frame.pts = None
                        new.mux(outs[packet.stream.index].encode(frame))
            for out in outs.values():
                new.mux(out.encode(None))
    except (av.error.FFmpegError, ValueError):
        target.unlink(missing_ok=True)


def _bits(data, rng, other):
    for i in rng.integers(0, len(data), int(rng.integers(1, 20))):
        data[i] ^= 1 << int(rng.integers(8))


def _bytes(data, rng, other):
    for i in rng.integers(0, len(data), max(1, len(data) // 50)):
        data[i] = int(rng.integers(256))


def _header(data, rng, other):
    n = int(rng.integers(1, 64))
    data[:n] = rng.bytes(n)


def _other_header(data, rng, other):
    n = int(rng.integers(4, 200))
    data[:n] = other[:n]


def _absurd(data, rng, other):
    """Sizes, counts, rates and durations that cannot be."""
    absurd = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0", b"\0\0\0\x01"]
    for i in rng.integers(0, max(1, len(data) - 4), int(rng.integers(1, 6))):
        data[i : i + 4] = absurd[int(rng.integers(5))]


def _absurd_fields(data, rng, other):
    """The same, near the words that containers use."""
    for word in (
        b"mvhd",
        b"tkhd",
        b"mdhd",
        b"stsz",
        b"stsd",
        b"stts",
        b"avc1",
        b"fmt ",
        b"data",
        b"strf",
        b"\x1aE\xdf\xa3",
    ):
        if (found := data.find(word)) >= 0 and rng.integers(2):
            i = found + len(word) + int(rng.integers(0, 40))
            data[i : i + 4] = rng.bytes(4)


def _truncated(data, rng, other):
    del data[int(rng.integers(len(data))) :]


def _gap(data, rng, other):
    at = int(rng.integers(len(data)))
    del data[at : at + int(rng.integers(1, 2000))]


def _insertion(data, rng, other):
    at = int(rng.integers(len(data)))
    data[at:at] = (data if rng.integers(2) else other)[: int(rng.integers(1, 5000))]


DAMAGE = (_bits, _bytes, _header, _other_header, _absurd, _absurd_fields, _truncated, _gap, _insertion)


def mutate_bytes(data, rng, other):
    """The file with one kind of damage."""
    damaged = bytearray(data)
    DAMAGE[int(rng.integers(len(DAMAGE)))](damaged, rng, other)
    return damaged


def read_media(number, seed, seeds, folder):
    """Read one damaged file in every way; what came of it."""
    rng = np.random.default_rng([seed, number])
    source, other = (seeds[int(i)] for i in rng.integers(0, len(seeds), 2))
    path = folder / f"{number}{source.suffix}"
    path.write_bytes(mutate_bytes(source.read_bytes(), rng, other.read_bytes()))
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            clip = Clip.from_file(path, max_pixels=200 * 200, max_bytes=256 * 2**20)
            assert clip.frames is not None or clip.waveform is not None
        return "read with a warning" if said else "read"
    except AVLensError as error:
        return type(error).__name__
    finally:
        path.unlink()


def checkpoint_seed(folder):
    """A small checkpoint in two files, with an index."""
    tiny_model(n_layers=1, d_model=32, n_heads=2, n_key_value_heads=1, d_mlp=32).save_pretrained(folder)
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for name, keys in parts.items():
        save_file({key: whole[key].contiguous() for key in keys}, folder / name)
    index = {"metadata": {"total_size": 1}, "weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


_ODD = (
    None, True, -1, 0, 1, 7, 10**9, 2**63, 1e308, -0.5, "", "x", "../../../etc/passwd", "/etc/passwd", [], [1, 2], {}, {"x": 1},
    "float16", "gelu", "a" * 100_000, "\x00", ["../x.py--X"],
)  # fmt: skip


def mutate_json(text, rng):
    """Damaged as text, or with values exchanged, left out, renamed or added anywhere in the tree."""
    if rng.integers(5) == 0:
        return bytes(mutate_bytes(text.encode(), rng, b'{}[]"null' * 30))
    tree = json.loads(text)
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(tree))
        holder, key = places[int(rng.integers(len(places)))]
        kind = int(rng.integers(4))
        if kind == 0 and isinstance(holder, dict):
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[f"{key}_x"] = holder.pop(key)
        elif kind == 2 and isinstance(holder, dict):
            holder[str(_ODD[int(rng.integers(len(_ODD)))])[:20]] = _ODD[int(rng.integers(len(_ODD)))]
        else:
            holder[key] = _ODD[int(rng.integers(len(_ODD)))]
    return json.dumps(tree).encode()


def _places(tree):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _places(value)


def load_checkpoint(number, seed, seeds, folder):
    """Load a checkpoint with one file changed, and run it if it loads."""
    rng = np.random.default_rng([seed, number])
    place = folder / "checkpoint"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(seeds[0], place)
    files = ["config.json"] * 3 + ["model.safetensors.index.json", "preprocessor_config.json", "generation_config.json"]
    target = place / files[int(rng.integers(len(files)))]
    if target.exists():
        target.write_bytes(mutate_json(target.read_text(encoding="utf-8"), rng))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = HookedAVModel.from_pretrained(place)
        return "loaded" if model.cfg.n_layers else "empty"
    except AVLensError as error:
        return type(error).__name__


def _child(work, numbers, seed, seeds, folder, pipe):
    torch.set_num_threads(1)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIBIBYTES * 2**30, hard))
    for number in numbers:
        pipe.send((number, "began"))
        try:
            said = work(number, seed, seeds, folder)
        except BaseException as error:  # noqa: BLE001 - what it is, is what is asked
            said = f"ESCAPED {type(error).__name__}: {str(error)[:200]}"
        pipe.send((number, said))
    pipe.close()


def fuzz(work, n, seed, seeds, folder):
    """What came of each of `n` files, as counts; the files that broke a promise; the longest time in seconds."""
    context = multiprocessing.get_context("fork")
    counts, broken, longest, first = Counter(), [], 0.0, 0
    while first < n:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(work, range(first, n), seed, seeds, folder, theirs))
        child.start()
        theirs.close()
        number, began = first, time.monotonic()
        while True:
            try:
                heard = ours.recv() if ours.poll(SECONDS) else "a hang"
            except EOFError:
                heard = "a crash"
            if isinstance(heard, str):
                break
            number, said = heard
            if said == "began":
                began = time.monotonic()
                continue
            longest = max(longest, time.monotonic() - began)
            counts[said.split(":")[0]] += 1
            if said.startswith("ESCAPED"):
                broken.append((number, said))
            first = number + 1
        child.kill()
        child.join()
        if first < n:
            counts[heard] += 1
            broken.append((number, heard))
            first = number + 1
    return counts, broken, longest


def fuzz_media(n, seed, folder):
    """Damaged media files."""
    (folder / "seeds").mkdir()
    return fuzz(read_media, n, seed, media_seeds(folder / "seeds"), folder)


def fuzz_checkpoints(n, seed, folder):
    """Damaged checkpoints."""
    return fuzz(load_checkpoint, n, seed, [checkpoint_seed(folder / "seed")], folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["media", "checkpoints"])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = fuzz_media if given.what == "media" else fuzz_checkpoints
        start = time.monotonic()
        counts, broken, longest = run(given.files, given.seed, Path(folder))
    lines = [f"{given.files} files in {time.monotonic() - start:.0f} s, the longest {longest:.1f} s"]
    lines += [f"  {count:6d} {what}" for what, count in counts.most_common()] + [f"BROKEN {one}" for one in broken[:40]]
    sys.stdout.write("\n".join(lines) + "\n")
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    main()
