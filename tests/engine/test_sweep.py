"""A sweep equals each edit by itself: over families, sites, sets, layers, heads, asked positions and dtypes."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from avlens.engine import plan_sweep, read_edited, sweep, unedited
from avlens.errors import BatchError, HookError, LayerError, PositionError
from avlens.families import FAMILIES
from avlens.inputs import AVInputs
from avlens.interventions import ablate, discard, knockout, patch, path_patch, reweight
from avlens.interventions.discard import Discard
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal

N_LAYERS = 3
SITES = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "ln1.normalized",
    "ln2.normalized",
    "q",
    "k",
    "v",
    "z",
    "rot_k",
)


class Case:
    """A model of a family, a prompt with sound and pictures, and a run to patch from."""

    def __init__(self, family, dtype=torch.float32):
        self.model = tiny_model(family, seed=1, n_layers=N_LAYERS).to(dtype)
        clip = tiny_clip(1.0, size=(56, 56), seed=3)
        clean, self.inputs = (self.model.prepare(c, "what do you hear ?") for c in (clip, clip.silenced().blanked()))
        self.tokens, self.n = self.inputs.tokens, self.inputs.shape[1]
        _, self.cache = self.model.run_with_cache(clean)
        _, self.own = self.model.run_with_cache(self.inputs)

    def in_full(self, hooks, asked):
        return self.model.run_with_hooks(self.inputs, hooks, logits_at=asked)[0]


CASES = {family.name: Case(family.name) for family in FAMILIES if family.block.plain}


SOME = st.one_of(
    st.lists(st.floats(0, 0.999), max_size=12),
    st.floats(0, 0.999),
    st.sampled_from(["first", "last", "all", "media"]),
    st.floats(0, 0.999).map(lambda start: ("run", start)),
)
LAYERS = st.one_of(
    st.just("all"),
    st.lists(st.integers(0, N_LAYERS - 1), min_size=1, max_size=2, unique=True),
    st.just(range(1, N_LAYERS)),
)
EDIT = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["patch", "patch", "knockout", "reweight", "path", "ablate", "discard"]),
        "tokens": SOME,
        "keys": SOME,
        "layers": LAYERS,
        "site": st.sampled_from(SITES),
        "heads": st.sampled_from([None, [0]]),
        "strength": st.sampled_from([-0.4, 0.3]),
        "attention": st.sampled_from(["attn_scores", "pattern"]),
        "by": st.sampled_from(["zero", "mean", "resample"]),
        "own": st.booleans(),
    }
)


def together(added):
    """Edits that one run may have: a path is not patched where tokens were discarded."""
    discards = any(one["kind"] == "discard" for one in added)
    return [one for one in added if not (discards and one["kind"] == "path")]


def some(case, said):
    """A set of tokens: unsorted, one, empty, the first, the last, all, of media, or a run of neighbours."""
    if isinstance(said, list):
        return case.tokens.at(dict.fromkeys(int(x * case.n) for x in said))
    if isinstance(said, float):
        return case.tokens.at([int(said * case.n)])
    if isinstance(said, tuple):
        return case.tokens.at(range(int(said[1] * case.n), case.n)[:9])
    return {"first": case.tokens.at([0]), "last": case.tokens.last, "all": case.tokens.all, "media": case.tokens.media}[
        said
    ]


def hooks_of(case, one):
    """The hooks of a drawn edit, and what it drops."""
    tokens, keys = some(case, one["tokens"]), some(case, one["keys"])
    nothing = case.tokens.at([])
    if one["kind"] == "patch":
        return patch(case.cache, tokens, layers=one["layers"], site=one["site"]), nothing
    if one["kind"] == "knockout":
        keys = keys - case.tokens.at([0])
        # A query that is not among the keys still reads itself, so that it is not starved.
        return knockout(tokens - keys, keys, layers=one["layers"], heads=one["heads"]), nothing
    if one["kind"] == "path":
        return path_patch(case.cache, tokens, keys, layers=one["layers"], heads=one["heads"]), nothing
    if one["kind"] == "reweight":
        return reweight(tokens, keys, one["strength"], layers=one["layers"], site=one["attention"]), nothing
    if one["kind"] == "ablate":
        reference = None if one["own"] else case.cache
        return ablate(tokens, by=one["by"], layers=one["layers"], reference=reference, seed=3), nothing
    gone = tokens - case.tokens.at([0, case.n - 1])
    return discard(gone, layer=one["layers"][0] if one["layers"] != "all" else 0), gone


@pytest.mark.parametrize("family", CASES)
@settings(phases=[Phase.generate], max_examples=8)  # a failing case is small already
@given(drawn=st.lists(st.lists(EDIT, min_size=1, max_size=3), min_size=1, max_size=4), asked=SOME)
def test_a_sweep_is_each_edit_by_itself(family, drawn, asked):
    case, edits = CASES[family], {"none": [], "again": []}
    asked = some(case, asked)
    for name, added in enumerate(drawn):
        edits[str(name)] = []
        for one in together(added):
            hooks, dropped = hooks_of(case, one)
            edits[str(name)] += hooks
            asked = asked - dropped
    found = sweep(case.model, case.inputs, edits, logits_at=asked)
    assert found.shape == (len(edits), len(asked), case.model.cfg.d_vocab)
    for row, hooks in zip(found, edits.values(), strict=True):
        assert_equal(row, case.in_full(hooks, asked))


@pytest.mark.parametrize("family", CASES)
@settings(phases=[Phase.generate], max_examples=5)
@given(drawn=st.lists(st.lists(EDIT, min_size=1, max_size=2), min_size=1, max_size=3))
def test_an_edited_reading_is_that_of_the_edit_by_itself(family, drawn):
    case, last = CASES[family], CASES[family].tokens.last
    edits = {"none": [], "unknown": [("blocks.1.hook_mlp_out", lambda x, hook: 0.5 * x)]}
    for name, added in enumerate(drawn):
        edits[str(name)] = [hook for one in together(added) for hook in hooks_of(case, one)[0]]
    # Nothing leaves the layer in which tokens are discarded, or the one after: all is written over.
    over, tail = patch(case.cache, last, layers=[2]), case.tokens.at(range(9, case.n))
    edits |= {
        "last": over,
        "gone": discard(case.tokens.at(range(5, 9)), layer=1) + patch(case.cache, tail, layers=[2]),
        "before": discard(case.tokens.at(range(case.n - 5, case.n - 1)), layer=1) + over,
        "all": patch(case.cache, case.tokens.all, layers=[1]),
    }

    def check(name, reading):
        slow = case.model.read(case.inputs, fwd_hooks=edits[name])
        assert_equal(reading.logits, slow.logits)
        assert reading.past.seen == slow.past.seen == case.n
        for layer, (ours, theirs) in enumerate(zip(reading.past.layers, slow.past.layers, strict=True)):
            assert torch.equal(reading.past.key_index[layer], slow.past.key_index[layer])
            assert_equal(ours.keys, theirs.keys)
            assert_equal(ours.values, theirs.values)
        written = [
            case.model.generate(case.inputs, 3, reading=one, fwd_hooks=edits[name], keep_logits=True)
            for one in (reading, reading, None)
        ]
        assert written[0].tokens.tolist() == written[1].tokens.tolist() == written[2].tokens.tolist()
        assert_equal(written[0].logits, written[2].logits)
        return name

    found = read_edited(case.model, case.inputs, edits, check)
    assert list(found) == list(found.values()) == list(edits)
    with pytest.raises(PositionError, match="discarded"):
        read_edited(case.model, case.inputs, {"gone": [("blocks.1.hook_resid_pre", Discard(last))]}, check)


@pytest.mark.parametrize("site", [("resid_pre",), ("ln1.normalized",), ("k", "v"), ("rot_k", "v")])
def test_a_set_patched_at_all_layers_costs_only_the_rows_after_it(site):
    case = CASES["qwen2_5_omni"]
    chosen, last = case.tokens.media, case.tokens.last
    hooks = [hook for one in site for hook in patch(case.cache, chosen, site=one)]
    plan = plan_sweep(case.model, case.inputs, {"none": [], "media": hooks}, logits_at=last)
    (batch,) = plan.batches
    after = [p for p in range(int(chosen.positions.min()), case.n) if p not in chosen]
    assert [step.leave.tolist() for step in batch.steps.values()] == [after, after, [case.n - 1]]
    assert plan.runs < 1.8 and plan.unchanged == (0,)
    found = sweep(case.model, case.inputs, {"none": [], "media": hooks}, logits_at=last)
    assert_equal(found[1], case.in_full(hooks, last))


def test_edits_that_need_the_same_rows_run_together_and_join_where_they_begin():
    case = CASES["qwen2_5_omni"]
    last, tokens = case.tokens.last, case.tokens
    edits = {
        f"{kind}{layer}": knockout(last, getattr(tokens, kind), layers=[layer])
        for kind in ("audio", "video")
        for layer in (2, 0, 1)
    }
    plan = plan_sweep(case.model, case.inputs, edits, logits_at=last)
    (batch,) = plan.batches
    assert batch.starts == (0, 0, 1, 1, 2, 2) and all(
        step.enter.tolist() == [case.n - 1] for step in batch.steps.values()
    )
    found = sweep(case.model, case.inputs, edits, logits_at=last, progress="knocking out")
    for row, hooks in zip(found, edits.values(), strict=True):
        assert_equal(row, case.in_full(hooks, last))


def test_a_path_to_the_last_position_costs_a_row_of_each_layer_and_edits_may_share_it():
    case = CASES["qwen2_5_omni"]
    last, tokens = case.tokens.last, case.tokens
    shared = path_patch(case.cache, last, tokens.audio, layers=[1])
    edits = {
        f"{i} {head}": path_patch(case.cache, last, tokens.media, layers=[i], heads=[head])
        for i in (0, 2)
        for head in (0, 3)
    }
    edits |= {"one": shared, "again": shared, "and more": shared + path_patch(case.cache, last, tokens.video)}
    plan = plan_sweep(case.model, case.inputs, edits, logits_at=last)
    assert not plan.in_full and len(plan.batches) == 1
    assert all(step.enter.tolist() == [case.n - 1] for step in plan.batches[0].steps.values())
    found = sweep(case.model, case.inputs, edits, logits_at=last, attn="eager")
    for row, hooks in zip(found, edits.values(), strict=True):
        assert_equal(row, case.in_full(hooks, last))
    gone = discard(tokens.video, layer=1) + path_patch(case.cache, last, tokens.audio)
    with pytest.raises(BatchError, match="nothing discarded"):
        sweep(case.model, case.inputs, {"none": [], "gone": gone}, logits_at=last)


def test_a_discard_runs_without_the_rows_it_drops():
    case = CASES["qwen2_5_omni"]
    edits = {f"{layer}": discard(case.tokens.media, layer=layer) for layer in range(N_LAYERS)} | {"none": []}
    plan = plan_sweep(case.model, case.inputs, edits, logits_at=case.tokens.last)
    assert all(not torch.isin(step.enter, case.tokens.media.positions).any() for step in plan.batches[0].steps.values())
    with pytest.raises(PositionError, match="discarded on the way"):
        sweep(case.model, case.inputs, edits)


def test_what_an_edit_cannot_say_is_run_in_full_and_the_plan_says_so():
    case = CASES["qwen2_5_omni"]
    mine = [("blocks.1.hook_resid_pre", lambda x, hook: 2 * x)]
    edits = {
        "none": [],
        "mine": mine,
        "embed": [("hook_embed", lambda x, hook: 3 * x)],
        "last": knockout(case.tokens.last, case.tokens.audio),
    }
    plan = plan_sweep(case.model, case.inputs, edits, logits_at=case.tokens.last)
    assert "1 in full, since what they touch at blocks.1.hook_resid_pre is not known: mine" in str(plan)
    assert set(plan.in_full) == {1, 2}
    found = sweep(case.model, case.inputs, edits, logits_at=case.tokens.last)
    for row, hooks in zip(found, edits.values(), strict=True):
        assert_equal(row, case.in_full(hooks, case.tokens.last))


def test_hooks_that_are_attached_to_the_model_act_on_every_edit():
    case = CASES["qwen2_5_omni"]
    edits = {"none": [], "audio": knockout(case.tokens.last, case.tokens.audio)}
    with case.model.hooks([("blocks.1.hook_resid_pre", lambda x, hook: 2 * x)]):
        assert set(plan_sweep(case.model, case.inputs, edits).in_full) == {0, 1}
        found = sweep(case.model, case.inputs, edits, logits_at=case.tokens.last)
        for row, hooks in zip(found, edits.values(), strict=True):
            assert_equal(row, case.in_full(hooks, case.tokens.last))


@pytest.mark.parametrize("family", CASES)
def test_in_bf16_a_sweep_is_as_near_to_the_truth_as_full_runs_are(family):
    case = Case(family, torch.bfloat16)
    tokens, n = case.tokens, case.n
    scattered = tokens.at(range(n // 3, n - 1, 3))
    edits = {
        "none": [],
        **{name: patch(case.cache, getattr(tokens, name)) for name in ("audio", "video", "media")},
        "scattered": patch(case.cache, scattered),
        "one": patch(case.cache, tokens.at([n // 2]), layers=[1]),
        "keys": [hook for site in ("k", "v") for hook in patch(case.cache, scattered, site=site)],
        "cut": knockout(tokens.last, tokens.audio, layers=[0, 1]),
        "rows": knockout(tokens.question, tokens.video),
        "gone": discard(tokens.media, layer=1),
        "zero": ablate(tokens.audio, by="zero"),
    }
    found = sweep(case.model, case.inputs, edits, logits_at=tokens.last).float()
    full = torch.stack([case.in_full(hooks, tokens.last) for hooks in edits.values()]).float()
    case.model.float()  # the same weights, and what is patched, computed with in fp32
    exact = torch.stack([case.in_full(hooks, tokens.last) for hooks in edits.values()])
    ours, theirs = ((one - exact).pow(2).mean((1, 2)).sqrt() for one in (found, full))
    assert 0 < float(ours.median()) < 1.25 * float(theirs.median()) < 0.05 * float(exact.std())
    assert float(ours.max()) < 3 * float(theirs.max())  # a router may send a row to another expert


def test_one_edit_alone_is_not_made_dearer_by_an_unedited_run():
    case = CASES["qwen2_5_omni"]
    hooks = patch(case.cache, case.tokens.audio, layers=[N_LAYERS - 1])
    plan = plan_sweep(case.model, case.inputs, {"audio": hooks}, logits_at=case.tokens.last)
    assert plan.in_full == {0: "that is less work"} and plan.runs == 1


def test_the_unedited_run_goes_no_further_than_it_is_read():
    case = CASES["qwen2_5_omni"]
    chosen, last = case.tokens.media, case.tokens.last
    edits = {"media": patch(case.cache, chosen)}
    plan = plan_sweep(case.model, case.inputs, edits, logits_at=last)
    assert plan.reach == int(chosen.positions.min()) and plan.runs < 0.9
    assert plan_sweep(case.model, case.inputs, edits | {"none": []}, logits_at=last).reach == case.n
    ran = []
    with pytest.MonkeyPatch.context() as watch:
        watch.setattr(unedited, "Discard", lambda tokens: ran.append(tokens.positions) or Discard(tokens))
        found = sweep(case.model, case.inputs, edits, logits_at=last)
    assert ran[0].tolist() == list(range(plan.reach, case.n))
    assert_equal(found[0], case.in_full(edits["media"], last))


def test_what_sets_bring_is_made_once_for_all_that_are_patched_from_one_run():
    case = CASES["qwen2_5_omni"]
    tokens, last = case.tokens, case.tokens.last
    edits = {
        "audio": patch(case.cache, tokens.audio),
        "media": patch(case.cache, tokens.media),
        "other run": patch(case.own, tokens.video),
        "normed": patch(case.cache, tokens.video, site="ln1.normalized"),
        "twice": patch(case.cache, tokens.audio) + patch(case.own, tokens.audio),
    }
    plan = plan_sweep(case.model, case.inputs, edits, logits_at=last)
    by_layer = {layer: [one for one in plan.brought if one.layer == layer] for layer in range(N_LAYERS)}
    for made in by_layer.values():
        assert [one.edits for one in made] == [(0, 1), (2,), (3,)]
        assert made[0].positions.tolist() == tokens.media.positions.tolist()
    found = sweep(case.model, case.inputs, edits, logits_at=last)
    for row, hooks in zip(found, edits.values(), strict=True):
        assert_equal(row, case.in_full(hooks, last))


def test_a_measure_is_taken_of_each_edit():
    case = CASES["qwen2_5_omni"]
    edits = {"none": [], "audio": knockout(case.tokens.last, case.tokens.audio)}
    whole = sweep(case.model, case.inputs, edits, logits_at=case.tokens.last)
    best = sweep(case.model, case.inputs, edits, logits_at=case.tokens.last, measure=lambda logits: logits[0].max())
    assert torch.equal(best, whole[:, 0].amax(-1))


def test_without_logits_at_every_position_is_unembedded():
    case = CASES["qwen2_5_omni"]
    assert torch.equal(sweep(case.model, case.inputs, {"none": []})[0], case.model(case.inputs)[0])
    assert sweep(case.model, case.inputs, {}, logits_at=case.tokens.last).shape == (0, 1, case.model.cfg.d_vocab)


def test_what_cannot_be_swept_is_refused():
    case = CASES["qwen2_5_omni"]
    with pytest.raises(BatchError, match="Choose one"):
        sweep(case.model, AVInputs.batch([case.inputs, case.inputs]), {"none": []})
    with pytest.raises(HookError, match="Near names"):
        sweep(case.model, case.inputs, {"none": [], "wrong": [("blocks.0.hook_resid", lambda x, hook: None)]})
    with pytest.raises(LayerError, match="layer 9"):
        sweep(case.model, case.inputs, {"deep": knockout(case.tokens.last, case.tokens.audio, layers=[9])})
    other = case.model.prepare([], "hi").tokens
    with pytest.raises(PositionError, match="another layout"):
        sweep(case.model, case.inputs, {"other": knockout(other.last, other.at([0]))}, logits_at=case.tokens.last)
