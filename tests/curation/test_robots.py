"""robots.txt by RFC 9309, and the opt-outs that AFM honours."""

import pytest

from lmx.curation.functions.robots import Robots, RobotsRules, verdict
from lmx.curation.pipelines.robots import RobotsRecheck
from lmx.curation.sample.source import SampleRobots

# The example of RFC 9309, section 5.1.
RFC = """
User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot
"""


@pytest.mark.parametrize(
    ("agent", "path", "allowed"),
    [
        ("anybot", "/example/page.html", False),
        ("anybot", "/publications/a.html", True),
        ("anybot", "/other/picture.gif", False),
        ("anybot", "/other/picture.gif?size=1", True),
        ("foobot", "/example/page.html", True),
        ("foobot", "/example/allowed.gif", True),
        ("FooBot", "/publications/", False),
        ("barbot", "/example/page.html", False),
        ("bazbot", "/example/page.html", False),
        ("barbot", "/example/other.html", True),
        ("quxbot", "/example/page.html", True),
    ],
)
def test_the_example_of_rfc_9309(agent, path, allowed):
    found = verdict(f"https://www.example.com{path}", RFC, 200, RobotsRules(agents=(agent,)))
    assert (found is None) == allowed


@pytest.mark.parametrize(
    ("rules", "path", "allowed"),
    [
        ("Disallow: /a\nAllow: /a/b", "/a/b/c", True),  # the longer match
        ("Allow: /a/b\nDisallow: /a", "/a/b/c", True),  # whatever the order
        ("Disallow: /a\nAllow: /a", "/a", True),  # allow wins a tie
        ("Disallow: /a%3cd.html", "/a%3Cd.html", False),
        ("Disallow: /foo/bar/ツ", "/foo/bar/%E3%83%84", False),
        ("Disallow:", "/anything", True),
        ("Disallow: /*/private", "/x/y/private/z", False),
        ("# comment only", "/x", True),
    ],
)
def test_the_longest_match_decides(rules, path, allowed):
    found = verdict(f"https://example.com{path}", f"User-agent: *\n{rules}\n", None, RobotsRules(agents=("bot",)))
    assert (found is None) == allowed


def test_a_training_opt_out_removes_a_page_that_may_be_crawled():
    robots = "User-agent: Applebot\nAllow: /\n\nUser-agent: Applebot-Extended\nDisallow: /\n"
    assert verdict("https://example.com/x", robots, 200, RobotsRules()).reason == "robots_disallowed"
    assert verdict("https://example.com/x", robots, 200, RobotsRules(agents=("Applebot",))) is None


def test_server_errors_deny_and_missing_files_allow():
    assert verdict("https://example.com/x", None, 503, RobotsRules()).reason == "robots_unreachable"
    assert verdict("https://example.com/x", "User-agent: *\nDisallow: /", 404, RobotsRules()) is None
    assert verdict("https://example.com/x", None, None, RobotsRules()) is None
    assert verdict("https://example.com/x", None, None, RobotsRules(missing="deny")).reason == "robots_missing"


def test_a_later_robots_txt_removes_pages_when_the_corpus_is_built_again(run_step, make_document):
    pages = [make_document("one", url="https://later0.example/a"), make_document("two", url="https://stays.example/a")]
    assert run_step(Robots(), pages).texts == {"one", "two"}
    result = run_step(RobotsRecheck(snapshots=SampleRobots(blocks=5)), [*pages, make_document("no address", url="nowhere")])
    assert result.texts == {"two"}
    assert sorted((item.kind, item.reason) for item in result.drops.values()) == [
        ("dropped", "robots_disallowed"),
        ("set_aside", "ValueError"),
    ]


def test_rules_without_a_name_or_with_an_unknown_word_are_refused():
    with pytest.raises(ValueError, match="must name the crawler"):
        RobotsRules(agents=())
    with pytest.raises(ValueError, match="missing='perhaps'"):
        RobotsRules(missing="perhaps")
