"""Model-written data: chunks, prompts, parsing, the check, and the step with a teacher of three lines."""

import dataclasses

import pytest

from lmx.curation.functions import questions
from lmx.curation.pipelines.write_questions import WriteQuestions


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (" What is it?\nAnswer: a bridge", ("What is it?", "a bridge")),
        ("Question: What\nis it?\nAnswer: a\n bridge\n\nQuestion: more?\nAnswer: no", ("What is it?", "a bridge")),
        ("question: x?\nanswer: y\nQuestion: z?", ("x?", "y")),
        ("What is it?", None),
        ("\nAnswer: a", None),
        ("Question:\nAnswer:", None),
        ("", None),
    ],
)
def test_a_pair_is_read_from_what_was_written_or_it_is_not(written, expected):
    assert questions.parse(written) == expected


def test_chunks_are_whole_paragraphs_long_enough_and_chosen_by_key():
    text = "\n".join(f"paragraph {n} " + "x" * 40 for n in range(20))
    chunks = [questions.choose_chunk(text, f"key {n}", characters=120) for n in range(50)]
    assert all(len(chunk.text) >= 120 and chunk.text in text for chunk in chunks)
    assert len({chunk.depth for chunk in chunks}) > 5 and all(0 <= chunk.depth < 1 for chunk in chunks)
    assert questions.choose_chunk(text, "key 1", characters=120) == chunks[1]
    assert questions.choose_chunk("short", "k", characters=100) == questions.Chunk("short", 0.0)
    assert questions.choose_chunk("", "k", characters=100).text == ""


def test_answers_are_compared_by_their_words():
    assert questions.same_answer("The  Bridge.\nmore", "the bridge")
    assert not questions.same_answer("a bridge", "the bridge") and not questions.same_answer("", "x")


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Asks for the last word of the chunk; knows "known" without it, is wrong about "hard", and forgets the form for "odd"."""

    def open(self):
        return self.write

    def write(self, prompts, seeds):
        assert len(set(seeds)) == len(prompts)
        return [self.one(prompt) for prompt in prompts]

    def one(self, prompt):
        if prompt.startswith("Question:"):
            return " known" if "last" in prompt else ""
        word = prompt.split("\n\n")[0].split()[-1]
        if "Write one question" in prompt:
            return "I would rather not" if word == "odd" else f" What is the last word?\nAnswer: {word}"
        return " easy" if word == "hard" else f" {word}\nindeed"


def test_questions_are_written_over_documents_and_join_them(run_step, make_document):
    pages = [make_document(f"page {n} ends in {word}") for n, word in enumerate(("river", "odd", "hard", "known"))]
    result = run_step(WriteQuestions(writer=Teacher(), share=1.0), pages)
    written = [item for item in result.documents.values() if item.meta.get("written_by")]
    assert len(written) == 3 and {page.key for page in pages} < set(result.documents)
    river = next(item for item in written if "river" in item.text)
    assert river.text == "page 0 ends in river\n\nQuestion: What is the last word?\nAnswer: river"
    assert (river.meta["answer"], river.meta["chunk_depth"]) == ("river", 0.0)
    assert result.counts[1, "added", ""] == 3 and result.counts[1, "noted", "not_in_the_form"] == 1


def test_the_check_drops_pairs_that_are_wrong_or_known_without_the_text(run_step, make_document):
    pages = [make_document(f"page {n} ends in {word}") for n, word in enumerate(("river", "odd", "hard", "known"))]
    result = run_step(WriteQuestions(writer=Teacher(), share=1.0, check=True, groups=1), pages)
    assert [item.meta["answer"] for item in result.documents.values() if item.meta.get("written_by")] == ["river"]
    assert result.counts[1, "noted", "wrong_with_the_text"] == 1 and result.counts[1, "noted", "known_without_the_text"] == 1


def test_documents_are_packed_to_a_length_and_chosen_by_share(run_step, make_document):
    pages = [make_document(f"page {n} ends in river") for n in range(40)]
    packed = run_step(WriteQuestions(writer=Teacher(), share=1.0, groups=1, pack_characters=100), pages)
    written = [item for item in packed.documents.values() if item.meta.get("written_by")]
    assert len(written) == 8 and all(item.text.count("ends in river") == 5 for item in written)
    half = run_step(WriteQuestions(writer=Teacher(), share=0.5), pages)
    assert 10 < half.counts[1, "added", ""] < 30
    assert (1, "added", "") not in run_step(WriteQuestions(writer=Teacher(), share=1.0, least_characters=1000), pages).counts


@pytest.mark.parametrize("settings", [{"share": 0.0}, {"groups": 0}, {"pack_characters": 0}, {"chunk_characters": 0}])
def test_settings_out_of_range_are_told_in_a_sentence(settings):
    with pytest.raises(ValueError, match="write_questions"):
        WriteQuestions(writer=Teacher(), **settings)
