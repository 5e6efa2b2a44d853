"""A small byte-level tokenizer with the special tokens and chat template of a family, made in a moment.

It can write any text: what its few words do not cover is spelt in bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", "<|vision_bos|>", "<|vision_eos|>", "<|vision_pad|>", "<|IMAGE|>", "<|VIDEO|>",
)  # fmt: skip
"""In the order of the released vocabulary."""


def chat_template(image: str, audio: str, video: str) -> str:
    """A ChatML template that writes the given strings where an image, a sound or a video stands."""
    return (
        "{% for message in messages %}"
        "{% if loop.first and message['role'] != 'system' %}"
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
        "<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}"
        f"{{% elif part['type'] == 'audio' %}}{audio}"
        f"{{% elif part['type'] == 'video' %}}{video}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


CHAT_TEMPLATE = chat_template(
    image="<|vision_bos|><|IMAGE|><|vision_eos|>",
    audio="<|audio_bos|><|AUDIO|><|audio_eos|>",
    video="<|vision_bos|><|VIDEO|><|vision_eos|>",
)

_WORDS = """You are a helpful assistant . system user what do you see hear ? how does it move match sound and sight which
object is make describe the clip in one sentence answer with a single word letter options A B C D yes no nothing red
green blue white circle square triangle star left right up down bell drum siren whistle horn rain dog barking music
person speaking car engine water a an of on at to from then while there video audio image"""

_PRETOKENIZE = (  # Qwen2's
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


EMBEDDED_WORDS = """You are a helpful assistant . system user what do you see hear ? how does it move match sound and sight which
object is make describe the clip A B C D yes no nothing red green blue yellow circle square triangle cross ring bar left right up
down still moves sounds bell drum siren whistle horn rain"""
"""What the embedded models say and are asked."""


def words() -> list[str]:
    """The words that are one token each with the space in front of them."""
    return [f" {word}" for word in dict.fromkeys(_WORDS.split()) if word.isalpha()]


OMNI_TOKENS = {
    "image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
}  # fmt: skip


def tiny_tokenizer(
    specials: Sequence[str] = SPECIALS,
    template: str = CHAT_TEMPLATE,
    named: Mapping[str, str] = OMNI_TOKENS,
    vocabulary_of: str = _WORDS,
    eos: str = "<|im_end|>",
    pad: str = "<|endoftext|>",
) -> Any:
    """A transformers tokenizer of about 600 tokens; the same one each time.

    Args:
        specials: Special tokens, in order.
        template: The chat template.
        named: Special tokens that have a name of their own.
        vocabulary_of: The text whose words are one token each.
        eos: The special token that ends an answer.
        pad: The special token that fills up.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = _byte_pairs(vocabulary_of)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRETOKENIZE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(specials))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=eos, pad_token=pad, padding_side="left",
        chat_template=template, extra_special_tokens=dict(named),
    )  # fmt: skip


def _byte_pairs(text: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Bytes, then each word of the list built up letter by letter: with a space in front first, long ones first."""
    from tokenizers import pre_tokenizers

    space = "\u0120"  # how byte-level tokenizers write a space
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    words = sorted(dict.fromkeys(text.split()), key=lambda word: -len(word))
    for word in [space + word for word in words] + words:
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if pair not in merges:
                merges.append(pair)
    pieces += [first + second for first, second in merges]
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, merges
