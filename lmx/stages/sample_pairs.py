"""The stage that lets a policy answer prompts, judges the answers, and keeps pairs of a right and a wrong one."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from etils import epath

from lmx.core import storage
from lmx.core.logging import logger, progress
from lmx.data.generated import GeneratedTasks
from lmx.pipeline.artifact import LoadedModel
from lmx.pipeline.stage import External, Inputs, Ref, StageContext, StageResult, Upstream, input_field
from lmx.rewards.verify import Verifier, exact_answer
from lmx.sampling.generate import Sampling, generate
from lmx.stages import training as stage_training
from lmx.stages.pairs import SPLITS
from lmx.tokenizer.prompt import PromptTemplate

_CHUNK = 256  # prompts answered and written at once: what an interruption can cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplePairs:
    """Preference pairs from a policy's own answers: rows {"task", "prompt", "chosen", "rejected"} in a JSONL file for each split.

    A prompt gives up to `pairs_per_prompt` pairs, each of a right answer and another wrong one. Where no answer was right, the
    problem's own answer is the chosen one if `use_answers`; where none was wrong there is nothing to prefer.

    Attributes:
      policy: the language model that answers.
      problems: prompts with the answers that the verifier needs.
      sampling: how answers are drawn.
      samples_per_prompt: answers to each prompt.
      pairs_per_prompt: most pairs from one prompt.
      use_answers: take the problem's answer where the policy found none.
      template: the text around a prompt, the same as in fine-tuning.
      verify: (row, response) -> whether the response is right.
      batch_size: rows generated at once.
    """

    produces: ClassVar[str] = "dataset"
    policy: Ref | External = input_field("model")
    problems: GeneratedTasks
    sampling: Sampling
    samples_per_prompt: int = 4
    pairs_per_prompt: int = 2
    use_answers: bool = True
    template: PromptTemplate = PromptTemplate()
    verify: Verifier = exact_answer
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.samples_per_prompt < 2 or self.pairs_per_prompt < 1:
            raise ValueError(
                f"samples_per_prompt={self.samples_per_prompt} must be at least 2 and "
                f"pairs_per_prompt={self.pairs_per_prompt} at least 1"
            )

    def check(self, upstream: Upstream) -> None:
        """As `HasCheck.check`."""
        stage_training.check_room(self.sampling, stage_training.require_language_model(upstream, "policy"), "sampling")

    def run(self, inputs: Inputs, context: StageContext) -> StageResult:
        """As `Stage.run`; finished chunks of prompts are kept over an interruption."""
        policy = inputs["policy"].load()
        metrics: dict[str, float] = {}
        for number, split in enumerate(SPLITS):
            pairs, right, answers = self._sample(policy, split, context, seed=context.seed + number)
            if not pairs:
                raise ValueError(
                    f"the policy's answers gave no pair in the split {split!r}: all are right, or all wrong without answers"
                )
            storage.write_text(context.workdir / f"{split}.jsonl", "".join(json.dumps(pair) + "\n" for pair in pairs))
            metrics |= {f"{split}/pairs": len(pairs), f"{split}/right": right / answers}
            logger.info(
                "stage %s: %s: %d pairs; %.1f%% of %d answers right",
                context.name,
                split,
                len(pairs),
                100 * right / answers,
                answers,
            )
        return StageResult(metrics=metrics)

    def _sample(
        self, policy: LoadedModel, split: str, context: StageContext, *, seed: int
    ) -> tuple[list[dict[str, str]], int, int]:
        """The pairs of a split, the number of right answers, and that of all answers."""
        rows = self.problems.load(split)
        pairs, right, answers = [], 0, 0
        starts = range(0, len(rows), _CHUNK)
        for start in progress(starts, description=f"{context.name} {split}"):
            part = context.workdir / "parts" / f"{split}-{start:08d}.json"
            if not part.exists():
                chunk = [rows[index] for index in range(start, min(start + _CHUNK, len(rows)))]
                storage.write_json(part, self._answer(policy, chunk, seed=seed, start=start))
            done = _read_part(part)
            pairs += done["pairs"]
            right, answers = right + done["right"], answers + done["answers"]
        return pairs, right, answers

    def _answer(self, policy: LoadedModel, rows: Sequence[dict[str, Any]], *, seed: int, start: int) -> dict[str, Any]:
        """Pairs and counts of some prompts."""
        tokenizer, count = policy.tokenizer, self.samples_per_prompt
        sampling = dataclasses.replace(self.sampling, vocab_size=self.sampling.vocab_size or tokenizer.vocab_size)
        prompts = [self.template.prompt_ids(tokenizer, row["prompt"]) for row in rows for _ in range(count)]
        seeds = np.random.SeedSequence([seed, start]).generate_state(len(prompts)).tolist()
        completions = generate(
            policy.model,
            policy.params,
            prompts,
            sampling=sampling,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
            seed=seeds,
            batch_size=self.batch_size,
        )
        texts = [self.template.response_text(tokenizer, completion.tokens) for completion in completions]
        pairs, right = [], 0
        for index, row in enumerate(rows):
            responses = texts[index * count : (index + 1) * count]
            verdicts = [bool(self.verify(row, response)) for response in responses]
            right += sum(verdicts)
            pairs += self._pairs(row, responses, verdicts)
        return {"pairs": pairs, "right": right, "answers": len(texts)}

    def _pairs(self, row: dict[str, Any], responses: Sequence[str], verdicts: Sequence[bool]) -> list[dict[str, str]]:
        good = list(dict.fromkeys(text for text, right in zip(responses, verdicts, strict=True) if right))
        bad = list(dict.fromkeys(text for text, right in zip(responses, verdicts, strict=True) if not right and text.strip()))
        if not good and self.use_answers:
            good = [row["answer"]]
        if not good:
            return []
        return [
            {"task": row["task"], "prompt": row["prompt"], "chosen": good[number % len(good)], "rejected": text}
            for number, text in enumerate(bad[: self.pairs_per_prompt])
        ]


def _read_part(path: epath.Path) -> dict[str, Any]:
    part = storage.read_json(path)
    if not isinstance(part, dict) or part.keys() != {"pairs", "right", "answers"}:
        raise ValueError(f"{path} is not a part that this stage wrote; delete it and run again")
    return part
