"""Pairs of a right and a wrong answer, with answers made up here, so that every verdict is known beforehand."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmx.core import storage
from lmx.data.generated import GeneratedTasks
from lmx.pipeline.artifact import Artifact
from lmx.pipeline.stage import StageContext
from lmx.sampling.generate import Completion
from lmx.stages import sample_pairs
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.prompt import PromptTemplate

TOKENIZER, TEMPLATE = ByteTokenizer(), PromptTemplate()


class Policy:
    """Takes the place of `generate`: answers sample i of a prompt with template i, in which {} is the right answer."""

    def __init__(self, problems: GeneratedTasks, answers: Sequence[str], *, stop_at_call: int | None = None) -> None:
        self.right = {row["prompt"]: row["answer"] for split in ("train", "heldout") for row in rows_of(problems, split)}
        self.answers, self.stop_at_call = answers, stop_at_call
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, model: Any, params: Any, prompts: Sequence[list[int]], *, seed: Sequence[int], **options: Any) -> Any:
        if len(self.calls) == self.stop_at_call:
            raise KeyboardInterrupt
        self.calls.append(tuple(seed))
        assert options["sampling"].vocab_size == TOKENIZER.vocab_size
        return [self._complete(ids, self.answers[index % len(self.answers)]) for index, ids in enumerate(prompts)]

    def _complete(self, ids: list[int], template: str) -> Completion:
        prompt = TOKENIZER.decode(ids).removeprefix(TEMPLATE.before).removesuffix(TEMPLATE.after)
        tokens = [*TOKENIZER.encode(TEMPLATE.lead + template.format(self.right[prompt])), TOKENIZER.eos_id]
        return Completion(tokens, np.zeros(len(tokens)), "stop")


def rows_of(problems: GeneratedTasks, split: str) -> list[dict[str, Any]]:
    rows = problems.load(split)
    return [rows[index] for index in range(len(rows))]


def read(folder: Path, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


@pytest.fixture
def sample(
    language_model: Callable[[int], Artifact], stages: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """`sample(folder, answers, **changes)` runs the stage with made-up answers, and returns its metrics and the policy."""

    def run(folder: Path, answers: Sequence[str], *, stop_at_call: int | None = None, **changes: Any) -> Any:
        stage = dataclasses.replace(stages["pairs"], samples_per_prompt=len(answers), **changes)
        policy = Policy(stage.problems, answers, stop_at_call=stop_at_call)
        monkeypatch.setattr(sample_pairs, "generate", policy)
        context = StageContext(workdir=storage.as_path(folder), name="pairs", seed=7)
        return stage.run({"policy": language_model(0)}, context).metrics, policy

    return run


def test_the_chosen_answer_is_right_and_the_rejected_one_wrong(sample: Callable[..., Any], stages: Any, tmp_path: Path) -> None:
    metrics, _ = sample(tmp_path, ["{}", "{} x", " ", "{} x"])
    problems = stages["pairs"].problems
    for split, count in (("train", 12), ("heldout", 8)):
        assert read(tmp_path, split) == [
            {"task": row["task"], "prompt": row["prompt"], "chosen": row["answer"], "rejected": f"{row['answer']} x"}
            for row in rows_of(problems, split)
        ]
        assert metrics[f"{split}/pairs"] == count and metrics[f"{split}/right"] == 0.25


def test_a_prompt_gives_as_many_pairs_as_it_has_wrong_answers_up_to_the_limit(sample: Callable[..., Any], tmp_path: Path) -> None:
    metrics, _ = sample(tmp_path / "two", ["{}", "a", "b", "c"], pairs_per_prompt=2)
    assert metrics["train/pairs"] == 24 and {pair["rejected"] for pair in read(tmp_path / "two", "train")} == {"a", "b"}
    metrics, _ = sample(tmp_path / "nine", ["{}", "a", "b", "c"], pairs_per_prompt=9)
    assert metrics["train/pairs"] == 36


def test_several_right_answers_are_chosen_in_turn(sample: Callable[..., Any], tmp_path: Path) -> None:
    sample(tmp_path, ["{}", "{} ", "x", "y"])
    assert [pair["chosen"].endswith(" ") for pair in read(tmp_path, "train")] == [False, True] * 12


def test_where_no_answer_is_right_the_problems_own_is_taken_or_nothing(
    sample: Callable[..., Any], stages: Any, tmp_path: Path
) -> None:
    sample(tmp_path / "own", ["a", "b"])
    answers = {row["prompt"]: row["answer"] for row in rows_of(stages["pairs"].problems, "train")}
    assert [pair["rejected"] for pair in read(tmp_path / "own", "train")] == ["a", "b"] * 12
    assert all(pair["chosen"] == answers[pair["prompt"]] for pair in read(tmp_path / "own", "train"))
    with pytest.raises(ValueError, match="gave no pair in the split 'train': all are right, or all wrong without answers"):
        sample(tmp_path / "nothing", ["a", "b"], use_answers=False)


def test_where_every_answer_is_right_there_is_nothing_to_prefer(sample: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gave no pair in the split 'train'"):
        sample(tmp_path, ["{}", "{}"])


def test_the_verifier_decides(sample: Callable[..., Any], tmp_path: Path) -> None:
    sample(tmp_path, ["even", "odd"], verify=has_even_length)
    assert {(pair["chosen"], pair["rejected"]) for pair in read(tmp_path, "train")} == {("even", "odd")}


def has_even_length(row: Any, response: str) -> bool:
    return len(response) % 2 == 0


def test_every_sample_of_every_split_has_a_seed_of_its_own(sample: Callable[..., Any], tmp_path: Path) -> None:
    _, policy = sample(tmp_path, ["{}", "a", "b"])
    assert [len(seeds) for seeds in policy.calls] == [36, 24]
    assert len({seed for seeds in policy.calls for seed in seeds}) == 60


def test_an_interrupted_run_keeps_its_chunks_and_ends_as_one_that_was_not(
    sample: Callable[..., Any], stages: Any, tmp_path: Path
) -> None:
    problems = dataclasses.replace(stages["pairs"].problems, count=300)
    _, whole = sample(tmp_path / "whole", ["{}", "a"], problems=problems)
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path / "cut", ["{}", "a"], problems=problems, stop_at_call=1)
    _, rest = sample(tmp_path / "cut", ["{}", "a"], problems=problems)
    assert [len(seeds) for seeds in whole.calls] == [512, 88, 16]
    assert rest.calls == whole.calls[1:]
    for split in ("train", "heldout"):
        assert read(tmp_path / "cut", split) == read(tmp_path / "whole", split)


def test_nothing_is_sampled_again_when_the_parts_are_there(sample: Callable[..., Any], tmp_path: Path) -> None:
    first, _ = sample(tmp_path, ["{}", "a"])
    pairs = read(tmp_path, "train")
    (tmp_path / "train.jsonl").unlink()
    again, policy = sample(tmp_path, ["{}", "a"], stop_at_call=0)
    assert not policy.calls and again == first and read(tmp_path, "train") == pairs


def test_a_foreign_part_is_named(sample: Callable[..., Any], tmp_path: Path) -> None:
    storage.write_json(tmp_path / "parts/train-00000000.json", {"pairs": []})
    with pytest.raises(ValueError, match="train-00000000.json is not a part that this stage wrote; delete it"):
        sample(tmp_path, ["{}", "a"])
