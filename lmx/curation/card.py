"""The data card: what came in and went out of each step, why documents left, examples, what was written, and from which config."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lmx
from lmx.core import config as configs
from lmx.core.fingerprint import fingerprint
from lmx.core.serialize import canonical
from lmx.curation.config import Curation

_LIBRARIES = ("apache-beam", "array_record", "lxml", "numpy", "protego", "py3langid", "trafilatura")
_FASTTEXT = ("fasttext-community", "fasttext-numpy2", "fasttext")  # builds of one library


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A document that left, without personal data."""

    url: str
    detail: str
    excerpt: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCounts:
    """What a step did.

    Attributes:
      name: of the step.
      documents_in: documents (of "read": records) that came.
      characters_in: of their texts (of "read": of pages too).
      documents_out: documents that went on.
      dropped: reason -> documents.
      set_aside: kind of failure -> records.
      unread: kind of failure -> records that are read beside the corpus.
      added: documents that the step made.
      noted: whatever else it counted.
      examples: reason -> some documents.
    """

    name: str
    documents_in: int
    characters_in: int
    documents_out: int
    dropped: Mapping[str, int]
    set_aside: Mapping[str, int]
    unread: Mapping[str, int]
    added: int
    noted: Mapping[str, int]
    examples: Mapping[str, Sequence[Example]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A written file."""

    set: str
    file: str
    documents: int
    characters: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """A data card; the same for the same input and config, whatever ran it and when.

    Attributes:
      name: of the curation.
      fingerprint: of its config.
      config: its config, as text.
      seeds: every seed in the config, by path.
      versions: of what decides the output.
      steps: in order, from "read" to "write".
      shards: what was written.
    """

    name: str
    fingerprint: str
    config: str
    seeds: Mapping[str, int]
    versions: Mapping[str, str]
    steps: tuple[StepCounts, ...]
    shards: tuple[Shard, ...]

    def step(self, name: str) -> StepCounts:
        """The counts of a step."""
        return next(step for step in self.steps if step.name == name)

    def documents(self, output: str) -> int:
        """Documents of an output set."""
        return sum(shard.documents for shard in self.shards if shard.set == output)


def make_card(curation: Curation, statistics: Iterable[Any], names: Sequence[str]) -> tuple[Card, list[str]]:
    """The card of a run, and sentences for what must not be.

    Args:
      curation: as it was asked for.
      statistics: what the graph wrote: ["count", [place, kind, label, number]], ["examples", ...], ["shard", ...].
      names: of the steps by place.
    """
    counts: dict[tuple[int, str], dict[str, int]] = {}
    examples: dict[tuple[int, str], list[Example]] = {}
    shards = []
    for tag, item in statistics:
        if tag == "count":
            place, kind, label, number = item
            counts.setdefault((place, kind), {})[label] = number
        elif tag == "examples":
            place, _, reason, found = item
            examples[place, reason] = [Example(**entry) for entry in found][: curation.examples]
        else:
            shards.append(Shard(**item))
    steps = tuple(_step(place, name, counts, examples) for place, name in enumerate(names))
    card = Card(
        name=curation.name,
        fingerprint=fingerprint(curation),
        config=configs.to_text(curation),
        seeds=_seeds(canonical(curation), ""),
        versions=versions(),
        steps=steps,
        shards=tuple(sorted(shards, key=lambda shard: shard.file)),
    )
    return card, _problems(curation, card, counts)


def _step(place: int, name: str, counts: Mapping[tuple[int, str], dict[str, int]], examples: Mapping[Any, Any]) -> StepCounts:
    def of(kind: str) -> dict[str, int]:
        return dict(sorted(counts.get((place, kind), {}).items()))

    came, added = of("in").get("", 0), of("added").get("", 0)
    dropped, set_aside = of("dropped"), of("set_aside")
    return StepCounts(
        name=name,
        documents_in=came,
        characters_in=of("characters").get("", 0),
        documents_out=came - sum(dropped.values()) - sum(set_aside.values()) + added,
        dropped=dropped,
        set_aside=set_aside,
        unread=of("unread"),
        added=added,
        noted=of("noted"),
        examples={reason: found for (where, reason), found in sorted(examples.items()) if where == place},
    )


def _problems(curation: Curation, card: Card, counts: Mapping[tuple[int, str], dict[str, int]]) -> list[str]:
    problems = []
    for before, after in zip(card.steps, card.steps[1:], strict=False):
        if before.documents_out != after.documents_in:
            problems.append(
                f"documents were lost between {before.name!r} and {after.name!r}: {before.documents_out:,} went out of the one, "
                f"{after.documents_in:,} came to the other; this is a bug of lmx or of a step"
            )
    for place, step in enumerate(card.steps):
        failed = sum(step.set_aside.values())
        if failed > curation.most_set_aside * step.documents_in:
            [(kind, found), *_] = sorted(step.examples.items()) or [("?", [])]
            first = f"; for example {kind}: {found[0].detail} ({found[0].url})" if found else f" ({', '.join(step.set_aside)})"
            problems.append(
                f"the step {step.name!r} could not process {failed:,} of {step.documents_in:,} records, more than "
                f"most_set_aside={curation.most_set_aside:.0%}{first}"
            )
        if "not_converged" in counts.get((place, "failed"), {}):
            number = counts[place, "failed"]["not_converged"]
            problems.append(
                f"the components of the step {step.name!r} are not complete: {number:,} documents would change in one more round; "
                "set its `rounds` higher"
            )
    if not card.steps[0].documents_in:
        problems.append("the source is empty: it gave no record")
    elif not any(shard.documents for shard in card.shards):
        largest = max(card.steps, key=lambda step: step.documents_in - step.documents_out)
        problems.append(f"no document is left; most were lost in the step {largest.name!r} ({_reasons(largest)})")
    return problems


def _seeds(tree: Any, path: str) -> dict[str, int]:
    if isinstance(tree, dict):
        found: dict[str, int] = {}
        for name, value in tree.items():
            where = f"{path}.{name}".lstrip(".")
            found |= {where: value} if name == "seed" and isinstance(value, int) else _seeds(value, where)
        return found
    if isinstance(tree, list):
        return {key: value for index, item in enumerate(tree) for key, value in _seeds(item, f"{path}.{index}").items()}
    return {}


def versions() -> dict[str, str]:
    """Versions of Python, lmx and the libraries that decide what comes out."""
    found = {"python": platform.python_version(), "lmx": lmx.__version__}
    found |= {name: importlib.metadata.version(name) for name in _LIBRARIES}
    installed = {item.metadata["Name"].lower() for item in importlib.metadata.distributions()}
    return found | {name: importlib.metadata.version(name) for name in _FASTTEXT if name in installed}


# ----- as text


def _reasons(step: StepCounts) -> str:
    parts = [f"{reason} {count:,}" for reason, count in sorted(step.dropped.items(), key=lambda item: (-item[1], item[0]))]
    parts += [f"could not be processed: {kind} {count:,}" for kind, count in step.set_aside.items()]
    parts += [f"unread {kind} {count:,}" for kind, count in step.unread.items()]
    parts += [f"added {step.added:,}"] if step.added else []
    parts += [f"{label} {count:,}" for label, count in step.noted.items()]
    return ", ".join(parts)


def table(card: Card, *, width: int | None = None) -> str:
    """The steps as a table for a terminal; what is longer than `width` characters is cut."""
    rows = [("step", "in", "out", "kept", "why the others left, and what else was counted")]
    for step in card.steps:
        share = f"{step.documents_out / step.documents_in:.1%}" if step.documents_in else "-"
        rows.append((step.name, f"{step.documents_in:,}", f"{step.documents_out:,}", share, _reasons(step)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[column].rjust(widths[column]) for column in (1, 2, 3)), row[4]]).rstrip()
        for row in rows
    ]
    for name in sorted({shard.set for shard in card.shards}):
        members = [shard for shard in card.shards if shard.set == name]
        characters, size = sum(shard.characters for shard in members), sum(shard.bytes for shard in members)
        lines.append(
            f"{name}: {card.documents(name):,} documents, {characters:,} characters in {len(members)} shards ({size / 1e6:,.1f} MB)"
        )
    return "\n".join(line if width is None or len(line) <= width else f"{line[: width - 1]}…" for line in lines)


def markdown(card: Card) -> str:
    """The card for people."""
    lines = [f"# Data card: {card.name}", "", f"Config {card.fingerprint}.", "", "## Steps", ""]
    lines += ["| step | in | out | characters in | why documents left, and what else was counted |", "|---|---:|---:|---:|---|"]
    lines += [
        f"| {step.name} | {step.documents_in:,} | {step.documents_out:,} | {step.characters_in:,} | {_escaped(_reasons(step))} |"
        for step in card.steps
    ]
    lines += ["", "## Output", "", "| file | documents | characters | bytes | SHA-256 |", "|---|---:|---:|---:|---|"]
    lines += [
        f"| {shard.file} | {shard.documents:,} | {shard.characters:,} | {shard.bytes:,} | `{shard.sha256[:16]}` |"
        for shard in card.shards
    ]
    lines += ["", "A record is a JSON object; its `text` is the document (`lmx.data.sources.ArrayRecords`).", "", "## Examples", ""]
    for step in card.steps:
        for reason, found in step.examples.items():
            lines += [f"### {step.name}: {reason}", ""]
            for example in found:
                where = f" ({_escaped(example.detail)})" if example.detail else ""
                lines += [f"- {_escaped(example.url) or 'no URL'}{where}", "", f"  > {_escaped(example.excerpt[:200])}", ""]
    seeds = ", ".join(f"{path} = {seed}" for path, seed in card.seeds.items()) or "none"
    lines += ["## Config", "", f"Seeds: {seeds}.", "", "```", card.config, "```", "", "## Versions", ""]
    lines += [f"- {name} {version}" for name, version in card.versions.items()]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
