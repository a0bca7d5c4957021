"""Stop texts and the text that may be shown."""

import hypothesis
import hypothesis.strategies as st
import pytest

from lmx.sampling.stopping import StoppedText
from lmx.tokenizer.bytes import ByteTokenizer

TOKENIZER = ByteTokenizer()


def stream(text: str, stop: tuple[str, ...]) -> tuple[list[str], bool]:
    """What is shown after each byte and at the end, and whether a stop text was met before the end."""
    stopped = StoppedText(TOKENIZER, stop)
    shown = [stopped.push(index) for index in TOKENIZER.encode(text)]
    return [*shown, stopped.finish()], stopped.stopped


@hypothesis.given(
    st.text(st.sampled_from("abé "), max_size=24), st.lists(st.text(st.sampled_from("abé"), min_size=1, max_size=4), max_size=3)
)
def test_the_text_ends_before_the_first_stop_text_that_is_complete(text: str, stop: list[str]) -> None:
    shown, stopped = stream(text, tuple(stop))
    end, place = next(
        (
            (end, min(text[:end].find(s) for s in stop if text[:end].find(s) >= 0))
            for end in range(len(text) + 1)
            if any(s in text[:end] for s in stop)
        ),
        (None, len(text)),
    )
    assert "".join(shown) == text[:place]
    assert stopped == (end is not None)


def test_text_is_held_back_while_it_may_become_a_stop_text() -> None:
    shown, stopped = stream("xabaabq", ("aabz",))
    assert shown == ["x", "", "ab", "", "", "", "aabq", ""] and not stopped
    shown, stopped = stream("one\nQ: two", ("\nQ:",))
    assert shown[:6] == ["o", "n", "e", "", "", ""] and "".join(shown) == "one" and stopped


@pytest.mark.parametrize("stop", [("é",), ("never",)])
def test_half_a_character_is_never_shown(stop: tuple[str, ...]) -> None:
    shown, _ = stream("aéb", stop)
    assert "\ufffd" not in "".join(shown)


def test_text_after_the_end_of_a_stop_text_is_ignored() -> None:
    stopped = StoppedText(TOKENIZER, ("b",))
    assert [stopped.push(index) for index in TOKENIZER.encode("abc")] == ["a", "", ""] and stopped.finish() == ""
