import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avlens.analyses.controls import causally_idle, later_queries, matched_draws
from avlens.errors import PositionError
from avlens.interventions import patch
from avlens.testing import tiny_clip, tiny_model
from tests.analyses.test_sinks import token_map


def test_later_queries_by_hand():
    assert later_queries(token_map("tvavat")).tolist() == [0, 2, 1, 1, 0, 0]


@given(st.integers(0, 2**16), st.sampled_from(["count", "chunk", "later_queries", "frequency"]))
@settings(deadline=None, max_examples=30)
def test_draws_match_in_modality_and_in_what_is_asked(seed, match):
    tokens = token_map("tt" + "vvvvvv" + "aaaa" + "vvvvvv" + "aaaa" + "t")
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.randint(0, 4, (len(tokens),), generator=generator)
    like = tokens.at([2, 3, 9, 12]) if match != "frequency" else tokens.at([2, 12])
    draws = matched_draws(like, match, n=12, seed=seed, frequency=frequency)
    assert draws == matched_draws(like, match, n=12, seed=seed, frequency=frequency)
    for draw in draws:
        assert len(draw & like) == 0 and len(draw) == len(like)
        assert sorted(tokens.modality[draw.positions]) == sorted(tokens.modality[like.positions])
        if match == "chunk":
            assert sorted(tokens.chunk[draw.positions]) == sorted(tokens.chunk[like.positions])
        if match == "later_queries":
            assert sorted(later_queries(tokens)[draw.positions]) == sorted(later_queries(tokens)[like.positions])
    assert len({tuple(draw) for draw in draws}) > 1 or match == "frequency"


def test_frequency_takes_the_nearest_there_is():
    tokens = token_map("vvvv")
    frequency = torch.tensor([5, 4, 1, 0])
    assert [list(draw) for draw in matched_draws(tokens.at([0]), "frequency", n=3, frequency=frequency)] == [[1]] * 3
    assert all(list(draw) in ([2], [3]) for draw in matched_draws(tokens.at([0]), within=tokens.at([2, 3]), n=5))


def test_errors_say_what_to_do():
    tokens = token_map("va")
    with pytest.raises(PositionError, match="Widen `within`"):
        matched_draws(tokens.at([0]))
    with pytest.raises(PositionError, match=r"sinks\.frequency"):
        matched_draws(tokens.at([0]), "frequency")


def test_idle_tokens_have_no_effect_and_the_next_one_may():
    model, clip = tiny_model(n_layers=3), tiny_clip(5.0)
    clean = model.prepare(clip, "what do you hear ?")
    for broken, first in ((clip.silenced(), clean.tokens.audio), (clip.blanked(), clean.tokens.video)):
        corrupt = model.prepare(broken, "what do you hear ?")
        idle = causally_idle(clean, corrupt)
        assert len(idle) == int(first.positions[0])
        _, cache = model.run_with_cache(clean, names_filter=["resid_pre"])
        assert torch.equal(
            model.run_with_hooks(corrupt, patch(cache, idle)),
            model.run_with_hooks(corrupt, patch(cache, clean.tokens.at([]))),
        )
    assert len(causally_idle(clean, clean)) == len(clean.tokens)
