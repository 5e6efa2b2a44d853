"""What benchmarks run: a decoder of a size that shows overhead, and a prompt of any length with audio and video in it."""

import torch

from avlens.analyses.dominance import modality_dominance, read_by_modality
from avlens.analyses.sinks import find_sinks, sink_energy
from avlens.inputs import AVInputs, Prompt
from avlens.model import HookedAVModel
from avlens.testing import tiny_model
from avlens.tokens import Modality, Segment, TokenMap

SIZES = {"n_layers": 12, "d_model": 512, "n_heads": 8, "n_key_value_heads": 2, "d_mlp": 1408, "d_vocab": 1000}
DIMS = (3, 7)


def model() -> HookedAVModel:
    """Twelve layers, d_model 512, 8 heads over 2 key-value heads."""
    return tiny_model(seed=0, **SIZES)


def prompt(length: int, of: HookedAVModel) -> AVInputs:
    """`length` tokens, two seconds of video and of audio in turn; their embeddings are those of their ids."""
    ids = torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(0))
    kinds = [Modality.VIDEO, Modality.AUDIO]
    runs = [
        TokenMap.of(part, ["?"] * len(part), kinds[i % 2], Segment.MEDIA, clip=torch.zeros(len(part), dtype=torch.long))
        for i, part in enumerate(ids[: length - 16].split(50))
    ]
    runs.append(TokenMap.of(ids[length - 16 :], ["?"] * 16, Modality.TEXT, Segment.QUESTION))
    row = Prompt(ids, TokenMap.join(runs), (), torch.arange(length).expand(3, -1), length)
    return AVInputs((row,), of.family.text_inputs(ids[None]).stock_kwargs)


def stock(of: HookedAVModel, inputs: AVInputs) -> None:
    """The unmodified transformers decoder, fused attention."""
    decoder = of.stock.whole.model.language_model
    with torch.no_grad():
        of.unembed(decoder(input_ids=inputs.ids, use_cache=False).last_hidden_state)


def idle(of: HookedAVModel, inputs: AVInputs) -> None:
    """The hooked model, nobody listening."""
    of(inputs)


def cached(of: HookedAVModel, inputs: AVInputs) -> None:
    """Every resid_pre kept."""
    of.run_with_cache(inputs, names_filter=["resid_pre"])


def sinks_and_dominance(of: HookedAVModel, inputs: AVInputs) -> None:
    """Sinks, and the modality dominance of every audio and video token."""
    keep = [sink_energy(DIMS), *read_by_modality(inputs.tokens)]
    _, cache = of.run_with_cache(inputs, names_filter=[], reductions=keep, logits_at=inputs.tokens.last)
    find_sinks(cache, DIMS)
    modality_dominance(cache, inputs.tokens.media)


WORK = {"stock": stock, "idle": idle, "resid_pre": cached, "sinks + MDS": sinks_and_dominance}
