"""Data speed in one run: packed tokens/s beside Hugging Face datasets, and curated documents/s beside datatrove.

    make bench && .venv/bin/python tools/bench_data.py

Each side lives in a process of its own, warmed up, and they take turns, so that a machine whose speed drifts is fair to both.

Tokens: text that lies in a file of JSON lines (Python's own documentation and source, as configs/data/python_corpus.py has it)
becomes batches of 8 shuffled rows of 2,048 tokens, once. The time is all of it: reading, tokenizing, packing, writing the tokens to
disk and reading batches from there. `datasets` does it by `map` in batches with the same tokenizer's own batch call, then by `map`
to group into rows, its cache off; once in one process, as lmx, and once in two. The tokenizers themselves use all cores as threads
on either side. lmx's batches hold five arrays (labels, masks, segments and positions with the tokens), theirs two. The run fails
when the first rows differ, or when a side's tokens are fewer than lmx's by more than its packing drops: less than a row a `map`
batch.

Curation: two jobs over the same pages, one worker each: "filter" (read JSON lines, extract with trafilatura, Gopher's rules, scrub
personal data, write) and "dedup" (MinHash of 5-grams over the extracted texts, 14 bands of 8, keep one of each cluster). What
differs: datatrove splits words with spaCy and runs trafilatura in a second process that it can stop; lmx, on Beam's local runner,
splits at white space, verifies pairs, finds components in a distributable way, counts every drop with its reason and writes sorted
ArrayRecord shards and a card.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tokenizers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.data import python_corpus
from lmx.curation.functions import extraction
from lmx.curation.sample import crawl, prose
from lmx.tokenizer.huggingface import HuggingFaceTokenizer
from lmx.tokenizer.roles import Roles
from lmx.tokenizer.sentencepiece import SentencePieceTraining, train
from tools.bench_sides import curation_protocol, data_protocol
from tools.bench_sides.parent import Side, positive

TOKEN_SIDES = {  # name -> module, and what is added to the name of the tokenizer
    "lmx": ("tools.bench_sides.data_lmx", ""),
    "datasets": ("tools.bench_sides.data_datasets", ""),
    "datasets, 2 processes": ("tools.bench_sides.data_datasets", ":2"),
}
CURATION_SIDES = {"lmx": "tools.bench_sides.curation_lmx", "datatrove": "tools.bench_sides.curation_datatrove"}
PROCESSES = {"datasets": 1, "datasets, 2 processes": 2}
VOCABULARY = 16_384
WARM_UP_DOCUMENTS, WARM_UP_PAGES = 20, 40


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The turns of all sides at one job.

    Attributes:
      title: of the job.
      unit: of what is counted.
      rates: for each side, of each turn; lmx's first.
      notes: what came of it, for each side.
    """

    title: str
    unit: str
    rates: dict[str, list[float]]
    notes: dict[str, str]

    def table(self) -> str:
        """The report, one line a side, with lmx's speed relative to it, turn by turn."""
        lines, ours = [self.title], self.rates["lmx"]
        for side, rates in self.rates.items():
            line = f"  {side:22}{statistics.median(rates):>12,.0f} {self.unit}/s ({min(rates):,.0f}-{max(rates):,.0f})"
            ratio = statistics.median(own / their for own, their in zip(ours, rates, strict=True))
            lines.append(f"{line:72}{self.notes[side]}" + ("" if side == "lmx" else f"; lmx is {ratio:.2f} times as fast"))
        return "\n".join(lines)


def main() -> None:
    """Parses the command line, compares and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("tokens", "curation"), help="one of the two comparisons (default: both)")
    parser.add_argument("--rounds", type=positive, default=3, help="turns of each side at tokens (default: %(default)s)")
    parser.add_argument("--pages", type=positive, default=800, help="pages of the sample crawl (default: %(default)s)")
    parser.add_argument("--curation-rounds", type=positive, default=2, help="turns of each side at curation (default: %(default)s)")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # no progress bars of the sides between the tables
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "curation":
            compare_tokens(Path(folder), options.rounds)
        if options.only != "tokens":
            compare_curation(Path(folder), options.pages, options.curation_rounds)


def compare_tokens(folder: Path, rounds: int) -> None:
    """Packs with both kinds of tokenizer, prints the tables, and ends the program when the sides' tokens differ."""
    documents, size = write_text(folder)
    print(f"{documents} documents, {size / 1e6:.1f} MB, rows of {data_protocol.LENGTH}, {os.cpu_count()} cores", flush=True)
    for kind, title in data_protocol.TOKENIZERS.items():
        sides = {name: Side("bench_data", module, kind + added, str(folder)) for name, (module, added) in TOKEN_SIDES.items()}
        turns = take_turns(sides, rounds)
        tokens = {name: int(found[0]["tokens"]) for name, found in turns.items()}
        rates = {name: [turn["tokens"] / turn["seconds"] for turn in found] for name, found in turns.items()}
        notes = {name: f"{count:,} tokens" for name, count in tokens.items()}
        print(Comparison(f"packing, {title}, vocabulary {VOCABULARY}", "tokens", rates, notes).table(), flush=True)
        check_tokens(tokens, {name: side.ready["first_row"] for name, side in sides.items()}, documents)


def check_tokens(tokens: dict[str, int], first_rows: dict[str, Sequence[int]], documents: int) -> None:
    """Ends the program when the sides did not pack the same text.

    Args:
      tokens: of each side's rows, padding not counted.
      first_rows: ids of each side's first row of the warm-up, which nobody shuffles.
      documents: of the text.
    """
    for side, processes in PROCESSES.items():
        if first_rows[side] != first_rows["lmx"]:
            sys.exit(f"bench_data: the first rows of lmx and {side} differ, so they do not pack the same text")
        batches = sum(math.ceil(len(range(part, documents, processes)) / data_protocol.DOCUMENTS) for part in range(processes))
        dropped, most = tokens["lmx"] - tokens[side], batches * (data_protocol.LENGTH - 1)
        if not 0 <= dropped <= most:
            sys.exit(f"bench_data: {side} has {dropped} tokens fewer than lmx; packing drops between 0 and {most}")


def compare_curation(folder: Path, pages: int, rounds: int) -> None:
    """Does both jobs and prints their tables."""
    write_pages(folder, pages)
    for job, title in curation_protocol.JOBS.items():
        sides = {name: Side("bench_data", module, job, str(folder)) for name, module in CURATION_SIDES.items()}
        turns = take_turns(sides, rounds)
        rates = {name: [pages / turn["seconds"] for turn in found] for name, found in turns.items()}
        notes = {name: f"{pages} in, {found[0]['left']} left" for name, found in turns.items()}
        print(Comparison(f"{job}: {title}", "documents", rates, notes).table(), flush=True)


def take_turns(sides: dict[str, Side], rounds: int) -> dict[str, list[dict[str, float]]]:
    """The answers of each side, turn by turn; then the sides end."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            turns[name].append(side.ask("turn"))
    for side in sides.values():
        side.stop()
    return turns


def write_text(folder: Path) -> tuple[int, int]:
    """The corpus as JSON lines, its first documents apart for the warm-up, and two tokenizers made of it.

    Returns:
      Documents, and bytes of their text.
    """
    texts = list(python_corpus.mixture().texts())
    for name, part in ((data_protocol.TEXT, texts), (data_protocol.WARM_UP, texts[:WARM_UP_DOCUMENTS])):
        (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    for kind in data_protocol.TOKENIZERS:
        (folder / kind).mkdir()
    train(SentencePieceTraining(vocab_size=VOCABULARY, max_bytes=4_000_000), texts).save(folder / "sentencepiece")
    _tokenizer_json(texts).save(folder / "huggingface")
    return len(texts), sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)


def _tokenizer_json(texts: Sequence[str]) -> HuggingFaceTokenizer:
    """Byte-level BPE, trained by the `tokenizers` package."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[data_protocol.START, data_protocol.END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return HuggingFaceTokenizer(backend.to_str().encode(), Roles(bos_id=0, eos_id=1, pad_id=1))


def write_pages(folder: Path, pages: int) -> None:
    """The sample crawl's pages and the paragraphs in them, as JSON lines in two folders; no broken records."""
    blocks = -(-pages // crawl.BLOCK)
    found = [page for number in range(blocks) for page in crawl.block(number, 0)][:pages]
    rows: dict[str, list[str]] = {name: [] for name in curation_protocol.FOLDER.values()}
    for index, page in enumerate(found):
        row = {"id": str(index), "url": page.truth.url, "timestamp": page.row["timestamp"]}
        rows["html"].append(json.dumps({**row, "html": page.row["html"]}) + "\n")
        text = extraction.extract(str(page.row["html"]))[0] or "\n".join(prose.article(str(index), "travel"))
        rows["text"].append(json.dumps({**row, "text": text}) + "\n")
    for name, lines in rows.items():
        for place, part in ((folder / name, lines), (folder / curation_protocol.WARM_UP / name, lines[:WARM_UP_PAGES])):
            place.mkdir(parents=True)
            (place / "pages.jsonl").write_text("".join(part))


if __name__ == "__main__":
    main()
