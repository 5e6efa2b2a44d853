"""Does a loaded checkpoint keep the laws that everything else rests on?

Runs them on one short clip, in the dtype the model has. Differences are relative to the largest logit or activation; what is
allowed is 1e-5 in fp32 and the noise of the dtype otherwise. A law that could not be tried differs by NaN, which is broken.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from avlens.errors import PromptError
from avlens.inputs import AVInputs, Media
from avlens.interventions import discard, knockout, patch
from avlens.model import HookedAVModel
from avlens.tokens import Modality

ALLOWED = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class Law:
    """One law, held or not.

    Attributes:
        says: The law.
        difference: The largest relative difference found; NaN where it could not be computed.
        allowed: The largest that counts as equal.
    """

    says: str
    difference: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the difference is within what is allowed; never for NaN."""
        return self.difference <= self.allowed


def check_laws(model: HookedAVModel, inputs: AVInputs) -> list[Law]:
    """Every law on one prompt with audio and video; the first only where transformers has the model.

    Raises:
        PromptError: If the prompt has no audio or no video.
    """
    if not inputs.tokens.audio or not inputs.tokens.video:
        raise PromptError(
            f"the laws need a prompt with audio and video, but this is {inputs.tokens!r}. Pass a clip with both."
        )
    allowed = ALLOWED.get(model.dtype, 1e-5)
    laws: dict[str, Callable[[HookedAVModel, AVInputs], float]] = {
        "logits equal the stock transformers model's": _stock,
        "explicit attention equals fused attention": _explicit,
        "rows of every pattern sum to 1": _rows,
        "hooks that return their input change nothing": _identity,
        "what attention and MLP add is what the stream gains": _residual,
        "patching the clean run into itself changes nothing": _clean_into_clean,
        "patching all media tokens into a silent run restores the clean logits": _restore,
        "discarding video at a layer equals knocking it out from there on": _discard,
        "two prompts in a batch equal two runs": _batch,
    }
    if not model.family.has_stock:
        del laws["logits equal the stock transformers model's"]
    return [Law(says, law(model, inputs), allowed) for says, law in laws.items()]


def laws_table(laws: list[Law]) -> pd.DataFrame:
    """One row per law."""
    rows = [(law.says, law.difference, law.allowed, "holds" if law.holds else "BROKEN") for law in laws]
    return pd.DataFrame(rows, columns=["law", "difference", "allowed", "verdict"]).set_index("law")


def _stock(model: HookedAVModel, inputs: AVInputs) -> float:
    device = model.device
    kwargs = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in inputs.hf_kwargs().items()}
    with torch.no_grad():
        return _differ(model(inputs), model.stock.whole(**kwargs).logits)


def _explicit(model: HookedAVModel, inputs: AVInputs) -> float:
    return _differ(model(inputs, attn="eager"), model(inputs))


def _rows(model: HookedAVModel, inputs: AVInputs) -> float:
    off: list[float] = []

    def sums(pattern: Tensor, hook: object) -> None:  # noqa: ARG001
        off.append(float((pattern.float().sum(-1) - 1).abs().max()))

    model.run_with_hooks(inputs, [(lambda name: name.endswith("hook_pattern"), sums)])
    return _largest(off)


def _identity(model: HookedAVModel, inputs: AVInputs) -> float:
    return _differ(model.run_with_hooks(inputs, [(lambda _name: True, lambda x, hook: x)]), model(inputs))  # noqa: ARG005


def _residual(model: HookedAVModel, inputs: AVInputs) -> float:
    short = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    own = ["layer_input_out"] if model.cfg.d_layer_input is not None else []
    _, cache = model.run_with_cache(inputs, names_filter=[*short, *own])
    differences = []
    blocks: Any = model.blocks
    for layer, block in enumerate(blocks):
        pre, attn, mid, mlp, post = (cache[name, layer] for name in short)
        added = sum((cache[name, layer] for name in own), mid + mlp)
        differences += [_differ(pre + attn, mid), _differ(added * block.resid_scale, post)]
    return _largest(differences)


def _clean_into_clean(model: HookedAVModel, inputs: AVInputs) -> float:
    logits, cache = model.run_with_cache(inputs, names_filter=["resid_pre"])
    return _differ(model.run_with_hooks(inputs, patch(cache, inputs.tokens.media)), logits)


def _restore(model: HookedAVModel, inputs: AVInputs) -> float:
    logits, cache = model.run_with_cache(inputs, names_filter=["resid_pre"])
    mute = _muted(inputs)
    if all(one is other for one, other in zip(mute.prompt.media, inputs.prompt.media, strict=True)):
        return math.nan  # Nothing was muted: the law would hold whatever patching does.
    restored = model.run_with_hooks(mute, patch(cache, inputs.tokens.media))
    after = int(inputs.tokens.media.positions.max()) + 1
    return _differ(restored[:, after:], logits[:, after:])


def _discard(model: HookedAVModel, inputs: AVInputs) -> float:
    video, layer = inputs.tokens.video, model.cfg.n_layers // 2
    short = model.run_with_hooks(inputs, discard(video, layer=layer))
    blocked = model.run_with_hooks(inputs, knockout(~video, video, layers=range(layer, model.cfg.n_layers)))
    return _differ(short, blocked[:, (inputs.tokens.all - video).positions.to(blocked.device)])


def _batch(model: HookedAVModel, inputs: AVInputs) -> float:
    text = model.prepare("what do you see and hear ?")
    both = model(AVInputs.batch([inputs, text]))
    short = len(text.tokens)
    return _largest([_differ(both[:1], model(inputs)), _differ(both[1:, -short:], model(text))])


def _muted(inputs: AVInputs) -> AVInputs:
    """The same prompt with what its audio encoder reads at its lowest value."""
    prompt = inputs.prompt
    return replace(inputs, prompts=(replace(prompt, media=tuple(_mute(medium) for medium in prompt.media)),))


def _mute(medium: Media) -> Media:
    """A sound at its lowest value; the medium itself where that changes nothing, or where it is no sound."""
    if medium.modality != Modality.AUDIO:
        return medium
    tensors = {
        name: torch.full_like(x, float(x.min())) if x.is_floating_point() else x for name, x in medium.tensors.items()
    }
    changed = any(not torch.equal(x, medium.tensors[name]) for name, x in tensors.items())
    return replace(medium, tensors=tensors) if changed else medium


def _largest(values: Sequence[float]) -> float:
    """The largest; NaN if one is, which Python's max may drop, or if there is none."""
    return float(torch.tensor(values).max()) if values else math.nan


def _differ(ours: Tensor, reference: Tensor) -> float:
    """Largest difference relative to max(1, largest reference)."""
    ours, reference = ours.float().cpu(), reference.float().cpu()
    return float((ours - reference).abs().max() / reference.abs().max().clamp(min=1))
