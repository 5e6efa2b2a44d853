import gzip
import json
import math
import re
import subprocess
import sys

import numpy as np
import plotly.graph_objects as go
from hypothesis import given
from hypothesis import strategies as st

from avlens.views import plot, save
from avlens.views.packing import circuitsvis_js, figure_fragment, packed
from avlens.views.page import View, page, script_json
from tests.views.reading import held, unpacked

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


@given(st.binary(max_size=200))
def test_bytes_come_back_from_characters_that_need_no_escape(content):
    written = packed(content)
    assert unpacked(written) == content
    assert json.dumps(written) == f'"{written}"' and "<" not in written


def test_text_is_packed_smaller_and_always_alike():
    assert packed("é" * 5000) == packed("é" * 5000) and len(packed("é" * 5000)) < 100
    assert gzip.decompress(unpacked(packed(HOSTILE))).decode() == HOSTILE


def test_integers_of_a_figure_compress_as_numbers():
    z = np.arange(6, dtype=np.uint16).reshape(2, 3)
    data = held(figure_fragment(go.Figure(go.Heatmap(z=z, x=np.array([0.5, 1.5, 2.5]))), "f"), "data-figure")["data"][0]
    assert data["z"] == z.tolist() and data["x"]["dtype"] == "f8"


def test_a_figure_is_saved_as_a_page_of_half_of_what_plotly_writes(run, tmp_path):
    fig = plot(run.sinks)
    html = save(fig, tmp_path / "sinks.html").read_text("utf-8")
    assert len(html) < 2_000_000 and "default-src 'none'" in html
    kept = held(html, "data-figure")
    assert kept["layout"]["title"]["text"] == fig.layout.title.text and "template" not in kept["layout"]
    assert [one["type"] for one in kept["data"]] == [one.type for one in fig.data]
    own = go.Figure(fig).update_layout(template="ggplot2")
    assert "template" in held(save(own, tmp_path / "own.html").read_text("utf-8"), "data-figure")["layout"]


def test_the_packaged_script_is_there():
    assert "AttentionHeads" in circuitsvis_js()


def test_a_page_may_load_nothing():
    html = page(HOSTILE, "<p>hi</p>", views=True)
    assert "default-src 'none'" in html and "<title>&lt;/script&gt;" in html
    assert html.count("data-script='CircuitsVis'") == 1 and "data-script='Plotly'" not in html


def test_a_notebook_gets_a_whole_view_twice_without_a_clash():
    view = View("AttentionHeads", {"tokens": ["a"]})
    first, second = view._repr_html_(), view._repr_html_()
    assert "data-script='CircuitsVis'" in first and first != second and len(first) < 500_000


def test_a_saved_view_is_a_page(tmp_path):
    path = View("AttentionHeads", {"tokens": ["a"]}, "what").save(tmp_path / "view.html")
    assert path.read_text(encoding="utf-8").count("data-view='view'") == 1


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
