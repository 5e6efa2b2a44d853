import json
import math
import re
import subprocess
import sys

import numpy as np

from avlens.views.page import View, circuitsvis_js, page, script_json

HOSTILE = "</script><b>&\u2028\u2029<!--"


def test_json_survives_a_script_and_comes_back():
    written = script_json({"a": HOSTILE, "b": [1.5, (HOSTILE,)]})
    assert not re.search("[<>&\u2028\u2029]", written)
    assert json.loads(written) == {"a": HOSTILE, "b": [1.5, [HOSTILE]]}


def test_numbers_that_are_none_become_null():
    assert script_json([math.nan, [math.inf, 1.0]]) == "[null,[null,1.0]]"
    assert script_json(np.array([1.0, math.nan])) == "[1.0,null]"


def test_captions_are_plain_text():
    html = View("AttentionHeads", {}, HOSTILE).fragment("x")
    assert html.count("</script>") == 1 and "<b>" not in html


def test_the_packaged_script_can_stand_in_a_page():
    assert "</script" not in circuitsvis_js() and "AttentionHeads" in circuitsvis_js()


def test_a_page_may_load_nothing():
    html = page(HOSTILE, "<p>hi</p>", views=True)
    assert "default-src 'none'" in html and "<title>&lt;/script&gt;" in html
    assert html.count("var CircuitsVis=") == 1


def test_a_notebook_gets_a_whole_view_twice_without_a_clash():
    view = View("AttentionHeads", {"tokens": ["a"]})
    first, second = view._repr_html_(), view._repr_html_()
    assert "var CircuitsVis=" in first and first != second


def test_a_saved_view_is_a_page(tmp_path):
    path = View("AttentionHeads", {"tokens": ["a"]}, "what").save(tmp_path / "view.html")
    assert path.read_text(encoding="utf-8").count("CircuitsVis.render(") == 1


def test_importing_views_sets_no_renderer():
    told = "import plotly.io as p; old = str(p.renderers.default); import avlens.views; print(old == str(p.renderers.default))"
    ran = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "True"


def test_many_heads_are_drawn_a_few_at_a_time():
    heads = [f"L0H{i}" for i in range(20)]
    props = {"attention": [[[1.0]]] * 20, "attentionHeadNames": heads, "tokens": ["a"]}
    html = View("AttentionHeads", props, at_once=8).fragment("x")
    assert [f"<option value='{i}'>{told}</option>" in html for i, told in ((0, "L0H0 to L0H7"), (16, "L0H16 to L0H19"))]
    assert html.count("<option") == 3 and "<select" not in View("AttentionHeads", props, at_once=20).fragment("x")
    assert "L0H8</option>" in View("AttentionHeads", {**props, "attentionHeadNames": heads[:9]}).fragment("x")
