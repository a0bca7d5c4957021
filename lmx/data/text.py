"""Plain text for language modelling: a weighted mixture of sources, packed."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from lmx.data import store
from lmx.data.loader import Loader, Order, build_loader
from lmx.data.mixture import MixPoint, MixSchedule
from lmx.data.packing import PackedDocuments, empty_row
from lmx.data.ramp import Phase, Ramp
from lmx.data.sources import Source, fingerprints
from lmx.data.stream import build_stream_loader
from lmx.tokenizer.protocol import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """One source of a mixture.

    Attributes:
      source: where the documents come from.
      weight: share of the rows (and, rows being full, of the tokens) relative to the other components.
      text_field: field of a row that holds the document.
      name: what a mixture schedule calls it.
    """

    source: Source
    weight: float = 1.0
    text_field: str = "text"
    name: str = ""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight={self.weight} must be positive; leave the component out instead")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedText:
    """Documents packed into full rows; the loss counts on every token of every document and on its EOS.

    Documents are tokenized once in a process, on all cores, and kept as arrays of two or four bytes a token.

    Attributes:
      components: the mixture.
      token_cache: directory where the arrays are kept for other runs and mapped into memory; None = memory only.
      mix: weights that change with the tokens seen, in the place of the components' own; None = those, all along. It holds in
        endless loaders only: a finite pass reads every document of every component.
    """

    components: tuple[Component, ...]
    token_cache: Path | None = None
    mix: MixSchedule | None = None

    def __post_init__(self) -> None:
        if not self.components:
            raise ValueError("components is empty; a mixture needs at least one Component(source=...)")
        if self.mix is not None:
            self.mix.check([part.name for part in self.components])

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
        ramp: Ramp | None = None,
    ) -> Loader:
        """Batches of LMBatch.

        With a ramp or a mixture schedule, an endless loader reads one stream of full rows, in which nothing is lost or repeated
        where shape or mixture change (see `lmx.data.stream`).

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
          ramp: batches that change their shape, instead of `batch_size` and `length`; for endless loaders.
        """
        if epochs is not None and ramp is not None:
            raise ValueError(f"epochs={epochs}: a finite pass has batches of one shape; give no ramp")
        order = Order(batch_size=batch_size, seed=seed, epochs=epochs, process_index=process_index, process_count=process_count)
        stores = [store.open_store(part.source, part.text_field, split, tokenizer, self.token_cache) for part in self.components]
        packed = [PackedDocuments(documents, tokenizer, length) for documents in stores]
        if epochs is None and (ramp is not None or self.mix is not None):
            return build_stream_loader(
                packed,
                [part.name if self.mix is not None else str(number) for number, part in enumerate(self.components)],
                self.mix or self._constant_mix(),
                ramp or Ramp((Phase(from_tokens=0, batch_size=batch_size, length=length),)),
                seed=seed,
                process_index=process_index,
                process_count=process_count,
            )
        return build_loader(
            packed,
            [part.weight for part in self.components],
            order,
            filler=empty_row(length, tokenizer.pad_id),
            text_bytes=sum(documents.text_bytes for documents in stores),
        )

    def _constant_mix(self) -> MixSchedule:
        weights = {str(number): part.weight for number, part in enumerate(self.components)}
        return MixSchedule(points=(MixPoint(from_tokens=0, weights=weights),))

    def texts(self, split: str = "train") -> Iterator[str]:
        """The documents of all components, one after the other: what a tokenizer is trained on and a baseline computed from."""
        for part in self.components:
            yield from store.texts(part.source, part.text_field, split)

    def fingerprint(self) -> dict[str, str]:
        """Fingerprints of the data behind the sources, by field path."""
        return fingerprints(self.components)
