"""Sources and tokenizers small enough to check by hand."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from lmx.data.sources import Rows
from lmx.tokenizer.bytes import ByteTokenizer


@dataclasses.dataclass(frozen=True)
class ListSource:
    """Rows given as tuples of pairs, so that the source is hashable."""

    rows: tuple[tuple[tuple[str, str], ...], ...]

    def load(self, split: str) -> Rows:
        return [dict(row) for row in self.rows]  # type: ignore[return-value]

    def fingerprint(self) -> str:
        return str(hash(self.rows))


@pytest.fixture(scope="session")
def list_source() -> Callable[..., ListSource]:
    def build(*rows: dict[str, Any]) -> ListSource:
        return ListSource(tuple(tuple(row.items()) for row in rows))

    return build


@pytest.fixture(scope="session")
def text_source(list_source: Callable[..., ListSource]) -> Callable[..., ListSource]:
    return lambda *texts: list_source(*({"text": text} for text in texts))


@pytest.fixture(scope="session")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()
