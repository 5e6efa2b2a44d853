"""What several test files need: prompts of every kind, the stock model's run, and what equal means."""

import torch
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LogitsProcessorList

from avlens import attention
from avlens.inputs import AVInputs
from avlens.testing import tiny_clip

KINDS = ("video_and_audio", "question_first", "audio", "video", "image", "text", "interleaved", "batch")


def assert_equal(got, want, tolerance=1e-5):
    """DESIGN.md's "equal": within 1e-5 * max(1, max |reference|). Infinite and NaN must be so in both."""
    assert got.shape == want.shape, (got.shape, want.shape)
    got, want = got.detach().double(), want.detach().double()
    finite = want.isfinite()
    assert torch.equal(got.nan_to_num(nan=7e77)[~finite], want.nan_to_num(nan=7e77)[~finite])
    assert got[finite].isfinite().all()
    if finite.any():
        bound = tolerance * max(1.0, float(want[finite].abs().max()))
        off = float((got - want)[finite].abs().max())
        assert off <= bound, f"off by {off:.3g}, which is more than {bound:.3g}"


def in_chunks_of(rows, patched):
    """Streamed attention takes so many query rows at a time."""
    patched.setattr(attention, "chunk_rows", lambda heads, keys, queries, device=None: min(rows, queries))


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, torch.Tensor):
                self.numel = max(self.numel, one.numel())
        return out


def largest_difference(a, b):
    return float((a.double() - b.double()).nan_to_num().abs().max())


def prompt_of(model, kind):
    """One prompt of each kind that avlens promises, about 30 to 160 tokens long."""
    clip, other = tiny_clip(2.6, size=(84, 56), seed=3), tiny_clip(1.1, size=(56, 56), seed=4)
    sound = tiny_clip(0.7, video=False, seed=5)
    if kind == "batch":
        return AVInputs.batch([prompt_of(model, one) for one in ("video_and_audio", "text", "image")])
    content, question, options = {
        "video_and_audio": (clip, "what do you hear ?", {}),
        "question_first": (clip, "what do you see ?", {"order": "question_first", "options": ["a dog", "rain"]}),
        "audio": (clip.without_video(), "what do you hear ?", {"answer_prefix": "a bell"}),
        "video": (clip.without_audio(), "is it red ?", {"system": "answer with a word"}),
        "image": (clip.frames[0], "what is it ?", {}),
        "text": ([], "what is a drum ?", {}),
        "interleaved": ([clip, "and then", sound, "and", clip.frames[1], other], "which is louder ?", {}),
    }[kind]
    return model.prepare(content, question, **options)


def stock_run(model, inputs, attn="eager"):
    """The unmodified transformers model on the same prompts."""
    whole = model.stock.whole
    before = whole.config.text_config._attn_implementation
    whole.set_attn_implementation(attn)
    model.forget_encodings()
    try:
        with torch.no_grad():
            return whole(**inputs.hf_kwargs(), output_hidden_states=True, output_attentions=attn == "eager")
    finally:
        whole.set_attn_implementation(before)


def scores_of(model, inputs, n, decoding, **options):
    """What a decoding method writes, and its logits at each step: [batch, step, d_vocab]."""
    steps = []
    keep = LogitsProcessorList([lambda ids, scores: steps.append(scores.clone()) or scores])
    out = model.generate(inputs, n, decoding=decoding, logits_processor=keep, eos_token_id=None, **options)
    return out, torch.stack(steps, 1)


def real_positions(inputs):
    """True where a row of a batch is not padding."""
    return inputs.attention_mask.bool()


def points_that_run(model, inputs):
    """The names of the hook points that this input passes."""
    seen = {}
    model.run_with_hooks(inputs, fwd_hooks=[(lambda name: True, lambda x, hook: seen.setdefault(hook.name) and None)])
    return list(seen)


@st.composite
def sizes(draw):
    """Shapes of tiny models."""
    n_kv, share = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2]))
    half = draw(st.sampled_from([4, 8, 16]))
    rows = draw(st.integers(1, half - 2))
    section = (rows, draw(st.integers(1, half - rows - 1)))
    return {
        "seed": draw(st.integers(0, 9)),
        "n_layers": draw(st.integers(1, 3)),
        "n_heads": n_kv * share,
        "n_key_value_heads": n_kv,
        "d_head": 2 * half,
        "d_model": draw(st.sampled_from([32, 48])),
        "mrope_section": (*section, half - sum(section)),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def recipes(draw):
    """What goes into a prompt. Videos all have sound or all have none, as the stock model wants it."""
    sound = draw(st.booleans())
    clip = st.fixed_dictionaries(
        {
            "seconds": st.floats(0.3, 5.0),
            "fps": st.sampled_from([0.5, 1.0, 2.0, 3.0]),
            "size": st.tuples(st.integers(20, 120), st.integers(20, 120)),
            "seed": st.integers(0, 9),
            "video": st.booleans(),
        }
    ).map(lambda made: made | {"audio": sound or not made["video"]})
    part = st.one_of(clip, st.sampled_from(["and", "a red dog", "then what ?"]), st.integers(0, 9))
    return {
        "parts": draw(st.lists(part, max_size=3)),
        "question": draw(st.sampled_from(["what do you hear ?", "is it loud"])),
        "order": draw(st.sampled_from(["media_first", "question_first"])),
        "nominal_fps": draw(st.sampled_from([2.0, 1.0, 0.7])),
    }


def prompt_from(model, recipe):
    """The prompt of a recipe; a number in it is the seed of an image."""
    made = {str: lambda text: text, dict: lambda clip: tiny_clip(**clip)}
    made[int] = lambda seed: tiny_clip(1, seed=seed, size=(40, 70)).frames[0]
    parts = [made[type(part)](part) for part in recipe["parts"]]
    return model.prepare(parts, recipe["question"], **{k: recipe[k] for k in ("order", "nominal_fps")})
