"""Personal data in a text: found by patterns and checks, replaced by placeholders, counted."""

import dataclasses
import functools
import ipaddress
import re
from collections.abc import Callable, Mapping

from lmx.curation.document import Changed, Document, Dropped, Outcome

_EMAIL = re.compile(
    r"(?<![\w.+%-])[a-z0-9][a-z0-9._%+-]{0,63}@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,24}(?![\w-])", re.IGNORECASE
)
_CARD = re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d-]|[.,]\d)")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\w)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-f]{0,4}:){2,7}(?:[0-9a-f]{1,4}|(?:\d{1,3}\.){3}\d{1,3})?(?![\w:])", re.IGNORECASE)
_PHONE = re.compile(
    r"(?<![\w+./-])"
    r"(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,5}"  # +44 20 7946 0958
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}"  # (555) 010-9999
    r"|\d{3}-\d{3}-\d{4}|\d{3}\.\d{3}\.\d{4})"  # 555-010-9999
    r"(?!\w|[./-]\d)"
)
_PHONE_DIGITS = range(9, 16)  # E.164 has at most 15; shorter ones with a country code are rare
# National identity numbers by country code; a config names the ones that it wants.
NATIONAL_IDS: Mapping[str, str] = {
    "us_ssn": r"(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}",
    "uk_nino": r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]",
    "es_dni": r"\d{8}[ -]?[A-HJ-NP-TV-Z]",
    "fr_nir": r"[12] ?\d{2} ?(?:0[1-9]|1[0-2]) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}",
}
KINDS = ("email", "card", "ip", "phone")
_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
_BOUNDED = r"(?<![\w-])(?:{})(?![\w-])"


def luhn(digits: str) -> bool:
    """Whether a string of digits passes the checksum of card numbers (ISO/IEC 7812)."""
    total = 0
    for place, digit in enumerate(map(int, reversed(digits))):
        doubled = digit * 2 if place % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0


def _is_card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return len(set(digits)) > 1 and digits[0] in "3456" and luhn(digits)


def _is_public_ip(text: str) -> bool:
    """An address that can belong to a person's line: not loopback, unspecified or for local networks."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _is_phone(text: str) -> bool:
    return sum(map(str.isdigit, text)) in _PHONE_DIGITS


def _is_national_id(text: str, kind: str) -> bool:
    digits = re.sub(r"\D", "", text)
    if kind == "es_dni":
        return _DNI_LETTERS[int(digits) % 23] == text[-1]
    if kind == "fr_nir":
        whole = re.sub(r"\s", "", text).replace("2A", "19").replace("2B", "18")
        return 97 - int(whole[:13]) % 97 == int(whole[13:])
    return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scrub:
    """Replaces personal data by placeholders such as <EMAIL>, and counts what was replaced.

    Attributes:
      kinds: what to look for, of "email", "card", "ip", "phone".
      national_ids: which identity numbers, of `NATIONAL_IDS`.
      most: documents with more findings are dropped (pages that are lists of people), None = never.
      name: in the card.
    """

    kinds: tuple[str, ...] = KINDS
    national_ids: tuple[str, ...] = ("us_ssn",)
    most: int | None = None
    name: str = "pii"

    def __post_init__(self) -> None:
        for field, values, known in (
            ("kinds", self.kinds, tuple(_FINDERS)),
            ("national_ids", self.national_ids, tuple(NATIONAL_IDS)),
        ):
            if unknown := [value for value in values if value not in known]:
                raise ValueError(f"Scrub({field}=...): {unknown[0]!r} is not one of {', '.join(known)}")
        if self.most is not None and self.most < 0:
            raise ValueError(f"Scrub(most={self.most}) must be at least 0, or None for no limit")

    def open(self) -> Callable[[Document], Outcome]:
        """As `DocumentStep.open`."""
        return functools.partial(judge, kinds=self.kinds, national_ids=self.national_ids, most=self.most)


_Finder = tuple[re.Pattern[str], Callable[[str], bool], str]
# In the order of the search: a card number would also pass for a telephone number.
_FINDERS: Mapping[str, tuple[_Finder, ...]] = {
    "email": ((_EMAIL, lambda text: True, "<EMAIL>"),),
    "card": ((_CARD, _is_card, "<CARD_NUMBER>"),),
    "ip": ((_IPV4, _is_public_ip, "<IP_ADDRESS>"), (_IPV6, _is_public_ip, "<IP_ADDRESS>")),
    "phone": ((_PHONE, _is_phone, "<PHONE_NUMBER>"),),
}


@functools.lru_cache(maxsize=64)
def _finders(kinds: tuple[str, ...], national_ids: tuple[str, ...]) -> tuple[tuple[str, _Finder], ...]:
    found = [(kind, finder) for kind in _FINDERS if kind in kinds and kind != "phone" for finder in _FINDERS[kind]]
    for kind in national_ids:
        pattern = re.compile(_BOUNDED.format(NATIONAL_IDS[kind]))
        found.append((kind, (pattern, functools.partial(_is_national_id, kind=kind), "<NATIONAL_ID>")))
    found += [("phone", finder) for finder in _FINDERS["phone"] if "phone" in kinds]
    return tuple(found)


def scrub(text: str, kinds: tuple[str, ...], national_ids: tuple[str, ...] = ()) -> tuple[str, dict[str, int]]:
    """The text with placeholders, and how many of each kind were put in."""
    counts: dict[str, int] = {}
    for kind, (pattern, accepts, placeholder) in _finders(kinds, national_ids):

        def replaced(match: re.Match[str], accepts: Callable[[str], bool] = accepts, placeholder: str = placeholder) -> str:
            return placeholder if accepts(match[0]) else match[0]

        cleaned = pattern.sub(replaced, text)
        if cleaned != text:
            counts[kind] = counts.get(kind, 0) + cleaned.count(placeholder) - text.count(placeholder)
            text = cleaned
    return text, counts


def judge(document: Document, *, kinds: tuple[str, ...], national_ids: tuple[str, ...], most: int | None) -> Outcome:
    """The document without personal data, or why it is dropped."""
    text, counts = scrub(document.text, kinds, national_ids)
    if not counts:
        return document
    total = sum(counts.values())
    if most is not None and total > most:
        return Dropped("personal_data", f"{total} findings, at most {most}")
    return Changed(dataclasses.replace(document, text=text), counts)
