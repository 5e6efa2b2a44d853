"""Chat templates write what transformers writes with them, and come to an end."""

import time

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from avlens import HookedAVModel
from avlens.errors import PromptError
from avlens.templates import render
from avlens.zoo.tokenizer import CHAT_TEMPLATE

CHAT = [
    {"role": "system", "content": [{"type": "text", "text": "be kind"}]},
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": " what <b> & 100% "}, {"type": "audio"}]},
]
HONEST = {
    "ours": CHAT_TEMPLATE,
    "loops": "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% for c in m.content if c.type == 'text' %}"
    "{% set ns.n = ns.n + 1 %}{{ loop.index }} {{ loop.last }} {{ loop.length }} {{ c.text|trim }}{% else %}none{% endfor %}\n"
    "  {%- if loop.index0 == 5 %}{% break %}{% endif %}{% endfor %}{{ ns.n }}",
    "filters": "{{ messages|tojson(indent=2) }}{{ messages|map(attribute='role')|map('upper')|join(', ') }}{{ x|default('z') }}"
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ '%s-%05d' % ('a', 3) }}{{ '{:>4}'.format(7) }}"
    "{% for some in range(5)|batch(2) %}{{ some }}{% endfor %}{{ [1, 2]|sum }}"
    "{{ messages[1].content|map(attribute='type')|list }}",
    "macros": "{% macro f(x, y='q') %}{{ x ~ y }}{{ caller() }}{% endmacro %}{% call f(1) %}in{% endcall %}"
    "{% set z | trim | upper %}  q {% endset %}{{ z }}{% filter upper %}b{% endfilter %}{% generation %}hi{% endgeneration %}",
    "tests": "{{ 'a' if messages is defined and messages[0].role in ['system', 'user'] and tools is none else 'b' }}"
    "{%- set a, b = 1, 2.5 -%}{{ a + b * 2 - 1 }} {{ 7 // 2 }} {{ 2 ** 8 }} {{ -a }} {{ a < b <= 3 }} {{ messages is sequence }}"
    "{{ {'k': (a, b)} }}{{ messages[0].get('name', 'n') }}{{ 'x'.join(['p', 'q']) }}{{ bos_token }}",
    "recursion": "{% for i in [[1, [2, 3]], 4] recursive %}"
    "{% if i is iterable %}({{ loop(i) }}){% else %}{{ i }}{% endif %}{% endfor %}",
}  # fmt: skip
HOSTILE = {
    "loops in loops": "{% for i in R %}{% for j in R %}{% endfor %}{% endfor %}",
    "loops that skip": "{% for i in R %}{% for j in R if false %}{% endfor %}{% endfor %}",
    "recursion": "{% for i in R recursive %}{{ loop(R) }}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
    "much fixed text": "{% for i in R %}" + "x" * 20_000 + "{% endfor %}",
    "a long text": "{{ 'a' * 10**10 }}",
    "a long list": "{{ [1] * 10**10 }}",
    "a long text of many": "{% set ns = namespace(x='') %}{% for i in R %}{% set ns.x = ns.x + 'a' * 10000 %}{% endfor %}",
    "a large number": "{{ 10**(10**10) }}",
    "large numbers": "{% set x = 10**1000000 %}{% for i in R %}{% set y = x * x %}{% endfor %}",
    "a filter": "{{ 'a'|center(99999999999) }}",
    "a filter of a filter": "{{ R|map('center', 99999)|list|length }}",
    "a filter's list": "{{ 'a'|center(*[9999999999]) }}",
    "a filter's option": "{{ {'a': 1}|tojson(indent=9999999999) }}",
    "a block's filter": "{% filter center(9999999999) %}x{% endfilter %}",
    "a set block's filter": "{% set x | trim | center(9999999999) %}x{% endset %}",
    "a method": "{{ 'a'.ljust(99999999999) }}",
    "a method's list": "{{ 'a'.center(*[9999999999]) }}",
    "a replacement": "{{ ('a' * 10000).replace('', 'a' * 100000) }}",
    "a join": "{{ ('a' * 100000).join(R|map('string')) }}",
    "widths, %": "{{ '%999999999d' % 1 }}",
    "widths, format": "{{ '{:999999999}'.format(1) }}",
    "widths, given": "{{ '{:{}}'.format(1, 999999999) }}",
    "widths, filter": "{{ '%999999999d'|format(1) }}",
    "twice, joined": "{% set ns = namespace(x='aa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "twice, written": "{% set n = namespace(x='a') %}{% for i in R99 %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "twice, lists": "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "twice, dicts": "{% set ns = namespace(x=1) %}{% for i in R99 %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "searching": "{% set l = R|list %}{% for i in R %}{% if -1 in l or i is in l %}{% endif %}{% endfor %}",
    "copying": "{% set l = 'a' * 1000000 %}{% for i in R %}{% set y = l[1:] %}{% endfor %}",
    "adding": "{{ (R|batch(1)|list|sum(start=[]))|length }}",
    "sorting": "{% for i in R %}{% set x = R|sort %}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_templates_write_what_transformers_writes(name):
    given = {"add_generation_prompt": True, "bos_token": "<s>"}
    wanted, _ = render_jinja_template([CHAT], chat_template=HONEST[name], **given)
    assert render(HONEST[name], messages=CHAT, tools=None, documents=None, **given) == wanted[0]


@pytest.mark.parametrize("name", HOSTILE)
def test_templates_that_would_not_end_are_refused(name):
    started = time.process_time()
    with pytest.raises(PromptError, match="chat template (takes more|uses the filter)"):
        render(HOSTILE[name].replace("R99", "range(99)").replace("R", "range(100000)"), messages=CHAT)
    assert time.process_time() - started < 5


def test_a_long_question_is_far_from_what_a_template_may_take():
    text = "what do you hear ? " * 50_000
    chat = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    assert text in render(CHAT_TEMPLATE, messages=chat, add_generation_prompt=True)


def test_a_checkpoint_with_such_a_template_says_so(tmp_path):
    model = HookedAVModel.from_pretrained("avlens-tiny")
    model.family.tokenizer.chat_template = HOSTILE["loops in loops"].replace("R", "range(100000)")
    with pytest.raises(PromptError, match="Take the template from the released checkpoint"):
        model.prepare([], "what ?")
