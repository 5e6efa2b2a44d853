"""Any prompt and any clip: prepared and run with laws that hold, or refused with an error of avlens."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from avlens import Clip
from avlens.errors import AVLensError
from avlens.inputs import AVInputs
from avlens.testing import tiny_model
from avlens.tokens import Modality

QUICK = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.explicit, Phase.reuse, Phase.generate],
}
"""Without shrinking, which takes minutes where an example takes a tenth of a second."""

FAMILIES = ("qwen2_5_omni", "qwen3_omni", "video_salmonn2_plus", "video_salmonn_o1", "gemma4")
SPECIALS = (
    "<|im_end|>", "<|im_start|>assistant\n", "<|AUDIO|>", "<|VIDEO|>", "<|video_pad|>", "<|vision_bos|>", "<image>", "<turn|>",
    "<|video|>", "<bos>", "\x00", "\ue0000\ue001", "{{ 1 }}", "{% raw %}", "é́", "🙂‍↔️", "‮abc", "\r\n\t", "a" * 300, "<b>",
)  # fmt: skip
TEXTS = st.lists(st.one_of(st.text(max_size=12), st.sampled_from(SPECIALS)), max_size=4).map("".join)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return tiny_model(request.param, n_layers=3 if request.param in ("gemma4", "qwen3_omni") else 2)


@st.composite
def clips(draw):
    """One frame or several of any size, sound of any length and rate, or only one of the two."""
    frames = draw(st.one_of(st.none(), st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 70))))
    samples = draw(st.one_of(st.none(), st.integers(1, 3000)))
    if frames is None and samples is None:
        samples = draw(st.integers(1, 3000))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    film, sound = {}, {}
    if frames is not None:
        pixels = torch.randint(0, 256, (frames[0], 3, *frames[1:]), dtype=torch.uint8, generator=seed)
        film = {"frames": pixels, "fps": draw(st.sampled_from([0.1, 0.5, 1.0, 2.0, 7.3, 30.0]))}
        if draw(st.booleans()):
            film["frame_seconds"] = torch.rand(frames[0], generator=seed, dtype=torch.float64).mul(9).sort().values
    if samples is not None:
        sound = {
            "waveform": torch.rand(samples, generator=seed) - 0.5,
            "sample_rate": draw(st.sampled_from([1000, 8000, 16000, 44100])),
        }
    return Clip(**film, **sound)


IMAGES = st.tuples(st.integers(1, 70), st.integers(1, 70)).map(
    lambda size: torch.full((3, *size), 7, dtype=torch.uint8)
)


@st.composite
def prompts(draw):
    """Parts in any order, a question, options, a system message, the beginning of the answer."""
    return {
        "content": draw(st.lists(st.one_of(clips(), TEXTS, IMAGES), max_size=3)),
        "question": draw(TEXTS),
        "order": draw(st.sampled_from(["media_first", "question_first"])),
        "options": draw(st.lists(TEXTS, max_size=3)),
        "system": draw(st.one_of(st.none(), TEXTS)),
        "answer_prefix": draw(TEXTS),
    }


@given(prompt=prompts())
@settings(max_examples=12, **QUICK)
def test_any_prompt_is_prepared_and_run_or_refused(model, prompt):
    content = prompt.pop("content")
    try:
        inputs = model.prepare(content, **prompt)
    except AVLensError as error:
        assert len(str(error)) > 30
        return
    tokens, n = inputs.tokens, inputs.shape[1]
    # Every position is of one modality and one segment, and what each encoder makes has its place.
    kinds = [tokens.modality == kind for kind in Modality]
    assert len(tokens) == n and torch.stack(kinds).sum(0).eq(1).all()
    placed = torch.cat([media.positions for media in inputs.prompt.media]) if inputs.prompt.media else torch.empty(0)
    assert len(placed.unique()) == len(placed)
    assert set(tokens.audio | tokens.video) <= set(placed.tolist())
    assert not (tokens.start > tokens.end).any()  # An image has no time.
    assert inputs.prompt.next_position > float(inputs.prompt.positions.max()) - 1e-3
    # What was asked stands there, unless it holds special tokens.
    special = map(str, model.tokenizer.added_tokens_decoder.values())
    if prompt["question"].strip() and not any(one in prompt["question"] for one in special):
        assert len(tokens.question)
    assert torch.isfinite(model(inputs)).all()
    out = model.generate(inputs, max_new_tokens=1)
    assert out.tokens.shape == (1, 1)


@given(prompt=prompts(), other=prompts())
@settings(max_examples=4, **QUICK)
def test_a_batch_of_any_two_prompts_is_two_prompts(model, prompt, other):
    rows = []
    for one in (prompt, other):
        try:
            rows.append(model.prepare(one.pop("content"), **one))
        except AVLensError:
            return
    logits = model(AVInputs.batch(rows))
    for i, row in enumerate(rows):
        alone = model(row)[0]
        scale = max(1.0, float(alone.abs().max()))
        assert (logits[i, -len(alone) :] - alone).abs().max() <= 2e-5 * scale


@given(clip=clips(), data=st.data())
@settings(max_examples=40, **QUICK)
def test_any_clip_can_be_changed_or_says_why_not(clip, data, tmp_path_factory):
    other = data.draw(clips())
    span = data.draw(st.tuples(st.floats(allow_nan=True), st.floats(allow_nan=True)))
    ways = {
        "silenced": lambda: clip.silenced(), "blanked": lambda: clip.blanked(),
        "with_audio_of": lambda: clip.with_audio_of(other),
        "with_video_of": lambda: clip.with_video_of(other), "noised": lambda: clip.noised(data.draw(st.integers(-1, 1001))),
    }  # fmt: skip
    for name, change in ways.items():
        try:
            made = change()
        except AVLensError:
            continue
        for part in ("frames", "waveform"):
            ours, theirs = getattr(clip, part), getattr(made, part)
            assert (ours is None) == (theirs is None) and (ours is None or ours.shape == theirs.shape), name
    for cut in (
        lambda: clip.cut(*span),
        lambda: clip.cut(0, clip.seconds / 2),
        lambda: clip.resampled(data.draw(st.integers(-1, 10**9))),
    ):
        try:
            made = cut()
        except AVLensError:
            continue
        assert made.seconds >= 0 and repr(made) and made.sha256
    path = tmp_path_factory.getbasetemp() / "any.mp4"
    try:
        clip.to_file(path)
    except AVLensError:
        return
    if clip.waveform is not None and len(clip.waveform) < 0.1 * clip.sample_rate:
        return  # Codecs drop sounds that are shorter than one of their blocks.
    back = Clip.from_file(path, min_frames=1)
    assert back.has_video == clip.has_video and back.has_audio == clip.has_audio
