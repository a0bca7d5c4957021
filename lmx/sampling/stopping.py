"""The text of a sample as it grows: what may be shown, and whether it holds a stop text."""

from collections.abc import Sequence

from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.streaming import TextStream


class StoppedText:
    """Text of ids that come one by one, which ends before the first of several stop texts.

    A stop text may begin in one token and end in another: the end of the text is held back while it may be the beginning of one.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        """Starts an empty text; `stop` are texts that end it, none of them empty."""
        self._stream = TextStream(tokenizer)
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, index: int) -> str:
        """Takes the next id and returns the text that is certain now; "" once a stop text was met."""
        return self._take(self._stream.push(index))

    def finish(self) -> str:
        """The rest of the text, when no more ids come."""
        text = self._take(self._stream.finish())
        rest, self._held = self._held, ""
        return text + rest

    def _take(self, text: str) -> str:
        if self.stopped:
            return ""
        pending = self._held + text
        ends = [place for place in (pending.find(stop) for stop in self._stop) if place >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return pending[: min(ends)]
        certain = len(pending) - self._doubtful(pending)
        self._held = pending[certain:]
        return pending[:certain]

    def _doubtful(self, text: str) -> int:
        """Length of the longest end of the text that is the beginning of a stop text."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stop):
                return size
        return 0
