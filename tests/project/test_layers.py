"""Imports go downwards only, at every level of folders, and host is the one door to auto_LiRPA."""

import ast
from collections import defaultdict
from pathlib import Path

import lirpa_multinorm

ROOT = Path(lirpa_multinorm.__file__).parent
LOOSE = {"__init__", "__main__", "errors"}  # modules that stand beside the folders


def sources():
    return sorted(ROOT.rglob("*.py"))


def module_of(path):
    """Return the names on the way to a module, ``()`` for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {module_of(path): path for path in sources()}


def imports(path):
    """Yield (path of names to an imported module of ours, or None; the outside module's name)."""
    folder = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((None, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield None, node.module
        elif isinstance(node, ast.ImportFrom):
            base = (
                *folder[: len(folder) - node.level + 1],
                *(node.module.split(".") if node.module else ()),
            )
            for alias in node.names:
                yield ((*base, alias.name) if (*base, alias.name) in MODULES else base), None


def arrows(folder):
    """Return which children of a folder each of its children imports.

    A folder's ``__init__`` is not one of them.
    """
    result = defaultdict(set)
    for ours, path in MODULES.items():
        if ours[: len(folder)] == folder and len(ours) > len(folder):
            result[ours[len(folder)]] |= {
                inside[len(folder)]
                for inside, _ in imports(path)
                if inside is not None
                and inside[: len(folder)] == folder
                and len(inside) > len(folder)
            }
    return {child: others - {child} for child, others in result.items()}


def floors(folder):
    """Return the children of a folder from the lowest floor up, and what is left over.

    The children on a circle.
    """
    left, result = arrows(folder), []
    while lowest := {child for child, others in left.items() if not others & left.keys()}:
        result.append(sorted(lowest))
        left = {child: others for child, others in left.items() if child not in lowest}
    return result, {child: sorted(others & left.keys()) for child, others in left.items()}


def test_no_circle_at_any_level():
    folders = {ours[:depth] for ours in MODULES for depth in range(len(ours))}
    assert {folder: floors(folder)[1] for folder in folders if floors(folder)[1]} == {}


def test_a_file_does_not_import_the_folder_that_it_is_in():
    upwards = [
        f"{path.relative_to(ROOT)} imports its own folder {'.'.join(inside)}"
        for ours, path in MODULES.items()
        for inside, _ in imports(path)
        if inside is not None
        and inside
        and len(inside) < len(ours)
        and ours[: len(inside)] == inside
        and path.name != "__init__.py"
    ]
    assert not upwards


def test_few_modules_stand_beside_the_folders():
    assert {path.stem for path in ROOT.glob("*.py")} == LOOSE


def test_files_and_functions_are_short():
    """A file has 300 lines at most, and a function 40 beside its docstring."""
    long = []
    for path in sources():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 300:
            long.append(path.name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if ast.get_docstring(node):
                    lines -= node.body[0].end_lineno - node.body[0].lineno + 1
                if lines > 40:
                    long.append(f"{path.name}: {node.name}")
    assert long == []


def test_floors_stand_in_their_order():
    order = [child for floor in floors(())[0] for child in floor]
    for below, above in zip(
        ("errors", "host", "perturbations", "verifier", "bounds", "losses", "training"),
        ("utils", "tracing", "verifier", "bounds", "losses", "training", "cli"),
    ):
        assert order.index(below) < order.index(above)


def test_the_verifier_does_not_know_the_bounded_module():
    assert not [
        path
        for ours, path in MODULES.items()
        if ours[:1] == ("verifier",)
        for inside, _ in imports(path)
        if inside and inside[0] == "bounds"
    ]


def test_only_host_imports_the_host():
    doors = {
        str(path.relative_to(ROOT))
        for path in sources()
        for _, outside in imports(path)
        if outside and outside.split(".")[0] == "auto_LiRPA"
    }
    assert doors == {"host/_load.py"}
