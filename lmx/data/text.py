"""Plain text for language modelling: a weighted mixture of sources, packed."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from lmx.data import store
from lmx.data.loader import Loader, Order, build_loader
from lmx.data.packing import PackedDocuments, empty_row
from lmx.data.sources import Source, fingerprints
from lmx.tokenizer.protocol import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """One source of a mixture.

    Attributes:
      source: where the documents come from.
      weight: share of the rows (and, rows being full, of the tokens) relative to the other components.
      text_field: field of a row that holds the document.
    """

    source: Source
    weight: float = 1.0
    text_field: str = "text"

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight={self.weight} must be positive; leave the component out instead")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedText:
    """Documents packed into full rows; the loss counts on every token of every document and on its EOS.

    Documents are tokenized once in a process (4 to 5 MB/s with BPE on one core) and kept as arrays of two or four bytes a token.

    Attributes:
      components: the mixture.
      token_cache: directory where the arrays are kept for other runs and mapped into memory; None = memory only.
    """

    components: tuple[Component, ...]
    token_cache: Path | None = None

    def __post_init__(self) -> None:
        if not self.components:
            raise ValueError("components is empty; a mixture needs at least one Component(source=...)")

    def loader(
        self,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        length: int,
        seed: int | None,
        split: str = "train",
        epochs: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Loader:
        """Batches of LMBatch.

        Args:
          tokenizer: any.
          batch_size: rows of the global batch.
          length: T, tokens of a row.
          seed: of the shuffling; None = rows in their own order.
          split: "train" or "heldout".
          epochs: None = endless, mixed by weight. n = n passes over every document of every component, the last batch filled up
            with masked rows; then `text_bytes` tells the bytes of all texts, for bits per byte.
          process_index: this process.
          process_count: processes.
        """
        order = Order(batch_size=batch_size, seed=seed, epochs=epochs, process_index=process_index, process_count=process_count)
        stores = [store.open_store(part.source, part.text_field, split, tokenizer, self.token_cache) for part in self.components]
        return build_loader(
            [PackedDocuments(documents, tokenizer, length) for documents in stores],
            [part.weight for part in self.components],
            order,
            filler=empty_row(length, tokenizer.pad_id),
            text_bytes=sum(documents.text_bytes for documents in stores),
        )

    def texts(self, split: str = "train") -> Iterator[str]:
        """The documents of all components, one after the other: what a tokenizer is trained on and a baseline computed from."""
        for part in self.components:
            yield from store.texts(part.source, part.text_field, split)

    def fingerprint(self) -> dict[str, str]:
        """Fingerprints of the data behind the sources, by field path."""
        return fingerprints(self.components)
