"""A15, A16: decontamination finds benchmark items and leaves the rest; items left in the text inflate scores, cleaning undoes it.

lmx run experiments/ablations/decontamination.py --workdir runs/ablations/A15

Python's documentation with what is planted in it; the step of `lmx curate` cleans it, on Beam's local runner. AFM's threshold of
1,000 documents becomes one just below the number that holds the planted common phrase, as the spec's 3.3 tells.

Hardware: a CPU, 2 cores; needs the extra `curation`.  Results: results/A15.json, A16.json and RESULTS.md.
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Iterable, Sequence

import apache_beam as beam
import jax
import numpy as np

from configs.data import python_corpus
from experiments.ablations import bed
from lmx.core.types import PyTree
from lmx.curation.document import Document, Drop
from lmx.curation.functions import decontamination
from lmx.curation.pipelines.decontaminate import Decontaminate
from lmx.curation.run import Folder, beam_options, choose_runner
from lmx.curation.sample import prose
from lmx.data.batches import LMBatch
from lmx.data.recall import Facts
from lmx.data.sources import Row
from lmx.data.text import Component, PackedText
from lmx.eval.claims import Finding, above, at_most, by_arm, holds
from lmx.optim import WarmupCosine
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

DOCUMENTS, CHARACTERS = 600, 300
COMMON, PHRASE_IN, PHRASE = 25, 26, "at the end of the day"
LENGTHS = (13, 8, 5, 4)  # words of a planted piece; verbatim besides
PER_LENGTH = 12
ITEMS, COPIES = 16, 16  # of A16: benchmark items, and documents that hold each
STEPS, BATCH, LENGTH = 300, 16, 64


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiments({"A15": finds_items, "A16": undoes_inflation})


def finds_items(bench: Bench) -> Finding:
    """Pieces of items, near misses of three words and a common phrase planted in real text; the rule with and without threshold."""
    found = bench.part("drops", lambda: _counted([_drops_of(bench, seed) for seed in bench.seeds]))
    kinds = tuple(found["with"])
    share = {rule: {kind: tuple(map(float, found[rule][kind])) for kind in kinds} for rule in ("with", "without")}
    leaked = [kind for kind in kinds if kind.startswith("piece")]
    clean = [kind for kind in kinds if kind not in leaked]
    recall = np.mean([found["with"][kind] for kind in leaked], axis=0)
    excused = [found["documents"][kind] * found["with"][kind] for kind in clean]
    fallen = [found["documents"][kind] * found["without"][kind] for kind in clean]
    more = np.sum(fallen, axis=0) / np.maximum(np.sum(excused, axis=0), 1)
    return Finding(
        outcomes={f"share dropped, {rule} threshold": values for rule, values in share.items()},
        checks=(
            holds("recall of pieces of 4 words and more is 1", recall == 1),
            holds("precision is 1: no near miss, common phrase or plain document is dropped", np.sum(excused, axis=0) == 0),
            above("clean documents dropped, without threshold / with (or 1)", more, 10.0),
        ),
        bed=f"{DOCUMENTS} documents of Python's documentation, {len(leaked) * PER_LENGTH} with pieces of invented items, "
        f"{PER_LENGTH * 3} near misses, a phrase in {PHRASE_IN} documents, threshold {COMMON}",
    )


def undoes_inflation(bench: Bench) -> Finding:
    """A model trained on text with benchmark items in it, one on the cleaned text; their scores on these items and fresh ones."""
    scores = bench.part("scores", lambda: _scores(bench))
    planted, fresh = (scores[name].mean(axis=-1) for name in ("planted", "fresh"))  # [arms, seeds]
    inflation, left = fresh[0] - planted[0], fresh[1] - planted[1]
    error = np.sqrt(sum(scores[name][1].var(axis=-1, ddof=1) / ITEMS for name in ("planted", "fresh")))  # over the items of a seed
    return Finding(
        outcomes={
            "loss of an answer's digit (nats)": by_arm(
                ("planted items, contaminated", "fresh items, contaminated", "planted items, cleaned", "fresh items, cleaned"),
                [planted[0], fresh[0], planted[1], fresh[1]],
            )
        },
        checks=(
            above("loss of an answer's digit, fresh - planted items, contaminated text (nats)", inflation),
            at_most("the same on cleaned text, distance from 0 in standard errors over items", abs(left) / error, 2.0),
            holds("every document with an item is dropped, and no other", scores["exact"]),
        ),
        bed=f"Llama of 40k parameters, {DOCUMENTS} documents of Python's documentation, {ITEMS} items in {COPIES} each "
        f"and as many of the same form that are no benchmark's, {STEPS} steps of {BATCH * LENGTH}",
    )


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts at hand as a source: rows {"text"}.

    Attributes:
      texts: the same for every split.
    """

    texts: tuple[str, ...]

    def load(self, split: str) -> list[Row]:
        """All rows."""
        del split
        return [{"text": text} for text in self.texts]

    def fingerprint(self) -> str:
        """Of the texts."""
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Items as `Decontaminate` reads them."""

    texts: tuple[str, ...]

    def __call__(self) -> Iterable[tuple[str, str]]:
        """(benchmark, text) of every item."""
        return [("benchmark", text) for text in self.texts]


def _documents(seed: int) -> list[str]:
    """Real text to plant in, one draw a seed: pieces of the documentation, each a document of its own."""
    starts = ((text, start) for text in python_corpus.prose().texts() for start in range(0, len(text), CHARACTERS))
    texts = [text[start : start + CHARACTERS] for text, start in starts]
    return random.Random(seed).sample(texts, DOCUMENTS)


def _drops_of(bench: Bench, seed: int) -> PyTree:
    """Shares of the documents of each kind that fall, with and without the threshold, and how many there are of each."""
    draw = random.Random(f"planted {seed}")
    items = [*prose.benchmark_items(seed, 60), f"{PHRASE} walrus lanterns keep no counsel"]
    kinds = ["item, verbatim", *(f"piece of {length} words" for length in LENGTHS)]
    kinds = [f"piece: {kind}" for kind in kinds]
    planted = [kind for kind in [*kinds, "near miss of 3 words"] for _ in range(PER_LENGTH * (1 if kind in kinds else 3))]
    planted += ["common phrase"] * PHRASE_IN
    documents = _documents(seed)
    planted += ["nothing"] * (len(documents) - len(planted))
    lengths = {kind: length for kind, length in zip(kinds, (None, *LENGTHS), strict=True)} | {"near miss of 3 words": 3}
    texts = []
    for text, kind in zip(documents, planted, strict=True):
        piece = PHRASE if kind == "common phrase" else ""
        if kind in lengths:
            long_enough = [item for item in items[:-1] if len(decontamination.words(item)) >= (lengths[kind] or 0)]
            piece = _piece(draw.choice(long_enough), lengths[kind], draw)
            if kind not in kinds:
                piece = f"nearly {piece} nearly"  # no fourth word by accident
        texts.append(_inserted(text, piece, draw))
    found: PyTree = {"with": {}, "without": {}, "documents": {}}
    for rule, threshold in (("with", COMMON), ("without", None)):
        dropped = dropped_by(Decontaminate(items=Benchmark(tuple(items)), common_documents=threshold), texts, bench)
        for kind in dict.fromkeys(planted):
            places = [place for place, other in enumerate(planted) if other == kind]
            found[rule][kind] = np.mean([place in dropped for place in places])
            found["documents"][kind] = len(places)
    return found


def _counted(found: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: np.array(leaves, np.float64), *found)


def _piece(item: str, length: int | None, draw: random.Random) -> str:
    """That many words of an item, from a place drawn; None = the item as it is."""
    if length is None:
        return item
    words = decontamination.words(item)
    start = draw.randint(0, len(words) - length)
    return " ".join(words[start : start + length])


def _inserted(text: str, piece: str, draw: random.Random) -> str:
    """The text with a piece between two words."""
    words = text.split(" ")
    place = draw.randint(0, len(words))
    return " ".join([*words[:place], *([piece] if piece else []), *words[place:]])


def dropped_by(step: Decontaminate, texts: Sequence[str], bench: Bench) -> set[int]:
    """Indices of the texts that the step drops, on Beam's local runner."""
    own = hashlib.sha256(repr(step).encode()).hexdigest()[:16]  # workers keep what they read by its path
    step = step.prepare(Folder(str(bench.folder / "prepared" / own)))
    options = beam_options([])
    path = bench.folder / "dropped.json"
    documents = [Document(key=str(index), url="", timestamp="", text=text, meta={}) for index, text in enumerate(texts)]
    pipeline = beam.Pipeline(runner=choose_runner(options), options=options)
    flow = step.expand(pipeline | beam.Create(documents) | beam.Reshuffle(), 1)
    [drops] = flow.drops
    drops | "keys" >> beam.Map(_key) | beam.combiners.ToList() | "write" >> beam.Map(_write, str(path))
    pipeline.run().wait_until_finish()
    return set(map(int, json.loads(path.read_text())))


def _key(drop: Drop) -> str:
    return drop.key


def _write(keys: list[str], path: str) -> None:
    with open(path, "w") as file:
        json.dump(keys, file)


def _scores(bench: Bench) -> PyTree:
    """ "planted" and "fresh" [arms, seeds, items]: loss of an answer's digit after training on contaminated and on cleaned text."""
    model, facts, batches, tests, exact = bed.model_of(bed.llama(model_dim=32, max_length=LENGTH)), Facts(), [], [], []
    for seed in bench.seeds:
        draw = random.Random(f"items {seed}")
        known = [(facts.ask(key), facts.reply(value)) for key, value in facts.draw(draw, 3 * ITEMS)]
        planted, practice, fresh = (known[start : start + ITEMS] for start in (0, ITEMS, 2 * ITEMS))
        documents = _documents(seed)
        pieces = ["".join(item) for item in [*planted, *practice] for _ in range(COPIES)]
        pieces += [""] * (len(documents) - len(pieces))
        texts = [_inserted(text, piece, draw) for text, piece in zip(documents, pieces, strict=True)]
        step = Decontaminate(items=Benchmark(tuple("".join(item) for item in planted)), common_documents=COMMON)
        dropped = dropped_by(step, texts, bench)
        exact.append(dropped == set(range(ITEMS * COPIES)))
        cleaned = [text for index, text in enumerate(texts) if index not in dropped]
        batches.append([_batches(each, seed) for each in (texts, cleaned)])
        tests.append([_questions(each) for each in (planted, fresh)])
    own = _stacked([_stacked([of_seed[arm] for of_seed in batches]) for arm in range(2)])
    trained = bed.train(
        model,
        population.initial(model, bench.seeds, arms=2),
        own,
        rates=population.rates([WarmupCosine(peak=6e-3, warmup_steps=20, end_ratio=0.0)] * 2, STEPS),
        own_batches=True,
    )
    scores: PyTree = {"exact": np.array(exact)}
    for number, name in enumerate(("planted", "fresh")):
        asked = _stacked([of_seed[number] for of_seed in tests])
        losses = bed.token_losses(model, trained.params, asked, own_batches=True)  # [A, S, 1, items, T]
        weights = np.broadcast_to(asked.loss_mask, losses.shape)
        scores[name] = ((losses * weights).sum(axis=-1) / weights.sum(axis=-1))[:, :, 0]
    return scores


def _stacked(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _batches(texts: Sequence[str], seed: int) -> LMBatch:
    """[N, B, T]"""
    data = PackedText(components=(Component(source=Texts(tuple(texts))),))
    return population.stacked(data.loader(bed.BYTES, batch_size=BATCH, length=LENGTH, seed=seed), STEPS)


def _questions(items: Sequence[tuple[str, str]]) -> LMBatch:
    """[1, items, T]: a question and its answer a row; the loss counts on the answer's digits."""
    shape = (1, len(items), LENGTH)
    tokens, labels, mask, segments = (np.zeros(shape, np.int32) for _ in range(4))
    for row, (question, answer) in enumerate(items):
        ids = bed.BYTES.encode(question + answer)
        size = len(ids) - 1
        tokens[0, row, :size], labels[0, row, :size], segments[0, row, :size] = ids[:-1], ids[1:], 1
        digits = [place for place in range(len(question), len(question + answer)) if (question + answer)[place].isdigit()]
        mask[0, row, np.array(digits) - 1] = 1
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), shape)
    return LMBatch(tokens, labels, mask.astype(bool), segments, positions)  # type: ignore[arg-type]
