"""Where is a checkpoint, and whose is it?

A name is one of the zoo's, a local folder, or a hub id, in this order. Its config.json tells the family; nothing else is
downloaded or loaded before every setting in it is known.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import util
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from avlens.errors import CheckpointError
from avlens.family import Family, Stock, dtype_of
from avlens.loading import blamed
from avlens.settings import shown

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
    revision: str | None = None,
    **load_options: Any,
) -> tuple[Family, Stock]:
    """Find, check and load a checkpoint.

    Args:
        name: A name of the zoo, a folder, or a hub id.
        families: Those that it may belong to.
        dtype: Of the weights; None for the checkpoint's own.
        device_map: How accelerate spreads it over devices.
        attn: Which attention runs by default.
        ignore_settings: Settings that the caller takes responsibility for.
        revision: Branch, tag or commit of a hub id.
        load_options: Those of transformers' from_pretrained.

    Raises:
        CheckpointError: If there is none, no family knows it, its files cannot be read, or it cannot be spread so.
        UnsupportedSettingError: If its config holds a setting that nobody handled.
    """
    if own := sorted(_NOT_OFFERED & set(load_options)):
        raise CheckpointError(
            f"{own[0]}={load_options[own[0]]!r:.80} cannot be given. Weights are read as safetensors, no code of a checkpoint is "
            "ever run, and which attention runs is said with attn=."
        )
    wanted = dtype_of(dtype)
    if device_map is not None:
        _check_device_map(device_map)
        load_options["device_map"] = device_map
    folder = find_checkpoint(name, revision=revision)
    look = f"Look into {folder}, or download it again."
    config = _read_config(folder, name)
    with blamed(f"config.json of the checkpoint {name}", look):
        family = family_of(config, families, name)
        family.check(config, ignore_settings)
    if _on_hub(name):
        folder = _download(name, folder.name, _PARTS)  # Of the commit whose config was checked.
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"the checkpoint {name} has no weights: {folder} holds no *.safetensors. Pass the folder that holds them, or "
            "download it again."
        )
    implementation = "eager" if attn == "eager" else "sdpa"
    with blamed(f"a file of the checkpoint {name}", look):
        loaded, stock = family.load(folder, dtype=wanted, attn_implementation=implementation, **load_options)
        loaded.cfg.check()
    return loaded, stock


def check_device(device: str | int) -> None:
    """Refuse a device that cannot compute here, before anything is loaded.

    Raises:
        CheckpointError: If there is no such device, or torch cannot use it.
    """
    try:
        torch.zeros(1, device=torch.device(device)).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # torch raises all three.
        usable = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise CheckpointError(
            f"the device {device!r} cannot be used ({_first_line(error)}). Devices here: {', '.join(usable)}."
        ) from error


def _check_device_map(device_map: Any) -> None:
    """Refuse what says neither how to spread a model nor over which devices, before anything is loaded.

    Raises:
        CheckpointError: If it does not, or if a device of it cannot be used here, or accelerate is missing.
    """
    if util.find_spec("accelerate") is None:
        raise CheckpointError("device_map needs accelerate. Run pip install accelerate, or leave device_map out.")
    devices = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    if not devices or not all(isinstance(one, (str, int, torch.device)) for one in devices):
        raise CheckpointError(
            f"device_map is {device_map!r:.200}. Pass {', '.join(map(repr, _SPREADS))}, a device, or a dict of devices by module."
        )
    for one in devices if isinstance(device_map, Mapping) else [one for one in devices if one not in _SPREADS]:
        if one != "disk":
            check_device(one if isinstance(one, int) else str(one))


_SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways to spread a model that accelerate has names for."""


def family_of(config: dict[str, Any], families: Sequence[type[Family]], name: str) -> type[Family]:
    """The family that a config.json belongs to."""
    kind = config.get("model_type")
    for family in families:
        if isinstance(kind, str) and family.matches(config):
            return family
    known = "; ".join(f"{family.title} ({family.name})" for family in families)
    raise CheckpointError(f"{name} is a {shown(kind)} model, which no family of avlens knows. Known: {known}.")


def find_checkpoint(name: str, *, revision: str | None = None) -> Path:
    """The folder of a checkpoint. Of a hub id, its config.json alone is downloaded.

    Raises:
        CheckpointError: If there is none, or a revision is asked of what is not on the hub.
    """
    if _on_hub(name):
        return _download(name, revision, ["config.json"])
    if revision is not None:
        raise CheckpointError(
            f"revision is {revision!r}, but {name} is {'a model of the zoo' if name in zoo_names() else 'a folder'}, which has "
            "one version. Leave revision out, or pass a hub id."
        )
    folder = ZOO / name if name in zoo_names() else Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"the folder {str(folder)!r} holds no config.json. Pass the folder that holds the checkpoint."
        )
    return folder


_NOT_OFFERED = frozenset(
    [
        "trust_remote_code", "use_safetensors", "weights_only", "use_kernels", "allow_all_kernels", "kernel_config", "gguf_file",
        "state_dict", "config", "key_mapping", "attn_implementation", "output_loading_info", "ignore_mismatched_sizes",
    ]
)  # fmt: skip
"""Options of transformers' from_pretrained that are set here, or would load something else."""

_PARTS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer*")
"""What is downloaded of a checkpoint."""


def _on_hub(name: str) -> bool:
    """Whether a name is a hub id, and neither of the zoo nor a folder.

    Raises:
        CheckpointError: If it is nothing of these.
    """
    folder = Path(name).expanduser()
    if name in zoo_names() or folder.is_dir():
        return False
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise CheckpointError(
            f"there is no checkpoint {name!r}: it is no model of the zoo ({', '.join(zoo_names())}), no folder, and no "
            "hub id such as 'Qwen/Qwen2.5-Omni-3B'."
        )
    return True


def _download(name: str, revision: str | None, parts: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(parts)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        which = name if revision is None else f"{name} at revision {revision}"
        raise CheckpointError(
            f"{which!r} could not be had from the hub ({type(error).__name__}). Check the name and the connection, or "
            f"pass a folder that holds it. Models that need no download: {', '.join(zoo_names())}."
        ) from error


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    with blamed(f"config.json of the checkpoint {name}", f"Look into {folder}, or download it again."):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise CheckpointError(
            f"config.json of the checkpoint {name} holds a {type(config).__name__}, not an object. Pass the folder that holds "
            "the checkpoint."
        )
    return config


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
