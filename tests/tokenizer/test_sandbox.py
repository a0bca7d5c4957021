"""Chat templates of strangers: what transformers' templates may do, and what the sandbox stops."""

import resource
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from lmx.tokenizer import budget
from lmx.tokenizer.sandbox import Template


def rendered(source: str, **variables: object) -> str:
    return Template(source).render(variables)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a{% generation %}b{% endgeneration %}c", "abc"),
        ("{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{{ ',' if not loop.last }}{% endfor %}", "1,3"),
        ("{% for x in [1, 2, 3] %}{{ x }}{% if x == 2 %}{% break %}{% endif %}{% endfor %}", "12"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),  # trim_blocks and lstrip_blocks
        ("{{ {'a': '<é&\"'} | tojson }}", '{"a": "<é&\\""}'),
        ("{{ {'b': 1, 'a': [2]} | tojson(indent=2, sort_keys=true) }}", '{\n  "a": [\n    2\n  ],\n  "b": 1\n}'),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("{% set ns = namespace(n=0) %}{% for x in range(4) %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}", "6"),
        ("{% macro f(x, y='!') %}{{ x }}{{ y }}{% endmacro %}{{ f('a') }}{{ f('b', y='?') }}", "a!b?"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x | trim | upper }}", "A1"),
        ("{{ 'a,b'.split(',') | join('-') }}{{ 'x' ~ 1 ~ none }}{{ '%02d' % 7 }}", "a-bx1None07"),
        ("{{ m.content[:2] }}{{ m['content'] | length }}{{ m.get('no') is none }}{{ m.no is defined }}", "ab3TrueFalse"),
        ("{% for k, v in m.items() %}{{ k }}={{ v }}{% endfor %}{{ [m] | map(attribute='content') | list }}", "content=abc['abc']"),
        ("{{ [1, 2][::-1] }}{{ 'b' in ['a', 'b'] }}{{ 7 // 2 }}{{ 2 ** 3 }}{{ 'ab' * 2 }}", "[2, 1]True38abab"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ dict(a=1) | tojson }}{{ {'a': 1} | items | list }}", "{\"a\": 1}[('a', 1)]"),
    ],
)
def test_templates_may_do_what_transformers_lets_them(source: str, text: str) -> None:
    assert rendered(source, m={"content": "abc"}) == text


def test_generation_blocks_are_marked() -> None:
    source = "{% for x in 'ab' %}{{ x }}{%- generation -%} {{ x }} {% endgeneration %}{% endfor %}"
    assert Template(source).render({}, starts="<", ends=">") == "a<a >b<b >"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ [].__class__.__base__.__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ (raise_exception | attr('__globals__'))['os'].system('true') }}",
        "{{ raise_exception.__globals__['time'].sleep(9) }}",
        "{{ namespace.__init__.__globals__.x }}",
        "{{ range.__self__.open('/etc/passwd') }}",
        "{{ '{0.__class__}'.format(1).x() }}",
        "{{ 'x'.format_map({}) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ messages.append(1) }}",
        "{{ m.update(a=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ self._TemplateReference__context }}{{ self }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ lipsum.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ ''.encode }}{{ ''.encode('utf-8') }}",
        "{{ x.y }}",
    ],
)
def test_templates_that_reach_for_python_are_refused_with_a_sentence(source: str) -> None:
    with pytest.raises(ValueError, match="the chat template (does what the sandbox forbids|refuses|fails|was stopped)"):
        rendered(source, messages=[], m={})


DOUBLING = "{{% set ns = namespace(x={start}) %}}{{% for i in range(70) %}}{step}{{% endfor %}}{{{{ ns.x }}}}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 1000000000 }}",
        "{{ [0] * 1000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ (2 ** 64) ** 64 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ 'a' | indent(1000000000) }}",
        "{{ 'a' | indent('x' * 1000) }}",
        "{{ 1.5 | round(1000000000, 'ceil') }}",
        "{{ 1.5 | round(precision=1000000000, method='ceil') }}",
        "{% set x = 'a' * 999999 %}{{ x | replace(old='a', new=x) }}",
        "{% set x = 'a' * 999999 %}{{ x.replace('', x) }}",
        "{% set x = 'a' * 999999 %}{{ '%(a)s' * 99999 % {'a': x} }}",
        "{{ [1] | tojson(indent=1000000000) }}",
        "{{ strftime_now('%9999999Y') }}",
        "{{ range(1000000000) | list }}",
        DOUBLING.format(start="'a'", step="{% set ns.x = ns.x ~ ns.x %}"),
        DOUBLING.format(start="'a'", step="{% set ns.x = ns.x + ns.x %}"),
        DOUBLING.format(start="'a'", step="{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
        DOUBLING.format(start="'aa'", step="{% set ns.x = ns.x.replace('a', 'aaaa') %}"),
        DOUBLING.format(start="'aa'", step="{% set ns.x = ns.x | replace('a', 'aaaa') %}"),
        DOUBLING.format(start="'aa'", step="{% set ns.x = ns.x.join(ns.x) %}"),
        DOUBLING.format(start="'aa'", step="{% set ns.x = ns.x | list | join(ns.x) %}"),
        DOUBLING.format(start="[1]", step="{% set ns.x = [ns.x, ns.x] %}"),
        DOUBLING.format(start="[1]", step="{% set ns.x = (ns.x, ns.x) %}"),
        DOUBLING.format(start="[1]", step="{% set ns.x = {'a': ns.x, 'b': ns.x} %}"),
        DOUBLING.format(start="[1]", step="{% set ns.x = dict(a=ns.x, b=ns.x) %}"),
        DOUBLING.format(start="[1]", step="{% set ns.x = ns.x + ns.x %}"),
        DOUBLING.format(start="3", step="{% set ns.x = ns.x * ns.x %}"),
        "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% for i in range(99999) %}{% set x = range(99999) | list %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}{% endfor %}",
    ],
)
def test_templates_that_eat_memory_are_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "SECONDS", 1.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with pytest.raises(ValueError, match="the chat template (was stopped|fails)"):
        rendered(source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 2**10  # KiB
    assert time.monotonic() - began < 4 * budget.SECONDS


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_templates_that_run_forever_are_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "SECONDS", 0.2)
    with pytest.raises(ValueError, match=r"the chat template was stopped: the template takes more than 0.2 seconds"):
        rendered(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "not valid Jinja, line 1"),
        ("a\n{{ 'x' | center(10) }}", "not valid Jinja, line 2: No filter named 'center'"),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "cannot be compiled"),
        ("{% for x in y %}" * 60 + "{% endfor %}" * 60, "cannot be compiled|not valid Jinja"),
        ("x" * (2**18 + 1), "has 262145 characters; the limit is 262144"),
    ],
)
def test_templates_that_are_no_templates_are_refused(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Template(source)


def test_a_template_may_refuse_a_conversation_in_its_own_words() -> None:
    with pytest.raises(ValueError, match="refuses this conversation: No system messages, please"):
        rendered("{{ raise_exception('No system\n messages, please') }}")


def test_long_conversations_are_no_attack() -> None:
    messages = [{"role": "user", "content": "word " * 20_000} for _ in range(20)]
    text = rendered("{% for m in messages %}{{ '<' ~ m.role ~ '>' + m['content'] | trim + '\n' }}{% endfor %}", messages=messages)
    assert len(text) == 20 * (6 + 99_999 + 1)
    counted = "{% for m in messages %}{{ (messages | length) - loop.index0 }}{{ (messages | first).role }}{% endfor %}"
    assert len(rendered(counted, messages=messages * 10)) > 800


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    source=st.lists(st.sampled_from(["{{", "}}", "{%", "%}", " for x in m ", " if m ", "m", "|", "a", "(", ")", "[", "'"]))
)
def test_any_source_is_rendered_or_refused_with_a_sentence(source: list[str]) -> None:
    try:
        rendered("".join(source), m=[1, "a", {"b": None}])
    except ValueError as error:
        assert str(error).startswith("the chat template")
