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
    "iterators": "{% if messages | selectattr('role', 'equalto', 'tool') %}tools{% endif %}x"
    "{% set u = messages|map(attribute='role') %}{% for r in u %}{{ r }}{% endfor %}{% for r in u %}{{ r }}{% endfor %}"
    "{% set v = [3, 4, 5]|map('string') %}{{ v|first }}"
    "{{ v|list }}{{ v|list }}{{ messages|rejectattr('role', 'in', ['user'])|map(attribute='role')|join }}{{ u is sequence }}",
    "blocks": "{% set x | replace('a', 'b') | upper %}aaa{% endset %}{{ x }}{% for i in range(2) %}"
    "{% filter indent(2) %}{{ i }}\n{% filter replace('1', x) %}l1\n{% endfilter %}{% endfilter %}{% endfor %}"
    "{% set ns = namespace(y=0) %}"
    "{% set ns.y | trim %} {% set z | center(5) %}z{% endset %}{{ z }} {% endset %}{{ ns.y }}"
    "{% macro f() %}{% filter replace(' ', '-') %}a b{{ caller() }}{% endfilter %}{% endmacro %}{% call f() %} c{% endcall %}",
    "numbers": "{{ 1700000000|string }}{{ '%d' % 1700000000 }}{{ 1700000000 % 7 }}{{ 1700000000 * 0.5 }}"
    "{{ '{}: {:>9,}'.format('99999999999', 1700000000) }}{{ '**%s** 100%%' % 'a' }}{{ 1700000000|round(2) }}"
    "{{ 2 ** 2000 // 3 ** 1200 }}{{ {'t': 1700000000}|tojson }}"
    "{{ 17.125|round(2) }}{{ '{{}} {}'.format(1) }}",
    "loops given": "{% macro f(l) %}{{ l.index }}{{ l is defined }}{% endmacro %}{% for m in messages if m.role %}{{ f(loop) }}"
    "{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}{% endfor %}{{ {'a': 1}.items()|list }}{{ {'a': 1}.keys()|join }}",
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
    "twice, namespaces": "{% set n = namespace(x=1) %}{% for i in R99 %}"
    "{% set n.x = [namespace(v=n.x), namespace(v=n.x)] %}{% endfor %}{{ n.x }}",
    "twice, views": "{% set n = namespace(x={1: 1}) %}{% for i in R99 %}"
    "{% set n.x = {1: n.x.items(), 2: n.x.values()} %}{% endfor %}{{ n.x }}",
    "twice, views' mappings": "{% set n = namespace(x={1: 1}) %}{% for i in R99 %}"
    "{% set n.x = {1: n.x.items().mapping, 2: n.x.keys().mapping} %}{% endfor %}{{ n.x }}",
    "widths, in tuples": "{{ '%*d' % (400000000, 1) }}",
    "widths, in lists": "{{ '{0[0]:{0[1]}}'.format([1, 400000000]) }}",
    "widths, in texts": "{{ '{:{}{}}'.format(1, '4000', '00000') }}",
    "widths, of bytes": "{{ '%400000000d'.encode() % 1 }}",
    "widths, in other digits": "{{ '{:٤٠٠٠٠٠٠٠٠}'.format(1) }}",
    "widths, of each": "{{ ['%400000000d']|map('format', 1)|list }}",
    "tags": "{{ ('<!---->' * 200000) | striptags }}",
    "tags, a method": "{{ (('<!---->' * 200000) | safe).striptags() }}",
    "tags of each": "{{ ['<!---->' * 200000] | map('striptags') | join }}",
    "one long word": "{{ ('a' * 9000000) | wordwrap(1) }}",
    "an encoding": "{{ ('é' * 9000000).encode('punycode') }}",
    "division": "{{ ((3**4000000) // (3**2000000)) % 10 }}",
    "division of read numbers": "{% set x = ('f' * 5000000)|int(base=16) %}{{ (x * x) // x }}",
    "rounding": "{{ 1|round(99999999, 'ceil') }}",
    "what a loop has left": "{% for i in R %}{{ loop|map('center', 99999)|list|length }}{% endfor %}",
    "what a filter has left": "{% set x = R|map('string') %}{{ x|map('center', 99999)|list|length }}",
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


def test_a_long_conversation_may_be_asked_for_its_length_at_each_turn():
    source = "{% for m in messages %}{% if loop.index0 < messages|length - 1 %}{{ m.content }}{% endif %}{% endfor %}"
    chat = [{"role": ("user", "assistant")[i % 2], "content": f"{i} " * 1000} for i in range(300)]
    wanted, _ = render_jinja_template([chat], chat_template=source)
    assert render(source, messages=chat) == wanted[0]


def test_a_checkpoint_with_such_a_template_says_so(tmp_path):
    model = HookedAVModel.from_pretrained("avlens-tiny")
    model.family.tokenizer.chat_template = HOSTILE["loops in loops"].replace("R", "range(100000)")
    with pytest.raises(PromptError, match="Take the template from the released checkpoint"):
        model.prepare([], "what ?")
