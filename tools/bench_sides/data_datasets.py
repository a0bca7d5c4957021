"""The `datasets` library's side of `tools/bench_data.py`: `map` to tokenize, `map` to group, batches of NumPy arrays.

The functions given to `map` are the customary ones: the tokenizer's own batch call, BOS and EOS around each document; and all
tokens of a batch of documents end to end, cut into rows, the rest dropped.
"""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import sentencepiece
import tokenizers

from tools.bench_sides import data_protocol as protocol
from tools.bench_sides.turns import Worker, serve

Columns = dict[str, list[Any]]


def build(shape: str, folder: Path) -> Worker:
    """A pass over all the text; `shape` is the tokenizer, or the tokenizer and a number of processes: "huggingface:2"."""
    kind, _, processes = shape.partition(":")
    datasets.disable_caching()
    datasets.disable_progress_bars()
    tokenize = _tokenize(kind, folder)

    def rows(name: str, cache: str) -> datasets.Dataset:
        options = {"batched": True, "batch_size": protocol.DOCUMENTS, "num_proc": int(processes) if processes else None}
        text = datasets.load_dataset("json", data_files=str(folder / name), split="train", cache_dir=cache)
        return text.map(tokenize, remove_columns=["text"], **options).map(_group, **options)

    def turn() -> dict[str, int]:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            shuffled = rows(protocol.TEXT, cache).shuffle(seed=protocol.SEED).with_format("numpy")
            return {"tokens": sum(batch["input_ids"].size for batch in shuffled.iter(batch_size=protocol.BATCH))}

    with tempfile.TemporaryDirectory(dir=folder) as cache:
        first = rows(protocol.WARM_UP, cache)[0]
    return Worker({"first_row": first["input_ids"]}, turn)


def _tokenize(kind: str, folder: Path) -> Callable[[Columns], Columns]:
    """The function of the first `map`."""
    if kind == "sentencepiece":
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / kind / "tokenizer.model"))
        start, end = processor.bos_id(), processor.eos_id()
        return lambda rows: {"input_ids": [[start, *ids, end] for ids in processor.encode(rows["text"])]}
    backend = tokenizers.Tokenizer.from_file(str(folder / kind / "tokenizer.json"))
    ids = backend.get_vocab(with_added_tokens=True)
    start, end = ids[protocol.START], ids[protocol.END]

    def tokenize(rows: Columns) -> Columns:
        return {
            "input_ids": [[start, *text.ids, end] for text in backend.encode_batch_fast(rows["text"], add_special_tokens=False)]
        }

    return tokenize


def _group(rows: Columns) -> Columns:
    """The function of the second `map`."""
    tokens = list(itertools.chain(*rows["input_ids"]))
    whole = len(tokens) // protocol.LENGTH * protocol.LENGTH
    grouped = [tokens[start : start + protocol.LENGTH] for start in range(0, whole, protocol.LENGTH)]
    return {"input_ids": grouped, "labels": grouped.copy()}


if __name__ == "__main__":
    serve(build)
