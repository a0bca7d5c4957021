"""HTML to text."""

import pytest

from lmx.curation.document import Dropped
from lmx.curation.functions.extraction import Extract, extract, strip_markdown
from lmx.curation.sample.crawl import page_html

PARAGRAPHS = [
    "The river is crossed by three bridges, the oldest of which was built in 1820 by local masons.",
    "It carries two lanes of traffic & a footpath, and everybody in the town has walked over it.",
]


def test_the_body_is_kept_and_what_surrounds_it_is_not():
    text, title = extract(page_html("On bridges", PARAGRAPHS, "site.example"))
    assert title == "On bridges" and all(paragraph in text for paragraph in PARAGRAPHS)
    assert not any(word in text for word in ("cookies", "Copyright", "About us", "Terms"))


def test_formulas_code_and_the_texts_of_images_are_kept():
    middle = (
        '<p>The rule is <script type="math/tex">a^2+b^2</script> in short, as <math alttext="c^2"><mi>c</mi></math> shows us.</p>'
        '<p>Look here: <img src="x.png" alt="A stone bridge over water"> which is a picture of the bridge in the town.</p>'
        "<pre><code>def f(x):\n    return x + 1\n</code></pre>"
    )
    html = page_html("T", PARAGRAPHS, "s").replace("</article>", f"{middle}</article>")
    text, _ = extract(html)
    assert "$a^2+b^2$" in text and "c^2" in text and "A stone bridge over water" in text and "x.png" not in text
    assert "def f(x):\n    return x + 1" in text
    assert "A stone bridge" not in extract(html, image_texts=False)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Title\n\ntext", "Title\n\ntext"),
        ("a **bold** and *slanted* and __strong__ word", "a bold and slanted and strong word"),
        ("see [the page](https://x.example/a) and ![a picture](p.png)", "see the page and a picture"),
        ("- one\n* two\n  + three", "one\ntwo\n  three"),
        ("> quoted\n> > twice", "quoted\ntwice"),
        ("```python\nx = 1\n```\nafter", "x = 1\nafter"),
        ("above\n\n---\n\nbelow", "above\n\n\nbelow"),
        ("use `name` here", "use name here"),
        ("snake_case_name and 2 * 3 * 4 and C# and 5 - 3", "snake_case_name and 2 * 3 * 4 and C# and 5 - 3"),
    ],
)
def test_markers_of_markdown_go_and_what_looks_like_them_stays(text, expected):
    assert strip_markdown(text) == expected


def test_pages_without_a_body_are_dropped_and_texts_pass(make_document):
    step = Extract(most_characters=50).open()
    text = make_document("plain text")
    assert step(text) is text
    empty = make_document("")
    assert step(empty) is empty
    page = type(text)(key="k", url="https://x.example", timestamp="", html="<html><body></body></html>")
    assert step(page).reason == "no_body"
    long = type(text)(key="k", url="https://x.example", timestamp="", html="<p>" + "x" * 100)
    assert isinstance(step(long), Dropped) and step(long).reason == "page_too_long"


@pytest.mark.parametrize(
    "html", ["", "   ", "<", "\x00\x00<p>hi", "<html></html>", "<p>" * 3000, "<?xml version='1.0'?><p>x", "\ud800"]
)
def test_broken_pages_give_a_text_or_a_sentence_and_nothing_worse(html):
    try:
        assert isinstance(extract(html)[0], str)
    except ValueError as error:
        assert "not parsable" in str(error)
