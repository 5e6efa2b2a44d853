import math
import re
from html import unescape

import pytest
import torch

from avlens.errors import PositionError, ViewError
from avlens.tokens import Modality
from avlens.views import Section, coloured_tokens, report


def spans(view):
    """Text, hover text and opacity of the colour of each piece; None without a colour."""
    found = re.findall(r"<span class='([^']*)' style='([^']*)' title='([^']*)'>([^<]*)</span>", view.body)
    alpha = [re.search(r"rgba\((\d+),\d+,\d+,([\d.]+)\)", style) for _, style, _, _ in found]
    return [
        (unescape(text), unescape(title), a and (int(a[1]), float(a[2])), kinds)
        for (kinds, _, title, text), a in zip(found, alpha, strict=True)
    ]


def test_words_stand_as_they_are_written_and_media_in_groups(run):
    tokens = run.tokens
    shown = spans(coloured_tokens(tokens, torch.arange(len(tokens)).double(), name="place"))
    text = [i for i, kind in enumerate(tokens.modality.tolist()) if kind in (Modality.TEXT, Modality.SPECIAL)]
    words = [(one, title) for one, title, _, kinds in shown if "avlens-group" not in kinds]
    assert [one for one, _ in words] == [tokens.strings[i].replace("\n", "⏎\n") for i in text]
    assert [title.split(": ")[-1] for _, title in words] == [str(i) for i in text]
    groups = {one: title for one, title, _, kinds in shown if "avlens-group" in kinds}
    assert len(groups) == 4 + 4  # four frames and four seconds of sound
    frame = tokens.frames(1).positions.double()
    assert groups["v1·1-2s·×9"] == f"v1·1-2s·×9: {float(frame.mean()):.4g}, mean of 9 of 9 tokens"


def test_sinks_among_the_text_leave_it_in_order(run):
    shown = spans(coloured_tokens(run.tokens, torch.zeros(len(run.tokens)), sinks=run.tokens.special))
    text = "".join(one for one, _, _, kinds in shown if "avlens-group" not in kinds).replace("⏎", "")
    assert text.split("<|vision_bos|>")[0] == run.tokens.prompt.split("<|vision_bos|>")[0]


def test_colours_say_sign_and_size_and_what_is_unknown_has_none():
    shown = spans(coloured_tokens(["a", "b", "c", "d"], torch.tensor([2.0, -2.0, 0.0, math.nan])))
    assert [colour for _, _, colour, _ in shown] == [(178, 0.6), (33, 0.6), (178, 0.0), None]
    assert [title for _, title, _, _ in shown] == ["'a' @0: 2", "'b' @1: -2", "'c' @2: 0", "'d' @3: not known"]


def test_a_group_is_the_mean_of_what_is_known(run):
    value = torch.full((len(run.tokens),), math.nan)
    first = run.tokens.frames(0).positions
    value[first[0]], value[first[1]] = 1.0, 4.0
    shown = {one: title for one, title, _, _ in spans(coloured_tokens(run.tokens, value))}
    assert shown["v0·0-1s·×9"].endswith("2.5, mean of 2 of 9 tokens")
    assert shown["v1·1-2s·×9"].endswith("not known, mean of 0 of 9 tokens")


def test_sinks_stand_alone_with_a_star(run):
    at = int(run.tokens.video.positions[4])
    shown = spans(coloured_tokens(run.tokens, torch.ones(len(run.tokens)), sinks=run.tokens.at([at, 0])))
    starred = [(one, title) for one, title, _, kinds in shown if "avlens-sink" in kinds]
    assert starred == [
        (run.tokens.strings[0], f"{run.tokens.strings[0]!r} @0: 1 ★ sink"),
        (f"v0[1,1]@{at}", f"★v0[1,1]@{at}: 1, position {at} ★ sink"),
    ]


def test_text_cannot_become_html(run, tmp_path):
    hostile = "</style><script>x</script><b>'\"&"
    view = coloured_tokens([hostile], torch.ones(1), name=hostile)
    assert "<b>'" not in view.body and "<script" not in view.body and view.body.count("</style>") == 1
    assert "<script" not in view.save(tmp_path / "t.html").read_text("utf-8")
    html = report(
        tmp_path / "r.html", title="t", clip=run.clip, tokens=run.tokens, sections=[Section("words", view=view)]
    ).read_text("utf-8")
    assert view.fragment("view-0") in html and "data-script='CircuitsVis'" not in html


def test_what_does_not_fit_is_refused(run, prompts):
    with pytest.raises(ViewError, match="one number for each"):
        coloured_tokens(run.tokens, torch.ones(3))
    with pytest.raises(ViewError, match="more than the 20,000"):
        coloured_tokens(["a"] * 20_001, torch.ones(20_001))
    with pytest.raises(PositionError, match="another layout"):
        coloured_tokens(run.tokens, torch.ones(len(run.tokens)), sinks=prompts["audio only"][1].at([1]))


def test_special_tokens_are_soft_in_their_words_but_not_in_their_colour(run):
    html = coloured_tokens(run.tokens, torch.ones(len(run.tokens)))._repr_html_()
    rule = html.split(".avlens-special {")[1].split("}")[0]
    assert "opacity" not in rule and "color-mix" in rule
