import pytest
import torch

from avlens.analyses.tracing import CausalTrace, causal_trace
from avlens.errors import PromptError
from avlens.tables import trace_table
from avlens.testing import tiny_clip, tiny_model
from tests.analyses.test_sinks import token_map

TOKENS = token_map("tvvaa")


def trace_of(clean: dict[str, float], te: float, sizes: dict[str, int], direction: str = "denoise") -> CausalTrace:
    """A trace with given IE_clean per set; the corrupted run answers with probability 0.1."""
    sets = {name: TOKENS.at(range(sizes[name])) for name in clean}
    patched = torch.tensor([[0.1 + ie, 0.5] for ie in clean.values()])
    return CausalTrace(
        sets=sets, o_clean=(1,), o_corrupt=(2,), p_clean=torch.tensor([0.1 + te, 0.2]), p_corrupt=torch.tensor([0.1, 0.7]),
        p_patched=patched, flipped=tuple(ie > 0.2 for ie in clean.values()), answers=("a", "b"), direction=direction,
        layers=(0,), sites=("resid_pre",), step="first", made_by={},
    )  # fmt: skip


def test_means_shares_and_draws_by_hand():
    first = trace_of({"all": 0.4, "random #0": 0.1, "random #1": 0.3}, 0.8, {"all": 4, "random #0": 2, "random #1": 2})
    second = trace_of({"all": 0.2, "random #0": 0.0, "random #1": 0.1}, 0.4, {"all": 2, "random #0": 1, "random #1": 1})
    empty = trace_of({"all": 0.0}, 0.3, {"all": 0})
    table = trace_table([first, second, empty], n_draws=200)
    whole, random = table["all"], table["random"]
    assert whole.ie_clean.estimate == pytest.approx(0.3) and whole.clips == 2 and whole.empty == 1
    assert whole.share.estimate == pytest.approx(0.6 / 1.2) and whole.tokens == 3
    assert whole.per_token.estimate == pytest.approx((0.1 + 0.1) / 2)
    assert random.ie_clean.estimate == pytest.approx((0.2 + 0.05) / 2) and random.draws == 2 and random.empty == 0
    assert random.flipped == pytest.approx((0.5 + 0) / 2)
    assert table.te_clean.estimate == pytest.approx(0.5)
    frame = table.to_frame()
    assert frame.loc["all", "IE_clean"] == pytest.approx(30) and frame.loc["all", "IE_clean low"] <= 30
    assert "IE_clean" in repr(table) and r"\toprule" in table.to_latex() and "random & 12.50" in table.to_latex()


def test_the_interval_holds_the_mean_of_what_was_traced():
    model = tiny_model(n_layers=3)
    traces = []
    for seed in range(4):
        clip = tiny_clip(3.0, seed=seed)
        clean, silent = (model.prepare(c, "what do you hear ?") for c in (clip, clip.silenced()))
        traces.append(causal_trace(model, clean, silent, {"all": clean.tokens.media, "video": clean.tokens.video}))
    table = trace_table(traces, n_draws=500)
    assert table["all"].share.estimate == pytest.approx(1, abs=1e-4)
    low, high = table["video"].ie_clean.low, table["video"].ie_clean.high
    assert low <= sum(float(t.ie_clean[1]) for t in traces) / 4 <= high


def test_errors_say_what_to_do():
    with pytest.raises(PromptError, match="Pass some of one"):
        trace_table([])
    mixed = [trace_of({"all": 0.1}, 0.2, {"all": 1}), trace_of({"all": 0.1}, 0.2, {"all": 1}, "noise")]
    with pytest.raises(PromptError, match="denoise"):
        trace_table(mixed)
    with pytest.raises(PromptError, match="Sets are all"):
        trace_table(mixed[:1], n_draws=50)["none"]
