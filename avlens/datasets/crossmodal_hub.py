"""What does the released checkout of "Cross-modal Information Hubs" hold: prompts, effects, and sinks with their scores?

avlens ships none of it; these functions read a user's own checkout of kaistmm/crossmodal-hub:

    json_files/causal_tracing/step{1,2}/*.json, json_files/asd/*.json    prompts: `read_prompts`
    exp/causal_tracing/step{1,2}/**/*_small.json                         results, one JSON object a line: `read_results`
    exp/causal_tracing/step1/*/av/history/k_divde_2/*_history.json       sinks with their scores: `read_history`
    json_files/object/important_seconds_flam_qwen.json                   chunks with the sounding object: `read_sounding_chunks`

There, "people" means audio-dominant clips and "sports" video-dominant ones, whatever they show. Clips are not in the checkout.

Source: Jung et al. 2026, arXiv:2605.10815.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from avlens.errors import DatasetError
from avlens.samples import Sample, inside, reader, unreadable
from avlens.tokens import Modality


@dataclass(frozen=True, eq=False)
class SinkHistory:
    """The sinks of one prompt: video sinks, then audio sinks, each from the most often to the least often a sink.

    Attributes:
        positions: Where they stand in the prompt.
        modality: `Modality` codes.
        score: MDS as stored, in bfloat16 then.
        from_video: Mean attention of later video queries.
        from_audio: The same of audio.
    """

    positions: Int[Tensor, " sink"]
    modality: Int[Tensor, " sink"]
    score: Float[Tensor, "layer sink"]
    from_video: Float[Tensor, "layer sink"]
    from_audio: Float[Tensor, "layer sink"]

    def to_frame(self) -> pd.DataFrame:
        """One row per sink, with its mean over layers."""
        names = [Modality(code).name.lower() for code in self.modality.tolist()]
        columns = {"position": self.positions.numpy(), "modality": names, "mds": self.score.nanmean(0).numpy()}
        return pd.DataFrame(columns).set_index("position")


@reader
def read_prompts(path: str | Path, media: str | Path = ".") -> Iterator[Sample]:
    """The prompts of a file of `json_files/causal_tracing` or `json_files/asd`, in order.

    Their ids are the clips' names. What a record says beyond the prompt (`av`, `a`, `v`, `correct_pred`, `objects`, ...) is in
    `record`. Clips given as stills get the sound file that goes by their name.

    Args:
        path: The file.
        media: The folder that holds `vggsound_with_mask`; clips that are not there are yielded too.

    Raises:
        DatasetError: If the file does not hold such prompts.
    """
    for number, turns in enumerate(_records(Path(path))):
        try:
            user = next(turn for turn in turns if turn["role"] == "user")
            content = {part["type"]: part[part["type"]] for part in user["content"]}
            yield _sample(user, content["video"], content["text"], Path(media))
        except (KeyError, TypeError, StopIteration) as error:
            raise DatasetError(
                f"{path}, record {number} is no prompt with a video and a text. Give a file of json_files/causal_tracing or asd."
            ) from error


def read_results(path: str | Path) -> pd.DataFrame:
    """The results of a file under `exp`, one row per clip, indexed by the clip's name.

    Raises:
        DatasetError: If the file does not hold such results.
    """
    with unreadable(path):
        records = _records(Path(path))
        if missing := [number for number, record in enumerate(records) if "video" not in record]:
            raise DatasetError(f"{path}, record {missing[0]} has no video. Give a file of exp/causal_tracing.")
        index = pd.Index([_name(record["video"]) for record in records], name="clip")
        return pd.DataFrame(records, index=index).drop(columns=["video"])


def read_history(
    path: str | Path,
    *,
    tokens_per_grid: int = 144,
    n_before: int = 16,
    grids_per_chunk: int = 2,
    audio_per_chunk: int = 50,
) -> SinkHistory:
    """The sinks of a prompt, whose modality follows from where they stand.

    After `n_before` tokens of text come chunks of two seconds: `grids_per_chunk` grids of video tokens, then audio tokens.

    Args:
        path: A history file.
        tokens_per_grid: Video tokens of one grid in time, which depends on the size of the frames.
        n_before: Tokens before the first chunk.
        grids_per_chunk: Grids of a chunk.
        audio_per_chunk: Audio tokens of a chunk; the last may have fewer.

    Raises:
        DatasetError: If the file holds something else, or sinks that are not first video, then audio under this layout.
    """
    with unreadable(path):
        stored: Mapping[str, Mapping[str, list[float]]] = _json(Path(path))
    try:
        positions = torch.tensor([int(position) for position in stored])
        score, video, audio = (
            torch.tensor([sink[key] for sink in stored.values()], dtype=torch.float64).reshape(len(stored), -1).T
            for key in ("mds", "v_score", "a_score")
        )
        if not len(score) == len(video) == len(audio):
            raise ValueError("scores of other layers")
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DatasetError(
            f"{path} holds no sinks with mds, v_score and a_score. Give a *_history.json file."
        ) from error
    n_video = grids_per_chunk * tokens_per_grid
    is_audio = (positions - n_before) % (n_video + audio_per_chunk) >= n_video
    if bool((is_audio.long().diff() < 0).any()) or bool((positions < n_before).any()):
        raise DatasetError(
            f"under {tokens_per_grid} tokens per grid, the sinks of {path} are not first video, then audio. "
            "Pass the tokens_per_grid of this clip."
        )
    modality = torch.where(is_audio, int(Modality.AUDIO), int(Modality.VIDEO))
    return SinkHistory(positions, modality, score, video, audio)


def read_sounding_chunks(path: str | Path) -> dict[str, tuple[int, ...]]:
    """By the clip's name: in which chunks of two seconds, from 0, its object sounds.

    Raises:
        DatasetError: If the file does not hold that.
    """
    with unreadable(path):
        records = _records(Path(path))
    try:
        return {_name(record["audio"]): tuple(record["important_blocks"]) for record in records}
    except (LookupError, TypeError) as error:
        raise DatasetError(f"{path} lacks audio or important_blocks. Give important_seconds_flam_qwen.json.") from error


def _sample(user: Mapping[str, Any], video: str | list[str], text: str, media: Path) -> Sample:
    name, where = _name(video), f"the prompt of {_name(video)}"
    stills = [] if isinstance(video, str) else [inside(media, still, where) for still in video]
    choices = user.get("choices", {})
    return Sample(
        id=name, path=stills[0].parent if stills else inside(media, str(video), where), question=text,
        options=tuple(choices.values()),
        label=user.get("label", user.get("original_label", "")), stills=tuple(stills),
        sound=inside(media, f"vggsound_with_mask/audio/{name}.wav", where) if stills else None,
        record={key: value for key, value in user.items() if key not in ("role", "content", "label", "choices")},
    )  # fmt: skip


def _name(video: str | list[str]) -> str:
    """A clip's name: its file's, or that of its stills' folder."""
    return Path(video).stem if isinstance(video, str) else Path(video[0]).parent.name


def _records(path: Path) -> list[Any]:
    """A list, written as one JSON value or as one object a line."""
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        records: list[Any] = _json(path)
        return records
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DatasetError(f"{path}, line {number} is no JSON: {error}. Check the file out again.") from error
    return records


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path} is no JSON: {error}. Check the file out again.") from error
