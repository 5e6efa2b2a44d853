import inspect

import pytest

from avlens import names
from avlens.errors import HookError, LayerError
from avlens.testing import tiny_model

MODEL = tiny_model(n_layers=2)
OTHERS = [tiny_model("qwen3_omni"), tiny_model("gemma4")]  # with experts; with norms before and after


def test_short_and_full_names_are_inverse_at_every_site():
    for short in names.SITES:
        full = names.at(short, 1)
        assert any(full in model.hook_dict for model in (MODEL, *OTHERS))
        assert names.short_name(full) == short and names.layer_of(full) == 1
    blocks = {name for model in (MODEL, *OTHERS) for name in model.hook_dict if name.startswith("blocks.1.")}
    assert blocks == {names.at(short, 1) for short in names.SITES}


def test_names_outside_blocks_have_short_names_too():
    assert names.short_name("hook_embed") == "embed"
    assert names.short_name("ln_final.hook_scale") == "ln_final.scale"
    assert names.short_name("audio.blocks.0.hook_resid_post") == "audio.resid_post"
    assert names.layer_of("audio.blocks.0.hook_resid_post") is None and names.layer_of("hook_embed") is None


def test_one_hook_point_has_one_name():
    assert len({id(point) for point in MODEL.hook_dict.values()}) == len(MODEL.hook_dict)
    shorts = [(names.short_name(name), name.split(".blocks.")[-1].split(".")[0]) for name in MODEL.hook_dict]
    for name in MODEL.hook_dict:
        assert names.matching(name, MODEL.hook_dict) == [name]
    assert len(shorts) == len(MODEL.hook_dict)


def test_filters_choose_in_the_order_of_the_model():
    full = list(MODEL.hook_dict)
    assert names.matching(["resid_post", "resid_pre"], full) == [
        "blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post",
    ]  # fmt: skip
    assert names.matching("blocks.1.attn.hook_pattern", full) == ["blocks.1.attn.hook_pattern"]
    assert names.matching(lambda name: name.endswith("hook_v"), full) == [
        "blocks.0.attn.hook_v",
        "blocks.1.attn.hook_v",
    ]
    dropped = set(full) - set(names.matching(None, full))
    large = {"attn_scores", "pattern", "result", "audio.pattern", "vision.pattern"}
    assert {names.short_name(name) for name in dropped} == large
    assert names.matching("resid_post", full) == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    assert names.matching("audio.resid_post", full) == [
        "audio.blocks.0.hook_resid_post",
        "audio.blocks.1.hook_resid_post",
    ]


def test_a_name_that_matches_nothing_is_refused_with_near_names():
    with pytest.raises(HookError, match=r"'paterns'. Near names: .*pattern"):
        names.matching(["paterns"], MODEL.hook_dict)
    with pytest.raises(HookError, match=r"blocks.0.attn.hook_pattern"):
        names.matching(["blocks.0.attn.hook_patern"], MODEL.hook_dict)
    with pytest.raises(HookError, match="matches none of .* activations, such as"):
        names.matching(lambda name: False, MODEL.hook_dict)
    with pytest.raises(HookError, match="names_filter is empty"):
        names.matching([], MODEL.hook_dict)
    with pytest.raises(HookError, match="no activation of a block. Near names: resid_pre"):
        names.at("resid_prev", 0)


@pytest.mark.parametrize("layers", [[-1], [0.5], "1", 3, [0, "x"]])
def test_layers_are_integers_from_zero(layers):
    unchecked = inspect.unwrap(names.checked_layers)  # without the run-time check of types that tests run under
    with pytest.raises(LayerError, match="counted from 0|Pass 'all', a list"):
        unchecked(layers)


def test_layers_become_names():
    assert names.hook_names("k", range(2)) == ["blocks.0.attn.hook_k", "blocks.1.attn.hook_k"]
    (every,) = names.hook_names("k", "all")
    assert [name for name in MODEL.hook_dict if every(name)] == ["blocks.0.attn.hook_k", "blocks.1.attn.hook_k"]
    assert repr(every) == "every k"
