import copy
import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from avlens.analyses.shift import shift_of
from avlens.choices import decoding_choices
from avlens.datasets.synthetic import ball_and_bell
from avlens.decoding import ASD, AVCD, FMD, PAI, VCD
from avlens.errors import BatchError, DecodingError
from avlens.inputs import AVInputs
from avlens.planting import planted_model
from tests.helpers import assert_equal

METHODS = [ASD(alpha=0.9), VCD(alpha=3.0), PAI(alpha=0.9, gamma=2.0), AVCD(entropy=0.0), FMD(fork=1)]
AT_ZERO = [ASD(alpha=0.0), VCD(alpha=0.0), PAI(alpha=0.0, gamma=1.0), AVCD(entropy=math.inf), FMD(fork=0)]


@pytest.fixture(scope="module")
def model():
    return planted_model()[0]


@pytest.fixture(scope="module")
def prompt(model):
    return model.prepare(ball_and_bell(2.0, fps=2.0), "describe the clip .")


def reading(pattern, tokens):
    """Mean attention of the last row of one prompt to video, audio and the rest."""
    rows = pattern[:, -1].mean(0)
    media = torch.stack([rows[tokens.video.positions].sum(), rows[tokens.audio.positions].sum()])
    return torch.cat([media, 1 - media.sum()[None]])


def is_named(method):
    return type(method).__name__


@pytest.mark.parametrize("method", METHODS, ids=is_named)
def test_choices_are_those_of_the_method_beside_those_of_the_model_alone(model, prompt, method):
    found = decoding_choices(model, prompt, method, 5)
    out = model.generate(prompt, 5, decoding=method, keep_logits=True)
    ids, n = out.tokens[0], len(prompt.tokens)
    assert found.text == out.text and found.shift.tokens.tolist() == ids.tolist()
    alone = model(prompt.with_answer(ids))[0, n - 1 : -1].softmax(-1)
    with_it = out.logits[0].float().softmax(-1)
    # Contrasts multiply what kernels round differently.
    assert_equal(found.shift.p, with_it[range(len(ids)), ids], 1e-4)
    assert_equal(found.shift.p_base, alone[range(len(ids)), ids])
    for step, token in enumerate(ids.tolist()):
        rival = next(other for other in alone[step].argsort(descending=True).tolist() if other != token)
        assert found.rivals[step] == model.tokenizer.decode([rival])
        assert_equal(found.p_rival[step], with_it[step, rival], 1e-4)
        assert_equal(found.p_rival_base[step], alone[step, rival])
        assert bool(found.changed[step]) == (int(alone[step].argmax()) != token)
    frame = found.to_frame()
    assert frame["changed"].tolist() == found.changed.tolist() and len(frame) == len(ids)


@pytest.mark.parametrize("method", METHODS, ids=is_named)
def test_reading_is_attention_of_the_row_that_predicts(model, prompt, method):
    found = decoding_choices(model, prompt, method, 3)
    assert found.reads.shape == (len(found.streams), len(found.rivals), 3)
    assert_equal(found.reads.sum(-1), torch.ones(found.reads.shape[:2]))
    _, cache = model.run_with_cache(prompt, names_filter=["pattern"])
    first = torch.stack([reading(cache["pattern", i][0], prompt.tokens) for i in range(model.cfg.n_layers)]).mean(0)
    assert_equal(found.reads_base[0], first)
    longer = prompt.with_answer(found.shift.tokens[:1])
    _, cache = model.run_with_cache(longer, names_filter=["pattern"])
    second = torch.stack([reading(cache["pattern", i][0], longer.tokens) for i in range(model.cfg.n_layers)]).mean(0)
    assert_equal(found.reads_base[1], second)


def test_streams_read_what_their_method_says(model, prompt):
    boosted = decoding_choices(model, prompt, PAI(alpha=0.9, gamma=2.0), 3)
    assert (boosted.reads[0, :, :2].sum(-1) > boosted.reads_base[:, :2].sum(-1)).all()
    assert (boosted.reads[1, :, :2] == 0).all() and boosted.streams == ("media read more", "without media")
    noisy = decoding_choices(model, prompt, VCD(), 3)
    assert_equal(noisy.reads[0], noisy.reads_base)
    guided = decoding_choices(model, prompt, ASD(alpha=0.9), 3)
    assert_equal(guided.reads[0], guided.reads_base)
    assert set(guided.decided) == {"gamma"} and guided.decided["gamma"].shape == (len(guided.rivals),)


@pytest.mark.parametrize("method", AT_ZERO, ids=is_named)
def test_a_method_that_does_nothing_changes_nothing(model, prompt, method):
    found = decoding_choices(model, prompt, method, 4)
    assert not found.changed.any() and float(found.shift.kl.max()) < 1e-5
    assert_equal(found.reads[0], found.reads_base)
    assert found.text == model.generate(prompt, 4).text


def test_what_the_checkpoint_makes_of_logits_is_in_both(model, prompt, monkeypatch):
    config = copy.deepcopy(model.stock.whole.generation_config)
    first = int(model.generate(prompt, 1).tokens[0, 0])
    config.update(repetition_penalty=1.3, no_repeat_ngram_size=2, suppress_tokens=[first])
    monkeypatch.setattr(model.stock.whole, "generation_config", config)
    found = decoding_choices(model, prompt, AVCD(entropy=math.inf), 8)
    assert found.text == model.generate(prompt, 8).text and first not in found.shift.tokens.tolist()
    assert not found.changed.any() and float(found.shift.kl.max()) < 1e-5
    raw = model(prompt)[0, -1]
    seen = prompt.ids[0].clamp(min=0).unique()
    raw[seen] = torch.where(raw[seen] < 0, raw[seen] * 1.3, raw[seen] / 1.3)
    raw[first] = -torch.inf
    assert_equal(found.shift.p_base[0], raw.softmax(-1)[found.shift.tokens[0]])


@dataclass(frozen=True)
class Twice:
    """A method of a user's own: the prompt in two streams, of which it names as many as it likes."""

    streams: tuple[str, ...]

    def start(self, model, inputs):
        return SimpleNamespace(
            n_streams=2, n_hooked=1, prompts=lambda stream: inputs, hooks=list, mix=lambda logits, again: logits.mean(0),
            records=lambda: {"streams": self.streams},
        )  # fmt: skip


@pytest.mark.parametrize("streams", [("one",), ("one", "two"), ("one", "two", "three")])
def test_streams_have_names_if_each_has_one(model, prompt, streams):
    found = decoding_choices(model, prompt, Twice(streams), 2)
    assert found.streams == (streams[:2] if len(streams) > 1 else ("stream 0", "stream 1"))
    assert f"reads video, {found.streams[1]}" in found.to_frame()


def test_several_prompts_and_what_is_no_method_are_refused(model, prompt):
    with pytest.raises(BatchError):
        decoding_choices(model, AVInputs.batch([prompt, prompt]), VCD(), 2)
    with pytest.raises(DecodingError, match="Pass a method"):
        decoding_choices(model, prompt, VCD, 2)


def test_what_a_method_cannot_write_counts_nothing():
    never = torch.tensor([[0.0, -math.inf, -math.inf]])
    even = torch.tensor([[0.0, 0.0, -math.inf]])
    shift = shift_of(torch.tensor([0]), never, even, str)
    assert float(shift.kl) == pytest.approx(math.log(2)) and float(shift.kl_reverse) == math.inf
