"""lmx's side of `tools/bench_data.py`: text to batches through `PackedText`, as a training stage reads it."""

import tempfile
from pathlib import Path

from lmx import tokenizer as tokenizers
from lmx.data.loader import Loader
from lmx.data.sources import JsonLines
from lmx.data.text import Component, PackedText
from tools.bench_sides import data_protocol as protocol
from tools.bench_sides.turns import Worker, serve


def build(shape: str, folder: Path) -> Worker:
    """A pass over all the text, token arrays on disk; batches are LMBatch, five arrays each."""
    tokenizer = tokenizers.load(folder / shape)

    def batches(name: str, cache: str, seed: int | None) -> Loader:
        text = PackedText(components=(Component(source=JsonLines(path=str(folder / name))),), token_cache=Path(cache))
        return text.loader(tokenizer, batch_size=protocol.BATCH, length=protocol.LENGTH, seed=seed, epochs=1)

    def turn() -> dict[str, int]:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            return {"tokens": sum(int((batch.segment_ids > 0).sum()) for batch in batches(protocol.TEXT, cache, protocol.SEED))}

    with tempfile.TemporaryDirectory(dir=folder) as cache:
        first = next(batches(protocol.WARM_UP, cache, None))
    return Worker({"first_row": first.tokens[0].tolist()}, turn)


if __name__ == "__main__":
    serve(build)
