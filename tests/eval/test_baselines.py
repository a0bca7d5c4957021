"""Byte-level baselines against brute force."""

import itertools
import lzma
import math
import random
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from lmx.eval import baselines

TEXT = b"the cat sat on the mat; the dog ate the cat. a rat sat on that hat\n"
START = 256


def documents(count: int, seed: int) -> list[bytes]:
    generator = random.Random(seed)
    words = TEXT.split()
    return [b" ".join(generator.choices(words, k=generator.randint(0, 12))) for _ in range(count)]


class BruteForce:
    """Interpolated Kneser-Ney by dictionaries, as the formula says."""

    def __init__(self, train: list[bytes], discounts: tuple[float, ...]) -> None:
        self.triples: Counter[tuple[int, int, int]] = Counter()
        for document in train:
            symbols = [START, START, *document]
            self.triples.update(zip(symbols, symbols[1:], symbols[2:], strict=False))
        self.pairs = Counter((b, c) for _, b, c in self.triples)
        self.bytes = Counter(c for _, c in self.pairs)
        self.discounts = discounts

    def discounted(self, counts: dict[int, int], byte: int, discounts: tuple[float, ...], shorter: float) -> float:
        total = sum(counts.values())
        if not total:
            return shorter

        def discount(count: int) -> float:
            return min(discounts[min(count, len(discounts)) - 1], count) if count else 0.0

        freed = sum(discount(count) for count in counts.values())
        return (counts.get(byte, 0) - discount(counts.get(byte, 0)) + freed * shorter) / total

    def prob(self, a: int, b: int, c: int) -> float:
        order1 = {z: n for (y, z), n in self.pairs.items() if y == b}
        order2 = {z: n for (x, y, z), n in self.triples.items() if (x, y) == (a, b)}
        p = self.discounted(dict(self.bytes), c, (0.75,), 1 / 256)
        p = self.discounted(order1, c, (0.75,), p)
        return self.discounted(order2, c, self.discounts, p)


def test_markov_baseline_equals_brute_force() -> None:
    train, heldout = documents(8, seed=0), documents(4, seed=1)  # fewer than ten documents: the default discounts
    brute = BruteForce(train, (0.8, 1.2, 1.6))
    bits = []
    for document in heldout:
        symbols = [START, START, *document]
        bits += [-math.log2(brute.prob(*triple)) for triple in zip(symbols, symbols[1:], symbols[2:], strict=False)]
    assert baselines.markov2_bits_per_byte(train, heldout) == pytest.approx(sum(bits) / len(bits), rel=1e-12)


def test_markov_probabilities_sum_to_one_in_seen_and_unseen_contexts() -> None:
    model = baselines._KneserNey(documents(8, seed=0))
    for a, b in [(START, START), (START, ord("t")), (ord("t"), ord("h")), (200, 201)]:
        text = baselines._Symbols(*(baselines.np.array(values) for values in ([a] * 256, [b] * 256, range(256))))
        assert model.probs(text, (0.5, 1.1, 1.9)).sum() == pytest.approx(1.0, abs=1e-12)


def test_tuned_discounts_are_no_worse_on_the_tuning_documents_than_the_defaults() -> None:
    fit, tune = documents(40, seed=0), documents(10, seed=1)
    model, text = baselines._KneserNey(fit), baselines._symbols(tune)
    best = model.best_discounts(text)

    def nats(discounts: tuple[float, ...]) -> float:
        return -float(baselines.np.log(model.probs(text, discounts)).sum())

    assert nats(best) <= nats(baselines._DEFAULT_DISCOUNTS)


def test_documents_do_not_see_each_other() -> None:
    train, heldout = documents(12, seed=0), documents(6, seed=1)
    for measure in (baselines.unigram_bits_per_byte, baselines.markov2_bits_per_byte):
        assert measure(train, heldout) == pytest.approx(measure(train, heldout[::-1]), rel=1e-12)
    lengths = [len(document) for document in heldout if document]
    each = [baselines.markov2_bits_per_byte(train, [document]) for document in heldout if document]
    mean = sum(n * bits for n, bits in zip(lengths, each, strict=True)) / sum(lengths)
    assert baselines.markov2_bits_per_byte(train, heldout) == pytest.approx(mean, rel=1e-12)


def test_unigram_of_uniform_bytes_is_eight_bits_and_more_context_helps_on_text() -> None:
    uniform = [bytes(range(256)) * 4]
    assert baselines.unigram_bits_per_byte(uniform, uniform) == pytest.approx(8.0, rel=1e-12)
    found = baselines.byte_baselines(documents(60, seed=0), documents(20, seed=1))
    assert found.markov2 < found.unigram < 8
    assert found.heldout_bytes == sum(map(len, documents(20, seed=1)))


def test_a_deterministic_text_costs_the_markov_model_almost_nothing() -> None:
    assert baselines.markov2_bits_per_byte([b"abc" * 5000], [b"abc" * 100]) < 0.06  # the first bytes of the document included


def test_xz_is_the_size_of_the_file_that_xz_writes(tmp_path: Path) -> None:
    heldout = documents(200, seed=2)
    text = b"".join(heldout)
    bits = baselines.xz_bits_per_byte(heldout)
    assert lzma.decompress(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) == text
    assert bits == 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
    if shutil.which("xz"):
        path = tmp_path / "text"
        path.write_bytes(text)
        size = len(subprocess.run(["xz", "-9e", "--stdout", path], capture_output=True, check=True).stdout)
        assert abs(size - bits * len(text) / 8) <= 64  # threads and versions of xz differ by some bytes of header


def test_empty_texts_are_refused() -> None:
    for measure, arguments in itertools.product(
        (baselines.unigram_bits_per_byte, baselines.markov2_bits_per_byte), ([[], [b"a"]], [[b"a"], [b""]])
    ):
        with pytest.raises(ValueError, match="the text is empty"):
            measure(*arguments)
