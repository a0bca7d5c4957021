"""The import directions of the library, as data: a row imports rows above it, and nothing outside lmx knows the way in."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROWS = [
    {"core"},
    {"kernels", "losses", "merging", "optim", "sharding", "tokenizer"},
    {"model", "data", "rewards"},
    {"pruning", "sampling", "checkpoint", "objectives"},
    {"train", "eval", "pipeline"},
    {"stages", "convert", "serve", "curation"},
    {"cli"},
]
# Inside a row: objectives join losses to the batch contract, which lives one row up already; nothing else crosses.
SAME_ROW: set[tuple[str, str]] = set()
RANK = {package: row for row, packages in enumerate(ROWS) for package in packages}
LAZY = {"cli", "__init__"}  # the only places where an import may stand inside a function


def lmx_files() -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / "lmx").rglob("*.py")):
        parts = path.relative_to(ROOT / "lmx").with_suffix("").parts
        yield path, parts[0]


def imported_modules(path: Path) -> Iterator[tuple[str, bool]]:
    """Yields (module, whether the import stands inside a function)."""
    tree = ast.parse(path.read_text())
    inside = {node for scope in ast.walk(tree) if isinstance(scope, ast.FunctionDef) for node in ast.walk(scope)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "lmx" else [node.module]
            yield from ((name, node in inside) for name in names)


def package_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "lmx" and len(parts) > 1 else None


def test_every_package_has_a_row() -> None:
    packages = {own for _, own in lmx_files()} - {"__init__", "__main__"}
    assert packages == set(RANK)


def test_imports_point_down() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {own} -> {package}"
        for path, own in lmx_files()
        if own in RANK
        for module, _ in imported_modules(path)
        if (package := package_of(module)) is not None
        and package != own
        and package in RANK
        and RANK[package] >= RANK[own]
        and (own, package) not in SAME_ROW
    ]
    assert not wrong, "\n".join(wrong)


def test_the_library_does_not_know_configs_experiments_or_tests() -> None:
    outside = {"configs", "experiments", "tests", "tools"}
    wrong = [str(path) for path, _ in lmx_files() for module, _ in imported_modules(path) if module.split(".")[0] in outside]
    assert not wrong


def test_configs_do_not_know_experiments() -> None:
    files = (ROOT / "configs").rglob("*.py")
    assert not [str(path) for path in files for module, _ in imported_modules(path) if module.split(".")[0] == "experiments"]


def test_imports_stand_at_the_top() -> None:
    wrong = [
        f"{path}: {module}" for path, own in lmx_files() if own not in LAZY for module, nested in imported_modules(path) if nested
    ]
    assert not wrong


def test_losses_and_kernels_know_no_flax() -> None:
    pure = {"losses", "kernels", "core", "objectives", "data", "optim"}
    wrong = [
        str(path) for path, own in lmx_files() if own in pure for module, _ in imported_modules(path) if module.startswith("flax")
    ]
    assert not wrong
