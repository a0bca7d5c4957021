"""Language identification with the model that py3langid carries: nothing is fetched."""

import dataclasses
import functools
from collections.abc import Callable

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from lmx.curation.document import Document, Dropped, Outcome

MAX_CHARACTERS = 10_000  # the language of a longer text shows in its beginning


@functools.lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def identify(text: str) -> tuple[str, float]:
    """ISO 639-1 code of the text's language and its probability among the model's languages."""
    code, probability = _identifier().classify(text[:MAX_CHARACTERS])
    return code, float(probability)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language:
    """Sets the field `language` and drops documents in other languages.

    Attributes:
      keep: codes to keep, () = all.
      least_probability: documents whose language is less certain are dropped.
      name: in the card.
    """

    keep: tuple[str, ...] = ()
    least_probability: float = 0.0
    name: str = "language"

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.keep) - set(_identifier().labels)):
            known = ", ".join(sorted(_identifier().labels))
            raise ValueError(f"the step {self.name!r} keeps {unknown[0]!r}, which is not a language of the model; it knows {known}")
        if not 0 <= self.least_probability <= 1:
            raise ValueError(f"least_probability={self.least_probability} must lie in [0, 1]")

    def open(self) -> Callable[[Document], Outcome]:
        """As `DocumentStep.open`."""
        return functools.partial(judge, keep=frozenset(self.keep), least=self.least_probability)


def judge(document: Document, *, keep: frozenset[str], least: float) -> Outcome:
    """The document with its language, or why it is dropped."""
    code, probability = identify(document.text)
    if keep and code not in keep:
        return Dropped(f"language_{code}", f"probability {probability:.3f}")
    if probability < least:
        return Dropped("language_uncertain", f"{code} with probability {probability:.3f}, at least {least}")
    return document.tell(language=code, language_probability=round(probability, 4))
