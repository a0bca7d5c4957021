"""Files of tiktoken ranks: the library's own ids, the cuts of long texts, and files that are refused."""

import base64
import unicodedata
from collections.abc import Callable

import hypothesis
import pytest
import tiktoken as library
from hypothesis import strategies as st

from lmx.tokenizer import tiktoken
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.tiktoken import STYLES, TiktokenTokenizer, parse_ranks


@pytest.fixture(scope="module")
def ranks(read_golden: Callable[[str], tuple[Tokenizer, Chat]]) -> bytes:
    tokenizer, _ = read_golden("llama3")
    assert isinstance(tokenizer, TiktokenTokenizer)
    return tokenizer.ranks


def reference(tokenizer: TiktokenTokenizer) -> library.Encoding:
    """The library with the same ranks, and with the specials."""
    pattern = STYLES[tokenizer.style].pattern
    return library.Encoding("test", pat_str=pattern, mergeable_ranks=tokenizer.parsed, special_tokens=tokenizer.special_by_text)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(text=st.text(), style=st.sampled_from(sorted(STYLES)))
def test_ids_are_those_of_the_library(ranks: bytes, text: str, style: str) -> None:
    tokenizer = TiktokenTokenizer(ranks, style)
    given = unicodedata.normalize("NFC", text) if style == "qwen" else text
    assert tokenizer.encode(text) == reference(tokenizer).encode_ordinary(given)
    spelled = f"{given}<|im_end|>{given}<|eot_id|>"
    assert tokenizer.encode_with_specials(spelled) == reference(tokenizer).encode(spelled, allowed_special="all")


def test_llama_3_has_256_specials_with_the_names_of_meta(ranks: bytes) -> None:
    tokenizer = TiktokenTokenizer(ranks, "llama3")
    first = len(tokenizer.parsed)
    assert tokenizer.vocab_size == first + 256
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (first, first + 1, first + 4)
    names = {0: "<|begin_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>", 8: "<|eom_id|>", 9: "<|eot_id|>"}
    names |= {2: "<|reserved_special_token_0|>", 5: "<|reserved_special_token_2|>", 255: "<|reserved_special_token_247|>"}
    assert {offset: tokenizer.id_to_piece(first + offset) for offset in names} == names


def test_qwen_has_three_specials_and_205_extras_and_no_bos(ranks: bytes) -> None:
    tokenizer = TiktokenTokenizer(ranks, "qwen")
    first = len(tokenizer.parsed)
    assert tokenizer.vocab_size == first + 208
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, first, first)
    assert tokenizer.id_to_piece(first + 2) == "<|im_end|>" and tokenizer.id_to_piece(first + 207) == "<|extra_204|>"


def pieces_by_meta(text: str, limit: int) -> list[str]:
    """Meta's rule, written out character by character: at most `limit` whitespace or other characters in a row."""
    pieces, start, length = [], 0, 0
    for position, character in enumerate(text):
        same = position > 0 and character.isspace() == text[position - 1].isspace()
        length = length + 1 if same else 1
        if length > limit:
            pieces.append(text[start:position])
            start, length = position, 1
    return [*pieces, text[start:]]


@hypothesis.given(text=st.text("ab \n\u00a0日", max_size=60), limit=st.integers(1, 7))
def test_long_runs_are_cut_as_meta_cuts_them(text: str, limit: int) -> None:
    assert [piece for piece in tiktoken._cut_runs(text, r"\s+|\S+", limit) if piece] == [
        piece for piece in pieces_by_meta(text, limit) if piece
    ]


def test_runs_that_stop_the_library_are_encoded(ranks: bytes) -> None:
    text = " " * 1_100_000 + "a"
    for style in STYLES:
        tokenizer = TiktokenTokenizer(ranks, style)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_qwen_is_cut_only_where_the_library_would_give_up(ranks: bytes) -> None:
    tokenizer = TiktokenTokenizer(ranks, "qwen")
    text = "a" * 60_000 + " " * 60_000 + "b" * 30_000
    assert tokenizer.encode(text) == reference(tokenizer).encode_ordinary(text)


def line(token: bytes, rank: int) -> bytes:
    return base64.b64encode(token) + b" %d\n" % rank


ALL_BYTES = b"".join(line(bytes((byte,)), byte) for byte in range(256))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "lack 256 of the 256 bytes"),
        (ALL_BYTES[: len(ALL_BYTES) // 2 // 8 * 8], "ranks"),
        (ALL_BYTES.replace(line(b"a", 97), b""), r"the 255 ranks are not 0..254, each once"),
        (ALL_BYTES.replace(line(b"a", 97), line(b"ab", 97)), "lack 1 of the 256 bytes, the first 0x61"),
        (ALL_BYTES + line(b"a", 256), "line 257 of the ranks repeats the token b'a'"),
        (ALL_BYTES + line(b"ab", 255), "the 257 ranks are not"),
        (ALL_BYTES + line(b"ab", 2**80), "line 257 .* not base64 and a rank"),
        (ALL_BYTES + b"YWI= -1\n", "line 257 .* not base64 and a rank"),
        (ALL_BYTES + b"YW*= 256\n", "line 257 .* not base64 and a rank"),
        (ALL_BYTES + b"YWI=\n", "line 257 .* not base64 and a rank"),
        (ALL_BYTES + b"YWI= 256 7\n", "line 257 .* not base64 and a rank"),
        (b"\x0a\x0e\xff\x00 1", "line 2 .* not base64 and a rank"),
    ],
)
def test_a_broken_file_is_one_sentence(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_ranks(data)


@hypothesis.given(data=st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_sentence(data: bytes) -> None:
    with pytest.raises(ValueError, match="ranks"):
        parse_ranks(data)


def test_unknown_styles_and_specials_on_ranks_are_errors() -> None:
    with pytest.raises(ValueError, match="style 'gpt4' is not one of llama3, qwen"):
        TiktokenTokenizer(ALL_BYTES, "gpt4", ()).check()
    with pytest.raises(ValueError, match="special '<x>' has id 97, which must lie behind the 256 ranks"):
        TiktokenTokenizer(ALL_BYTES, "qwen", (("<x>", 97),)).check()
    with pytest.raises(ValueError, match="2 specials have only 1 different ids"):
        TiktokenTokenizer(ALL_BYTES, "qwen", (("<x>", 256), ("<y>", 256))).check()
