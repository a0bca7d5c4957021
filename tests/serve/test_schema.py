"""Bodies: what is understood, and what is refused rather than ignored."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.serve import body as bodies
from lmx.serve.error import ApiError
from lmx.serve.schema import chat_call, completion_call

TEXT = {"prompt": "hello"}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2], [[1, 2], [3]]])
def test_a_prompt_has_four_forms(prompt: Any) -> None:
    call = completion_call({"prompt": prompt})
    assert call.prompts == ([prompt] if prompt in ("a", [1, 2]) else prompt)
    assert (call.draw.max_tokens, call.draw.n, call.draw.stream, call.echo) == (16, 1, False, False)


def test_what_is_left_out_is_the_apis_default_and_null_is_left_out() -> None:
    call = completion_call(TEXT | {"stop": None, "temperature": None, "suffix": None, "best_of": None, "logit_bias": None})
    assert call.draw.options == {}
    assert chat_call(CHAT).draw.max_tokens is None
    assert 0 <= call.draw.seed < 2**64 and call.draw.seed != completion_call(TEXT).draw.seed


def test_sampling_parameters_reach_the_engine() -> None:
    given_values = {"temperature": 0, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2, "stop": "x", "logprobs": 3}
    draw = completion_call(TEXT | given_values | {"seed": -1, "n": 2, "best_of": 2}).draw
    sampling = draw.sampling(5, stop_ids=[9])
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.5, 7, 0.1)
    assert (sampling.repetition_penalty, sampling.stop, sampling.top_logprobs, sampling.stop_ids) == (1.2, ("x",), 3, (9,))
    assert (draw.seed, draw.n, draw.logprobs) == (2**64 - 1, 2, True)


def test_what_changes_no_result_is_accepted() -> None:
    harmless = {"user": "a", "metadata": {"b": "c"}, "store": False, "service_tier": "auto"}
    neutral = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}}
    seeded = {"seed": 1}
    assert completion_call(TEXT | seeded | harmless | neutral | {"suffix": None}) == completion_call(TEXT | seeded)
    more = {"response_format": {"type": "text"}, "modalities": ["text"], "tool_choice": "none", "parallel_tool_calls": True}
    assert chat_call(CHAT | seeded | harmless | neutral | more) == chat_call(CHAT | seeded)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"suffix": "end"}, "suffix is not supported by this server; leave it out"),
        ({"best_of": 3}, "best_of is not supported by this server; leave it out (or send 1 or null)"),
        ({"presence_penalty": 0.5}, "presence_penalty is not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias is not supported"),
        (
            {"max_token": 5},
            "unknown field 'max_token': it could change the result, so it is not ignored; did you mean 'max_tokens'?",
        ),
        ({"prompt": []}, "found an empty list"),
        ({"prompt": [1, "a"]}, "found a list of something else"),
        ({"prompt": [True]}, "found a list of something else"),
        ({"prompt": None}, "found null"),
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number, found a number"),
        ({"max_tokens": True}, "max_tokens must be a whole number, found a boolean"),
        ({"temperature": -1}, "temperature=-1.0 must be between 0 and 100"),
        ({"temperature": "hot"}, "temperature must be a finite number, found a string"),
        ({"n": 0}, "n=0 must be between 1 and 128"),
        ({"logprobs": 6}, "logprobs=6 must be between 0 and 5"),
        ({"logprobs": True}, "logprobs must be a whole number"),
        ({"stop": ["a"] * 5}, "stop has 5 strings; at most 4 are allowed"),
        ({"stop": [1]}, "stop must be a string or a list of strings"),
        ({"stream": "yes"}, "stream must be true or false, found a string"),
        ({"stream_options": {"include_usage": True}}, "stream_options needs stream=true"),
        ({"stream": True, "stream_options": {"a": 1}}, "unknown field 'stream_options.a'"),
    ],
)
def test_a_completion_that_cannot_be_served_as_asked_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ApiError) as caught:
        completion_call(TEXT | change)
    assert caught.value.status == 400 and sentence in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"top_p": 0}, "top_p=0.0 must lie in (0, 1]"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"repetition_penalty": 0}, "repetition_penalty=0.0 must be a finite number above 0"),
        ({"stop": ""}, "must be a tuple of texts that are not empty"),
    ],
)
def test_parameters_out_of_their_range_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ApiError) as caught:
        completion_call(TEXT | change).draw.sampling(5)
    assert caught.value.status == 400 and sentence in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"messages": []}, "messages must be a list of at least one message"),
        ({"messages": "hi"}, "found a string"),
        ({"messages": ["hi"]}, "messages.0 must be an object, found a string"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages.0.role must be one of system, developer, user"),
        ({"messages": [{"role": "user"}]}, "messages.0.content is missing"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content must be a string or a list of text parts"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.type is 'image_url', but this model reads text alone",
        ),
        ({"messages": [{"role": "user", "content": "a", "weight": 1}]}, "unknown field 'messages.0.weight'"),
        (
            {"response_format": {"type": "json_object"}},
            'response_format is not supported by this server; leave it out (or send {"type"',
        ),
        ({"tool_choice": "required"}, "tool_choice is not supported"),
        ({"tools": ["a"]}, "tools must be a list of objects"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs=true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs=21 must be between 0 and 20"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "contradict each other"),
        ({"reasoning_effort": "high"}, "unknown field 'reasoning_effort'"),
    ],
)
def test_a_chat_that_cannot_be_served_as_asked_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat_call(CHAT | change)
    assert caught.value.status == 400 and sentence in str(caught.value)


def test_parts_of_text_are_joined_and_developers_are_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    history = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts, "name": "me"}]
    assert chat_call({"messages": history}).messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab", "name": "me"},
    ]


def test_tools_are_kept_for_the_template_unless_none_may_be_used() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert chat_call(CHAT | {"tools": tools, "tool_choice": "auto"}).tools == tools
    assert chat_call(CHAT | {"tools": tools, "tool_choice": "none"}).tools is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = (
    "prompt",
    "messages",
    "n",
    "stop",
    "logprobs",
    "stream",
    "stream_options",
    "tools",
    "temperature",
    "seed",
    "max_tokens",
    "echo",
)


@given(body=st.dictionaries(st.sampled_from((*NAMES, "x")), JSON, max_size=6))
def test_whatever_comes_is_understood_or_refused_in_one_sentence(body: dict[str, Any]) -> None:
    for read in (completion_call, chat_call):
        try:
            read(body)
        except ApiError as error:
            assert error.status == 400 and "\n" not in str(error)


@given(data=st.binary(max_size=200) | JSON.map(lambda value: repr(value).encode("utf-8", "surrogatepass")))
def test_whatever_bytes_come_are_an_object_or_refused(data: bytes) -> None:
    try:
        assert isinstance(bodies.parse(data), dict)
    except ApiError as error:
        assert error.status == 400
