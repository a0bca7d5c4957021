"""lmx: a JAX research framework for how language models are trained. Importing it touches no device."""

from typing import Any

__version__ = "0.1.0"

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Resolves `lmx.load` on first use, so that `import lmx` stays free of jax."""
    if name == "load":
        from lmx.pipeline.artifact import load

        return load
    raise AttributeError(f"module 'lmx' has no attribute {name!r}")
