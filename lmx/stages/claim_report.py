"""The page of a folder of claims, from its claims.py and the results beside it."""

from collections.abc import Sequence
from pathlib import Path

from etils import epath

from lmx.core import storage
from lmx.eval import claim_page
from lmx.eval.claims import Claim
from lmx.pipeline.experiment import load_module


def read_claims(folder: Path) -> tuple[str, Sequence[Claim]]:
    """`TITLE` and `CLAIMS` of a folder's claims.py.

    Raises:
      ValueError: there is no such file, or it defines no claims.
    """
    module = load_module(folder / "claims.py")
    claims = getattr(module, "CLAIMS", None)
    if not claims or not all(isinstance(claim, Claim) for claim in claims):
        raise ValueError(f"{folder / 'claims.py'} defines no CLAIMS, a tuple of lmx.eval.claims.Claim")
    return getattr(module, "TITLE", "Claims"), claims


def write_page(folder: Path, results: epath.PathLike, output: epath.PathLike) -> str:
    """Writes the page, and tells in a line what it holds.

    Args:
      folder: of claims.py.
      results: folder of JSON files that `Measure` wrote.
      output: the Markdown file.

    Raises:
      ValueError: as `read_claims`, `claim_page.read_results` and `claim_page.page`.
    """
    title, claims = read_claims(folder)
    found = claim_page.read_results(results)
    storage.write_text(output, claim_page.page(claims, found, title))
    return f"{output}: {claim_page.counts(claims, found)}"
