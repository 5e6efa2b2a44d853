import time

import pytest
import torch

from avlens.chat import write_chat
from avlens.errors import PromptError
from avlens.family import PromptOptions
from avlens.testing import tiny_clip, tiny_model
from avlens.tokens import Segment
from avlens.zoo.tokenizer import CHAT_TEMPLATE, tiny_tokenizer

MODEL = tiny_model()
TOKENIZER = tiny_tokenizer()
TONE = tiny_clip(0.5, video=False)
HARD = (
    "A",
    "B",
    "user",
    "system",
    "assistant",
    "u",
    "\n",
    " ",
    "im",
    "<|",
    "<|AUDIO",
    "audio",
    "|>",
    "A. B",
    "\ue0000\ue001",
)


def said(tokens, segment):
    """The text of each run of neighbouring tokens of a segment, as the prompt has it."""
    chosen = (tokens.segment == segment).nonzero()[:, 0].tolist()
    runs = []
    for position in chosen:
        if runs and position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return [tokens.prompt[int(tokens.offsets[run[0], 0]) : int(tokens.offsets[run[-1], 1])] for run in runs]


def marked(chat):
    return [(segment, chat.text[start:end]) for segment, start, end in chat.spans]


def test_texts_shorter_than_the_templates_words_are_found_where_they_were_put():
    tokens = MODEL.prepare([TONE, "A", TONE, "B"], "user").tokens
    assert said(tokens, Segment.CONTEXT) == ["A", "B"] and said(tokens, Segment.QUESTION) == ["user"]
    assert tokens.clip[tokens.context.positions[0] - 2] == 0 and tokens.clip[tokens.context.positions[1] - 2] == 1


@pytest.mark.parametrize("order", ["media_first", "question_first"])
@pytest.mark.parametrize("text", HARD)
def test_any_text_is_the_question_and_the_context_and_the_system_message(text, order):
    options = PromptOptions(order=order, system=text, options=(text, "", text), answer_prefix=text)
    chat = write_chat(TOKENIZER, [TONE, text, TONE, text, ""], text, options)
    start = chat.text.index("<|im_start|>user\n") + len("<|im_start|>user\n")
    sound, listed = "<|audio_bos|><|AUDIO|><|audio_eos|>", f"\nA. {text}\nB. \nC. {text}"
    body = f"{sound}{text}{sound}{text}"
    body = body + text + listed if order == "media_first" else text + listed + body
    assert chat.text[start:] == body + "<|im_end|>\n<|im_start|>assistant\n" + text
    asked = [(Segment.QUESTION, text), (Segment.OPTION, listed)]
    context = [(Segment.CONTEXT, text)] * 2
    middle = context + asked if order == "media_first" else asked + context
    assert marked(chat) == [(Segment.SYSTEM, text), *middle, (Segment.ANSWER, text)]
    places = {segment: [span[1] for span in chat.spans if span[0] == segment] for segment, *_ in chat.spans}
    assert places[Segment.SYSTEM] == [len("<|im_start|>system\n")]
    first = start + (len(sound) if order == "media_first" else len(text + listed + sound))
    assert places[Segment.CONTEXT] == [first, first + len(text + sound)]
    assert places[Segment.ANSWER] == [len(chat.text) - len(text)]


def test_repeated_texts_and_the_templates_own_system_message():
    tokens = MODEL.prepare(["A", TONE, "A", TONE, "A", TONE], "A").tokens
    assert said(tokens, Segment.CONTEXT) == ["A", "A", "A"] and said(tokens, Segment.QUESTION) == ["A"]
    assert said(tokens, Segment.SYSTEM) == ["You are a helpful assistant."]
    silent = MODEL.prepare([TONE, "A"], "what ?", system="").tokens
    assert len(silent.system) == 0 and said(silent, Segment.QUESTION) == ["what ?"]


def test_options_are_lettered_to_z_and_no_further():
    chat = write_chat(TOKENIZER, [], "which ?", PromptOptions(options=("x",) * 26))
    assert chat.text[slice(*chat.spans[2][1:])].endswith("\nZ. x")
    with pytest.raises(PromptError, match="27 options were given, but they are lettered A to Z. Pass at most 26"):
        write_chat(TOKENIZER, [], "which ?", PromptOptions(options=("x",) * 27))


@pytest.mark.parametrize(
    ("writes", "parts", "question", "changed"),
    [
        ("{{ part['text'] | trim }}", ["and"], "is it ? ", "is it \\? "),
        ("{{ part['text'] | upper }}", ["AND"], "is it ?", "is it \\?"),
        ("{{ part['text'] }}{{ part['text'] }}", ["and"], "", "and"),
        ("", ["and"], "", "and"),
        ("{{ part['text'] }}{% if part['text'] == 'why' %}?{% endif %}", ["and"], "why", "why"),
    ],
)
def test_a_template_that_changes_a_text_is_refused(writes, parts, question, changed):
    tokenizer = tiny_tokenizer(template=CHAT_TEMPLATE.replace("{{ part['text'] }}", writes))
    with pytest.raises(PromptError, match=f"changed the text '{changed}'. Write it as the template leaves it"):
        write_chat(tokenizer, parts, question, PromptOptions())


def test_a_long_prompt_is_put_together_in_seconds():
    began = time.process_time()
    tokens = MODEL.prepare([TONE, "first"], " ".join(f"word{i % 97}" for i in range(40_000))).tokens
    assert time.process_time() - began < 4
    assert len(tokens.question) > 40_000 and torch.equal(tokens.question.positions.diff().unique(), torch.tensor([1]))
    assert "".join(tokens.strings[i] for i in tokens.question) == " ".join(f"word{i % 97}" for i in range(40_000))
