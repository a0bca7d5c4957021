"""A model in a terminal: streams, a conversation with a bounded context, commands."""

import io
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from lmx.sampling.request import Completion, Request, Sampling
from lmx.serve import terminal
from lmx.serve.terminal import Session
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.chat import Chat

BYTES = ByteTokenizer()
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
)


class Screen(io.StringIO):
    """A terminal, as far as `isatty` goes."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def session(scripted: Callable[..., Any]) -> Session:
    sampling = Sampling(max_new_tokens=3)
    return Session(engine=scripted(), tokenizer=BYTES, chat=Chat(TEMPLATE), sampling=sampling, max_length=60, system="S", seed=5)


def said(session: Session) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in session.messages]


def test_answers_are_written_as_they_come_and_remembered(session: Session) -> None:
    output, notices = io.StringIO(), []
    session.answer("hello", output, notices.append)
    assert output.getvalue() == "abc\n" and notices == [
        "stopped after 3 tokens, the most there was room for or --max-new-tokens allows"
    ]
    assert said(session) == [("system", "S"), ("user", "hello"), ("assistant", "abc")]
    engine: Any = session.engine
    assert (
        engine.requests[1].prompt == BYTES.encode_with_specials("<s>system:S</s><s>user:hello</s><s>")
        and engine.requests[1].seed == 5
    )
    session.answer("more", output, notices.append)
    assert BYTES.decode(engine.requests[2].prompt) == "system:Suser:helloassistant:abcuser:more" and engine.requests[2].seed == 6


def test_the_oldest_turns_are_dropped_when_the_context_is_full_and_the_system_stays(session: Session) -> None:
    notices: list[str] = []
    session.answer("first question", io.StringIO(), notices.append)
    session.answer("second", io.StringIO(), notices.append)
    assert notices[1] == "the context of 60 tokens is full: the oldest 2 messages are forgotten"
    assert said(session) == [("system", "S"), ("user", "second"), ("assistant", "abc")]


def test_a_message_longer_than_the_context_is_refused_and_forgotten(session: Session) -> None:
    before = said(session)
    with pytest.raises(ValueError, match="the message has 81 tokens, more than the context of 60; shorten it"):
        session.answer("x" * 63, io.StringIO(), lambda text: None)
    assert said(session) == before


def test_commands_reset_and_exit_and_unknown_ones_are_named(session: Session) -> None:
    output, notices = io.StringIO(), []
    lines = iter(["hi\n", "\n", "/reset\n", "/what\n", "/etc/passwd is a file\n", "/exit\n", "never\n"])
    terminal.converse(session, lines, output, notices.append)
    assert output.getvalue() == "abc\nabc\n" and next(lines) == "never\n"
    assert notices[1] == "the conversation is forgotten" and notices[2].startswith("unknown command /what: /reset forgets")
    assert said(session) == [("system", "S"), ("user", "/etc/passwd is a file"), ("assistant", "abc")]


def test_what_cannot_be_answered_is_said_and_the_chat_goes_on(session: Session) -> None:
    output, notices = io.StringIO(), []
    terminal.converse(session, iter(["x" * 63, "\udcff", "hi"]), output, notices.append)
    assert "more than the context" in notices[0] and "lone surrogate" in notices[1]
    assert output.getvalue() == "abc\n"


def test_ctrl_c_stops_the_answer_and_what_was_written_stays(session: Session, scripted: Any) -> None:
    engine = scripted()
    step = engine.step

    def interrupted_step() -> Any:
        if engine.rows and len(engine.rows[1, 0]) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step()

    engine.step = interrupted_step
    former = signal.getsignal(signal.SIGINT)
    output = io.StringIO()
    completion = terminal.stream(engine, Request(prompt=[5], sampling=Sampling(max_new_tokens=100)), output)
    assert completion.finish_reason == "cancelled" and engine.cancelled == [1]
    assert output.getvalue() == completion.text == "abc"
    assert signal.getsignal(signal.SIGINT) is former


def test_a_terminal_is_sent_no_control_characters_and_a_file_gets_all() -> None:
    text = "a\x1b[2Jb\tc\n\ud800"
    assert terminal.shown(text, Screen()) == "a\ufffd[2Jb\tc\n?"
    assert terminal.shown(text, io.StringIO()) == "a\x1b[2Jb\tc\n?"
    assert terminal.shortened("one\ntwo  \x1bthree" + "x" * 100) == "one two three" + "x" * 46 + "…"


def test_several_answers_are_told_apart(scripted: Any) -> None:
    engine = scripted()
    engine.run = lambda requests: [[Completion([100], None, "stop", f"{i}{j}") for j in range(2)] for i in range(len(requests))]  # type: ignore[arg-type]
    output = io.StringIO()
    requests = [Request(prompt=[5], sampling=Sampling(max_new_tokens=2), n=2)] * 2
    terminal.complete(engine, requests, ["a", "b"], output)
    assert output.getvalue().splitlines() == [
        "--- prompt 1, sample 1: a",
        "00",
        "--- prompt 1, sample 2: a",
        "01",
        "--- prompt 2, sample 1: b",
        "10",
        "--- prompt 2, sample 2: b",
        "11",
    ]
