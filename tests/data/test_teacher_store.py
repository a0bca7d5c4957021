"""A store gives back what was written, and refuses with one sentence whatever isn't its own."""

import dataclasses
import itertools
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.core import serialize, storage
from lmx.data.batches import LMBatch
from lmx.data.teacher_form import Samples, TeacherRow, TopK, id_bytes
from lmx.data.teacher_loader import TeacherLoader
from lmx.data.teacher_store import HEADER, StoreHeader, StoreReader, StoreWriter, read_header, text_digest

LENGTH, VOCAB, BATCH, ROWS = 6, 70_000, 4, 20


def header(**changes):
    fields = dict(form=TopK(k=3), vocab_size=VOCAB, length=LENGTH, rows={"train": ROWS, "heldout": 8}, teacher="t", tokenizer="k")
    fields |= dict(data="d", seed=5, batch_size=BATCH, batches_per_shard=2, processes=1)
    return StoreHeader(**fields | changes)


def text(number, *, masked=False):
    tokens = np.random.default_rng(number).integers(0, VOCAB, LENGTH + 1).astype(np.int32)
    ones = np.ones(LENGTH, np.int32)
    return LMBatch(tokens[:-1], tokens[1:], np.full(LENGTH, not masked), ones, np.arange(LENGTH, dtype=np.int32))


def view(number, k=3):
    random = np.random.default_rng(number + 1000)
    ids = np.stack([random.choice(VOCAB, k, replace=False) for _ in range(LENGTH)]).astype(np.int32)
    return TeacherRow(ids, -random.uniform(0, 9, (LENGTH, k)).astype(np.float32), -random.uniform(0, 9, LENGTH).astype(np.float32))


def write(folder, head, *, process=0, shards=None):
    writer = StoreWriter(folder, head, process=process)
    for split in head.rows:
        for shard in range(writer.first_missing(split), head.num_shards(split)) if shards is None else shards:
            writer.write_shard(split, shard, ((text(row), view(row)) for row in head.shard_rows(split, shard, process)))
    return writer


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "store", header()).finish()
    return tmp_path / "store"


class Texts:
    """A loader of the rows above, `local` at a time."""

    def __init__(self, *, batch=BATCH, part=slice(None), end=None, first=0):
        self.batch, self.part, self.end, self.number, self.first = batch, part, end, 0, first

    def __next__(self):
        if self.number == self.end:
            raise StopIteration
        rows = list(range(self.number * self.batch, (self.number + 1) * self.batch))[self.part]
        self.number += 1
        parts = [text(row + self.first, masked=row >= ROWS) for row in rows]
        return LMBatch(*(np.stack([getattr(row, field.name) for row in parts]) for field in dataclasses.fields(LMBatch)))

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


@given(
    k=st.integers(1, 12),
    vocab=st.sampled_from([40, 60_000, 70_000, 2**24 + 5]),
    quantization=st.sampled_from(["uint8", "uint16", "float16", "float32"]),
    seed=st.integers(0, 99),
)
def test_a_top_k_comes_back_within_the_stated_error(k, vocab, quantization, seed):
    random = np.random.default_rng(seed)
    logprobs = np.where(random.random((5, k + 1)) < 0.1, -np.inf, -random.uniform(0, 15, (5, k + 1))).astype(np.float32)
    row = TeacherRow(random.integers(0, vocab, (5, k)).astype(np.int32), logprobs[:, :-1], logprobs[:, -1])
    form = TopK(k=k, quantization=quantization)
    data = form.encode(row, vocab)
    assert len(data) == 5 * form.bytes_per_token(vocab)
    found = form.decode(data, 5, vocab)
    np.testing.assert_array_equal(found.ids, row.ids)
    tolerance = {"uint8": {"atol": 0.032}, "uint16": {"atol": 2.5e-4}, "float16": {"rtol": 2**-11}, "float32": {"rtol": 0}}[
        quantization
    ]
    for actual, expected in ((found.values, row.values), (found.tail, row.tail)):
        np.testing.assert_allclose(actual, expected, **tolerance)


@given(k=st.integers(1, 300), vocab=st.sampled_from([9, 70_000]), seed=st.integers(0, 99))
def test_draws_come_back_with_their_counts_in_at_most_the_stated_bytes(k, vocab, seed):
    draws = np.random.default_rng(seed).integers(0, vocab, (4, k)).astype(np.int32)
    form = Samples(k=k)
    data = form.encode(TeacherRow(draws, np.ones((4, k)), np.zeros(4)), vocab)
    assert len(data) <= 4 * form.bytes_per_token(vocab)
    found = form.decode(data, 4, vocab)
    assert found.ids.shape == found.values.shape == (4, k)
    for row, ids, counts in zip(draws, found.ids, found.values, strict=True):
        assert sorted(row) == sorted(np.repeat(ids, counts.astype(int)))


def test_ids_take_as_few_bytes_as_the_vocabulary_allows():
    assert [id_bytes(v) for v in (2**16, 2**16 + 1, 256_000, 2**24, 2**24 + 1)] == [2, 3, 3, 3, 4]


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_written_by_any_number_of_processes_are_read_by_number(tmp_path, processes):
    head = header(processes=processes)
    for process in range(processes):
        writer = write(tmp_path, head, process=process)
        if process < processes - 1:
            write(tmp_path, head, process=processes - 1, shards=[])  # the others have begun too
    writer.finish()
    reader = StoreReader(tmp_path)
    order = [17, 0, 19, 4, 5]
    for number, (digest, row) in zip(order, reader.rows(order), strict=True):
        assert digest == text_digest(text(number))
        np.testing.assert_array_equal(row.ids, view(number).ids)
        np.testing.assert_allclose(row.values, view(number).values, atol=2.5e-4)


def test_an_interrupted_writing_goes_on_and_ends_the_same_to_the_byte(tmp_path, folder):
    write(tmp_path / "cut", header(), shards=[0])
    (tmp_path / "cut" / ".train-000001-0000-of-0001.array_record.99.tmp").write_bytes(b"half a shard")
    with pytest.raises(ValueError, match="is not finished; run its stage again, it goes on"):
        StoreReader(tmp_path / "cut")
    assert StoreWriter(tmp_path / "cut", header()).first_missing("train") == 1
    write(tmp_path / "cut", header()).finish()
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()


def test_a_store_begun_with_another_config_is_not_mixed_up(folder):
    with pytest.raises(ValueError, match="holds the beginning of another store \\(its teacher, seed differ\\)"):
        StoreWriter(folder, header(teacher="u", seed=6))


@pytest.mark.parametrize(("batch", "processes"), [(4, 1), (5, 1), (8, 2), (2, 1)])
def test_a_loader_joins_text_and_store_whatever_its_own_batches(folder, batch, processes):
    local = batch // processes
    for process in range(processes):
        texts = Texts(batch=batch, part=slice(process * local, (process + 1) * local))
        loader = TeacherLoader(texts, StoreReader(folder), batch_size=batch, process_index=process, process_count=processes)
        for number, joined in enumerate(itertools.islice(loader, ROWS // batch)):
            for place in range(local):
                expected = view(number * batch + process * local + place)
                np.testing.assert_array_equal(joined.ids[place], expected.ids)
                np.testing.assert_allclose(joined.tail[place], expected.tail, atol=2.5e-4)


def test_a_loader_goes_on_where_its_state_was_taken(folder):
    loader = TeacherLoader(Texts(), StoreReader(folder), batch_size=BATCH)
    next(loader)
    state = loader.get_state()
    expected = next(loader)
    again = TeacherLoader(Texts(), StoreReader(folder), batch_size=BATCH)
    again.set_state(state)
    np.testing.assert_array_equal(next(again).ids, expected.ids)
    with pytest.raises(ValueError, match="is no position in batches with teacher logits"):
        again.set_state({"number": 1})


def test_masked_rows_that_fill_up_the_last_batch_need_no_record(folder):
    loader = TeacherLoader(Texts(batch=8, end=3), StoreReader(folder), batch_size=8)
    last = list(loader)[-1]
    assert not last.ids[4:].any() and last.ids[:4].any()


def test_text_that_the_teacher_did_not_see_is_refused_before_the_first_step(folder):
    with pytest.raises(ValueError, match="row 0 of the split 'train' is not the text that the teacher saw"):
        TeacherLoader(Texts(first=1), StoreReader(folder), batch_size=BATCH)


def test_a_missing_shard_is_named(folder):
    (folder / "train-000001-0000-of-0001.array_record").unlink()
    with pytest.raises(ValueError, match="the shard train-000001-0000-of-0001.array_record is missing"):
        StoreReader(folder)


def test_a_truncated_shard_is_named_with_its_sizes(folder):
    shard = folder / "train-000002-0000-of-0001.array_record"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[: size // 2])
    with pytest.raises(ValueError, match=f"array_record has {size // 2} bytes where {size} were written"):
        StoreReader(folder)


def test_a_damaged_shard_of_the_right_size_is_refused(folder):
    shard = folder / "train-000002-0000-of-0001.array_record"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(ValueError, match="not readable|hold \\d+ rows"):
        StoreReader(folder)


def test_a_shard_of_another_teacher_is_refused(folder, tmp_path):
    write(tmp_path / "other", header(teacher="u")).finish()
    name = "train-000001-0000-of-0001.array_record"
    shutil.copy(tmp_path / "other" / name, folder / name)
    with pytest.raises(ValueError, match=f"the shard {name} in .* is not of this store: it was written from another teacher"):
        StoreReader(folder)


def test_shards_that_changed_places_are_refused(folder):
    first, second = (folder / f"train-00000{shard}-0000-of-0001.array_record" for shard in (0, 1))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    sizes = {**read_header(folder).sizes, first.name: first.stat().st_size, second.name: second.stat().st_size}
    storage.write_json(folder / HEADER, serialize.to_json(header(sizes=sizes)))
    with pytest.raises(ValueError, match="holds row 8 where row 0 belongs"):
        StoreReader(folder)


def test_a_row_beyond_the_last_and_a_split_that_is_not_there_are_refused(folder):
    with pytest.raises(ValueError, match="row 20 was asked of the store in .*, whose split 'train' has 20 rows"):
        StoreReader(folder).rows([3, 20])
    with pytest.raises(ValueError, match="has no split 'test', only train, heldout"):
        StoreReader(folder, "test")


def test_a_folder_without_a_header_is_no_store(tmp_path):
    with pytest.raises(ValueError, match="is no store of teacher logits: it has no store.json"):
        StoreReader(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(k=0), "k=0, the stored ids of a token, must be at least 1"),
        (lambda: TopK(k=1, quantization="int4"), "quantization='int4' is not one of"),
        (lambda: Samples(k=2, temperature=0), "temperature=0 must be positive"),
        (lambda: Samples(k=2**16), "k=65536 draws a token are more than the 65535"),
    ],
)
def test_impossible_forms_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
