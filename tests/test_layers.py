"""Imports go downwards only, and host is the one door to auto_LiRPA."""

import ast
from pathlib import Path

import lirpa_multinorm

ROOT = Path(lirpa_multinorm.__file__).parent
# Each floor may import from itself and from the ones before it.
FLOORS = [{"errors", "modes", "randomness", "intervals", "_memory"}, {"distributed"}, {"host", "network"}, {"perturbations"}, {"bounds"},
          {"attacks"}, {"audit", "losses", "io", "environment"},
          {"models", "_augment", "_batches", "_data_checks", "_folder", "_npz", "data", "report", "certification"}, {"training"},
          {"settings"}, {"experiment", "presets"}, {"dry_run"},
          {"cli", "registration"}, {"__init__", "__main__"}]
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}


def imports(path: Path):
    """Yield (module parts inside the package, or the outside module's name) of every import."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((None, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield None, node.module
        elif isinstance(node, ast.ImportFrom):
            base = parts[:len(parts) - node.level]
            module = (*base, *(node.module or "").split(".")) if node.module else base
            yield from ((module if module else (alias.name,), None) for alias in node.names)


def sources():
    return sorted(ROOT.rglob("*.py"))


def test_every_file_stands_on_a_floor():
    names = {path.relative_to(ROOT).with_suffix("").parts[0] for path in sources()}
    assert names == set(FLOOR)


def test_imports_go_downwards():
    upwards = []
    for path in sources():
        own = path.relative_to(ROOT).with_suffix("").parts[0]
        for inside, _ in imports(path):
            if inside and inside[0] in FLOOR and FLOOR[inside[0]] > FLOOR[own]:
                upwards.append(f"{path.relative_to(ROOT)} imports {'.'.join(inside)}")
    assert not upwards


def test_only_host_imports_the_host():
    doors = {str(path.relative_to(ROOT)) for path in sources()
             for _, outside in imports(path) if outside and outside.split(".")[0] == "auto_LiRPA"}
    assert doors == {"host/_load.py"}
