"""The embedded corpus: documentation and source code of the Python that runs."""

from lmx.data.sources import Limited, PythonCorpus
from lmx.data.text import Component, PackedText


def mixture(*, prose: float = 0.6, code: float = 0.4, packages: tuple[str, ...] = ()) -> PackedText:
    """Documentation and code by shares of tokens; CPython 3.11 has 2.2 MB and 9.0 MB of them to train on."""
    return PackedText(
        components=(
            Component(source=PythonCorpus(kind="prose", packages=packages), weight=prose),
            Component(source=PythonCorpus(kind="code", packages=packages), weight=code),
        )
    )


def prose(packages: tuple[str, ...] = ()) -> PackedText:
    """Documentation topics and docstrings only."""
    return PackedText(components=(Component(source=PythonCorpus(kind="prose", packages=packages)),))


def evaluation(max_bytes: int, *, packages: tuple[str, ...] = ()) -> PackedText:
    """Held-out documents for bits per byte: whole ones, at most `max_bytes` of prose and as many of code.

    Read it with `loader(split="heldout", seed=None, epochs=1)`.
    """
    parts = (PythonCorpus(kind=kind, packages=packages) for kind in ("prose", "code"))
    return PackedText(components=tuple(Component(source=Limited(source=part, max_bytes=max_bytes)) for part in parts))
