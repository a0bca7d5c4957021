"""The body of an HTML page as plain text: trafilatura, with formulas and the texts of images kept."""

import dataclasses
import functools
import re
from collections.abc import Callable

import lxml.etree
import lxml.html
import trafilatura

from lmx.curation.document import Document, Dropped, Outcome

# Markers of Markdown that add nothing to a text; Llama 3.1 found that leaving them in hurts.
_HEADING = re.compile(r"^#{1,6} +", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<!\w)(\*\*|__|\*|_|~~)(?=\S)(.+?)(?<=\S)\1(?!\w)")
_LINK = re.compile(r"!?\[([^\]\n]*)\]\([^()\s]*\)")
_FENCE = re.compile(r"^ *(```|~~~)[^\n`]*\n?", re.MULTILINE)
_BULLET = re.compile(r"^( *)[-*+] +(?=\S)", re.MULTILINE)
_QUOTE = re.compile(r"^(?:> ?)+", re.MULTILINE)
_RULE = re.compile(r"^ *(?:[-*_] *){3,}$\n?", re.MULTILINE)
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def strip_markdown(text: str) -> str:
    """The text without Markdown's markers: headings, emphasis, links, fences, bullets, quotes, rules."""
    for pattern, replacement in (
        (_FENCE, ""),
        (_RULE, ""),
        (_HEADING, ""),
        (_QUOTE, ""),
        (_BULLET, r"\1"),
        (_LINK, r"\1"),
        (_EMPHASIS, r"\2"),
        (_CODE, r"\1"),
    ):
        text = pattern.sub(replacement, text)
    return text


def _keep_image_texts(tree: lxml.html.HtmlElement) -> None:
    """Puts the alternative text of an image, which trafilatura would write as Markdown, where the image stands."""
    for image in list(tree.iter("img")):
        alt = " ".join((image.get("alt") or "").split())
        parent = image.getparent()
        if parent is None:
            continue
        if alt:
            replacement = lxml.html.Element("span")
            replacement.text, replacement.tail = alt, image.tail
            parent.replace(image, replacement)


def _keep_scripted_formulas(tree: lxml.html.HtmlElement) -> None:
    """Turns MathJax's `<script type="math/tex">` into text: scripts are thrown away, formulas must not be."""
    for script in list(tree.iter("script")):
        kind = (script.get("type") or "").lower()
        parent = script.getparent()
        if kind.startswith("math/tex") and script.text and parent is not None:
            replacement = lxml.html.Element("span")
            mark = "$$" if "display" in kind else "$"
            replacement.text, replacement.tail = f"{mark}{script.text.strip()}{mark}", script.tail
            parent.replace(script, replacement)


def extract(html: str, *, image_texts: bool = True, markdown: bool = False) -> tuple[str, str]:
    """Text and title of a page.

    Navigation, footers, comments and the like are left out; code keeps its lines, formulas stand in TeX.

    Args:
      html: the page.
      image_texts: keep the alternative texts of images.
      markdown: keep what looks like Markdown's markers.

    Returns:
      The text ("" when the page has no body) and the title ("" when it has none).

    Raises:
      ValueError: it can't be parsed as HTML.
    """
    if not html.strip():
        return "", ""
    try:
        tree = lxml.html.fromstring(html.encode("utf-8", "replace"), parser=lxml.html.HTMLParser(encoding="utf-8"))
    except (lxml.etree.LxmlError, ValueError, AssertionError) as error:
        raise ValueError(f"not parsable as HTML: {error}") from error
    title = " ".join((tree.findtext(".//title") or "").split())
    _keep_scripted_formulas(tree)
    if image_texts:
        _keep_image_texts(tree)
    text = trafilatura.extract(tree, include_comments=False, deduplicate=False, with_metadata=False) or ""
    return (text if markdown else strip_markdown(text)).strip(), title


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extract:
    """Turns pages into text; documents that come as text pass.

    Attributes:
      image_texts: keep the alternative texts of images.
      markdown: keep Markdown's markers.
      most_characters: longer pages are dropped unparsed.
      name: in the card.
    """

    image_texts: bool = True
    markdown: bool = False
    most_characters: int = 5_000_000
    name: str = "extraction"

    def __post_init__(self) -> None:
        if self.most_characters < 1:
            raise ValueError(f"Extract(most_characters={self.most_characters}) must be at least 1")

    def open(self) -> Callable[[Document], Outcome]:
        """As `DocumentStep.open`."""
        return functools.partial(judge, options=self)


def judge(document: Document, *, options: Extract) -> Outcome:
    """The document with its text instead of its page, or why it is dropped."""
    if not document.html:
        return document
    if len(document.html) > options.most_characters:
        return Dropped("page_too_long", f"{len(document.html):,} characters, at most {options.most_characters:,}")
    text, title = extract(document.html, image_texts=options.image_texts, markdown=options.markdown)
    if not text:
        return Dropped("no_body", "the page has no text outside navigation and the like")
    extracted = dataclasses.replace(document, text=text, html="")
    return extracted.tell(title=title) if title else extracted
