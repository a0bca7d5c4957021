"""Personal data: found, replaced and counted; what only looks like it stays."""

import pytest

from lmx.curation.document import Changed, Dropped
from lmx.curation.functions import pii
from lmx.curation.functions.pii import Scrub, luhn, scrub

ALL = tuple(pii.NATIONAL_IDS)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ann.lee+news@mail.example.co.uk", "email"),
        ("4111 1111 1111 1111", "card"),
        ("5500-0000-0000-0004", "card"),
        ("378282246310005", "card"),
        ("8.8.4.4", "ip"),
        ("2001:4860:4860::8888", "ip"),
        ("+44 20 7946 0958", "phone"),
        ("+1 (555) 010-9999", "phone"),
        ("(555) 010-9999", "phone"),
        ("555-010-9999", "phone"),
        ("123-45-6789", "us_ssn"),
        ("AB 12 34 56 C", "uk_nino"),
        ("12345678Z", "es_dni"),
        ("1 84 12 76 451 089 46", "fr_nir"),
    ],
)
def test_personal_data_is_replaced_and_counted(text, kind):
    cleaned, counts = scrub(f"Tell {text}, or ({text}) twice.", pii.KINDS, ALL)
    assert text not in cleaned and counts == {kind: 2}
    assert cleaned.count("<") == 2


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-02",
        "2026-01-02 12:30:45",
        "1,234,567.89",
        "version 1.20.3.4.5",
        "4111 1111 1111 1112",  # fails the checksum
        "0000 0000 0000 0000",
        "192.168.0.1",
        "127.0.0.1",
        "999.1.1.1",
        "ISBN 978-3-16-148410-0",
        "3.14159265358979",
        "000-45-6789",  # not issued
        "12345678A",  # wrong letter
        "std::vector",
        "10:20:30",
        "user@localhost",
        "@handle",
        "section 4.3.2",
        "5-10-15",
    ],
)
def test_what_only_looks_like_personal_data_stays(text):
    assert scrub(f"See {text} there.", pii.KINDS, ALL) == (f"See {text} there.", {})


def test_placeholders_that_stand_in_the_text_already_are_not_counted():
    assert scrub("<EMAIL> a@b.org", ("email",)) == ("<EMAIL> <EMAIL>", {"email": 1})


def test_luhn_knows_valid_numbers():
    assert luhn("79927398713") and not luhn("79927398710")


def test_only_the_kinds_that_are_asked_for_are_replaced():
    assert scrub("a@b.org 8.8.8.8", ("ip",))[0] == "a@b.org <IP_ADDRESS>"


def test_a_list_of_people_is_dropped(make_document):
    page = make_document(" ".join(f"p{i}@mail.org" for i in range(5)))
    assert isinstance(Scrub(most=4).open()(page), Dropped)
    assert isinstance(Scrub(most=5).open()(page), Changed)


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="'fax' is not one of email, card, ip, phone"):
        Scrub(kinds=("fax",))
