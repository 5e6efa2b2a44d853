from dataclasses import replace

import pytest
import torch

from avlens.choices import decoding_choices
from avlens.decoding import ASD, AVCD, FMD, PAI, VCD
from avlens.tokens import Modality
from avlens.views import dark, plot
from avlens.views.style import COLOURS


@pytest.fixture(scope="module")
def found(run):
    inputs = run.model.prepare(run.clip, "what do you hear ?")
    return {
        type(method).__name__: decoding_choices(run.model, inputs, method, 5)
        for method in (ASD(), VCD(alpha=9.0, beta=0.0), PAI(alpha=1.0), AVCD(entropy=0.0), FMD(fork=1))
    }


def drawn(fig, name):
    """Marks of the model alone and of each of the method's streams."""
    return [one for one in fig.data if one.name == name and one.mode == "markers"]


@pytest.mark.parametrize("name", ["ASD", "VCD", "PAI", "AVCD", "FMD"])
def test_each_token_has_its_probabilities_with_and_without_the_method(found, name):
    choices, fig = found[name], plot(found[name])
    alone, with_it = drawn(fig, "written")
    assert list(alone.x) == choices.shift.p_base.tolist() and list(with_it.x) == choices.shift.p.tolist()
    alone, with_it = drawn(fig, "likeliest rival")
    assert list(alone.x) == choices.p_rival_base.tolist() and list(with_it.x) == choices.p_rival.tolist()
    assert len(fig.layout.shapes) == int(choices.changed.sum())
    assert name in fig.layout.title.text and "what do you hear ?" in fig.layout.title.subtitle.text
    dark(fig).to_json()


def test_attention_is_drawn_of_streams_that_read_otherwise(found):
    fig, choices = plot(found["PAI"]), found["PAI"]
    alone, boosted = drawn(fig, "attention to audio")
    assert list(alone.x) == choices.reads_base[:, 1].tolist() and list(boosted.x) == choices.reads[0, :, 1].tolist()
    assert boosted.marker.color == COLOURS[Modality.AUDIO]
    fig = plot(found["AVCD"])
    assert len(drawn(fig, "attention to audio")) == 1
    assert "no stream reads otherwise" in fig.layout.title.subtitle.text.replace("<br>", " ")
    assert len(drawn(plot(found["FMD"]), "attention to video")) == 3


def test_without_media_the_axis_of_attention_is_there_all_the_same(run):
    choices = decoding_choices(run.model, run.model.prepare([], "what do you hear ?"), FMD(fork=1), 2)
    fig = plot(choices)
    assert not choices.reads[..., :2].any() and fig.layout.xaxis2.range == (0, 1.1)


@pytest.mark.parametrize(("name", "record"), [("ASD", "gamma"), ("AVCD", "entropy"), ("FMD", "weight"), ("PAI", "")])
def test_what_was_decided_has_its_own_axis(found, name, record):
    bars = [one for one in plot(found[name]).data if one.type == "bar"]
    assert [list(one.x) for one in bars] == ([found[name].decided[record].tolist()] if record else [])


def test_ticks_tell_what_was_changed_and_differ_in_spaces(found):
    choices = found["VCD"]
    n = len(choices.rivals)
    rank = torch.ones(n, dtype=torch.long)
    rank[0] = 2
    strings = (" <b>", "still", *["x"] * (n - 2))
    odd = replace(
        choices, shift=replace(choices.shift, rank=rank, strings=strings), rivals=(" dog", " still", *["y"] * (n - 2))
    )
    ticks = plot(odd).layout.yaxis.ticktext
    assert ticks[:3] == ("dog → <b>&lt;b&gt;</b>", "still", "x")
    assert len(plot(odd).layout.shapes) == 1
