"""Domains of pre-training text by the papers' names, and mixtures of them: shards at the papers' scale, stand-ins on a CPU."""

import codecs
import dataclasses
from collections.abc import Mapping, Sequence

from configs.data import tasks
from lmx.data import files
from lmx.data.derived import Joined, Long, SolvedTasks, Splits
from lmx.data.mixture import MixPoint, MixSchedule
from lmx.data.recall import Facts, RecallText
from lmx.data.sources import ArrayRecords, Limited, PythonCorpus, Row, Rows, Source, field_of
from lmx.data.tasks import WORDS
from lmx.data.text import Component, PackedText

# What the needle tests of the mini recipes ask for, and what their long documents teach: one of 40 keys, two digits, few tokens.
SMALL_FACTS = Facts(question="{key}=", answer="{value};", keys=WORDS[:40], digits=2)


def mixture(
    domains: Mapping[str, Source], weights: Mapping[str, float], later: Sequence[tuple[int, Mapping[str, float]]] = ()
) -> PackedText:
    """A mixture of named domains, as shares in percent.

    Args:
      domains: sources by name; only those with a weight are taken.
      weights: from the start on.
      later: (token mark, weights), each from its mark on.
    """
    points = [(0, weights), *later]
    names = [name for name in domains if any(name in shares for _, shares in points)]
    for mark, shares in points:
        if missing := sorted(set(shares).difference(domains)):
            raise ValueError(f"the mixture from token {mark} on names {', '.join(missing)}; the domains are {', '.join(domains)}")
    return PackedText(
        components=tuple(Component(source=domains[name], weight=weights.get(name, 1.0), name=name) for name in names),
        mix=MixSchedule(points=tuple(MixPoint(from_tokens=mark, weights=dict(shares)) for mark, shares in points))
        if later
        else None,
    )


def shards(root: str, *names: str) -> dict[str, Source]:
    """Domains at the papers' scale: curated text as `lmx curate` leaves it, ArrayRecord shards in a folder a domain.

    The papers' corpora are not public; put your own under `root/NAME/train-*` and `root/NAME/heldout-*`.
    """
    return {
        name: Splits(
            train=ArrayRecords(path=f"{root}/{name}/train-*.array_record"),
            heldout=ArrayRecords(path=f"{root}/{name}/heldout-*.array_record"),
        )
        for name in names
    }


def stand_ins(*, long_characters: int, heldout_bytes: int = 12_000) -> dict[str, Source]:
    """Domains that need no network: what a Python installation carries, and generated text.

    Args:
      long_characters: of the longest generated document that asks for what it stated before.
      heldout_bytes: of each domain's held-out part.
    """
    prose, code = PythonCorpus(kind="prose"), PythonCorpus(kind="code")
    arithmetic = tuple(task for task in tasks.medium() if task.name in ("addition", "subtraction", "maximum"))
    words = tuple(task for task in tasks.medium() if task not in arithmetic)

    def asking(repeats: int, characters: tuple[int, int], *, count: int, seed: int) -> RecallText:
        """Texts with one fact."""
        low, high = characters
        return RecallText(
            facts=SMALL_FACTS,
            num_facts=1,
            repeats=repeats,
            questions=1,
            min_characters=low,
            max_characters=high,
            count=count,
            heldout_count=50,
            seed=seed,
        )

    # A fact that is stated often leaves much to look up, one that is stated once teaches the whole distance to the question.
    recall = Joined(sources=(asking(4, (0, 240), count=9_000, seed=1), asking(1, (0, 300), count=6_000, seed=6)))
    sizes = [long_characters // part for part in (5, 2, 1)]
    long_recall = Joined(
        sources=tuple(
            asking(repeats, (size // 4, size), count=800, seed=seed)
            for seed, (size, repeats) in enumerate(((size, repeats) for size in sizes for repeats in (1, 6)), start=10)
        )
    )
    found: dict[str, Source] = {
        "web": prose,
        "recent web": Long(source=prose, min_bytes=2_000),
        "multilingual": Enciphered(source=prose),
        "code": code,
        "maths": SolvedTasks(problems=tasks.problems(arithmetic, count=40_000, seed=2)),
        "instructions": Joined(sources=(SolvedTasks(problems=tasks.problems(words, count=40_000, seed=3)), recall)),
        "synthetic": recall,
        "licensed": Long(source=prose, min_bytes=4_000),
        "long documents": Long(source=Joined(sources=(prose, code)), min_bytes=long_characters),
        "long questions": long_recall,
    }
    return {
        name: Splits(train=source, heldout=Limited(source=source, max_bytes=heldout_bytes), heldout_split="heldout")
        for name, source in found.items()
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Enciphered:
    """A source in a made-up language: every Latin letter 13 places further on, so grammar and facts stay and no word does.

    Attributes:
      source: any source.
      field: what is enciphered.

    Reference: K et al. (2020), arXiv:1912.07840, whose "Fake-English" shifts every character in the same way.
    """

    source: Source
    field: str = "text"

    def load(self, split: str) -> Rows:
        """The rows of the source's split."""
        rows = self.source.load(split)

        def enciphered(index: int) -> Row:
            row = rows[index]
            return {**row, self.field: codecs.encode(field_of(row, self.field, self.source, index), "rot13")}

        return files.Mapped(range(len(rows)), enciphered)

    def fingerprint(self) -> str:
        """That of the source."""
        return self.source.fingerprint()
