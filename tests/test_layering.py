"""The direction of imports, read from the source of every module: no module is imported to find out."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rik"

# Each line may import from the lines above it and from its own room; rooms that share a line do not know each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("rik",),  # the docstring and the version
    ("rik.errors",),
    ("rik.linux", "rik.model", "rik.settings", "rik.logging", "rik.data_directory"),
    ("rik.messages", "rik.environment"),
    ("rik.link", "rik.store", "rik.images", "rik.network"),
    ("rik.runtime",),
    ("rik.api", "rik.scheduler", "rik.worker"),
    ("rik.runtimes",),  # these three compose: they alone know several rooms of what stands above
    ("rik.inspection",),
    ("rik.host",),
    ("rik.cli",),
    ("rik.__main__",),
)
# Rooms of one layer that may know each other, as (importer, imported).
NEIGHBOURS = {
    ("rik.settings", "rik.model"),
    ("rik.messages", "rik.environment"),
}
# Supervisors of pods and the unpacking child run these under `python -I -S`: there is no site-packages to import from.
STANDARD_LIBRARY_ONLY = ("rik.linux", "rik.runtime.process.podinit", "rik.images.untar")
STANDARD_LIBRARY_ONLY_PACKAGES = ("rik", "rik.runtime", "rik.runtime.process", "rik.images")
MAX_MODULE_LINES = 450


class Import(NamedTuple):
    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer} (line {self.line}) imports {self.imported}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_paths() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str, path: Path) -> Iterator[Import]:
    """Every import, inside functions too, but not those under `if TYPE_CHECKING`: these are never executed."""
    tree = ast.parse(path.read_text(), str(path))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    modules = module_paths()
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            yield from (Import(name, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield Import(name, submodule if submodule in modules else base, node.lineno)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from _executed(other)
            continue
        yield child
        yield from _executed(child)


def all_imports() -> list[Import]:
    return [found for name, path in module_paths().items() for found in imports_of(name, path)]


def room_of(module: str) -> str | None:
    """The room of `LAYERS` that a module lies in; None for modules from elsewhere."""
    if module == "rik":
        return "rik"
    rooms = [room for layer in LAYERS for room in layer if room != "rik"]
    return next((room for room in rooms if module == room or module.startswith(f"{room}.")), None)


def layer_of(room: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if room in layer)


def may_import(importer: str, imported: str) -> bool:
    if importer == imported or layer_of(imported) < layer_of(importer):
        return True
    return (importer, imported) in NEIGHBOURS


def test_every_module_has_a_room() -> None:
    """Whoever adds a room says in this file where it stands."""
    assert [name for name in module_paths() if room_of(name) is None] == []


def test_imports_go_one_way() -> None:
    """A module imports from lower layers and its own room only; no role imports another."""
    wrong = []
    for found in all_imports():
        if found.imported != "rik" and not found.imported.startswith("rik."):
            continue
        importer, imported = room_of(found.importer), room_of(found.imported)
        if importer is None or imported is None or not may_import(importer, imported):
            wrong.append(str(found))
    assert wrong == []


def test_no_module_needs_itself() -> None:
    """There are no import circles, not even by imports within functions: a module can be read after those it uses."""
    modules = module_paths()
    used: dict[str, set[str]] = {name: set() for name in modules}
    for found in all_imports():
        if found.imported in modules and found.imported != found.importer:
            used[found.importer].add(found.imported)
    assert len(list(TopologicalSorter(used).static_order())) == len(modules)


def test_roles_do_not_know_each_other() -> None:
    """The table above itself keeps api, scheduler and worker apart."""
    roles = ("rik.api", "rik.scheduler", "rik.worker")
    assert not [(a, b) for a in roles for b in roles if a != b and may_import(a, b)]


def test_supervisors_import_the_standard_library_only() -> None:
    """What runs under `python -I -S` imports nothing that is installed, directly or by way of another module."""
    starts = [name for name in module_paths() if _is_under(name, STANDARD_LIBRARY_ONLY)]
    starts += [name for name in STANDARD_LIBRARY_ONLY_PACKAGES if name in module_paths()]
    modules = module_paths()
    wrong = []
    waiting, seen = list(starts), set(starts)
    while waiting:
        name = waiting.pop()
        for found in imports_of(name, modules[name]):
            top = found.imported.partition(".")[0]
            if top == "rik" and found.imported in modules:
                if found.imported not in seen:
                    seen.add(found.imported)
                    waiting.append(found.imported)
            elif top not in sys.stdlib_module_names:
                wrong.append(str(found))
    assert wrong == []


def _is_under(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


@pytest.mark.parametrize("name", sorted(module_paths()))
def test_modules_are_of_a_size_to_be_read(name: str) -> None:
    """About 300 lines a module; past this limit it is two modules."""
    assert len(module_paths()[name].read_text().splitlines()) <= MAX_MODULE_LINES


def test_help_does_not_load_trio() -> None:
    """`rik --help` is answered without anything heavy: no trio, no web server, no HTTP library, no schema."""
    if "rik.cli.main" not in module_paths():
        pytest.skip("there is no command line yet")
    heavy = ("trio", "quart", "hypercorn", "httpx", "jsonschema", "rich", "yaml", "cryptography", "psutil")
    program = (
        "import sys\n"
        "sys.argv = ['rik', '--help']\n"
        "from rik.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        f"print('LOADED', *[name for name in {heavy!r} if name in sys.modules])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=os.environ, check=True
    )
    assert result.stdout.splitlines()[-1].split() == ["LOADED"]
