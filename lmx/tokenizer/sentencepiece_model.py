"""SentencePiece's model file: what stands in it, checked, changed and written without evaluating anything.

The file is a protocol buffer, `ModelProto` of SentencePiece's `sentencepiece_model.proto`; the numbers below are its field numbers.
"""

import dataclasses
import enum
import struct
from collections.abc import Iterable, Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_MODEL_TYPE, _BYTE_FALLBACK, _ROLE_IDS = 3, 35, {"unk_id": 40, "bos_id": 41, "eos_id": 42, "pad_id": 43}
_NORMALIZER_NAME, _CHARSMAP, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE_SPACES = 1, 2, 3, 4, 5
_UNKNOWN_SURFACE = 44
_ROLE_DEFAULTS = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}


class PieceType(enum.IntEnum):
    """What a piece is; GGUF uses the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Algorithm(enum.IntEnum):
    """How SentencePiece segments."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclasses.dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; a space is written U+2581."""

    text: str
    score: float
    type: PieceType = PieceType.NORMAL


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What lmx needs to know of a model file.

    Attributes:
      pieces: the vocabulary, in the order of the ids.
      algorithm: how it segments.
      byte_fallback: unknown characters are spelled in bytes.
      unk_id, bos_id, eos_id, pad_id: ids of the roles, negative where there is none.
      add_dummy_prefix: a space is put in front of every text.
      remove_extra_whitespaces: runs of spaces become one.
      charsmap: the normaliser's compiled rules; empty for the identity.
      unknown_surface: what the unknown piece is decoded to.
    """

    pieces: tuple[Piece, ...]
    algorithm: Algorithm
    byte_fallback: bool
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    charsmap: bytes = b""
    unknown_surface: str = " \u2047 "


def parse(data: bytes) -> Model:
    """Reads a model file.

    Raises:
      ValueError: the bytes are no such file.
    """
    try:
        return _parse(data)
    except (ValueError, IndexError, KeyError, TypeError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"not a SentencePiece model ({len(data)} bytes): {error}") from error


def _parse(data: bytes) -> Model:
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, _, value in _fields(data):
        if number == _PIECES:
            pieces.append(_piece(_message(value), len(pieces)))
        elif number == _TRAINER:
            trainer |= {key: item for key, _, item in _fields(_message(value))}
        elif number == _NORMALIZER:
            normalizer |= {key: item for key, _, item in _fields(_message(value))}
    if not pieces:
        raise ValueError("it has no pieces")
    if len({piece.text for piece in pieces}) != len(pieces):
        raise ValueError("two of its pieces are the same text")
    return Model(
        pieces=tuple(pieces),
        algorithm=Algorithm(_signed(trainer.get(_MODEL_TYPE, 1))),
        byte_fallback=bool(trainer.get(_BYTE_FALLBACK, 0)),
        add_dummy_prefix=bool(normalizer.get(_DUMMY_PREFIX, 1)),
        remove_extra_whitespaces=bool(normalizer.get(_REMOVE_SPACES, 1)),
        charsmap=_message(normalizer.get(_CHARSMAP, b"")),
        unknown_surface=_message(trainer.get(_UNKNOWN_SURFACE, " \u2047 ".encode())).decode("utf-8"),
        **{name: _signed(trainer.get(number, _ROLE_DEFAULTS[name])) for name, number in _ROLE_IDS.items()},
    )


def _piece(data: bytes, index: int) -> Piece:
    values: dict[int, int | bytes] = {number: value for number, _, value in _fields(data)}
    score = values.get(_PIECE_SCORE, bytes(4))
    text = _message(values[_PIECE_TEXT]).decode("utf-8") if _PIECE_TEXT in values else ""
    if not text or "\0" in text:
        raise ValueError(f"piece {index} is {'empty' if not text else 'a text with a zero byte'}")
    return Piece(text, struct.unpack("<f", _message(score))[0], PieceType(_signed(values.get(_PIECE_TYPE, 1))))


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(number, wire type, value) of each field of a message: integers for varints, bytes for all else."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, position = _varint(data, position)
            yield number, wire, value
            continue
        if wire == BYTES:
            size, position = _varint(data, position)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"byte {position} has the unknown wire type {wire}")
        if size > len(data) - position:
            raise ValueError(f"a field at byte {position} claims {size} bytes, and {len(data) - position} are left")
        yield number, wire, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("it ends in the middle of a number")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & (2**64 - 1), position
    raise ValueError(f"the number before byte {position} has more than 64 bits")


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where text or a message belongs")
    return value


def _signed(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("text stands where a number belongs")
    return value - 2**64 if value >= 2**63 else value


def rewritten(data: bytes, *, control: frozenset[int] = frozenset(), prefix_free: bool = False) -> bytes:
    """The model file with some pieces turned into control pieces, which no text matches, and without its dummy prefix.

    Args:
      data: a file that `parse` accepts.
      control: ids of the pieces.
      prefix_free: no space is put in front of texts.
    """
    retype = _field(_PIECE_TYPE, PieceType.CONTROL)  # of a repeated scalar field, the last value counts
    parts: list[bytes] = []
    index = 0
    for number, wire, value in _fields(data):
        if number == _PIECES:
            value = _message(value) + (retype if index in control else b"")
            index += 1
        parts.append(_field(number, value, wire))
    if prefix_free:
        parts.append(_field(_NORMALIZER, _field(_DUMMY_PREFIX, 0)))  # messages given twice are merged
    return b"".join(parts)


def serialize(model: Model) -> bytes:
    """The bytes of a model file; `parse` reads them back equal."""
    trainer: list[tuple[int, int | bytes]] = [
        (_MODEL_TYPE, int(model.algorithm)),
        (4, len(model.pieces)),
        (_BYTE_FALLBACK, int(model.byte_fallback)),
    ]
    trainer += [(number, getattr(model, name)) for name, number in _ROLE_IDS.items()]
    trainer.append((_UNKNOWN_SURFACE, model.unknown_surface.encode()))
    for name, number in (("unk_id", 45), ("bos_id", 46), ("eos_id", 47), ("pad_id", 48)):
        index = getattr(model, name)
        if 0 <= index < len(model.pieces):
            trainer.append((number, model.pieces[index].text.encode()))
    normalizer: list[tuple[int, int | bytes]] = [
        (_NORMALIZER_NAME, b"lmx" if model.charsmap else b"identity"),
        (_CHARSMAP, model.charsmap),
        (_DUMMY_PREFIX, int(model.add_dummy_prefix)),
        (_REMOVE_SPACES, int(model.remove_extra_whitespaces)),
        (_ESCAPE_SPACES, 1),
    ]
    pieces = (
        _field(_PIECE_TEXT, piece.text.encode())
        + _field(_PIECE_SCORE, struct.pack("<f", piece.score), FIXED32)
        + _field(_PIECE_TYPE, int(piece.type))
        for piece in model.pieces
    )
    messages = [_field(_PIECES, piece) for piece in pieces]
    return b"".join([*messages, _field(_TRAINER, _all(trainer)), _field(_NORMALIZER, _all(normalizer))])


def _all(fields: Iterable[tuple[int, int | bytes]]) -> bytes:
    return b"".join(_field(number, value) for number, value in fields)


def _field(number: int, value: int | bytes, wire: int | None = None) -> bytes:
    """One field; without `wire` a number is a varint and bytes are a message."""
    if wire is None:
        wire = VARINT if isinstance(value, int) else BYTES
    tag = _number(number << 3 | wire)
    if isinstance(value, int):
        return tag + _number(value % 2**64)
    return tag + (_number(len(value)) if wire == BYTES else b"") + value


def _number(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
