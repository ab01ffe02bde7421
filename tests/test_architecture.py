"""Imports run one way: tools, then m1agent, then the runtime, then the kernels."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "m1kernels": ROOT / "kernels/m1kernels",
    "m1runtime": ROOT / "runtime/m1runtime",
    "m1agent": ROOT / "m1agent",
    "m1tools": ROOT / "tools/m1tools",
    "training": ROOT / "training",
}
MAY_IMPORT = {
    "m1kernels": set[str](),
    "m1runtime": {"m1kernels"},
    "m1agent": {"m1runtime"},
    "m1tools": {"m1agent"},
}
RUNTIME_DOORS = {"m1agent/models/local.py", "m1agent/models/transformers.py", "m1agent/doctor.py"}
HEAVY = {"torch", "transformers", "mcp", "starlette", "m1runtime", "m1kernels"}


def files(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


def imports(nodes: Iterator[ast.AST]) -> set[str]:
    """Full names of the modules that these statements import, also through `import_module("...")`."""
    found: set[str] = set()
    for node in nodes:
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=str(module), names=names, level=0):
                found |= {module} | {f"{module}.{alias.name}" for alias in names}
            case ast.Call(func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"), args=[first, *_]):
                found |= {first.value} if isinstance(first, ast.Constant) and isinstance(first.value, str) else set()
            case _:
                pass
    return found


def tops(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_the_one_below(package: str) -> None:
    ours = set(PACKAGES)
    for path in files(package):
        used = tops(imports(ast.walk(parse(path)))) & ours
        assert used <= MAY_IMPORT[package] | {package}, f"{path.relative_to(ROOT)} imports {used}"


def test_the_sdk_reaches_the_runtime_through_few_files_only() -> None:
    for path in files("m1agent"):
        name = str(path.relative_to(ROOT))
        if "m1runtime" in tops(imports(ast.walk(parse(path)))):
            assert name in RUNTIME_DOORS, f"{name} imports m1runtime"


def test_relative_imports_are_not_used() -> None:
    for package in MAY_IMPORT:
        for path in files(package):
            levels = {node.level for node in ast.walk(parse(path)) if isinstance(node, ast.ImportFrom)}
            assert levels <= {0}, f"{path.relative_to(ROOT)} imports relatively"


def eager(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Statements that run when a module is imported; blocks for type checkers do not."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from eager(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody"):
                yield from eager(getattr(node, part, []))
        else:
            yield node


def test_nothing_heavy_is_imported_when_the_package_is() -> None:
    seen: set[str] = set()
    waiting = {"m1agent"}
    while waiting:
        module = waiting.pop()
        seen.add(module)
        path = ROOT.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not path.exists():
            continue
        used = imports(eager(parse(path).body))
        assert not HEAVY & tops(used), f"{path.relative_to(ROOT)} imports {HEAVY & tops(used)} at once"
        waiting |= {name for name in used if name.startswith("m1agent")} - seen
