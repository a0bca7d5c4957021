"""SentencePiece models of other origins: the library's own ids, and the model file itself."""

import io
from collections.abc import Callable

import hypothesis
import pytest
import sentencepiece
from hypothesis import strategies as st

from lmx.tokenizer import sentencepiece_model
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.roles import Roles
from lmx.tokenizer.sentencepiece import SentencePieceTokenizer
from lmx.tokenizer.sentencepiece_model import Algorithm, Model, Piece, PieceType

TEXTS = st.one_of(st.text(), st.lists(st.sampled_from([" ", "\u2581", "a", "the ", "\n", "\n\n", "<b>", "日", "ﬁ"])).map("".join))


@pytest.fixture(scope="module", params=["gemma", "llama2", "bpe", "unigram"])
def model(request: pytest.FixtureRequest, topics: list[str], read_golden: Callable[[str], tuple[Tokenizer, Chat]]) -> bytes:
    """Gemma's and Llama 2's forms, and two as SentencePiece trains them by default: NFKC, and spaces made one."""
    if request.param in ("gemma", "llama2"):
        tokenizer, _ = read_golden(request.param)
        assert isinstance(tokenizer, SentencePieceTokenizer)
        return tokenizer.model
    data = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(topics), model_writer=data, vocab_size=400, model_type=request.param, minloglevel=2
    )
    return data.getvalue()


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(text=TEXTS)
def test_ids_and_text_are_those_of_the_library(model: bytes, text: str) -> None:
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = SentencePieceTokenizer(model, lossless=False)
    assert tokenizer.encode(text) == library.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == library.decode(library.encode(text))


def test_the_parsed_model_is_what_the_library_says(model: bytes) -> None:
    library, parsed = sentencepiece.SentencePieceProcessor(model_proto=model), sentencepiece_model.parse(model)
    assert [piece.text for piece in parsed.pieces] == [library.id_to_piece(index) for index in range(len(library))]
    assert [piece.score for piece in parsed.pieces] == [library.get_score(index) for index in range(len(library))]
    for kind, asked in ((PieceType.CONTROL, library.is_control), (PieceType.BYTE, library.is_byte)):
        assert [piece.type == kind for piece in parsed.pieces] == [asked(index) for index in range(len(library))]
    assert (parsed.unk_id, parsed.bos_id, parsed.eos_id) == (library.unk_id(), library.bos_id(), library.eos_id())


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(text=TEXTS)
def test_a_rewritten_file_gives_the_same_ids(model: bytes, text: str) -> None:
    parsed = sentencepiece_model.parse(model)
    again = sentencepiece_model.serialize(parsed)
    assert sentencepiece_model.parse(again) == parsed
    assert sentencepiece.SentencePieceProcessor(model_proto=again).encode(text) == SentencePieceTokenizer(model, False).encode(text)


def test_user_defined_turn_tokens_are_specials(read_golden: Callable[[str], tuple[Tokenizer, Chat]]) -> None:
    tokenizer, _ = read_golden("gemma")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    library = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    turn = library.piece_to_id("<start_of_turn>")
    assert turn in library.encode("<start_of_turn>user")  # so the library's own ids are not enough
    assert turn in tokenizer.special_ids and turn not in tokenizer.encode("<start_of_turn>user")
    assert tokenizer.encode_with_specials("<start_of_turn>user\n")[0] == turn
    assert library.piece_to_id("<b>") in tokenizer.encode("<b>")  # an ordinary piece stays one


def test_a_dummy_prefix_stands_at_the_start_and_behind_specials_only(read_golden: Callable[[str], tuple[Tokenizer, Chat]]) -> None:
    tokenizer, _ = read_golden("llama2")
    start, special, text, after = tokenizer.encode_parts(["the", 2, "the", "the"])
    assert tokenizer.id_to_piece(start[0]).startswith("\u2581") and start == text
    assert not tokenizer.id_to_piece(after[0]).startswith("\u2581")
    assert tokenizer.decode(text + after) == "thethe"


def test_tokens_behind_the_model_are_specials_without_a_piece(read_golden: Callable[[str], tuple[Tokenizer, Chat]]) -> None:
    base, _ = read_golden("llama2")
    assert isinstance(base, SentencePieceTokenizer)
    tokenizer = SentencePieceTokenizer(base.model, False, (("<pad>", 600),), Roles(bos_id=1, eos_id=2, pad_id=600))
    tokenizer.check()
    assert (tokenizer.vocab_size, tokenizer.id_to_piece(600), tokenizer.token_bytes(600)) == (601, "<pad>", None)
    assert tokenizer.encode_with_specials("a<pad>")[-1] == 600
    assert tokenizer.decode([*tokenizer.encode("a"), 600]) == "a"
    with pytest.raises(ValueError, match="special '<x>' has id 5, which is"):
        SentencePieceTokenizer(base.model, False, (("<x>", 5),)).check()


PIECES = (Piece("<unk>", 0.0, PieceType.UNKNOWN), Piece("a", -1.0))


def test_broken_files_are_one_sentence() -> None:
    whole = sentencepiece_model.serialize(Model(pieces=PIECES, algorithm=Algorithm.BPE, byte_fallback=False, bos_id=-1, eos_id=-1))
    for data, message in [
        (b"", "it has no pieces"),
        (whole[:-3], "claims"),
        (b"\x0a\xff\xff\xff\xff\x0f", r"claims \d+ bytes, and 0 are left"),
        (b"\xff" * 11, "more than 64 bits"),
        (b"\x0f", "unknown wire type 7"),
        (b"\x0a", "ends in the middle of a number"),
        (b"\x08\x01", "a number stands where"),
        (whole + whole, "two of its pieces are the same"),
        (b"\x0a\x00", "piece 0 is empty"),
        (b"\x0a\x05\x0a\x01a\x18\x09", "9 is not a valid PieceType"),
        (b"\x0a\x03\x0a\x01\xff", "invalid start byte"),
    ]:
        with pytest.raises(ValueError, match=f"not a SentencePiece model .*({message})"):
            sentencepiece_model.parse(data)
    with pytest.raises(ValueError, match="eos_id=-1 is outside the tokenizer's vocabulary of 2"):
        SentencePieceTokenizer(whole, False).check()
    unknown_less = Model(pieces=(Piece("a", 0.0),), algorithm=Algorithm.BPE, byte_fallback=False)
    with pytest.raises(ValueError, match="SentencePiece cannot load the model"):
        SentencePieceTokenizer(sentencepiece_model.serialize(unknown_less), False).check()


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(place=st.integers(0, 10**9), byte=st.integers(0, 255), cut=st.booleans())
def test_damaged_files_are_refused_with_a_sentence_or_work(model: bytes, place: int, byte: int, cut: bool) -> None:
    place %= len(model)
    data = model[:place] if cut else model[:place] + bytes((byte,)) + model[place + 1 :]
    try:
        tokenizer = SentencePieceTokenizer(data, lossless=False)
        tokenizer.check()
        tokenizer.decode(tokenizer.encode("the text"))
    except ValueError as error:
        assert str(error)
