"""A model in a terminal: prompts completed once, and a chat that streams."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, TextIO

from lmx.sampling.engine import Engine
from lmx.sampling.prompt import encode_messages
from lmx.sampling.request import Completion, Request, Sampling
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.protocol import Tokenizer

Message = dict[str, Any]
HELP = "/reset forgets the conversation, /exit (or the end of the input) leaves, Ctrl-C stops an answer."


def stream(engine: Engine, request: Request, output: TextIO) -> Completion:
    """Completes one request, and writes its text as it comes; Ctrl-C stops it, what has been written stays.

    Raises:
      ValueError: the engine can't serve it.
    """
    engine.check(request)
    identity = engine.submit(request)
    completion: Completion | None = None
    with _interrupts() as interrupted:
        while completion is None:
            if interrupted:
                engine.cancel(identity)
            for event in engine.step():
                output.write(shown(event.text, output))
                output.flush()
                completion = event.completion or completion
    return completion


def complete(engine: Engine, requests: Sequence[Request], texts: Sequence[str], output: TextIO) -> None:
    """Completes several requests and writes their texts, each below its prompt and number if there is more than one.

    Raises:
      ValueError: the engine can't serve one of them.
    """
    for request in requests:
        engine.check(request)
    alone = len(requests) == 1 and requests[0].n == 1
    for number, (text, completions) in enumerate(zip(texts, engine.run(requests), strict=True), start=1):
        for sample, completion in enumerate(completions, start=1):
            if not alone:
                which = f"prompt {number}" + (f", sample {sample}" if len(completions) > 1 else "")
                output.write(shown(f"--- {which}: {shortened(text)}\n", output))
            output.write(shown(completion.text or "", output) + "\n")


@dataclasses.dataclass
class Session:
    """A conversation: what was said, and how answers are drawn.

    Attributes:
      engine: idle between answers.
      tokenizer: of the model.
      chat: its chat format.
      sampling: how to draw; `max_new_tokens` is the most of one answer.
      max_length: tokens that the conversation and the answer share.
      seed: of the first answer; each further one counts up.
      system: the first message, None = none.
    """

    engine: Engine
    tokenizer: Tokenizer
    chat: Chat
    sampling: Sampling
    max_length: int
    seed: int = 0
    system: str | None = None
    messages: list[Message] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def answer(self, text: str, output: TextIO, notice: Callable[[str], None]) -> None:
        """Answers a message; the oldest turns are dropped where the context has no room for them, and that is said.

        Raises:
          ValueError: the message alone is too long, or the template refuses the conversation. It is then forgotten.
        """
        former = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            prompt, dropped = self._fitting_prompt()
            if dropped:
                notice(f"the context of {self.max_length} tokens is full: the oldest {dropped} messages are forgotten")
            sampling = dataclasses.replace(
                self.sampling, max_new_tokens=min(self.sampling.max_new_tokens, self.max_length - len(prompt))
            )
            completion = stream(self.engine, Request(prompt=prompt, sampling=sampling, seed=self.seed), output)
        except ValueError:
            self.messages = former
            raise
        self.seed += 1
        output.write("\n")
        self.messages.append({"role": "assistant", "content": completion.text or ""})
        if completion.finish_reason == "length":
            notice(f"stopped after {len(completion.tokens)} tokens, the most there was room for or --max-new-tokens allows")

    def _fitting_prompt(self) -> tuple[list[int], int]:
        """The conversation's ids with room for an answer, and how many messages had to go for it."""
        first = 0 if self.system is None else 1
        wanted = min(self.sampling.max_new_tokens, self.max_length // 4)
        dropped = 0
        while True:
            prompt = encode_messages(self.tokenizer, self.chat, self.messages)
            if len(prompt) + wanted <= self.max_length:
                return prompt, dropped
            if len(self.messages) <= first + 1:
                if len(prompt) < self.max_length:  # a shorter answer is better than none
                    return prompt, dropped
                raise ValueError(f"the message has {len(prompt)} tokens, more than the context of {self.max_length}; shorten it")
            # A question goes with its answer, so that roles still alternate.
            turn = 2 if self.messages[first + 1]["role"] == "assistant" else 1
            del self.messages[first : first + turn]
            dropped += turn


def converse(session: Session, lines: Iterator[str], output: TextIO, notice: Callable[[str], None]) -> None:
    """Answers line after line until /exit or their end."""
    for line in lines:
        text = line.strip()
        if text == "/exit":
            return
        if text == "/reset":
            session.reset()
            notice("the conversation is forgotten")
        elif text.startswith("/") and text[1:].isalpha():
            notice(f"unknown command {shortened(text)}: {HELP}")
        elif text:
            try:
                session.answer(text, output, notice)
            except ValueError as error:
                notice(str(error))


def typed_lines(prompt: str) -> Iterator[str]:
    """Lines from a keyboard; Ctrl-C clears the line."""
    while True:
        try:
            yield input(prompt)
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return


def shown(text: str, output: TextIO) -> str:
    """The text as it can be written: without what a terminal would obey, if it goes to one, and without lone surrogates."""
    if output.isatty():
        text = "".join(char if char in "\t\n" or not _is_control(char) else "\ufffd" for char in text)
    return text.encode("utf-8", "replace").decode("utf-8")


def shortened(text: str, characters: int = 60) -> str:
    """The beginning of a text on one line."""
    line = " ".join("".join(" " if _is_control(char) else char for char in text).split())
    return line if len(line) <= characters else line[: characters - 1] + "…"


def _is_control(char: str) -> bool:
    return ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that Ctrl-C adds to, instead of interrupting whatever the engine is at; the second one interrupts even that."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield received
        return

    def receive(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    former = signal.signal(signal.SIGINT, receive)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, former)
