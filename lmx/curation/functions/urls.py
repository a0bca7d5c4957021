"""URLs brought to one form, so that one page has one URL."""

import dataclasses
import re
import urllib.parse

_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNSAFE = re.compile(r"[^!-~]+")
_PORTS = {"http": 80, "https": 443}
# Parameters that say how a reader came to a page, never which page it is.
TRACKING = ("utm_*", "gclid", "fbclid", "msclkid", "mc_cid", "mc_eid", "igshid", "ref_src", "sessionid", "phpsessid", "jsessionid")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UrlRules:
    """Which differences between URLs don't count.

    Attributes:
      drop_parameters: names of query parameters, lower case; a final `*` stands for any ending.
      merge_schemes: http and https are one.
      drop_www: a leading `www.` doesn't count.
    """

    drop_parameters: tuple[str, ...] = TRACKING
    merge_schemes: bool = True
    drop_www: bool = False


def normalize(url: str, rules: UrlRules = UrlRules()) -> str:
    """The URL without what doesn't tell pages apart (RFC 3986, section 6, and `rules`).

    Scheme and host in lower case, international hosts in ASCII, no default port, fragment or user, dot segments resolved,
    escapes in one form, query parameters sorted.

    Raises:
      ValueError: it is no absolute http(s) URL.
    """
    try:
        parts = urllib.parse.urlsplit(url.strip())
        scheme, host, port = parts.scheme.lower(), (parts.hostname or "").rstrip("."), parts.port
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    except (ValueError, UnicodeError) as error:
        raise ValueError(f"{url[:200]!r} is not a URL: {error}") from error
    if scheme not in _PORTS or not host:
        raise ValueError(f"{url[:200]!r} is not an absolute http(s) URL")
    if rules.drop_www:
        host = host.removeprefix("www.")
    netloc = f"[{host}]" if ":" in host else host
    if port is not None and port != _PORTS[scheme]:
        netloc += f":{port}"
    path = _resolved(_escaped(parts.path or "/"))
    query = "&".join(sorted(item for item in parts.query.split("&") if item and not _dropped(item, rules.drop_parameters)))
    return urllib.parse.urlunsplit(("https" if rules.merge_schemes else scheme, netloc, path, _escaped(query), ""))


def origin(url: str) -> str:
    """Host (and port, when it isn't the default one) of a URL: what one robots.txt speaks for."""
    return urllib.parse.urlsplit(normalize(url)).netloc


def _dropped(item: str, patterns: tuple[str, ...]) -> bool:
    name = urllib.parse.unquote_plus(item.partition("=")[0]).lower()
    return any(name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in patterns)


def _escaped(part: str) -> str:
    """Unreserved characters bare, everything outside printable ASCII escaped, escapes in upper case."""

    def bare(match: re.Match[str]) -> str:
        character = chr(int(match[1], 16))
        return character if character in _UNRESERVED else f"%{match[1].upper()}"

    quoted = _UNSAFE.sub(lambda match: urllib.parse.quote(match[0].encode("utf-8", "replace")), part)
    return _ESCAPE.sub(bare, quoted)


def _resolved(path: str) -> str:
    """The path without dot segments (RFC 3986, 5.2.4)."""
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments[1:]:
        if segment == "..":
            kept = kept[:-1]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)
