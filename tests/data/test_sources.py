"""Readers of each format on tiny files, and what they say about broken ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from array_record.python import array_record_module

from lmx.core.fingerprint import fingerprint
from lmx.data import files, sources
from lmx.data.sources import ArrayRecords, HeldOut, JsonLines, Limited, Parquet, PythonCorpus, Rows, TextFiles, Tfds

ROWS = [{"text": "one"}, {"text": "zwei\n"}, {"text": "三"}]


def listed(rows: Rows) -> list[dict[str, Any]]:
    return [rows[index] for index in range(len(rows))]


def write_json_lines(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def write_array_records(path: Path, *records: bytes) -> str:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return str(path)


def test_json_lines_skip_blank_lines_and_join_files(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "a.jsonl", json.dumps(ROWS[0]), "", json.dumps(ROWS[1]))
    write_json_lines(tmp_path / "b.jsonl", json.dumps(ROWS[2], ensure_ascii=False))
    assert listed(JsonLines(path=str(tmp_path / "*.jsonl")).load("train")) == ROWS


@pytest.mark.parametrize(
    ("line", "reason"), [('{"text": ', "line 3: not a JSON object"), ("[1]", "expected a JSON object, found list")]
)
def test_a_broken_json_line_is_named_by_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", json.dumps(ROWS[0]), "", line)
    rows = JsonLines(path=path).load("train")
    assert rows[0] == ROWS[0]
    with pytest.raises(ValueError, match=reason) as error:
        rows[1]
    assert path in str(error.value)


def test_text_files_are_documents_with_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("zwei")
    (tmp_path / "sub" / "a.txt").write_text("eins")
    rows = listed(TextFiles(path=str(tmp_path / "**" / "*.txt")).load("train"))
    assert [(row["text"], Path(row["name"]).name) for row in rows] == [("zwei", "b.txt"), ("eins", "a.txt")]


def test_a_text_file_that_is_not_utf8_is_named_with_the_byte(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="latin.txt is not UTF-8: byte 3 is 0xe9"):
        TextFiles(path=str(tmp_path / "latin.txt")).load("train")[0]


def test_parquet_rows_are_read_across_row_groups(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=2)
    rows = Parquet(path=str(tmp_path / "a.parquet")).load("train")
    assert [rows[2], rows[0], rows[1]] == [ROWS[2], ROWS[0], ROWS[1]]


def test_array_records_are_parsed_by_a_function(tmp_path: Path) -> None:
    as_json = write_array_records(tmp_path / "a.array_record", *(json.dumps(row).encode() for row in ROWS))
    as_text = write_array_records(tmp_path / "b.array_record", *(row["text"].encode() for row in ROWS))
    assert listed(ArrayRecords(path=as_json).load("train")) == ROWS
    assert listed(ArrayRecords(path=as_text, parse=files.text_record).load("train")) == ROWS
    with pytest.raises(ValueError, match="b.array_record, record 0: "):
        ArrayRecords(path=as_text).load("train")[0]


@pytest.mark.parametrize("source", [JsonLines, TextFiles, Parquet, ArrayRecords])
def test_a_missing_file_is_one_sentence(tmp_path: Path, source: Any) -> None:
    with pytest.raises(FileNotFoundError, match="no file matches .*nothing"):
        source(path=str(tmp_path / "nothing.*")).load("train")


@pytest.mark.parametrize("source", [JsonLines, Parquet, ArrayRecords])
def test_an_empty_or_foreign_file_is_one_sentence_that_names_it(tmp_path: Path, source: Any) -> None:
    (tmp_path / "broken").write_bytes(b"")
    with pytest.raises(ValueError, match="broken"):
        source(path=str(tmp_path / "broken")).load("train")
    (tmp_path / "broken").write_bytes(b"not what it should be " * 20)
    with pytest.raises(ValueError, match="broken"):
        source(path=str(tmp_path / "broken")).load("train")[0]


def test_an_unknown_tfds_dataset_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TFDS dataset 'no_such_dataset' cannot be read") as error:
        Tfds(name="no_such_dataset", data_dir=tmp_path).load("train")
    assert "\n" not in str(error.value)


def test_held_out_rows_are_disjoint_by_text_and_complete(text_source: Callable[..., Any]) -> None:
    source = HeldOut(source=text_source(*(f"text {number % 150}" for number in range(300))), one_in=5)
    train, heldout = ([row["text"] for row in listed(source.load(split))] for split in ("train", "heldout"))
    assert len(train) + len(heldout) == 300 and 20 < len(heldout) < 100
    assert set(train).isdisjoint(heldout)


def test_a_limited_source_takes_whole_rows_that_fit(text_source: Callable[..., Any]) -> None:
    source = text_source("aaaa", "éé", "b" * 9, "c")
    assert [row["text"] for row in listed(Limited(source=source, max_bytes=9).load("train"))] == ["aaaa", "éé", "c"]
    with pytest.raises(ValueError, match="max_bytes=0 is less than the 1 bytes of the shortest row"):
        Limited(source=source, max_bytes=0).load("train")


def test_files_have_no_heldout_split_and_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"only 'train'; wrap it in HeldOut"):
        JsonLines(path=str(tmp_path)).load("heldout")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"body": "x"}, "no field 'text'; it has 'body'"),
        ({"text": 3}, "holds int, not text"),
        ({"text": b"\xff"}, "not UTF-8 at byte 0"),
    ],
)
def test_a_field_that_holds_no_text_is_named_with_its_row(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"row 7 of the source.*{message}"):
        sources.field_of(row, "text", "the source", 7)


def test_fingerprints_show_changed_files_behind_an_unchanged_config(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", "{}")
    config = {"data": (HeldOut(source=JsonLines(path=path)),)}
    before = sources.fingerprints(config)
    assert list(before) == ["data.0"] and before == sources.fingerprints(config)
    write_json_lines(tmp_path / "a.jsonl", "{}", "{}")
    assert sources.fingerprints(config) != before
    assert fingerprint(config) == fingerprint(config)


def test_the_kind_of_a_python_corpus_is_checked() -> None:
    with pytest.raises(ValueError, match="kind='poetry' is not one of 'prose', 'code'"):
        PythonCorpus(kind="poetry")
