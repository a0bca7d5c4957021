"""MinHash: estimates within their error, and bands that meet as often as they should."""

import random

import numpy as np
import pytest
from datasketch import MinHash as Datasketch

from lmx.curation.functions import hashing
from lmx.curation.functions.minhash import MinHash, band_keys, shingles, signature, similarity, sketch, sketch_similarity

WORDS = [f"word{i}" for i in range(5000)]


def pair(seed, *, length=300, changed=30):
    """Two texts, the second with a stretch of other words in the middle."""
    draw = random.Random(seed)
    a = [draw.choice(WORDS) for _ in range(length)]
    b = [*a[:100], *(draw.choice(WORDS) for _ in range(changed)), *a[100 + changed :]]
    return " ".join(a), " ".join(b)


def jaccard(a, b, size=5):
    sets = [{tuple(text.split()[i : i + size]) for i in range(len(text.split()) - size + 1)} for text in (a, b)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.parametrize("changed", [0, 5, 30, 100, 200])
def test_estimates_lie_within_three_standard_errors_of_the_jaccard_similarity(changed):
    a, b = pair(changed, changed=changed)
    true = jaccard(a, b)
    grams = [shingles(text, 5) for text in (a, b)]
    signed = [[signature(gram, MinHash(seed=seed)) for gram in grams] for seed in range(20)]  # 20 x 128 permutations
    error = np.sqrt(true * (1 - true) / (20 * 128))
    assert abs(np.mean([similarity(*both) for both in signed]) - true) <= 3 * error + 1e-12
    of_bytes = np.sqrt(error**2 + (1 - true) / 256 / (20 * 128))  # bytes of other minima agree now and then
    assert abs(np.mean([sketch_similarity(*map(sketch, both)) for both in signed]) - true) <= 3 * of_bytes + 1e-12


def test_it_estimates_as_datasketch_does():
    a, b = pair(3, changed=60)
    other = []
    for text in (a, b):
        sketcher = Datasketch(num_perm=256, seed=1)
        words = text.split()
        sketcher.update_batch([" ".join(words[i : i + 5]).encode() for i in range(len(words) - 4)])
        other.append(sketcher)
    config = MinHash(bands=32, rows=8)
    ours = similarity(*(signature(shingles(text, 5), config) for text in (a, b)))
    true = jaccard(a, b)
    assert abs(ours - other[0].jaccard(other[1])) <= 3 * np.sqrt(2 * true * (1 - true) / 256)


def test_bands_meet_as_often_as_the_formula_says():
    config = MinHash(bands=8, rows=4)
    a, b = pair(11, changed=40)
    true = jaccard(a, b)
    grams = [shingles(text, 5) for text in (a, b)]
    met = 0
    for seed in range(300):
        keys = [set(band_keys(signature(gram, MinHash(bands=8, rows=4, seed=seed)), config)) for gram in grams]
        met += bool(keys[0] & keys[1])
    expected = 1 - (1 - true**4) ** 8
    assert abs(met / 300 - expected) <= 3 * np.sqrt(expected * (1 - expected) / 300) + 0.01


def test_shingles_ignore_case_and_marks_and_short_texts_are_one_shingle():
    assert np.array_equal(shingles("The, river! runs", 2), shingles("the river RUNS", 2))
    assert len(shingles("two words", 5)) == 1 and len(shingles("?!", 5)) == 0


def test_hashes_are_the_same_in_every_process():
    assert hashing.hash64("river") == 10851990548084909215
    assert [n for n, _ in hashing.ngrams(hashing.word_hashes(["a", "b", "c"]), 2, 9)] == [2, 3]
    runs = dict(hashing.ngrams(hashing.word_hashes(["a", "b", "a", "b"]), 1, 2))
    assert runs[1][0] == runs[1][2] != runs[1][1] and runs[2][0] == runs[2][2] != runs[2][1]


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        MinHash(bands=0)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        MinHash(threshold=1.5)
