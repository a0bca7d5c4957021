"""The data benchmark's report and check, and its two packers on a small text; datatrove's side needs what the tests do without."""

import json

import pytest

from tools import bench_data
from tools.bench_sides import data_datasets, data_lmx, data_protocol


def test_the_table_shows_medians_ranges_and_ratios_turn_by_turn():
    rates = {"lmx": [200.0, 400.0, 300.0], "datasets": [100.0, 100.0, 300.0]}
    comparison = bench_data.Comparison("packing", "tokens", rates, {"lmx": "9 tokens", "datasets": "8 tokens"})
    lines = comparison.table().splitlines()
    assert lines[0] == "packing"
    assert lines[1].split() == ["lmx", "300", "tokens/s", "(200-400)", "9", "tokens"]
    assert " ".join(lines[2].split()) == "datasets 100 tokens/s (100-300) 8 tokens; lmx is 2.00 times as fast"


@pytest.mark.parametrize(
    ("lost", "row", "message"),
    [(2047, [1], None), (2048, [1], "2048 tokens fewer than lmx"), (-1, [1], "-1 tokens fewer"), (0, [2], "first rows of lmx and")],
)
def test_sides_that_pack_other_text_fail_and_a_dropped_end_does_not(lost, row, message):
    tokens = {"lmx": 10_000, "datasets": 10_000 - lost, "datasets, 2 processes": 10_000}
    rows = {"lmx": [1], "datasets": row, "datasets, 2 processes": [1]}
    if message is None:
        bench_data.check_tokens(tokens, rows, documents=1000)
        return
    with pytest.raises(SystemExit, match=message):
        bench_data.check_tokens(tokens, rows, documents=1000)


@pytest.mark.parametrize("kind", data_protocol.TOKENIZERS)
def test_both_packers_read_the_same_tokens(kind, tmp_path, monkeypatch):
    texts = [f"Document {number} has some words, and {number * number} is its square.\n" * 20 for number in range(30)]
    monkeypatch.setattr(bench_data, "VOCABULARY", 400)
    monkeypatch.setattr(bench_data.python_corpus, "mixture", lambda: type("Texts", (), {"texts": lambda self: iter(texts)})())
    monkeypatch.setattr(data_protocol, "LENGTH", 128)
    documents, size = bench_data.write_text(tmp_path)
    assert (documents, size) == (30, sum(map(len, texts)))
    lines = (tmp_path / data_protocol.TEXT).read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == texts
    ours, theirs = data_lmx.build(kind, tmp_path), data_datasets.build(kind, tmp_path)
    assert ours.ready == theirs.ready and len(ours.ready["first_row"]) == 128
    assert 0 <= ours.turn()["tokens"] - theirs.turn()["tokens"] < 128


def test_pages_are_written_whole_and_a_few_for_the_warm_up(tmp_path):
    bench_data.write_pages(tmp_path, 50)
    found = {path: len(path.read_text().splitlines()) for path in tmp_path.rglob("pages.jsonl")}
    counts = {"html": 50, "text": 50, "warm_up/html": bench_data.WARM_UP_PAGES, "warm_up/text": bench_data.WARM_UP_PAGES}
    assert found == {tmp_path / folder / "pages.jsonl": count for folder, count in counts.items()}
