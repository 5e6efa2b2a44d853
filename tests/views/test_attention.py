import math
import re

import numpy as np
import pytest
import torch

from avlens.cache import AVCache
from avlens.errors import BatchError, LayerError, MissingActivationError, ViewError
from avlens.tokens import Modality, Segment, TokenMap
from avlens.views import attention, attention_full
from tests.views.reading import held


def words(n, *, first="<s>"):
    strings = [first, *(f"w{i}" for i in range(1, n))]
    return TokenMap.of(torch.arange(n), strings, Modality.TEXT, Segment.QUESTION)


def cache_of(n, *, heads=1, tokens=None, pattern=None):
    pattern = torch.ones(1, heads, n, n).tril().div(torch.arange(1, n + 1)[:, None]) if pattern is None else pattern
    return AVCache({"blocks.0.attn.hook_pattern": pattern}, None, [tokens or words(n)], {"model": "m"})


def test_shown_rows_sum_to_one_and_are_named(run):
    view = attention(run.cache, layer=1, sinks=run.sinks.min_layers(2))
    shown = np.array(view.props["attention"])
    n = len(view.props["tokens"])
    assert shown.shape == (4, n, n)
    np.testing.assert_allclose(shown.sum(-1), 1, atol=1e-4 * n)
    assert view.props["attentionHeadNames"] == ["L1H0", "L1H1", "L1H2", "L1H3"]
    assert "tiny-qwen2_5_omni-0" in view.caption and "what do you hear ?" in view.caption


def test_chosen_heads_keep_their_numbers(run):
    view = attention(run.cache, layer=1, heads=[2, 0], group="modality")
    assert view.props["attentionHeadNames"] == ["L1H2", "L1H0"]


def test_colours_are_full_at_the_quantile_and_symmetric():
    view = attention(cache_of(10), layer=0)
    assert 0 < view.props["maxValue"] <= 1 and view.props["minValue"] == -view.props["maxValue"]


def test_the_upper_triangle_is_greyed_out_only_where_it_is_empty(run):
    assert attention(cache_of(5), layer=0).props["maskUpperTri"] is True
    inside_a_frame = run.tokens.at([int(run.tokens.video.positions[4])])
    assert attention(run.cache, layer=1).props["maskUpperTri"] is True
    assert attention(run.cache, layer=1, sinks=inside_a_frame).props["maskUpperTri"] is False


def test_size_is_silent_then_warns_then_is_refused():
    # cells = (1 head + 1) * rows^2: 173^2 * 2 = 59,858; 174^2 * 2 = 60,552; 353^2 * 2 = 249,218; 354^2 * 2 = 250,632
    attention(cache_of(173), layer=0)
    for n in (174, 353):
        with pytest.warns(UserWarning, match="a browser about .* group='modality'"):
            attention(cache_of(n), layer=0)
    with pytest.raises(ViewError, match=r"250,632 cells.*group='modality'.*attention_full"):
        attention(cache_of(354), layer=0)


def test_the_advice_on_size_fits():
    with pytest.warns(UserWarning) as caught:
        attention(cache_of(90, heads=28), layer=0)
    heads = int(re.search(r"heads=range\((\d+)\)", str(caught[0].message))[1])
    attention(cache_of(90, heads=28), layer=0, heads=range(heads))
    with pytest.warns(UserWarning):
        attention(cache_of(90, heads=28), layer=0, heads=range(heads + 1))


def test_hostile_tokens_cannot_end_the_script():
    cache = cache_of(4, tokens=words(4, first="</script><b>&\u2028"))
    html = attention(cache, layer=0).fragment("x")
    assert html.count("</script>") == 1 and "<b>" not in html and "\u2028" not in html
    assert held(html, "data-view")["tokens"][0] == "★</script><b>&@0"


def test_unknown_numbers_become_null():
    pattern = torch.full((1, 1, 4, 4), math.nan)
    view = attention(cache_of(4, pattern=pattern), layer=0)
    assert held(view.fragment("x"), "data-view")["attention"][0][0] == [None] * 4


def test_a_cache_that_lacks_what_is_drawn_says_so(run):
    with pytest.raises(MissingActivationError, match="blocks.7.attn.hook_pattern' is not in this cache"):
        attention(run.cache, layer=7)
    with pytest.raises(LayerError, match=r"no head 4: .*0 to 3"):
        attention(run.cache, layer=1, heads=[4])
    with pytest.raises(ViewError, match="leave it out"):
        attention(run.cache, layer=1, heads=[])
    with pytest.raises(BatchError, match=r"cache.row\(0\)"):
        attention(AVCache({}, None, [words(2), words(2)]), layer=0)
    with pytest.raises(ViewError, match="names_filter"):
        attention(cache_of(3, tokens=words(5)), layer=0)


def test_what_was_generated_after_the_prompt_is_left_out():
    view = attention(cache_of(6, tokens=words(4)), layer=0)
    assert np.array(view.props["attention"]).shape == (1, 4, 4)


def test_one_head_in_full_has_a_cell_for_each_pair(run):
    fig = attention_full(run.cache, layer=1, head=3)
    heat = fig.data[0]
    np.testing.assert_allclose(heat.z / 1e4, run.cache["pattern", 1][0, 3].numpy(), atol=0.51e-4)
    assert heat.z.dtype == np.uint16
    assert len(heat.x) == len(run.tokens) and heat.x[0] == "&lt;|im_start|&gt;@0"
    bands = [shape for shape in fig.layout.shapes if shape.xref == "x"]
    assert sum(shape.x1 - shape.x0 for shape in bands) == len(run.tokens)


def test_one_head_can_be_cut_to_queries_and_keys(run):
    tokens = run.tokens
    fig = attention_full(run.cache, layer=1, head=0, queries=tokens.question, keys=tokens.audio)
    want = run.cache["pattern", 1][0, 0][tokens.question.positions][:, tokens.audio.positions]
    np.testing.assert_allclose(fig.data[0].z / 1e4, want.numpy(), atol=0.51e-4)


def test_one_head_that_is_empty_or_too_big_is_refused(run):
    with pytest.raises(ViewError, match="none to draw"):
        attention_full(run.cache, layer=1, head=0, keys=run.tokens.at([]))
    n = 2001
    with pytest.raises(ViewError, match=r"too many .*keys=tokens.seconds"):
        attention_full(cache_of(n, pattern=torch.zeros(1, 1, 1, 1).expand(1, 1, n, n)), layer=0, head=0)
    with pytest.raises(LayerError, match="no head 9"):
        attention_full(run.cache, layer=1, head=9)
