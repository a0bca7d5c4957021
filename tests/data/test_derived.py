"""Sources made of other sources."""

import dataclasses

import pytest

from configs.data import domains, tasks
from lmx.data.derived import Joined, Long, SolvedTasks, Splits
from lmx.data.sources import Rows
from lmx.data.tasks import Addition


@dataclasses.dataclass(frozen=True)
class Texts:
    texts: tuple[str, ...]
    heldout: tuple[str, ...] = ()

    def load(self, split: str) -> Rows:
        return [{"text": text} for text in (self.texts if split == "train" else self.heldout)]  # type: ignore[return-value]

    def fingerprint(self) -> str:
        return "texts " + " ".join(self.texts)


def texts(rows: Rows) -> list[str]:
    return [rows[index]["text"] for index in range(len(rows))]


def test_splits_reads_each_split_from_its_own_source() -> None:
    files = Splits(train=Texts(("a", "b")), heldout=Texts(("c",)))
    assert (texts(files.load("train")), texts(files.load("heldout"))) == (["a", "b"], ["c"])
    smaller = Splits(train=Texts(("a",)), heldout=Texts(("b",), heldout=("c",)), heldout_split="heldout")
    assert texts(smaller.load("heldout")) == ["c"]
    with pytest.raises(ValueError, match="no split 'test'"):
        files.load("test")


def test_a_change_of_either_split_changes_the_fingerprint() -> None:
    found = {Splits(train=Texts((a,)), heldout=Texts((b,))).fingerprint() for a, b in (("x", "y"), ("x", "z"), ("w", "y"))}
    assert len(found) == 3


def test_joined_gives_the_rows_of_all_in_order() -> None:
    joined = Joined(sources=(Texts(("a", "b")), Texts(("c",))))
    assert texts(joined.load("train")) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="join at least one source"):
        Joined(sources=())


def test_long_keeps_texts_by_their_bytes() -> None:
    source = Texts(("é" * 3, "abcde", "abcdef"))
    assert texts(Long(source=source, min_bytes=6).load("train")) == ["ééé", "abcdef"]
    with pytest.raises(ValueError, match="no row .* has min_bytes=7; its longest has 6"):
        Long(source=source, min_bytes=7).load("train")


def test_solved_tasks_are_documents_of_so_many_problems() -> None:
    problems = tasks.problems((Addition(max_digits=2),), count=7, heldout_count=6)
    source = SolvedTasks(problems=problems, per_document=3)
    rows = source.load("train")
    assert len(rows) == 2
    first = problems.load("train")
    assert rows[1]["text"].splitlines()[:2] == [f"Q: {first[3]['prompt']}", f"A: {first[3]['answer']}"]
    assert rows[0]["text"].count("Q: ") == 3
    with pytest.raises(IndexError):
        rows[2]
    with pytest.raises(ValueError, match=r"per_document=7 must lie in 1\.\.6"):
        SolvedTasks(problems=problems, per_document=7)


def test_an_enciphered_text_is_another_language_of_the_same_letters() -> None:
    source = domains.Enciphered(source=Texts(("Hello, world 42!",)))
    assert texts(source.load("train")) == ["Uryyb, jbeyq 42!"]
    assert texts(domains.Enciphered(source=source).load("train")) == ["Hello, world 42!"]


def test_a_mixture_holds_only_domains_with_a_weight_and_follows_its_marks() -> None:
    known = {name: Texts((name,)) for name in ("web", "code", "maths")}
    constant = domains.mixture(known, {"code": 1.0, "web": 3.0})
    assert [(part.name, part.weight) for part in constant.components] == [("web", 3.0), ("code", 1.0)] and constant.mix is None
    changing = domains.mixture(known, {"web": 1.0}, [(100, {"maths": 1.0})])
    assert changing.mix is not None and [point.from_tokens for point in changing.mix.points] == [0, 100]
    with pytest.raises(ValueError, match="from token 100 on names cod; the domains are web, code, maths"):
        domains.mixture(known, {"web": 1.0}, [(100, {"cod": 1.0})])


def test_every_stand_in_has_text_in_both_splits() -> None:
    for name, source in domains.stand_ins(long_characters=2_400).items():
        for split in ("train", "heldout"):
            rows = source.load(split)
            assert len(rows) >= 1 and rows[0]["text"], (name, split)
