"""The rules on the surface of a text, each with a text that just breaks it and one that just does not."""

import pytest

from lmx.curation.document import Dropped
from lmx.curation.functions import heuristics as rules
from lmx.curation.functions.heuristics import TextView
from lmx.curation.functions.repetition import duplicate_line_share, duplicate_ngram_coverage


def test_every_character_of_abc_abc_abc_is_in_repeated_1_and_2_grams_and_none_in_3_grams():
    assert duplicate_ngram_coverage(["abc", "abc", "abc"], 1, 3) == {1: 1.0, 2: 1.0, 3: 0.0}


def test_coverage_counts_characters_once_and_weighs_words_by_length():
    words = ["a", "bb", "ccc", "d", "e", "a", "bb", "ccc", "f"]  # the only repeated 3-gram covers 6 of 15 characters, twice
    assert duplicate_ngram_coverage(words, 3, 4) == {3: pytest.approx(12 / 15), 4: 0.0}


def test_coverage_agrees_with_a_search_by_brute_force():
    words = ("x y z x y z w x y " * 3 + "q r s t u v x y z x").split()
    for n in range(1, 6):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        covered = {i + k for i, gram in enumerate(grams) if grams.count(gram) > 1 for k in range(n)}
        expected = sum(len(words[i]) for i in covered) / sum(map(len, words))
        assert duplicate_ngram_coverage(words, n, n)[n] == pytest.approx(expected)


def test_a_text_without_words_has_no_coverage():
    assert duplicate_ngram_coverage([], 5, 6) == {5: 0.0, 6: 0.0}
    assert duplicate_line_share([]) == 0.0


PROSE = "The {} river and the sea have to be seen with that old map of ours. "


@pytest.mark.parametrize(
    ("rule", "breaks", "keeps", "reason"),
    [
        (rules.WordCount(least=3), "two words", "now three words", "few_words"),
        (rules.WordCount(least=0, most=2), "now three words", "two words", "many_words"),
        (rules.MeanWordLength(least=3.0), "ab cd", "abc def", "mean_word_length"),
        (rules.MeanWordLength(most=4.0), "abcde", "abcd", "mean_word_length"),
        (rules.SymbolRatio(most=0.5), "# # a", "# a b", "symbol_ratio"),
        (rules.SymbolRatio(most=0.5), "a… b...", "a… b", "symbol_ratio"),
        (rules.AlphabeticWords(least=0.5), "1 2 a", "1 a", "few_alphabetic_words"),
        (rules.LineMarks(bullets=0.5), "- a\n- b\nc", "- a\nb", "bullet_lines"),
        (rules.LineMarks(ellipses=0.5), "a...\nb…\nc", "a...\nb", "ellipsis_lines"),
        (rules.StopWords(least=2), "the river", "The river and", "few_stop_words"),
        (rules.DuplicateLines(most=0.3), "a\na\nb", "a\nb\nb\nc", "duplicate_lines"),
        (rules.DirtyWords(words=("zork",), count=2, share=1.0), "Zork, zork!", "zork zorks", "dirty_words"),
        (rules.DirtyWords(words=("zork",), count=9, share=0.5), "zork zork a", "zork a", "dirty_words"),
        (
            rules.DuplicateNgrams(),
            "user ann failed with a timeout in module one. user bob failed with a timeout in module two.",
            PROSE.format("blue") + "Nobody knows why it was drawn.",
            "duplicate_ngrams",
        ),
    ],
)
def test_each_rule_drops_what_breaks_it_and_nothing_else(rule, breaks, keeps, reason):
    broken = rule(TextView(breaks))
    assert isinstance(broken, Dropped) and broken.reason == reason and broken.detail
    assert rule(TextView(keeps)) is None


def test_the_first_broken_rule_is_told(make_document):
    step = rules.Heuristics(rules=(rules.WordCount(least=1), rules.MeanWordLength(least=3), rules.WordCount(least=9)))
    assert step.open()(make_document("ab ab")).reason == "mean_word_length"
    kept = make_document("abc " * 9)
    assert step.open()(kept) is kept


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.WordCount(least=9, most=3), "least"),
        (lambda: rules.DirtyWords(words=()), "is empty"),
        (lambda: rules.DirtyWords(words=("Upper",)), "'Upper' can never match"),
        (lambda: rules.DuplicateNgrams(limits={}), "needs limits"),
        (lambda: rules.Heuristics(rules=()), "has no rules"),
    ],
)
def test_wrong_settings_are_told_in_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
