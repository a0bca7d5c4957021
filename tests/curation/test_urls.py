"""URLs in one form."""

import pytest

from lmx.curation.functions.urls import UrlRules, normalize, origin


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("HTTP://Example.COM", "https://example.com/"),
        ("http://example.com:80/a", "https://example.com/a"),
        ("https://example.com:443/a", "https://example.com/a"),
        ("https://example.com:8443/a", "https://example.com:8443/a"),
        ("http://example.com:443/a", "https://example.com:443/a"),
        ("https://user:secret@example.com./a#part", "https://example.com/a"),
        ("https://example.com/a/./b/../c", "https://example.com/a/c"),
        ("https://example.com/a/..", "https://example.com/"),
        ("https://example.com/%7euser/%c3%a4%2f", "https://example.com/~user/%C3%A4%2F"),
        ("https://example.com/ä b", "https://example.com/%C3%A4%20b"),
        ("https://example.com/?b=2&utm_source=x&a=1&gclid=7&&", "https://example.com/?a=1&b=2"),
        ("https://bücher.example/", "https://xn--bcher-kva.example/"),
        ("https://[2001:DB8::1]:443/x", "https://[2001:db8::1]/x"),
    ],
)
def test_spellings_of_one_page_have_one_form(url, expected):
    assert normalize(url) == expected


def test_the_form_does_not_change_when_normalised_again():
    for url in ("http://example.com/a%2fb?x=%41&y=ü", "https://example.com/a//b/?q=a+b&q=A"):
        assert normalize(normalize(url)) == normalize(url)


def test_different_pages_stay_different():
    urls = ["https://a.example/x", "https://a.example/X", "https://a.example/x/", "https://a.example/x?p=1", "https://b.example/x"]
    assert len({normalize(url) for url in urls}) == len(urls)


@pytest.mark.parametrize(
    "url", ["", "example.com/a", "ftp://example.com/", "https://", "https://exa mple:99999999/", "http://[::1", "/a"]
)
def test_what_is_no_absolute_url_is_refused(url):
    with pytest.raises(ValueError, match="URL"):
        normalize(url)


def test_rules_can_keep_schemes_apart_and_drop_www():
    rules = UrlRules(merge_schemes=False, drop_www=True, drop_parameters=())
    assert normalize("http://www.example.com/?utm_source=x", rules) == "http://example.com/?utm_source=x"


def test_origin_is_host_and_port():
    assert origin("HTTP://Example.com:8080/a") == "example.com:8080"
