"""How do a checkpoint's weights get into transformers' modules: each key once, none left over?

transformers reads them: shards, `device_map`, offload, dtype and quantisation are its own, and no second copy is made.
What it would only warn about is refused here: a weight that is missing, unknown or of another shape. Before anything is
allocated, the config is held against the headers of the files: a model that is far larger than they are is not built.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig
from transformers.initialization import no_init_weights
from transformers.utils import logging

from avlens.errors import AVLensError, CheckpointError
from avlens.settings import check_kinds, shown

_SPARE_WEIGHTS = 2**24
"""So many weights, and as many again as the files hold, may be built beyond them: tied and spare ones, and buffers."""


def load_weights(
    kind: Any,
    folder: Path,
    config: Any,
    *,
    embed: str,
    renames: Mapping[str, str] | None = None,
    dropped: str = r"(?!)",
    spare: frozenset[str] = frozenset(),
    **load_options: Any,
) -> Any:
    """A model of a transformers class with a folder's weights.

    Args:
        kind: The class.
        folder: Where the weights are, as safetensors.
        config: The class's config.
        embed: Name of the token embedding's weight, to which the unembedding is tied where the checkpoint has none.
        renames: Patterns of the checkpoint's keys and what they become in the model.
        dropped: Pattern of keys that the model has no use for.
        spare: Weights of the model that the forward pass never uses, so that they may be missing.
        load_options: Those of transformers' from_pretrained.

    Raises:
        CheckpointError: If a weight is missing, unknown or of another shape.
    """
    _check_index(folder / "model.safetensors.index.json")
    read_settings(folder / "generation_config.json")  # transformers reads it as well.
    _refuse_a_larger_model(kind, config, folder)
    with quiet(folder):
        model, info = kind.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            **({"key_mapping": dict(renames)} if renames else {}),
            **load_options,
        )
    missing = set(info["missing_keys"])
    if "lm_head.weight" in missing:
        model.lm_head.weight = model.get_parameter(embed)
        model.config.tie_word_embeddings = True
    missing -= {"lm_head.weight"} | spare
    unknown = {key for key in info["unexpected_keys"] if not re.search(dropped, key)}
    if missing or unknown or info["mismatched_keys"]:
        raise CheckpointError(
            f"the weights in {folder} do not fit its config: {len(missing)} missing {sorted(missing)[:3]}, {len(unknown)} "
            f"unknown {sorted(unknown)[:3]}, {len(info['mismatched_keys'])} of another shape. Download it again."
        )
    return model.eval()


def save_weights(folder: Path, state: Mapping[str, Tensor], embed: str, head: str = "lm_head.weight") -> bool:
    """Write weights under their released names, an unembedding that is the embedding only once.

    Args:
        folder: Where; made if it is not there.
        state: The weights by released name.
        embed: The name of the token embedding's.
        head: The name of the unembedding's.

    Returns:
        Whether the unembedding is the embedding.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tied = state[head].data_ptr() == state[embed].data_ptr()
    kept = {name: weight.contiguous() for name, weight in state.items() if not (tied and name == head)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return tied


def save_settings(folder: Path, model: Any, tokenizer: Any, **files: Mapping[str, Any]) -> None:
    """Write all but the weights: how the model is sampled, its tokenizer, and a JSON file for each of `files`.

    Args:
        folder: Where.
        model: Whose generation config is written.
        tokenizer: With its chat template.
        files: What each file holds, by its name without ending; an empty one is not written.
    """
    for name, content in files.items():
        write_json(folder / f"{name}.json", content)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def blamed(what: str, advice: str) -> Iterator[None]:
    """What goes wrong inside is the fault of a file: libraries raise anything at all on one that holds nonsense.

    Memory that does not suffice is no file's fault.

    Args:
        what: What cannot be read, for the message.
        advice: What to do.

    Raises:
        CheckpointError: Instead of anything that is no error of avlens.
    """
    try:
        yield
    except (AVLensError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")[:300]
        raise CheckpointError(f"{what} cannot be read ({type(error).__name__}: {reason}). {advice}") from error


def _check_index(path: Path) -> None:
    """Refuse an index that does not name files of its own folder.

    Raises:
        CheckpointError: With the first name that is none.
    """
    if not path.exists():
        return
    named = read_json(path).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise CheckpointError(
            f"{path} has no weight_map, an object of weights and the files that hold them. Download it again."
        )
    here = {file.name for file in path.parent.glob("*.safetensors")}
    if wrong := [file for file in named.values() if not isinstance(file, str) or file not in here]:
        raise CheckpointError(
            f"{path} says that weights are in {shown(wrong[0])}, which is no *.safetensors beside it. Download the folder again."
        )


def _refuse_a_larger_model(kind: Any, config: Any, folder: Path) -> None:
    """Refuse a config whose model is far larger than the files, before memory is asked for it.

    Raises:
        CheckpointError: With both sizes.
    """
    if getattr(config, "quantization_config", None) is not None:
        return  # Several weights share a number there.
    held = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            held += sum(math.prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118
    with no_init_weights(), torch.device("meta"):
        built = kind(config)
    asked = sum(one.numel() for one in (*built.parameters(), *built.buffers()))
    if asked > 2 * held + _SPARE_WEIGHTS:
        raise CheckpointError(
            f"config.json describes a model of {asked:,} weights, but the files in {folder} hold {held:,}. They do not belong "
            "together: download both again."
        )


@contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """No progress bar for a checkpoint that loads in a moment, and no report of what is checked here anyway."""
    small = sum(file.stat().st_size for file in folder.glob("*.safetensors")) < 2**28
    if not small or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def load_tokenizer(folder: Path, config: Any) -> Any:
    """The tokenizer of a folder, with its chat template wherever it lies; without one if it has none."""
    with blamed(f"the tokenizer in {folder}", "Download tokenizer.json and tokenizer_config.json again."):
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
        tokenizer.decode(tokenizer("a b\n", return_offsets_mapping=True, add_special_tokens=False)["input_ids"])
    if tokenizer.chat_template is None:
        jinja = folder / "chat_template.jinja"
        written = jinja.read_text(encoding="utf-8") if jinja.exists() else None
        tokenizer.chat_template = written or read_json(folder / "chat_template.json").get("chat_template")
    return tokenizer


def load_preprocessor(folder: Path) -> dict[str, Any]:
    """How sound and images are read: one file in released checkpoints, two sections of another in recent ones."""
    sections = read_settings(folder / "processor_config.json")
    recent = dict(sections.get("image_processor") or {}) | dict(sections.get("feature_extractor") or {})
    return read_settings(folder / "preprocessor_config.json") or recent


def load_generation_config(folder: Path, tokenizer: Any) -> GenerationConfig:
    """How a checkpoint wants to be sampled; where it does not say, only where it ends."""
    if (folder / "generation_config.json").exists():
        with blamed(f"generation_config.json in {folder}", "Download it again, or delete it."):
            return GenerationConfig.from_pretrained(folder)
    return GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none.

    Raises:
        CheckpointError: If it holds none.
    """
    if not path.exists():
        return {}
    with blamed(str(path), "Download it again."):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object. Download it again.")
    return value


def read_settings(path: Path) -> dict[str, Any]:
    """The same, of settings that must each be of their kind.

    Raises:
        CheckpointError: If one is not.
    """
    settings = read_json(path)
    check_kinds(settings, str(path))
    return settings


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON object to a file, unless it is empty."""
    if value:
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def tiny_sizes(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a tiny model, with the family's where none is wanted.

    Raises:
        CheckpointError: If a wanted size is unknown.
    """
    if unknown := set(wanted) - set(known):
        raise CheckpointError(f"{sorted(unknown)[0]!r} is no size of a tiny model. Sizes are {', '.join(known)}.")
    return dict(known) | dict(wanted)


def random_model(build: Callable[[], Any], tokenizer: Any, seed: int, then: Callable[[Any], None] | None = None) -> Any:
    """A model with seeded random weights, biases and norms, which ends where its tokenizer says.

    Args:
        build: Makes it.
        tokenizer: Names the ids at which an answer ends, and of padding.
        seed: Of the weights.
        then: What else is done to the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().eval()
        randomise(model)
        if then is not None:
            then(model)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def randomise(model: nn.Module) -> None:
    """Weights of a size at which every part matters; biases and norms away from 0 and 1, so that errors show."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.8 / weight[0].numel() ** 0.5)
            elif "bias" in name:
                weight.normal_(0, 0.2)
            else:
                weight.normal_(1, 0.1)
