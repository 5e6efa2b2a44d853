"""Knockout against the stock model with an explicit mask, and the sweeps built on it."""

import math
from contextlib import contextmanager

import pytest
import torch

from avlens import analyses, knockout
from avlens.analyses.flow import Controls, flow_by_head, information_flow
from avlens.edges import Edge, layer_spans
from avlens.engine import sweep
from avlens.errors import LayerError, PositionError, PromptError
from avlens.groups import token_groups, units
from avlens.interventions import knockout_across, knockout_types
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal, prompt_of

MODEL = tiny_model(n_layers=3)
CLIP = tiny_clip(2.6)
INPUTS = MODEL.prepare(CLIP, "what do you hear ?", options=["a dog", "a bell", "rain"])
GROUPS = token_groups(INPUTS.tokens, correct="B")
LAST = INPUTS.tokens.last


@contextmanager
def masked_stock(model, forbidden, layers):
    """The stock model, eager, with the pairs masked before the softmax in some layers: the definition, written out."""

    def mask(module, args, kwargs):
        given = kwargs["attention_mask"]
        n_query, n_key = given.shape[-2:]
        rows = (
            forbidden[n_key - n_query : n_key, :n_key]
            if len(forbidden) >= n_key
            else grown(forbidden, n_key)[-n_query:]
        )
        return args, kwargs | {"attention_mask": given.masked_fill(rows, torch.finfo(given.dtype).min)}

    whole = model.stock.whole
    before = whole.config.text_config._attn_implementation
    whole.set_attn_implementation("eager")
    handles = [model.stock.layers[i].self_attn.register_forward_pre_hook(mask, with_kwargs=True) for i in layers]
    try:
        yield whole
    finally:
        for handle in handles:
            handle.remove()
        whole.set_attn_implementation(before)


def grown(forbidden, n):
    """Later queries may not read what the last row may not."""
    more = torch.zeros(n, n, dtype=torch.bool)
    more[: len(forbidden), : len(forbidden)] = forbidden
    more[len(forbidden) :] = more[len(forbidden) - 1]
    return more


def pairs_of(queries, keys, unit=None):
    n = len(queries.tokens)
    pairs = queries.mask[:, None] & keys.mask[None]
    return pairs if unit is None else pairs & (unit[:, None] != unit[None]) & torch.ones(n, n, dtype=torch.bool)


EDGES = {
    "video -> question": (GROUPS["question"], GROUPS["video"], None),
    "audio -> last": (LAST, GROUPS["audio"], None),
    "incorrect options -> last": (LAST, GROUPS["incorrect options"], None),
    "video -> video across frames": (GROUPS["video"], GROUPS["video"], units(INPUTS.tokens, "frames")),
    "audio -> audio across chunks": (GROUPS["audio"], GROUPS["audio"], units(INPUTS.tokens, "chunks")),
    "video + audio -> text": (INPUTS.tokens.all - INPUTS.tokens.media, INPUTS.tokens.media, None),
    "audio -> all": (INPUTS.tokens.all - GROUPS["audio"], GROUPS["audio"], None),
}


@pytest.fixture(scope="module")
def flow():
    return information_flow(MODEL, INPUTS, list(EDGES), groups=lambda _: GROUPS, window=2)


@pytest.mark.parametrize("edge", EDGES)
def test_each_window_equals_an_explicit_mask_in_the_stock_model(flow, edge):
    queries, keys, unit = EDGES[edge]
    forbidden, i = pairs_of(queries, keys, unit), flow.index(edge)
    answer = int(MODEL(INPUTS, logits_at=LAST)[0, 0].argmax())
    for j, span in enumerate(flow.spans):
        hooks = (
            knockout(queries, keys, layers=span) if unit is None else knockout_across(queries, keys, unit, layers=span)
        )
        with masked_stock(MODEL, forbidden, span) as stock, torch.no_grad():
            wanted = stock(**INPUTS.hf_kwargs()).logits
        assert_equal(MODEL.run_with_hooks(INPUTS, hooks), wanted)
        p = wanted[0, -1].softmax(-1)[answer]
        assert_equal(flow.p[i, j, 0], p)
        assert float(flow.change[i, j, 0]) == pytest.approx(100 * float((p - flow.p_base) / flow.p_base), abs=1e-3)
    # A cut is a pair of a query and a key that causality allows.
    assert int(flow.pairs[i, 0]) == int((forbidden & torch.ones_like(forbidden).tril()).sum())


@pytest.mark.parametrize("strict_p2", [False, True])
@pytest.mark.parametrize("keys", ["audio", "video"])
def test_rules_by_type_while_generating_equal_the_stock_models_generation_with_a_mask(keys, strict_p2):
    tokens, n = INPUTS.tokens, 5
    hooks = knockout_types(tokens, [f"generated,{keys},1,3"], n_layers=3, strict_p2=strict_p2)
    forbidden = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    forbidden[-1] = getattr(tokens, keys).mask

    options = {"max_new_tokens": n, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    ours = MODEL.generate(INPUTS, n, fwd_hooks=hooks, keep_logits=True, eos_token_id=None)
    if not strict_p2:
        with masked_stock(MODEL, forbidden, [1, 2]) as stock:
            theirs = stock.generate(**INPUTS.hf_kwargs(), **options, output_logits=True)
        assert torch.equal(ours.tokens, theirs.sequences[:, INPUTS.shape[1] :])
        assert_equal(ours.logits, torch.stack(theirs.logits, 1))
        return
    # The first new token is not blocked; the others are, by the same rule in one pass over the whole text.
    plain = MODEL(INPUTS, logits_at=LAST)[0, 0]
    assert_equal(ours.logits[0, 0], plain)
    longer = INPUTS.with_answer(ours.tokens[0])
    late = torch.zeros(longer.shape[1], longer.shape[1], dtype=torch.bool)
    late[len(tokens) :, : len(tokens)] = getattr(tokens, keys).mask
    with masked_stock(MODEL, late, [1, 2]) as stock, torch.no_grad():
        wanted = stock(**longer.hf_kwargs()).logits[0, len(tokens) - 1 : -1]
    assert_equal(ours.logits[0], wanted)


def test_spans_by_hand():
    assert layer_spans(5, window=3)[1] == ((0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4))
    assert layer_spans(5, window=2)[1] == ((0,), (0, 1), (1, 2), (2, 3), (3, 4))
    assert layer_spans(36, layers=[3, 35])[1] == (tuple(range(7)), (32, 33, 34, 35))
    assert layer_spans(4, window=3, sweep="inverse")[1] == ((2, 3), (3,), (0,), (0, 1))
    assert layer_spans(3, sweep="top_down")[1] == ((0, 1, 2), (1, 2), (2,))
    assert layer_spans(3, sweep="bottom_up")[1] == ((0,), (0, 1), (0, 1, 2))
    with pytest.raises(LayerError, match="no layer 3: the model has 3"):
        layer_spans(3, layers=[3])
    with pytest.raises(LayerError, match="window 0"):
        layer_spans(3, window=0)


def test_sweeps_meet_where_they_cut_the_same(flow):
    edges = ["audio -> last", "video <-> audio"]
    down, up = (information_flow(MODEL, INPUTS, edges, sweep=sweep) for sweep in ("top_down", "bottom_up"))
    inverse = information_flow(MODEL, INPUTS, edges, sweep="inverse", window=1)
    assert_equal(down.p[:, 0], up.p[:, -1])
    assert_equal(down.p[:, 1], inverse.p[:, 0])
    assert_equal(up.p[:, 1], inverse.p[:, 2])
    one_way = information_flow(MODEL, INPUTS, ["video -> audio", "audio -> video"], sweep="top_down")
    assert int(down.pairs[1]) == int(one_way.pairs.sum())
    whole = information_flow(MODEL, INPUTS, edges, sweep="inverse", window=6)
    assert torch.equal(whole.p[..., 0], whole.p_base.expand(2, 3)) and (whole.flipped == 0).all()


def test_what_causality_forbids_changes_exactly_nothing():
    first = MODEL.prepare(CLIP, "what do you hear ?", order="question_first")
    flow = information_flow(MODEL, [first, INPUTS], ["audio -> question", "question -> audio"], window=1)
    assert flow.pairs.gt(0).tolist() == [[False, True], [True, False]]
    assert (flow.change[0, :, 0] == 0).all() and (flow.change[1, :, 1] == 0).all()
    assert (flow.change[0, :2, 1] != 0).all() and (flow.change[1, :2, 0] != 0).all()


def test_a_prompt_without_a_group_is_left_out_and_counted():
    blind = MODEL.prepare(CLIP.without_video(), "what ?")
    flow = information_flow(MODEL, [INPUTS, blind], ["video -> last"], window=1)
    assert flow.change[0, :, 1].isnan().all() and not flow.change[0, :, 0].isnan().any()
    first, *_ = flow.curve("video -> last")
    assert (first.n, first.n_missing) == (1, 1) and math.isnan(first.low)
    frame = flow.to_frame()
    assert list(frame["n"]) == [1, 1, 1] and frame["control"].isna().all()
    assert flow.peak("video -> last")[0] in flow.layers


def test_only_prompts_answered_right_count():
    rows = [INPUTS, prompt_of(MODEL, "video_and_audio"), INPUTS]
    said = [MODEL.to_string(MODEL(one, logits_at=one.tokens.last)[0, 0].argmax()) for one in rows]
    wrong = next(
        word for word in ("dog", "bell") if MODEL.to_first_tokens(word)[0] != MODEL.to_first_tokens(said[0])[0]
    )
    flow = information_flow(MODEL, rows, ["audio -> last"], labels=[said[0], said[1], wrong], window=1)
    assert flow.kept == (0, 1) and flow.p.shape == (1, 3, 2) and flow.answers == tuple(said[:2])
    with pytest.raises(PromptError, match="none of 1 prompts is answered right"):
        information_flow(MODEL, [INPUTS], ["audio -> last"], labels=[wrong])
    several = information_flow(MODEL, [INPUTS, rows[1]], ["audio -> last"], window=1)
    assert_equal(several.p[..., 1], information_flow(MODEL, rows[1], ["audio -> last"], window=1).p[..., 0])
    told = information_flow(MODEL, INPUTS, ["audio -> last"], others=["dog"], window=1)
    dog = MODEL.to_first_tokens("dog")
    logits = MODEL(INPUTS, logits_at=LAST)[0, 0]
    assert float(told.logit_diff_base) == pytest.approx(float(logits.max() - logits[list(dog)].max()), abs=1e-5)


def test_controls_cut_as_many_pairs_of_other_tokens():
    tokens, cut = INPUTS.tokens, Edge.parse("video -> question").cut(INPUTS.tokens, GROUPS)
    n = int(cut.pairs().sum())
    for match in ("anywhere", "same_queries"):
        (_, edit), *_ = cut.random(match, [0], None, seed=3)
        again = cut.random(match, [0], None, seed=3)[0][1]
        assert len(edit.pairs) == n == len(set(map(tuple, edit.pairs.tolist()))) and torch.equal(
            edit.pairs, again.pairs
        )
        assert (edit.pairs[:, 1] < edit.pairs[:, 0]).all()
        if match == "same_queries":
            assert torch.equal(edit.pairs[:, 0].bincount(minlength=len(tokens)), cut.pairs())
        scores = torch.zeros(1, 2, len(tokens), len(tokens))
        from avlens.hooks import HookPoint

        edited = edit(scores, HookPoint())
        assert int(torch.isneginf(edited).sum()) == 2 * n and torch.isneginf(edited[0, :, *edit.pairs.T]).all()
    flow = information_flow(
        MODEL, INPUTS, ["video -> question"], window=1, controls=Controls(2, "same_queries", seed=3)
    )
    hooks = cut.random("same_queries", [1], None, seed=4)
    answer = int(MODEL(INPUTS, logits_at=LAST)[0, 0].argmax())
    wanted = MODEL.run_with_hooks(INPUTS, hooks, logits_at=LAST)[0, 0].softmax(-1)[answer]
    assert_equal(flow.p_control[0, 1, 1, 0], wanted)
    assert not flow.to_frame()["control"].isna().any()


def test_each_head_by_itself(monkeypatch):
    sweeps = []
    monkeypatch.setattr(
        analyses.flow, "run_edits", lambda *given, **options: sweeps.append(1) or sweep(*given, **options)
    )
    heads = flow_by_head(MODEL, INPUTS, "audio -> last")
    assert heads.change.shape == (3, 4, 1)
    assert len(sweeps) == 2  # the plain run, and every head together
    assert heads.made_by["flow"]["heads"] == (0, 1, 2, 3)
    hooks = knockout(LAST, GROUPS["audio"], layers=[1], heads=[2])
    plain, cut = (
        x[0, 0].softmax(-1)
        for x in (MODEL(INPUTS, logits_at=LAST), MODEL.run_with_hooks(INPUTS, hooks, logits_at=LAST))
    )
    answer = int(plain.argmax())
    assert float(heads.change[1, 2, 0]) == pytest.approx(100 * float(cut[answer] / plain[answer] - 1), abs=1e-3)
    assert heads.to_frame().shape == (3, 4)


def test_edges_are_written_and_read():
    for text in ("video -> question", "video <-> audio", "video + audio -> text", "video -> video across frames"):
        assert str(Edge.parse(text)) == text
    with pytest.raises(PromptError, match="is no edge. Write"):
        Edge.parse("video, question")
    with pytest.raises(PromptError, match="is no edge"):
        Edge.parse("video -> video across minutes")
    with pytest.raises(
        PositionError, match="no prompt has both ends of the edge 'smell -> last'. Groups are video, audio, question"
    ):
        information_flow(MODEL, INPUTS, ["smell -> last"])
    with pytest.raises(PromptError, match="each edge once"):
        information_flow(MODEL, INPUTS, ["audio -> last", "audio->last"])
    with pytest.raises(PromptError, match="was not cut. Edges are 'audio -> last'"):
        information_flow(MODEL, INPUTS, ["audio -> last"], window=1).curve("video -> last")
    with pytest.raises(PromptError, match="one word for each"):
        information_flow(MODEL, INPUTS, ["audio -> last"], labels="dog")
