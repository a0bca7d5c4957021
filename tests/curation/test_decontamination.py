"""Benchmark decontamination: AFM's rule, against its definition on strings."""

import random

import pytest

from lmx.curation.functions import decontamination
from lmx.curation.functions.decontamination import build_table, words
from lmx.curation.pipelines.decontaminate import BenchmarkFiles, Decontaminate
from lmx.curation.sample import prose

ITEMS = [("riddles", item) for item in prose.benchmark_items(0, 30)] + [
    ("short", "two plus two"),
    ("four", "Grey walrus, eats BEETROOT!"),
]
COMMON = "at the end of the day"
WITH_PHRASE = [*ITEMS, ("phrases", f"{COMMON} the walrus keeps no lantern")]


def items():
    return ITEMS


def items_with_phrase():
    return WITH_PHRASE


def grams(text, smallest=4, largest=13):
    found = words(text)
    return {" ".join(found[i : i + n]) for n in range(smallest, largest + 1) for i in range(len(found) - n + 1)}


def naive(texts, benchmark, common):
    """The texts that stay, by the definition, on strings."""
    table = set().union(*(grams(text) for _, text in benchmark))
    hits = {text: grams(text) & table for text in texts}
    counts = {gram: sum(gram in found for found in hits.values()) for gram in table}
    return {text for text, found in hits.items() if all(common is not None and counts[gram] >= common for gram in found)}


def corpus():
    """Clean articles, pieces of items of every length, near misses of three words, and a common phrase in many."""
    texts, leaked = [], []
    item = words(ITEMS[0][1])
    for number, length in enumerate((len(item), 13, 8, 5, 4)):
        leaked.append(
            "\n".join(prose.inserted(prose.article(f"leak {number}", "history"), " ".join(item[1 : 1 + length]), str(number)))
        )
    leaked.append("A tale of a grey walrus. It eats beetroot: grey walrus eats, beetroot!")
    for number in range(8):
        text = prose.inserted(prose.article(f"near {number}", "cooking"), " ".join(item[number : number + 3]), "n")
        texts.append("\n".join(prose.inserted(text, f"So {COMMON} nothing", "c")))
    texts += ["\n".join(prose.article(f"clean {number}", "travel")) for number in range(8)]
    return texts, leaked


def test_pieces_of_four_words_and_more_are_found_and_three_words_are_not(run_step, make_document):
    texts, leaked = corpus()
    result = run_step(Decontaminate(items=items, common_documents=None), [make_document(text) for text in [*texts, *leaked]])
    assert result.texts == set(texts)
    assert {item.reason for item in result.drops.values()} == {"benchmark_collision"} and len(result.drops) == len(leaked)
    details = sorted(item.detail for item in result.drops.values())
    assert details[0] == "four, 4 words: 'grey walrus eats beetroot'" and any(
        detail.startswith("riddles, 13 words:") for detail in details
    )


def test_a_common_phrase_is_excused_and_without_the_threshold_it_is_not(run_step, make_document):
    texts, leaked = corpus()
    pages = [make_document(text) for text in [*texts, *leaked]]
    with_threshold = run_step(Decontaminate(items=items_with_phrase, common_documents=8), pages)
    without = run_step(Decontaminate(items=items_with_phrase, common_documents=None), pages)
    assert with_threshold.texts == set(texts)
    assert len(set(texts) - without.texts) == 8  # the clean ones with the phrase
    just_below = run_step(Decontaminate(items=items_with_phrase, common_documents=9), pages)
    assert just_below.texts == without.texts


def test_a_rare_n_gram_around_a_common_one_still_counts(run_step, make_document):
    pages = [make_document(f"{COMMON} number {n} closed") for n in "abcdefgh"]
    leak = make_document(f"well, {COMMON} the walrus went")
    result = run_step(Decontaminate(items=items_with_phrase, common_documents=5), [*pages, leak])
    assert list(result.drops) == [leak.key]


@pytest.mark.parametrize("common", [None, 2, 8])
def test_two_passes_agree_with_the_definition_in_any_order(run_step, make_document, common):
    texts, leaked = corpus()
    both = [*texts, *leaked]
    expected = naive(both, WITH_PHRASE, common)
    random.Random(common).shuffle(both)
    result = run_step(Decontaminate(items=items_with_phrase, common_documents=common), [make_document(text) for text in both])
    assert result.texts == expected


def test_the_table_holds_each_n_gram_once_and_counts_items_too_short_to_look_for():
    table = build_table(ITEMS)
    assert len(table.hashes) == len(set().union(*(grams(text) for _, text in ITEMS))) and table.short_items == 1
    again = decontamination.from_bytes(table.to_bytes())
    assert (again.hashes == table.hashes).all() and again.names == ("four", "riddles", "short") and again.short_items == 1


def test_benchmarks_are_read_from_files_and_a_bad_line_is_named(tmp_path):
    path = tmp_path / "b.jsonl"
    path.write_text('{"benchmark": "m", "text": "one two three four"}\n\n{"text": "five six seven eight"}\n')
    assert list(BenchmarkFiles(path=str(path))()) == [("m", "one two three four"), ("benchmark", "five six seven eight")]
    path.write_text("oops\n")
    with pytest.raises(ValueError, match=r"b\.jsonl, line 1: not JSON"):
        list(BenchmarkFiles(path=str(path))())
    with pytest.raises(ValueError, match="no file matches"):
        list(BenchmarkFiles(path=str(tmp_path / "none"))())


def test_benchmarks_without_a_long_enough_item_and_impossible_lengths_are_refused():
    with pytest.raises(ValueError, match="1 benchmark items, but none has the 4 words"):
        build_table([("short", "two plus two")])
    with pytest.raises(ValueError, match="5 to 4 words"):
        Decontaminate(items=items, smallest=5, largest=4)
    with pytest.raises(ValueError, match="use None"):
        Decontaminate(items=items, common_documents=0)
