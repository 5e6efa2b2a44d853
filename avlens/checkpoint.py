"""Where is a checkpoint, and whose is it?

A name is one of the zoo's, a local folder, or a hub id, in this order. Its config.json tells the family; nothing is
loaded before every setting in it is known.
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from avlens.errors import CheckpointError
from avlens.family import Family, Stock, dtype_of

ZOO = Path(str(files("avlens.zoo")))


def zoo_names() -> list[str]:
    """The models that come with avlens."""
    return sorted(folder.name for folder in ZOO.iterdir() if (folder / "config.json").exists())


def load_checkpoint(
    name: str,
    families: Sequence[type[Family]],
    *,
    dtype: Any,
    device_map: Any,
    attn: str,
    ignore_settings: Sequence[str],
    **load_options: Any,
) -> tuple[Family, Stock]:
    """Find, check and load a checkpoint.

    Raises:
        CheckpointError: If there is none, or no family knows it.
        UnsupportedSettingError: If its config holds a setting that nobody handled.
    """
    folder = find_checkpoint(name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = family_of(config, families, name)
    family.check(config, ignore_settings)
    if device_map is not None:
        load_options["device_map"] = device_map
    implementation = "eager" if attn == "eager" else "sdpa"
    return family.load(folder, dtype=dtype_of(dtype), attn_implementation=implementation, **load_options)


def family_of(config: dict[str, Any], families: Sequence[type[Family]], name: str) -> type[Family]:
    """The family that a config.json belongs to."""
    for family in families:
        if family.matches(config):
            return family
    known = "; ".join(f"{family.title} ({family.name})" for family in families)
    raise CheckpointError(
        f"{name} is a {config.get('model_type')!r} model, which no family of avlens knows. Known: {known}."
    )


def find_checkpoint(name: str) -> Path:
    """The folder of a checkpoint, downloaded first if the name is a hub id."""
    if name in zoo_names():
        return ZOO / name
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise CheckpointError(f"the folder {name} holds no config.json. Pass the folder that holds the checkpoint.")
        return folder
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise CheckpointError(
            f"there is no checkpoint {name!r}: it is no model of the zoo ({', '.join(zoo_names())}), no folder, and no "
            "hub id such as 'Qwen/Qwen2.5-Omni-3B'."
        )
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer*"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name!r} could not be had from the hub ({type(error).__name__}). Check the name and the connection, or "
            f"pass a folder that holds it. Models that need no download: {', '.join(zoo_names())}."
        ) from error
