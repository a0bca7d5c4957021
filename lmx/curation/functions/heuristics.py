"""Rules on the surface of a text: lengths, symbols, repetition, words. Each is a frozen dataclass with its limits."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence

from lmx.curation.document import Document, Dropped, Outcome
from lmx.curation.functions import repetition

_BULLETS = ("•", "‣", "◦", "▪", "●", "-", "*", "–")
_ELLIPSES = ("...", "…")
_WORD = re.compile(r"\w+")
# Gopher's list: any prose in English has at least two of them.
ENGLISH_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


class TextView:
    """A text with its words and lines, each split once for all rules."""

    def __init__(self, text: str) -> None:
        self.text = text

    @functools.cached_property
    def words(self) -> list[str]:
        """Runs of characters between white space."""
        return self.text.split()

    @functools.cached_property
    def lines(self) -> list[str]:
        """Lines without the space around them, without empty ones."""
        return [line for line in map(str.strip, self.text.splitlines()) if line]


Rule = Callable[[TextView], Dropped | None]


@functools.lru_cache(maxsize=64)
def _as_set(words: tuple[str, ...]) -> frozenset[str]:
    """A list of a config, for looking up; configs hold tuples because a set's order, and so its text, changes between processes."""
    return frozenset(words)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordCount:
    """Between `least` and `most` words."""

    least: int = 50
    most: int = 100_000

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most:
            raise ValueError(f"WordCount(least={self.least}, most={self.most}): least must be at least 0 and at most `most`")

    def __call__(self, view: TextView) -> Dropped | None:
        """Why the text breaks the rule, None when it keeps it."""
        count = len(view.words)
        if count < self.least:
            return Dropped("few_words", f"{count} words, at least {self.least}")
        return Dropped("many_words", f"{count} words, at most {self.most}") if count > self.most else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanWordLength:
    """Between `least` and `most` characters a word."""

    least: float = 3.0
    most: float = 10.0

    def __call__(self, view: TextView) -> Dropped | None:
        """Why the text breaks the rule, None when it keeps it."""
        mean = _share(sum(map(len, view.words)), len(view.words))
        if self.least <= mean <= self.most:
            return None
        return Dropped("mean_word_length", f"{mean:.2f} characters, {self.least} to {self.most}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SymbolRatio:
    """At most `most` hash signs a word, and at most as many ellipses."""

    most: float = 0.1

    def __call__(self, view: TextView) -> Dropped | None:
        """Why the text breaks the rule, None when it keeps it."""
        counts = {"#": view.text.count("#"), "...": sum(view.text.count(mark) for mark in _ELLIPSES)}
        for symbol, count in counts.items():
            if (ratio := _share(count, len(view.words))) > self.most:
                return Dropped("symbol_ratio", f"{ratio:.3f} {symbol!r} a word, at most {self.most}")
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlphabeticWords:
    """At least the share `least` of the words has a letter."""

    least: float = 0.8

    def __call__(self, view: TextView) -> Dropped | None:
        """Why the text breaks the rule, None when it keeps it."""
        share = _share(sum(any(map(str.isalpha, word)) for word in view.words), len(view.words))
        return Dropped("few_alphabetic_words", f"{share:.3f}, at least {self.least}") if share < self.least else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineMarks:
    """At most `bullets` of the lines begin with a bullet, at most `ellipses` end with an ellipsis."""

    bullets: float = 0.9
    ellipses: float = 0.3

    def __call__(self, view: TextView) -> Dropped | None:
        """Why the text breaks the rule, None when it keeps it."""
        bullets = _share(sum(line.startswith(_BULLETS) for line in view.lines), len(view.lines))
        if bullets > self.bullets:
            return Dropped("bullet_lines", f"{bullets:.3f} of the lines, at most {self.bullets}")
        ellipses = _share(sum(line.endswith(_ELLIPSES) for line in view.lines), len(view.lines))
        return (
            Dropped("ellipsis_lines", f"{ellipses:.3f} of the lines, at most {self.ellipses}") if ellipses > self.ellipses else None
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StopWords:
    """At least `least` different stop words occur; English unless `words` says otherwise."""

    least: int = 2
    words: tuple[str, ...] = ENGLISH_STOP_WORDS

    def __call__(self, view: TextView) -> Dropped | None:
        """Why the text breaks the rule, None when it keeps it."""
        found = len(_as_set(self.words) & {word.lower() for word in view.words})
        return Dropped("few_stop_words", f"{found} of {len(self.words)}, at least {self.least}") if found < self.least else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DuplicateLines:
    """At most the share `most` of the lines repeats an earlier one."""

    most: float = 0.3

    def __call__(self, view: TextView) -> Dropped | None:
        """Why the text breaks the rule, None when it keeps it."""
        share = repetition.duplicate_line_share(view.lines)
        return Dropped("duplicate_lines", f"{share:.3f} of the lines, at most {self.most}") if share > self.most else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DuplicateNgrams:
    """For each n, at most the share `limits[n]` of the characters stands in n-grams that occur more than once.

    Finds what line dedup can't: logs and error messages whose lines differ in a number.
    """

    limits: Mapping[int, float] = dataclasses.field(default_factory=lambda: dict(repetition.GOPHER_LIMITS))

    def __post_init__(self) -> None:
        if not self.limits or min(self.limits) < 1:
            raise ValueError(f"DuplicateNgrams(limits={dict(self.limits)!r}) needs limits for some n of at least 1")

    def __call__(self, view: TextView) -> Dropped | None:
        """Why the text breaks the rule, None when it keeps it."""
        coverage = repetition.duplicate_ngram_coverage(view.words, min(self.limits), max(self.limits))
        for n, limit in sorted(self.limits.items()):
            if coverage[n] > limit:
                return Dropped("duplicate_ngrams", f"{coverage[n]:.3f} of the characters in repeated {n}-grams, at most {limit}")
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirtyWords:
    """Fewer than `count` words of a list, and at most the share `share` of all words.

    Attributes:
      words: lower-case whole words; the project ships none, each corpus brings its own list.
      count: a document with as many is dropped.
      share: a document with a greater share is dropped, however short it is.
    """

    words: tuple[str, ...]
    count: int = 3
    share: float = 0.05

    def __post_init__(self) -> None:
        if not self.words:
            raise ValueError("DirtyWords(words=...) is empty; give the words that mark a page, or leave the rule out")
        if wrong := sorted(word for word in self.words if word != word.lower() or not _WORD.fullmatch(word)):
            raise ValueError(f"DirtyWords: {wrong[0]!r} can never match; words are whole and in lower case")
        if self.count < 1:
            raise ValueError(f"DirtyWords(count={self.count}) must be at least 1")

    def __call__(self, view: TextView) -> Dropped | None:
        """Why the text breaks the rule, None when it keeps it."""
        words = _WORD.findall(view.text.lower())
        known = _as_set(self.words)
        found = sum(word in known for word in words)
        if found >= self.count or _share(found, len(words)) > self.share:
            return Dropped("dirty_words", f"{found} of {len(words)} words, fewer than {self.count} and at most {self.share:.0%}")
        return None


def gopher() -> tuple[Rule, ...]:
    """The rules of Gopher with its limits.

    Reference: Rae et al. (2021), arXiv:2112.11446, A.1.1.
    """
    return (
        WordCount(),
        MeanWordLength(),
        SymbolRatio(),
        AlphabeticWords(),
        LineMarks(),
        StopWords(),
        DuplicateLines(),
        DuplicateNgrams(),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heuristics:
    """Drops a document at the first rule that it breaks.

    Attributes:
      rules: in the order in which they are asked; cheap ones first.
      name: in the card.
    """

    rules: tuple[Rule, ...]
    name: str = "heuristics"

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError(f"the step {self.name!r} has no rules; give some, such as heuristics.gopher()")

    def open(self) -> Callable[[Document], Outcome]:
        """As `DocumentStep.open`."""
        return functools.partial(judge, rules=self.rules)


def judge(document: Document, *, rules: Sequence[Rule]) -> Outcome:
    """The document, or why the first broken rule is against it."""
    view = TextView(document.text)
    return next((verdict for rule in rules if (verdict := rule(view)) is not None), document)
