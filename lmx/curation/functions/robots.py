"""robots.txt: whether a page may be used, by the rules that stood when it was fetched (RFC 9309)."""

import dataclasses
import functools
from collections.abc import Callable

from protego import Protego

from lmx.curation.document import Document, Dropped, Outcome

APPLE = ("Applebot", "Applebot-Extended")  # the second is no crawler but a policy token: an opt-out from training
_PARSED = 1 << 12  # sites whose rules are kept parsed; pages of a site come close together


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobotsRules:
    """Who asks, and what silence means.

    Attributes:
      agents: product tokens; a page must be allowed for each of them. A token without a group of its own follows that of the
        token it extends ("Applebot-Extended" that of "Applebot"), else `*`.
      missing: "allow" or "deny" pages that come without a robots.txt.
    """

    agents: tuple[str, ...] = APPLE
    missing: str = "allow"

    def __post_init__(self) -> None:
        if not self.agents or not all(agent.strip() for agent in self.agents):
            raise ValueError(f"agents={self.agents!r} must name the crawler, for example ('Applebot', 'Applebot-Extended')")
        if self.missing not in ("allow", "deny"):
            raise ValueError(f"missing={self.missing!r} is not one of 'allow', 'deny'")


@functools.lru_cache(maxsize=_PARSED)
def _parsed(text: str) -> Protego:
    return Protego.parse(text.removeprefix("\ufeff"))


def verdict(url: str, robots: str | None, status: int | None, rules: RobotsRules) -> Dropped | None:
    """Why a page may not be used, None when it may.

    Longest match decides and ties are allowed; a server error (5xx) on robots.txt denies everything, any other answer without a
    file (4xx) allows everything.

    Args:
      url: the page's.
      robots: text of the site's robots.txt, None when there is none.
      status: HTTP status of robots.txt, None = 200 or unknown.
      rules: agents, and what to do without a robots.txt.
    """
    if status is not None and 500 <= status < 600:
        return Dropped("robots_unreachable", f"robots.txt was answered with {status}, which denies all (RFC 9309, 2.3.1.4)")
    if status is not None and 400 <= status < 500:
        return None
    if robots is None:
        return Dropped("robots_missing", "no robots.txt was kept with the page") if rules.missing == "deny" else None
    parsed = _parsed(robots)
    for agent in rules.agents:
        if not parsed.can_fetch(url, agent):
            return Dropped("robots_disallowed", f"robots.txt disallows the page for {agent}")
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Robots:
    """Drops pages that the robots.txt kept with them excludes. `pipelines.robots.RobotsRecheck` asks a later one."""

    rules: RobotsRules = RobotsRules()
    name: str = "robots"

    def open(self) -> Callable[[Document], Outcome]:
        """As `DocumentStep.open`."""
        return functools.partial(judge, rules=self.rules)


def judge(document: Document, *, rules: RobotsRules) -> Outcome:
    """The document without its robots.txt, or why it may not be used."""
    refused = verdict(document.url, document.robots, document.robots_status, rules)
    return refused or dataclasses.replace(document, robots=None, robots_status=None)
