"""The documentation site holds every page, every public name and no broken link."""

import importlib
import inspect
import os
import re
import subprocess
import sys
import types
import zlib
from pathlib import Path

import pytest
import yaml

import lirpa_multinorm

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
MODULES = ("abcrown", "audit", "data", "errors", "models", "report", "training")
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s]*)")


class Settings(yaml.SafeLoader):
    """mkdocs.yml without the Python objects that it names."""


Settings.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def settings():
    return yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=Settings)


def leaves(nav):
    """Yield the paths that a navigation names."""
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        else:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else leaves(value)


def pages():
    """Return the pages of docs/ and of the rest of the repository that the site has."""
    return sorted(
        [path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md")]
        + [path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.ipynb")]
    )


def public_names():
    """Return every name that a user imports, with the module that it is imported from."""
    names = [f"lirpa_multinorm.{name}" for name in lirpa_multinorm.__all__]
    for module in MODULES:
        loaded = importlib.import_module(f"lirpa_multinorm.{module}")
        classes = [name for name, item in vars(loaded).items() if inspect.isclass(item)]
        names += [
            f"lirpa_multinorm.{module}.{name}" for name in getattr(loaded, "__all__", classes)
        ]
    return names


def public(name):
    """Return the object of a public name."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def in_reference():
    """Return the names that the reference has a heading or an anchor of."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in REFERENCE.glob("*.md"))
    return re.findall(r'^::: (\S+)|<span id="([\w.]+)">', text, re.MULTILINE)


def test_the_navigation_names_every_page():
    named = list(leaves(settings()["nav"]))
    assert set(pages()) <= set(named), "add these to nav in mkdocs.yml"
    assert len(named) == len(set(named)) and all((ROOT / name).is_file() for name in named)


def test_the_modules_are_those_that_the_package_documents():
    assert set(re.findall(r"``(\w+)``", lirpa_multinorm.__doc__)) == set(MODULES)


@pytest.mark.parametrize("name", public_names())
def test_a_public_name_is_in_the_reference(name):
    if isinstance(public(name), types.ModuleType):
        assert (REFERENCE / f"{name.rpartition('.')[2]}.md").is_file()
        return
    if name == "lirpa_multinorm.__version__":
        assert f"`{name}`" in (REFERENCE / "index.md").read_text(encoding="utf-8")
        return
    named = [first or second for first, second in in_reference()]
    result = [item for item in named if item.rpartition(".")[2] == name.rpartition(".")[2]]
    # `training.train` and `train` are one object, which has one place.
    assert any(public(item) is public(name) for item in result), f"add ::: {name} to docs/reference"


def test_the_reference_names_nothing_else():
    named = [first or second for first, second in in_reference()]
    assert len(named) == len(set(named)) and set(named) <= set(public_names())
    index = (REFERENCE / "index.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in index for path in REFERENCE.glob("*.md") if path.stem != "index")


@pytest.mark.parametrize("page", [*pages(), "README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_link_leads_to_a_file(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in LINK.findall(text):
        path = link.partition("#")[0]
        assert not path or (ROOT / Path(page).parent / path).exists(), link


def test_no_page_downloads_anything():
    result = settings()
    assert result["theme"]["font"] is False
    assert {next(iter(item)) if isinstance(item, dict) else item for item in result["plugins"]} == {
        "search",
        "mkdocstrings",
    }


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings_handlers.python")
    pytest.importorskip("material")
    environment = dict(os.environ, NO_MKDOCS_2_WARNING="1", PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not done.returncode and "WARNING" not in done.stderr, done.stderr
    inventory = (tmp_path / "objects.inv").read_bytes().partition(b"zlib.\n")[2]
    anchors = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    html = (tmp_path / "reference" / "certification" / "index.html").read_text(encoding="utf-8")
    anchors |= set(re.findall(r'<span id="([\w.]+)">', html))
    missing = set(public_names()) - anchors
    assert missing == {"lirpa_multinorm.__version__", "lirpa_multinorm.errors"}
    for path in tmp_path.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'<(script|img|iframe)[^>]* src="(https?:)?//', text), path
        assert not re.search(r'<link[^>]* rel="stylesheet"[^>]* href="(https?:)?//', text), path
