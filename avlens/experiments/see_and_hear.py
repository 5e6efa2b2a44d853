"""The experiments of "Do Audio-Visual Large Language Models Really See and Hear?".

    fidelity    do captions tell what is heard and what is seen, also while generated tokens cannot read a modality
    lens        do audio tokens name what is heard, layer by layer
    probes      can what is heard be read off the residual stream by a straight line
    attention   how much the last and the generated tokens read each group of tokens, sinks told apart
    shift       which words would have been written without the sound

Fidelity is to be measured on factual and counterfactual clips: `--data` takes a folder that `write_counterfactuals` wrote.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from avlens.analyses.attention_mass import attention_by_group
from avlens.analyses.logit_lens import logit_lens
from avlens.analyses.probes import Features, Probes, linear_probes, probe_features
from avlens.analyses.selection import prompt_of
from avlens.analyses.shift import token_distribution_shift
from avlens.errors import MetricError, PromptError
from avlens.experiments.asking import Row, clip_of, label_and_others, vocabulary_of
from avlens.experiments.experiment import Condition, Experiment
from avlens.hubs import find_hubs
from avlens.interventions import knockout_types
from avlens.metrics.fidelity import KeywordMatch
from avlens.records import RecordTable
from avlens.samples import Opened
from avlens.tokens import TokenSet


def measure_fidelity(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """A caption, and which share of what is heard, and of what is seen, it mentions, while some tokens do not read others."""
    inputs = model.prepare(clip_of(opened), opened.sample.question, order=condition["order"])
    n = model.cfg.n_layers
    rules = [f"{reader},{read},{round(first * n)},{round(end * n)}" for reader, read, first, end in condition["cut"]]
    hooks = knockout_types(inputs.tokens, rules, n_layers=n)
    caption = model.generate(inputs, condition["max_new_tokens"], fwd_hooks=hooks).text
    judge, record = KeywordMatch(vocabulary_of(condition)), opened.sample.record
    told = {
        kind: judge(caption, " , ".join(record.get(f"{kind}_captions", ())), modality=kind).score for kind in ("audio", "video")
    }  # fmt: skip
    return [{"caption": caption, "sound": "swapped" if record.get("counterfactual") else "own"} | told]


def measure_lens(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """For each layer, the share of media tokens whose likeliest word names the label, and the same of other options.

    One more row says whether any token does from the middle layer on, and whether it does so for other options.
    """
    inputs = model.prepare(clip_of(opened), opened.sample.question)
    chosen: TokenSet = getattr(inputs.tokens, condition["modality"])
    read = logit_lens(model, inputs, chosen, k=condition["k"], norm=condition["norm"])
    label, others = label_and_others(opened)
    own = read.hits(_words(label)).float()
    control = torch.stack([read.hits(_words(other)).float() for other in others] or [torch.full_like(own, torch.nan)])
    late = len(read.layers) // 2
    rows: list[Row] = [
        {
            "layer": layer, "named": own[i].mean(), "any": own[i].max(), "entropy": read.entropy[i].mean(),
            "named_other": control[:, i].mean(),
        }
        for i, layer in enumerate(read.layers)
    ]  # fmt: skip
    return [*rows, {"latent": own[late:].max(), "latent_other": control[:, late:].amax((1, 2)).mean()}]


def measure_probes(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """What `probes_of` fits: the mean activation of each modality in each layer, in a few random directions."""
    inputs = model.prepare(clip_of(opened), opened.sample.question)
    features = probe_features(model, [inputs], site=condition["site"])
    seen = _in_few_directions(features.x[:, :, 0], condition["directions"])
    label, _ = label_and_others(opened)
    return [
        {"label": label, "set": name, "layer": layer, "x": seen[i, j]}
        for i, name in enumerate(features.sets)
        for j, layer in enumerate(features.layers)
    ]


def probes_of(records: RecordTable, **options: Any) -> Probes:
    """The probes of a run of `probes`, fitted on its clips; options as in `linear_probes`.

    Raises:
        MetricError: If the records hold no features.
    """
    frame = records.to_frame()
    if not {"label", "set", "layer", "x"} <= set(frame.columns):
        raise MetricError("the records hold no features. Pass those of the experiment `probes`.")
    frame = frame.drop_duplicates(["sample", "set", "layer"])
    table = frame.pivot_table(index="sample", columns=["set", "layer"], values="x", aggfunc="first").dropna()
    sets, layers = (tuple(frame[name].drop_duplicates()) for name in ("set", "layer"))
    x = torch.tensor([[table[name, layer].tolist() for layer in layers] for name in sets])
    labels = frame.drop_duplicates("sample").set_index("sample").label.loc[table.index]
    return linear_probes(Features(x, sets, layers, "projected", dict(records.made_by)), labels.tolist(), **options)


def measure_attention(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """Attention of those who write to each group, by layer, mean over heads; and the part of it that goes to sinks."""
    inputs = prompt_of(model, clip_of(opened), opened.sample, condition["ask"], order=condition["order"])
    sinks = find_hubs(model, inputs).sinks.tokens
    mass = attention_by_group(model, inputs, sinks=sinks, max_new_tokens=condition["max_new_tokens"])
    whole, to_sinks = mass.mass.mean(-1), mass.to_sinks.mean(-1)
    return [
        {"reader": reader, "read": read, "layer": layer, "mass": whole[i, j, k], "to sinks": to_sinks[i, j, k]}
        for i, reader in enumerate(mass.queries)
        for j, read in enumerate(mass.keys)
        for k, layer in enumerate(mass.layers)
    ]


def measure_shift(model: Any, opened: Opened, condition: Condition) -> list[Row]:
    """Each token of the answer, as the model sees it without one modality, or with it corrupted."""
    clip, question = clip_of(opened), opened.sample.question
    if not (clip.has_audio if condition["base"] in ("no audio", "silent") else clip.has_video):
        raise PromptError(f"{clip!r} lacks the modality that is to be taken away. Give a clip with frames and sound.")
    changed = {
        "no audio": clip.without_audio, "no video": clip.without_video, "silent": clip.silenced, "blank": clip.blanked,
    }[condition["base"]]()  # fmt: skip
    base = model.prepare(changed, question)
    read = token_distribution_shift(
        model, model.prepare(clip, question), base, max_new_tokens=condition["max_new_tokens"]
    )
    return [
        {
            "step": step, "token": read.strings[step], "rank": read.rank[step], "shifted": float(shift == "shifted"),
            "unshifted": float(shift == "unshifted"), "KL": read.kl[step], "P": read.p[step], "P base": read.p_base[step],
        }
        for step, shift in enumerate(read.shifts)
    ]  # fmt: skip


def _in_few_directions(x: Float[Tensor, "*batch d"], n: int) -> Float[Tensor, "*batch n"]:
    """Random directions keep distances: by Johnson and Lindenstrauss, within 1 / sqrt(n) or so."""
    directions = torch.randn(x.shape[-1], n, generator=torch.Generator().manual_seed(0)) / n**0.5
    return x.float().cpu() @ directions


def _words(text: str) -> set[str]:
    """What a token may say to name it: the whole of it, or its words that are no article."""
    words = [word for word in text.lower().split() if word not in ("a", "an", "the")]
    return {" ".join(words), *words} - {""}


_CUTS: dict[str, list[list[Any]]] = {
    "plain": [], "video cut": [["generated", "video", 0, 1]], "video cut late": [["generated", "video", 0.5, 1]],
    "audio cut": [["generated", "audio", 0, 1]], "audio cut late": [["generated", "audio", 0.5, 1]],
}  # fmt: skip
_ORDERS = {"question first": "question_first", "media first": "media_first"}
_CAPTION: Row = {"order": "question_first", "objects": None, "max_new_tokens": 50}

EXPERIMENTS = (
    Experiment(
        "fidelity", measure_fidelity,
        {name: {"cut": cut} | _CAPTION for name, cut in _CUTS.items()}, task="describe",
        summary=[("audio", ("condition", "sound")), ("video", ("condition", "sound"))],
    ),
    Experiment(
        "lens", measure_lens, {"audio": {"modality": "audio", "k": 1, "norm": True}},
        summary=[("named", ("layer",)), ("named_other", ("layer",)), ("latent", ()), ("latent_other", ())],
    ),
    Experiment("probes", measure_probes, {"resid_post": {"site": "resid_post", "directions": 64}}),
    Experiment(
        "attention", measure_attention,
        {name: {"order": order, "ask": "letters", "max_new_tokens": 16} for name, order in _ORDERS.items()},
        summary=[(value, ("condition", "reader", "read", "layer")) for value in ("mass", "to sinks")],
    ),
    Experiment(
        "shift", measure_shift, {base: {"base": base, "max_new_tokens": 64} for base in ("no audio", "no video")},
        task="describe", summary=[("shifted", ("condition",)), ("unshifted", ("condition",)), ("KL", ("condition",))],
    ),
)  # fmt: skip
"""With settings as in the paper's tables."""
