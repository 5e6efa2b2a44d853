"""What is estimated before work starts is what it takes: bytes to the tensor, seconds by the rates measured here."""

import math
import re
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from avlens import attention, cost
from avlens.cost import Rates, Work
from avlens.engine import estimate as engine_estimate
from avlens.engine import estimate_run, needs, plan_sweep, read_edited, sweep
from avlens.engine.estimate import rates_of
from avlens.errors import TooLargeError
from avlens.families import FAMILIES
from avlens.hubs import find_hubs, hub_reductions
from avlens.interventions import knockout, patch
from avlens.testing import tiny_clip, tiny_model
from avlens.tokens import Modality
from tests.helpers import assert_equal

SIZES = {"n_layers": 3, "d_model": 64, "n_heads": 4, "n_key_value_heads": 2, "d_mlp": 224}


class Held(TorchDispatchMode):
    """The most bytes that tensors made inside hold at once."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.sizes = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        for one in tree_leaves(out):
            storage = one.untyped_storage() if isinstance(one, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.sizes and storage._cdata not in given:
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage._cdata)
        return out

    def _freed(self, key):
        self.now -= self.sizes.pop(key, 0)


def case(dtype=torch.float32, seconds=8.0, **sizes):
    model = tiny_model(seed=1, **(SIZES | sizes)).to(dtype)
    inputs = model.prepare(tiny_clip(seconds, fps=4.0, size=(112, 112)), "what do you hear ?")
    model(inputs, logits_at=inputs.tokens.last)  # what encoders make is kept
    return model, inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wide", [{}, {"d_model": 96, "n_heads": 6, "n_key_value_heads": 1, "d_mlp": 512}])
def test_a_run_holds_what_is_estimated(dtype, wide):
    model, inputs = case(dtype, n_layers=10, **wide)
    last = inputs.tokens.last
    for kept in ((), ("resid_pre", "v")):
        estimate = estimate_run(model, inputs, names_filter=kept, logits_at=last, timed=False)
        with Held() as held:
            model.run_with_cache(inputs, names_filter=list(kept), logits_at=last)
        assert held.peak == pytest.approx(estimate.nbytes, rel=0.2)


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_runs_and_sweeps_of_every_family_hold_what_is_estimated(family):
    model = tiny_model(family, seed=1, n_layers=8)
    inputs = model.prepare(tiny_clip(10.0, fps=4.0, size=(112, 112)), "what do you hear ?")
    last = inputs.tokens.last
    model(inputs, logits_at=last)
    with Held() as held:
        model(inputs, logits_at=last)
    assert held.peak == pytest.approx(estimate_run(model, inputs, logits_at=last, timed=False).nbytes, rel=0.25)
    _, cache = model.run_with_cache(inputs, "resid_pre", logits_at=last)
    edits = {
        "audio": patch(cache, inputs.tokens.audio),
        "late": patch(cache, inputs.tokens.video, layers=[6]),
        "none": [],
    }
    plan = plan_sweep(model, inputs, edits, logits_at=last, timed=False)
    with Held() as held:
        sweep(model, inputs, edits, logits_at=last)
    assert held.peak == pytest.approx(plan.estimate.nbytes, rel=0.25)


def test_a_long_prompt_goes_through_mlps_some_rows_at_a_time(monkeypatch):
    model, inputs = case()
    last, whole = inputs.tokens.last, model(inputs)
    for limit in (2**18, 2**17):
        monkeypatch.setattr("avlens.decoder.MLP_BYTES", limit)
        estimate = estimate_run(model, inputs, logits_at=last, timed=False)
        with Held() as held:
            model(inputs, logits_at=last)
        assert held.peak == pytest.approx(estimate.nbytes, rel=0.2)
        assert_equal(model(inputs), whole)


def test_a_sweep_holds_what_is_estimated_and_batches_keep_within_their_bytes():
    model, inputs = case()
    tokens = inputs.tokens
    _, cache = model.run_with_cache(inputs, "resid_pre")
    grid = {f"{i} {at}": patch(cache, tokens.at([at]), layers=[i]) for i in range(3) for at in range(3, 15)}
    traces = {"unedited": [], "audio": patch(cache, tokens.audio), "video": patch(cache, tokens.video)}
    for edits in (grid, traces):
        for memory in (None, 2**22, 2**20, 1):
            plan = plan_sweep(model, inputs, edits, logits_at=tokens.last, memory=memory, timed=False)
            with Held() as held:
                found = sweep(model, inputs, edits, logits_at=tokens.last, memory=memory)
            assert held.peak == pytest.approx(plan.estimate.nbytes, rel=0.25)
            assert memory is None or plan.needs.memory == memory
            if memory == 1:
                assert all(len(batch.edits) == 1 for batch in plan.batches)
            for row, hooks in list(zip(found, edits.values(), strict=True))[::5]:
                assert_equal(row, model.run_with_hooks(inputs, hooks, logits_at=tokens.last)[0])
    assert "batches within 1 bytes" in str(plan)


@settings(phases=[Phase.generate], max_examples=20)
@given(memory=st.integers(1, 2**24), n=st.integers(1, 40))
def test_no_batch_is_planned_beyond_its_bytes_unless_one_edit_alone_is(memory, n):
    model, inputs = LARGE
    tokens = inputs.tokens
    edits = {f"{i}": knockout(tokens.last, tokens.at([i]), layers=[i % 3]) for i in range(1, n + 1)}
    plan = plan_sweep(model, inputs, edits, logits_at=tokens.last, memory=memory, timed=False)
    assert sorted(edit for batch in plan.batches for edit in batch.edits) + sorted(plan.in_full) == list(range(n))
    if any(len(batch.edits) > 1 for batch in plan.batches):
        assert (
            max(0, plan.needs.at_once - estimate_run(model, inputs, logits_at=tokens.last, timed=False).nbytes)
            <= memory
        )


LARGE = case()


def test_seconds_are_operations_by_rates_which_are_measured_once():
    model, inputs = LARGE
    rates = rates_of(model)
    assert all(rate > 1e6 for rate in (rates.products, rates.fused, rates.explicit)) and rates_of(model) is rates
    work = Work(3e6, 2e6, 1e6)
    assert Rates(1e6, 1e6, 1e6).seconds(work + work * 2) == 18
    assert Rates(1e6, start=0.5).seconds(Work(3e6, passes=4)) == 5 and rates.start >= 0
    assert Rates(1e6).seconds(Work(3e6)) == 3 and math.isnan(Rates(1e6).seconds(work))
    with model.hooks([("blocks.0.hook_resid_pre", lambda x, hook: None)]):
        assert math.isnan(estimate_run(model, inputs).seconds)


def test_operations_of_a_sweep_are_those_of_its_runs():
    model, inputs = LARGE
    last, cfg = inputs.tokens.last, model.cfg
    edits = {"none": [], "mine": [("blocks.1.hook_resid_pre", lambda x, hook: x)]}
    plan = plan_sweep(model, inputs, edits, logits_at=last, timed=False)
    rows = torch.arange(len(inputs.tokens))
    by_hand = 2 * cost.block_operations(cfg, rows, rows) + cost.block_operations(cfg, rows, last.positions)
    by_hand += 2 * cfg.d_model * cfg.d_vocab
    assert plan.needs.total.total == 2 * by_hand and plan.runs == 2 and sum(plan.needs.shares) == 2 * by_hand
    explicit = cost.run_work(cfg, len(rows), last.positions, explicit=3)
    assert explicit.fused == 0 and explicit.explicit == 3 * cost.block_work(cfg, rows, rows).fused


def test_a_model_on_the_meta_device_is_estimated_as_it_will_be_held():
    model, inputs = LARGE
    tokens, meta = inputs.tokens, tiny_model(seed=1, **SIZES).to("meta")
    edits = {"none": [], "audio": knockout(tokens.last, tokens.audio)}
    here, there = (
        plan_sweep(one, inputs, edits, logits_at=tokens.last, memory=2**30).estimate for one in (model, meta)
    )
    assert there.nbytes == here.nbytes and there.free is None and math.isnan(there.seconds)
    assert estimate_run(meta, inputs).nbytes == estimate_run(model, inputs).nbytes
    assert str(there).startswith("about unknown, ")


def test_what_cannot_fit_is_refused_before_it_runs_with_what_would(monkeypatch):
    model, inputs = LARGE
    last, reductions = inputs.tokens.last, hub_reductions(inputs, [1])
    ran = [("hook_embed", lambda x, hook: pytest.fail("it ran"))]

    def nbytes(one):
        return estimate_run(model, one, reductions=reductions, logits_at=one.tokens.last, timed=False).nbytes

    free = nbytes(inputs) // 2
    monkeypatch.setattr(cost, "free_bytes", lambda device: free)
    with model.hooks(ran), pytest.raises(TooLargeError, match="positions would fit") as refused:
        find_hubs(model, inputs, [1])
    fits = int(re.search(r"A prompt of about (\d+) positions", str(refused.value))[1])
    ones = torch.ones(1, fits + 1, dtype=torch.long)
    assert nbytes(model.family.text_inputs(ones[:, :-1])) <= free < nbytes(model.family.text_inputs(ones))
    monkeypatch.setattr(cost, "free_bytes", lambda device: 1000)
    with model.hooks(ran), pytest.raises(TooLargeError, match="a sweep of 1 edit of .*logits_at="):
        sweep(model, inputs, {"none": []}, logits_at=last)


def test_batches_take_what_the_unedited_run_leaves_and_the_dearest_edit_counts(monkeypatch):
    model, inputs = case(n_layers=12)
    tokens, last = inputs.tokens, inputs.tokens.last
    _, cache = model.run_with_cache(inputs, "z")
    # The first of these needs the same rows as the others, but no scores.
    edits = {"first": patch(cache, last, site="z", layers=[0])}
    edits |= {f"{i}": knockout(last, tokens.at([i]), layers=[0]) for i in range(1, 40)}
    alone = plan_sweep(model, inputs, edits, logits_at=last, memory=1, timed=False)
    assert alone.needs.kept > alone.needs.at_once
    for memory in (10**5, 10**6):
        plan = plan_sweep(model, inputs, edits, logits_at=last, memory=memory, timed=False)
        for batch in plan.batches:
            hooks = [plan.hooks[edit] for edit in batch.edits]
            assert len(hooks) == 1 or needs.batch_bytes(model.cfg, batch.steps, hooks, len(hooks)) <= memory
    whole = sweep(model, inputs, edits, logits_at=last)
    monkeypatch.setattr(cost, "free_bytes", lambda device: alone.estimate.nbytes)
    assert_equal(sweep(model, inputs, edits, logits_at=last), whole)
    monkeypatch.setattr(cost, "free_bytes", lambda device: alone.estimate.nbytes - 1)
    with pytest.raises(TooLargeError):
        sweep(model, inputs, edits, logits_at=last)


@pytest.mark.parametrize("n_edits", [1, 80])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_prompt_that_is_said_to_fit_fits(monkeypatch, share, n_edits):
    model, inputs = case(n_layers=6)

    def edits_of(tokens):
        _, cache = model.run_with_cache(prompts[len(tokens)], "resid_pre")
        cuts = {f"{i}": knockout(tokens.last, tokens.at([i]), layers=[1]) for i in range(1, n_edits)}
        return cuts | {"audio": patch(cache, tokens.audio), "some": patch(cache, tokens.video, layers=[2])}

    shorter = [
        model.prepare(tiny_clip(seconds, fps=4.0, size=(112, 112)), "what do you hear ?")
        for seconds in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    ]
    prompts = {len(one.tokens): one for one in [*shorter, inputs]}
    edits = {length: edits_of(one.tokens) for length, one in prompts.items()}
    takes = {
        length: plan_sweep(model, one, edits[length], logits_at=one.tokens.last, memory=1, timed=False).estimate.nbytes
        for length, one in prompts.items()
    }
    free = int(share * takes[len(inputs.tokens)])
    monkeypatch.setattr(cost, "free_bytes", lambda device: free)
    with pytest.raises(TooLargeError) as refused:
        sweep(model, inputs, edits[len(inputs.tokens)], logits_at=inputs.tokens.last)
    told = re.search(r"A prompt of about (\d+) positions would fit", str(refused.value))
    fits = int(told[1]) if told else 0
    assert told or "No shorter prompt would fit either" in str(refused.value)
    for length, nbytes in takes.items():
        assert (nbytes <= free) == (length <= fits) or length == pytest.approx(fits, rel=0.1)


def test_logits_of_which_a_measure_is_kept_are_not_counted():
    model, inputs = LARGE
    edits = {f"{i}": knockout(inputs.tokens.last, inputs.tokens.at([i]), layers=[1]) for i in range(1, 30)}
    plan = plan_sweep(model, inputs, edits, measured=True, timed=False)
    assert plan.needs.kept < plan_sweep(model, inputs, edits, timed=False).needs.kept / 5
    with Held() as held:
        sweep(model, inputs, edits, measure=lambda logits: logits[-1].max(), memory=plan.needs.memory)
    assert held.peak == pytest.approx(plan.estimate.nbytes, rel=0.25)


def test_bars_tell_what_it_takes_and_reach_their_end(capsys, monkeypatch):
    model, inputs = LARGE
    monkeypatch.setattr(engine_estimate, "SHORT", 0.0)
    tokens = inputs.tokens
    edits = {
        "none": [],
        "mine": [("blocks.1.hook_resid_pre", lambda x, hook: x)],
        "audio": knockout(tokens.last, tokens.audio),
    }
    quiet = sweep(model, inputs, edits, logits_at=tokens.last)
    assert torch.equal(sweep(model, inputs, edits, logits_at=tokens.last, progress="cutting"), quiet)
    hubs = find_hubs(model, inputs, [1, 2], progress=True)
    told = capsys.readouterr().err
    assert torch.equal(hubs.sinks.energy, find_hubs(model, inputs, [1, 2]).sinks.energy)
    assert "cutting (about" in told and "MiB" in told and "3 of 3 edits" in told and "100%" in told
    assert "sinks (about" in told
    monkeypatch.setattr(engine_estimate, "SHORT", 600.0)
    find_hubs(model, inputs, [1, 2], progress=True)
    sweep(model, inputs, edits, logits_at=tokens.last, progress="cutting")
    assert capsys.readouterr().err == ""


def test_what_an_estimate_leaves_out_is_done_before_it_is_told(capsys, monkeypatch):
    model = tiny_model(n_layers=2)
    inputs = model.prepare(tiny_clip(1.0), "what do you hear ?")
    monkeypatch.setattr(engine_estimate, "SHORT", 0.0)
    find_hubs(model, inputs, [1, 2], progress=True)
    told = capsys.readouterr().err
    assert 0 <= told.index("sinks: encoders: 100%") < told.index("sinks (about")
    monkeypatch.setattr(model.family, "encode", lambda encoders, media: pytest.fail("it was encoded again"))
    (video, *_) = (media for media in inputs.prompt.media if media.modality == Modality.VIDEO)
    assert model.encode(video).shape[1:] == (len(video.positions), model.cfg.d_model)


def test_patterns_that_are_streamed_hold_what_is_estimated():
    for seconds in (8.0, 20.0):
        model, inputs = case(seconds=seconds)
        tokens, last = inputs.tokens, inputs.tokens.last
        reductions = hub_reductions(inputs, [1, 2])
        estimate = estimate_run(model, inputs, reductions=reductions, logits_at=last, timed=False)
        with Held() as held:
            model.run_with_cache(inputs, [], reductions=reductions, logits_at=last)
        assert held.peak == pytest.approx(estimate.nbytes, rel=0.3)
        edits = {f"{i}": knockout(tokens.question, tokens.video, layers=[i]) for i in range(2)}
        plan = plan_sweep(model, inputs, edits, logits_at=last, timed=False)
        with Held() as held:
            sweep(model, inputs, edits, logits_at=last)
        assert held.peak == pytest.approx(plan.estimate.nbytes, rel=0.3)


def test_many_rows_of_one_query_each_hold_what_is_estimated():
    model, inputs = case(n_layers=6)
    tokens, last = inputs.tokens, inputs.tokens.last
    edits = {f"{i} {h}": knockout(last, tokens.audio, layers=[i], heads=[h]) for i in range(6) for h in range(4)}
    plan = plan_sweep(model, inputs, edits, logits_at=last, timed=False)
    with Held() as held:
        sweep(model, inputs, edits, logits_at=last)
    assert len(plan.batches) == 1
    assert held.peak == pytest.approx(plan.estimate.nbytes, rel=0.2)


def test_edited_readings_hold_what_is_estimated_and_are_let_go_of():
    model, inputs = case()
    tokens, last = inputs.tokens, inputs.tokens.last
    _, cache = model.run_with_cache(inputs, "resid_pre")
    mine = [("blocks.1.hook_mlp_out", lambda x, hook: 0.5 * x)]
    for edits in (
        {"mine": mine, "again": mine, "once more": mine},
        {"unedited": [], "audio": patch(cache, tokens.audio), "video": patch(cache, tokens.video)},
        {f"{at}": patch(cache, tokens.at([at]), layers=[1]) for at in range(3, 15)},
    ):
        plan = plan_sweep(model, inputs, edits, logits_at=last, reading=True, timed=False)
        with Held() as held:
            read_edited(model, inputs, edits, lambda name, reading: name)
        assert held.peak == pytest.approx(plan.estimate.nbytes, rel=0.3)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_a_device_computes_at_once_is_what_is_estimated(device):
    cfg = replace(tiny_model(n_layers=2).cfg, n_heads=28, d_head=128, device=device)
    rows = attention.chunk_rows(28, 10_000, 10_000, device)
    assert rows == {"cpu": attention.CHUNK_LEAST, "cuda": 119}[device]
    streamed, fused = (cost.block_bytes(cfg, 10_000, 10_000, 10_000, explicit=how) for how in (True, False))
    assert streamed - fused == 12 * 28 * 10_000 * rows
