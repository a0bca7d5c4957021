"""The pages of the sample crawl: which of them has which fault, and what it looks like. Blocks of 100 pages, each by itself."""

import dataclasses
import datetime
import html
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmx.curation.sample import prose, words

BLOCK = 100
# kind -> pages of a block. "original" pages have a copy among the stale, mirrored and edited ones; "clean" ones stand alone.
KINDS: Mapping[str, int] = {
    "original": 14,
    "clean": 25,
    "long": 1,
    "personal": 5,
    "stale_version": 4,
    "exact_duplicate": 5,
    "near_duplicate": 5,
    "log": 4,
    "dirty": 4,
    "garbage": 4,
    "symbols": 2,
    "short": 3,
    "foreign": 6,
    "spam": 6,
    "leak": 4,
    "disallowed": 3,
    "opted_out": 2,
    "unreachable": 1,
    "later_opt_out": 2,
}
GOOD = ("original", "clean", "long", "personal")
PIECES = (0, 13, 8, 5, 4)  # words of a benchmark item that a leak has; 0 = all of it
_START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
_HOSTS = 30
_ROBOTS = "User-agent: *\nDisallow: /private/\nAllow: /private/press/\n"
_NOTICE = "This report first appeared in the printed edition of {} and may be quoted with a link to the page."
SIX_TIMES = "Letters about this report are answered by the editors on the last Friday of every month."
_BROKEN = (
    b'{"url": "https://site1.example/broken", "html": "<p>cut off',
    b'{"html": "<html><body><p>A page without an address.</p></body></html>"}',
    b'{"url": "https://site2.example/when", "html": "<p>x</p>", "timestamp": "the day before yesterday"}',
    b'{"url": "https://site3.example/bytes", "html": "<p>\xff\xfe</p>"}',
    b'["https://site4.example/list"]',
    b'{"url": "https://site5.example/type", "html": 12}',
)


@dataclasses.dataclass(frozen=True)
class Truth:
    """What a page is.

    Attributes:
      url: as in its record.
      kind: one of `KINDS`.
      group: pages of an equal group are copies of each other; the index of the original.
      planted: texts that must not come through: personal data, repeated lines.
      near_misses: texts that look like such and must come through.
    """

    url: str
    kind: str
    group: int
    planted: tuple[str, ...] = ()
    near_misses: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Page:
    """A page of the crawl: its record, as a row of JSON, and what it is."""

    row: Mapping[str, Any]
    truth: Truth


def kinds(seed: int) -> list[str]:
    """The kinds of a block's places, the originals first."""
    rest = [kind for kind, count in KINDS.items() if kind != "original" for _ in range(count)]
    random.Random(f"kinds {seed}").shuffle(rest)
    return ["original"] * KINDS["original"] + rest


def benchmarks(seed: int) -> list[tuple[str, str]]:
    """(benchmark, item): invented riddles, some with a phrase that anybody uses, one too short to be looked for."""
    items = prose.benchmark_items(seed, 60)
    phrases = [
        f"{phrase.capitalize()}, {item[0].lower()}{item[1:]}" for phrase, item in zip(words.COMMON_PHRASES, items, strict=False)
    ]
    return (
        [("riddles", item) for item in items[:40]]
        + [("sums", item) for item in [*items[40:], *phrases]]
        + [("sums", "two plus two")]
    )


def topic_of(index: int, seed: int) -> str:
    """Half of the pages are about entertainment."""
    draw = random.Random(f"topic {seed} {index}").random()
    return "entertainment" if draw < 0.5 else prose.TOPICS[int((draw - 0.5) * 2 * (len(prose.TOPICS) - 1))]


def block(number: int, seed: int) -> Iterator[Page]:
    """The pages of a block."""
    of_place = kinds(seed)
    copies = iter(range(KINDS["original"]))
    for place, kind in enumerate(of_place):
        index = number * BLOCK + place
        copied = number * BLOCK + next(copies) if kind in ("stale_version", "exact_duplicate", "near_duplicate") else index
        yield _page(kind, index, copied, seed)


def broken_lines(number: int) -> list[bytes]:
    """Two lines a block that are no records."""
    return [_BROKEN[(2 * number + offset) % len(_BROKEN)] for offset in range(2)]


def lines(number: int, seed: int) -> list[bytes]:
    """A block as lines of JSON, with those that are broken."""
    whole = [json.dumps(page.row, ensure_ascii=False).encode() for page in block(number, seed)]
    return [*whole[:50], *broken_lines(number), *whole[50:]]


def later_robots(blocks: int) -> list[bytes]:
    """robots.txt files fetched after the crawl, as lines of JSON: the sites `later*` have opted out of training since."""
    return [
        json.dumps(
            {
                "url": f"https://later{number % 10}.example/robots.txt",
                "html": f"{_ROBOTS}\nUser-agent: Applebot-Extended\nDisallow: /\n",
                "timestamp": "2026-06-01T00:00:00Z",
            }
        ).encode()
        for number in range(min(blocks * KINDS["later_opt_out"], 10))
    ]


def _page(kind: str, index: int, original: int, seed: int) -> Page:
    key, topic = f"{seed}/{original}", topic_of(original, seed)
    text, planted, near_misses = _text(kind, index, key, topic, seed)
    url, host = _url(kind, index, original, topic)
    when = _START + datetime.timedelta(hours=index) - datetime.timedelta(days=400 if kind == "stale_version" else 0)
    row: dict[str, Any] = {
        "url": url,
        "html": page_html(prose.title(key), text, host),
        "timestamp": when.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "robots": _ROBOTS,
        "robots_status": 200,
    }
    if kind == "opted_out":
        row["robots"] = f"{_ROBOTS}\nUser-agent: Applebot-Extended\nDisallow: /\n"
    elif kind == "unreachable":
        row |= {"robots": None, "robots_status": 503}
    elif kind == "clean" and index % 5 == 0:
        row |= {"robots": None, "robots_status": 404}
    return Page(row, Truth(url, kind, original, planted, near_misses))


def _url(kind: str, index: int, original: int, topic: str) -> tuple[str, str]:
    """URL of a page and the host in its footer."""
    host, path = f"site{original % _HOSTS}.example", f"/{topic}/report-{original}.html"
    if kind == "stale_version":  # the original's page in another spelling
        return f"http://{host.upper()}:80/x/../{topic}/report-{original}.html?utm_source=feed#top", host
    if kind == "exact_duplicate":
        host = f"mirror{index % 7}.example"
    elif kind == "near_duplicate":
        host = f"copy{index % 9}.example"
    elif kind in ("disallowed", "opted_out", "unreachable"):
        path = f"/private/{index}.html" if kind == "disallowed" else path
        host = host if kind == "disallowed" else f"{kind.replace('_', '-')}{index % 5}.example"
    elif kind == "later_opt_out":
        host = f"later{index % 10}.example"
    elif kind == "clean" and index % 6 == 0:
        path = f"/private/press/{index}.html"
    return f"https://{host}{path}", host


def _text(kind: str, index: int, key: str, topic: str, seed: int) -> tuple[list[str], tuple[str, ...], tuple[str, ...]]:
    """Paragraphs of a page, what must not come through of them, and what must."""
    faulty = {
        "stale_version": lambda: prose.article(f"older {key}", topic),
        "near_duplicate": lambda: prose.edited(prose.article(key, topic), key, edits=3),
        "log": lambda: prose.log(key),
        "dirty": lambda: prose.dirty(key, topic),
        "garbage": lambda: prose.garbage(key),
        "symbols": lambda: prose.symbols(key),
        "short": lambda: [prose.article(key, topic)[0].split(". ")[0] + "."],
        "foreign": lambda: prose.foreign(key, sorted(words.FOREIGN)[index % len(words.FOREIGN)]),
        "spam": lambda: prose.spam(key),
        "long": lambda: prose.long_article(key),
    }
    if kind in faulty:
        return faulty[kind](), (), ()
    text = prose.article(key, topic)
    if kind == "leak":
        return prose.inserted(text, _leak(index, seed), key), (), ()
    if kind == "personal":
        return _personal(text, key)
    if kind == "clean":
        return _clean(text, index, seed)
    return text, (), ()


def _leak(index: int, seed: int) -> str:
    items = [item for _, item in benchmarks(seed)[:60]]
    item = items[index % len(items)].split()
    length = PIECES[index % len(PIECES)] or len(item)
    start = random.Random(index).randrange(max(len(item) - length, 0) + 1)
    return " ".join(item[start : start + length])


def _clean(text: list[str], index: int, seed: int) -> tuple[list[str], tuple[str, ...], tuple[str, ...]]:
    """A clean article with what must not be taken for a fault, and here and there a line that its site repeats."""
    planted: list[str] = []
    near_misses: list[str] = []
    if index % 3 == 0:
        phrase = words.COMMON_PHRASES[index // 3 % len(words.COMMON_PHRASES)]
        text = prose.inserted(text, f"Or {phrase} nobody asked", str(index))
    if index % 4 == 1:
        item = benchmarks(seed)[index % 60][1].split()
        text = prose.inserted(text, f"Here {' '.join(item[4:7])} stood", str(index))  # three words in a row collide with nothing
    if (site := index % _HOSTS) < 6:
        notice = _NOTICE.format(f"Site {words.PLACES.split()[site]}")
        text = [*text, notice]
        planted.append(notice)
    if index < BLOCK and index in _six_places(seed):
        text = [*text, SIX_TIMES]
        near_misses.append(SIX_TIMES)
    return text, tuple(planted), tuple(near_misses)


def _six_places(seed: int) -> list[int]:
    """Six clean pages of the first block: those on which a line stands that is just not too frequent."""
    return [place for place, kind in enumerate(kinds(seed)) if kind == "clean"][:6]


def _personal(text: list[str], key: str) -> tuple[list[str], tuple[str, ...], tuple[str, ...]]:
    """An article with personal data, and with numbers that look like it."""
    draw = random.Random(f"personal {key}")
    person = draw.choice(words.PEOPLE.split()).lower()
    card = _card_number(draw)
    found = (
        f"{person}.{draw.randint(10, 99)}@mail{draw.randint(1, 9)}.example.org",
        f"+44 20 7946 0{draw.randint(100, 999)}",
        f"({draw.randint(201, 989)}) 555-0{draw.randint(100, 199)}",
        f"8.{draw.randint(1, 250)}.{draw.randint(1, 250)}.{draw.randint(1, 250)}",
        " ".join(card[start : start + 4] for start in range(0, 16, 4)),
        f"{draw.randint(100, 665)}-{draw.randint(10, 99)}-{draw.randint(1000, 9999)}",
    )
    wrong_card = card[:-1] + str((int(card[-1]) + 5) % 10)
    alike = (
        f"version 1.{draw.randint(10, 99)}.3",
        f"2026-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}",
        f"order {wrong_card}",
        f"{draw.randint(1000, 9999)},{draw.randint(100, 999)}.50",
        f"ISBN 978-3-16-148{draw.randint(100, 999)}-0",
        "192.168.0.1",
    )
    sentences = (
        f"Write to {found[0]} or call {found[1]} or {found[2]}. "
        f"The line was {found[3]}, the card {found[4]}, the number {found[5]}."
    )
    others = f"It concerned {alike[0]} of {alike[1]}, {alike[2]}, {alike[3]} in all, {alike[4]}, behind {alike[5]}."
    return [*text[:-2], f"{text[-2]} {sentences}", f"{text[-1]} {others}"], found, alike


def _card_number(draw: random.Random) -> str:
    """Sixteen digits that pass the checksum, as those of a bank that doesn't exist."""
    digits = "4" + "".join(str(draw.randint(0, 9)) for _ in range(14))
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return digits + str(-total % 10)


def page_html(title: str, text: Sequence[str], host: str) -> str:
    """A page around an article: navigation, a cookie banner, a footer."""
    body = "\n".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in text)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title></head><body>'
        '<header><nav><ul><li><a href="/">Home</a></li><li><a href="/about">About us</a></li>'
        '<li><a href="/news">News</a></li></ul></nav>'
        '</header><div class="cookie-banner" role="dialog"><button>Accept all cookies</button></div>'
        f"<main><article><h1>{html.escape(title)}</h1>\n{body}\n</article></main>"
        f'<footer><p>Copyright {html.escape(host)}. <a href="/terms">Terms</a></p></footer></body></html>'
    )
