"""Damaged files: media that lie about themselves, and checkpoints any of whose files was changed at random.

    python -m tests.fuzz media --files 10000 --seed 0 --workers 2
    python -m tests.fuzz checkpoints --files 1000 --seed 0 --workers 2

Whatever is read, what comes out is a value or one of avlens's own errors, within ten seconds of processor time and bounded
memory; of the command line, exit code 0, or 2 with a message. Processes of their own read, without a network, so that a crash, a
hang or a call to the outside is seen as one.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from unittest import mock

import av
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from avlens import Clip, HookedAVModel, cli
from avlens.datasets.synthetic import synthetic_clips
from avlens.errors import AVLensError
from avlens.testing import tiny_clip, tiny_model

SECONDS, WALL_SECONDS = 10.0, 60.0
"""A hang: so much processor time for one file, or so much by the clock."""
GIBIBYTES = 3
BY_COMMAND_LINE = 20
"""Every so many-th file goes through the command line as well."""


# Media.


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
    """The bytes with one kind of damage, and its name."""
    damaged, damage = bytearray(data), DAMAGE[int(rng.integers(len(DAMAGE)))]
    if damaged:
        damage(damaged, rng, other)
    return damaged, damage.__name__.strip("_").replace("_", " ")


_WAYS = (
    {}, {}, {"video": False}, {"audio": False}, {"start": 0.3, "end": 0.7}, {"fps": 30.0, "max_frames": 8},
    {"sample_rate": 44100},
)  # fmt: skip


def read_media(number, seed, seeds, folder):
    """Read one damaged file; its damage, and what came of it."""
    rng = np.random.default_rng([seed, number])
    source, other = (seeds[int(i)] for i in rng.integers(0, len(seeds), 2))
    data, damage = mutate_bytes(source.read_bytes(), rng, other.read_bytes())
    path = folder / f"{number}{source.suffix}"
    path.write_bytes(data)
    try:
        if number % BY_COMMAND_LINE == 0:
            _by_command_line(["tokens", str(path), "--json"])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            clip = Clip.from_file(path, **_WAYS[int(rng.integers(len(_WAYS)))], max_bytes=256 * 2**20)
            assert clip.frames is not None or clip.waveform is not None
        return damage, "read in part" if said else "read whole"
    except AVLensError as error:
        return damage, type(error).__name__
    finally:
        path.unlink()


def _by_command_line(arguments):
    """Run `avlens ...`; anything but exit code 0, or 2 with a message, escapes."""
    said, told, code = io.StringIO(), io.StringIO(), 0
    given, sys.argv = sys.argv, ["avlens", *arguments]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cli.main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = given
    if code == 0:
        json.loads(said.getvalue())
    elif code != 2 or not told.getvalue().startswith("avlens: "):
        raise RuntimeError(f"exit code {code}: {told.getvalue()[-300:]}")


# Checkpoints.


def checkpoint_seeds(
    folder, families=("qwen2_5_omni", "qwen3_omni", "video_salmonn2_plus", "video_salmonn_o1", "gemma4")
):
    """Small checkpoints, each with its weights in two files and an index."""
    small = {
        "d_model": 32,
        "n_heads": 2,
        "n_key_value_heads": 1,
        "d_mlp": 32,
        "n_layers": 2,
        "d_encoder": 16,
        "n_encoder_layers": 1,
    }
    for family in families:
        place = folder / family
        own = {"n_layers": 3} if family in ("qwen3_omni", "gemma4") else {}
        tiny_model(family, **small | own).save_pretrained(place)
        whole = load_file(place / "model.safetensors")
        (place / "model.safetensors").unlink()
        parts = {f"model-0000{i + 1}-of-00002.safetensors": sorted(whole)[i::2] for i in range(2)}
        for name, keys in parts.items():
            save_file({key: whole[key].contiguous() for key in keys}, place / name, {"format": "pt"})
        index = {
            "metadata": {"total_size": 1},
            "weight_map": {key: name for name, keys in parts.items() for key in keys},
        }
        (place / "model.safetensors.index.json").write_text(json.dumps(index))
    means = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "min_pixels": 784, "max_pixels": 3136}
    (folder / "video_salmonn2_plus" / "preprocessor_config.json").write_text(json.dumps(means))
    (folder / "video_salmonn2_plus" / "avlens.json").write_text(json.dumps({"video_pixels": 3136}))
    sound = {
        "feature_size": 128,
        "sampling_rate": 16000,
        "frame_length_ms": 20.0,
        "hop_length_ms": 10.0,
        "fft_overdrive": False,
    }
    sections = {"feature_extractor": sound, "video_processor": {"max_soft_tokens": 70}}
    (folder / "gemma4" / "processor_config.json").write_text(json.dumps(sections))
    return sorted(folder.iterdir())


_ODD = (
    None, True, -1, 0, 1, 7, 10**9, 2**63, 1e308, -0.5, float("nan"), "", "x", "../../../etc/passwd", "/etc/passwd", [], [1, 2],
    [[]], {}, {"x": 1}, "float16", "gelu", "a" * 100_000, "\x00", ["../x.py--X"], "{% for i in range(9) %}{{ i.__class__ }}",
)  # fmt: skip


def mutate_json(text, rng):
    """Damaged as text, or with values exchanged, left out, renamed or added anywhere in the tree."""
    tree = json.loads(text)
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(tree))
        if not places:
            break
        holder, key = places[int(rng.integers(len(places)))]
        kind, odd = int(rng.integers(4)), _ODD[int(rng.integers(len(_ODD)))]
        if kind == 0 and isinstance(holder, dict):
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[f"{key}_x"] = holder.pop(key)
        elif kind == 2 and isinstance(holder, dict):
            holder[str(odd)[:20]] = _ODD[int(rng.integers(len(_ODD)))]
        else:
            holder[key] = odd
    return json.dumps(tree).encode()


def _places(tree):
    """Where values stand: those of a long list or object by a few."""
    items = list(tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ())
    for key, value in items[:: max(1, len(items) // 50)]:
        yield tree, key
        yield from _places(value)


def damage_checkpoint(place, rng):
    """Change one of a checkpoint's files; which, and how."""
    files = sorted(file for file in place.iterdir() if file.is_file())
    files += [place / "config.json"] * len(files)  # Half of the time the config.
    target = files[int(rng.integers(len(files)))]
    data = target.read_bytes()
    if target.suffix == ".safetensors":
        header = 8 + int.from_bytes(data[:8], "little")
        if rng.integers(2):
            changed = mutate_json(data[8:header].decode(), rng)
            data, kind = len(changed).to_bytes(8, "little") + changed + data[header:], "header"
        else:
            start, kind = mutate_bytes(data[:header], rng, b"{}" * 100)
            data = bytes(start) + data[header:]
    elif target.suffix == ".json" and rng.integers(5):
        data, kind = mutate_json(data.decode(), rng), "values"
    else:
        data, kind = mutate_bytes(data, rng, b'{}[]"null' * 30)
    target.unlink()
    if rng.integers(40):
        target.write_bytes(data)
    else:
        kind = "deleted"
    return f"{'weights' if target.suffix == '.safetensors' else target.name}: {kind}"


def load_checkpoint(number, seed, seeds, folder):
    """Load a checkpoint with one file changed, and if it loads read a clip with it; the damage, and what came of it."""
    rng = np.random.default_rng([seed, number])
    place = folder / f"checkpoint-{number}"
    shutil.copytree(seeds[int(rng.integers(len(seeds)))], place)
    damage = damage_checkpoint(place, rng)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if number % BY_COMMAND_LINE == 0:
                clip = tiny_clip(1.0, size=(28, 28)).to_file(folder / f"{number}.mp4")
                _by_command_line(["caption", str(clip), "--json", "--max-new-tokens", "2", "--model", str(place)])
            model = HookedAVModel.from_pretrained(place)
            model.generate(model.prepare(tiny_clip(1.0, size=(28, 28)), "what do you hear ?"), 2)
        return damage, "loads and runs"
    except AVLensError as error:
        return damage, type(error).__name__
    finally:
        shutil.rmtree(place)


# Processes that read.


class Outside(BaseException):
    """The network was asked."""


def _refuse(*args, **kwargs):
    raise Outside(f"the network was asked: {args[:2]}")


def _child(work, numbers, seed, seeds, folder, pipe):
    torch.set_num_threads(1)
    socket.socket.connect = socket.getaddrinfo = _refuse
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIBIBYTES * 2**30, hard))
    Path("/proc/self/clear_refs").write_text("5")  # The peak counts from here on.
    began = _peak()
    for number in numbers:
        pipe.send((number, "began", "", 0, 0.0))
        start = time.process_time()
        try:
            damage, said = work(number, seed, seeds, folder)
        except BaseException as error:  # noqa: BLE001 - what it is, is what is asked
            damage, said = "", f"ESCAPED {type(error).__name__}: {str(error)[:200]}"
        pipe.send((number, said, damage, _peak() - began, time.process_time() - start))
    pipe.close()


def _peak():
    """The most memory that this process held, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def _seconds_of(process):
    """Processor time that another process took so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Found:
    """What came of files.

    Attributes:
        counts: Outcomes.
        by_damage: Outcomes of each kind of damage.
        broken: The files that broke a promise, and how.
        longest: The longest processor time for one file, in seconds.
        peak: The most memory that a process held beyond what it began with, in MiB.
    """

    counts: Counter = field(default_factory=Counter)
    by_damage: defaultdict = field(default_factory=lambda: defaultdict(Counter))
    broken: list = field(default_factory=list)
    longest: float = 0.0
    peak: int = 0

    def add(self, number, said, damage=""):
        """One more file."""
        self.counts[said.split(":")[0]] += 1
        if damage:
            self.by_damage[damage][said] += 1
        if said.startswith(("ESCAPED", "a ")):
            self.broken.append((number, said))


class Reader:
    """One process that reads its share of the files, started again after each file at which it ended."""

    def __init__(self, found, work, numbers, *rest):
        self.found, self.work, self.left, self.rest = found, work, list(numbers), rest
        self.start()

    def start(self):
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe(duplex=False)
        self.child = context.Process(target=_child, args=(self.work, tuple(self.left), *self.rest, theirs))
        self.child.start()
        theirs.close()
        self.began = time.monotonic(), 0.0

    def hangs(self):
        """Whether the file at hand takes too long."""
        wall, processor = self.began
        return _seconds_of(self.child.pid) - processor > SECONDS or time.monotonic() - wall > WALL_SECONDS

    def hear(self):
        """What the process has to say; a crash where it ended before its files did."""
        try:
            number, said, damage, memory, seconds = self.pipe.recv()
        except EOFError:
            return self.end("a crash") if self.left else self.stop()
        if said == "began":
            self.began = time.monotonic(), _seconds_of(self.child.pid)
            return None
        self.found.longest = max(self.found.longest, seconds)
        self.found.peak = max(self.found.peak, memory)
        self.found.add(number, said, damage)
        self.left.remove(number)
        return None

    def end(self, said):
        """The file at hand broke off; go on after it."""
        self.stop()
        self.found.add(self.left.pop(0), said)
        if self.left:
            self.start()

    def stop(self):
        self.child.kill()
        self.child.join()
        self.pipe.close()
        self.pipe = None


def fuzz(work, n, seed, seeds, folder, workers=1):
    """What came of each of `n` files."""
    found = Found()
    readers = [Reader(found, work, range(i, n, workers), seed, seeds, folder) for i in range(min(workers, n))]
    while busy := [reader for reader in readers if reader.pipe is not None]:
        ready = wait([reader.pipe for reader in busy], timeout=1.0)
        for reader in busy:
            if reader.pipe in ready:
                reader.hear()
            elif reader.hangs():
                reader.end("a hang")
    return found


def fuzz_media(n, seed, folder, workers=1):
    """Damaged media files."""
    (folder / "seeds").mkdir()
    model = HookedAVModel.from_pretrained("avlens-tiny")
    with mock.patch.object(cli.tokens, "load", lambda *_: model):  # Checkpoints are read below.
        return fuzz(read_media, n, seed, media_seeds(folder / "seeds"), folder, workers)


def fuzz_checkpoints(n, seed, folder, workers=1):
    """Damaged checkpoints."""
    (folder / "seeds").mkdir()
    return fuzz(load_checkpoint, n, seed, checkpoint_seeds(folder / "seeds"), folder, workers)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["media", "checkpoints"])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = fuzz_media if given.what == "media" else fuzz_checkpoints
        start = time.monotonic()
        found = run(given.files, given.seed, Path(folder), given.workers)
    lines = [
        f"{given.files} files, seed {given.seed}, in {time.monotonic() - start:.0f} s; the longest {found.longest:.1f} s; "
        f"at most {found.peak} MiB beyond the start"
    ]
    lines += [f"  {count:6d} {what}" for what, count in found.counts.most_common()]
    for damage, outcomes in sorted(found.by_damage.items()):
        lines.append(f"  {damage:32s} " + ", ".join(f"{count} {what}" for what, count in outcomes.most_common()))
    lines += [f"BROKEN {one}" for one in found.broken[:40]]
    sys.stdout.write("\n".join(lines) + "\n")
    raise SystemExit(1 if found.broken else 0)


if __name__ == "__main__":
    main()
