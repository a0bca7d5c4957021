"""Prompts with responses: instructions for fine-tuning, pairs for preference learning."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from lmx.data.batches import PreferenceBatch
from lmx.data.loader import Loader, Order, build_loader
from lmx.data.packing import Example, PackedExamples, PairRows, empty_row
from lmx.data.sources import Row, Source, field_of
from lmx.tokenizer.prompt import PromptTemplate
from lmx.tokenizer.protocol import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instructions:
    """Prompt and response packed into rows; the loss counts on the response and its EOS.

    Attributes:
      source: rows with a prompt and a response.
      template: the text around them.
      prompt_field: field of a row that holds the prompt.
      response_field: field that holds the response.
      drop_too_long: leave out examples of more than T tokens and count them in `Loader.dropped`; else they are an error. None is
        cut.
    """

    source: Source
    template: PromptTemplate = PromptTemplate()
    prompt_field: str = "prompt"
    response_field: str = "answer"
    drop_too_long: bool = False

    def loader(
        self,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        length: int,
        seed: int | None,
        split: str = "train",
        epochs: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Loader:
        """Batches of LMBatch; arguments as in `PackedText.loader`."""
        order = Order(batch_size=batch_size, seed=seed, epochs=epochs, process_index=process_index, process_count=process_count)

        def encode(row: Row, index: int) -> tuple[Example]:
            prompt, response = (field_of(row, field, self.source, index) for field in (self.prompt_field, self.response_field))
            return (encode_example(self.template, tokenizer, prompt, response),)

        kept, dropped = _fitting(self.source, split, encode, length, self.drop_too_long)
        rows = PackedExamples([example for (example,) in kept], tokenizer, length, seed)
        return build_loader([rows], [1.0], order, filler=empty_row(length, tokenizer.pad_id), dropped=dropped)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preferences:
    """A chosen and a rejected response to one prompt, one pair a row, right-padded.

    Attributes:
      source: rows with a prompt and two responses.
      template: the text around them.
      prompt_field: field of a row that holds the prompt.
      chosen_field: field that holds the better response.
      rejected_field: field that holds the worse one.
      drop_too_long: leave out pairs of which either response makes more than T tokens and count them in `Loader.dropped`; else they
        are an error. None is cut.
    """

    source: Source
    template: PromptTemplate = PromptTemplate()
    prompt_field: str = "prompt"
    chosen_field: str = "chosen"
    rejected_field: str = "rejected"
    drop_too_long: bool = False

    def loader(
        self,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        length: int,
        seed: int | None,
        split: str = "train",
        epochs: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Loader:
        """Batches of PreferenceBatch, `batch_size` pairs each; other arguments as in `PackedText.loader`."""
        order = Order(batch_size=batch_size, seed=seed, epochs=epochs, process_index=process_index, process_count=process_count)

        def encode(row: Row, index: int) -> tuple[Example, Example]:
            prompt, chosen, rejected = (
                field_of(row, field, self.source, index) for field in (self.prompt_field, self.chosen_field, self.rejected_field)
            )
            return (
                encode_example(self.template, tokenizer, prompt, chosen),
                encode_example(self.template, tokenizer, prompt, rejected),
            )

        kept, dropped = _fitting(self.source, split, encode, length, self.drop_too_long)
        filler = PreferenceBatch(chosen=empty_row(length, tokenizer.pad_id), rejected=empty_row(length, tokenizer.pad_id))
        return build_loader([PairRows(kept, tokenizer, length)], [1.0], order, filler=filler, dropped=dropped)


def encode_example(template: PromptTemplate, tokenizer: Tokenizer, prompt: str, response: str) -> Example:
    """BOS, framed prompt, response, EOS."""
    before = template.prompt_ids(tokenizer, prompt)
    return Example(np.array([*before, *template.response_ids(tokenizer, response)], np.int32), len(before))


Encoded = TypeVar("Encoded", bound=tuple[Any, ...])


def _fitting(
    source: Source, split: str, encode: Callable[[Row, int], Encoded], length: int, drop: bool
) -> tuple[list[Encoded], int]:
    """Encoded rows whose examples all fit into T = `length`, and the number of the others.

    Raises:
      ValueError: a row doesn't fit and is not to be dropped, or none is left.
    """
    kept, dropped = [], 0
    for index, encoded in _encoded(source, split, encode):
        longest = max(example.size for example in encoded)
        if longest <= length:
            kept.append(encoded)
        elif drop:
            dropped += 1
        else:
            raise ValueError(
                f"row {index} of {source} makes {longest} tokens, more than length={length}; "
                "raise the length or set drop_too_long=True"
            )
    if not kept:
        raise ValueError(f"{source} has no row of at most length={length} tokens in the split {split!r} ({dropped} were longer)")
    return kept, dropped


def _encoded(source: Source, split: str, encode: Callable[[Row, int], Encoded]) -> Iterator[tuple[int, Encoded]]:
    rows = source.load(split)
    for index in range(len(rows)):
        yield index, encode(rows[index], index)
