"""Hooks of the documentation site (mkdocs.yml): its pages are the repository's own files.

Every file keeps the path that it has in the repository, so that a link that works on GitHub works
in the site, and is checked by ``mkdocs build --strict``. What a page links outside of ``docs/`` is
copied beside the pages; a folder that is linked becomes a page that lists its files. Notebooks are
read as Markdown: their text, their code and what it printed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
#: Pages outside of docs/; README.md is the front page.
OUTSIDE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "benchmarks/results/REPORT.md",
    "networks/README.md",
)
_LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)")


class Page(File):
    """A file of the repository that becomes a page, notebooks too."""

    def is_documentation_page(self) -> bool:
        """Return that it is."""
        return True


def on_files(files: Files, config: Any) -> Files:
    """Put pages and all that they link in place of what stands in ``docs/``."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    pages = {path: _page(path, config) for path in _pages()}
    others: dict[str, File] = {}
    for path in _pages():
        for target in _linked(path):
            if target.is_dir():
                pages.update(_listing(target, config))
                others.update(_copies(sorted(target.iterdir()), config))
            elif target.is_file():
                others.update(_copies([target], config))
    others = {path: file for path, file in others.items() if path not in pages}
    return Files([*theme, *pages.values(), *others.values()])


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to folders at the pages that list them."""
    here = ROOT / Path(page.file.src_uri).parent
    return _LINK.sub(lambda link: _of_folder(link[1], here), markdown)


def on_page_read_source(page: Any, **_: Any) -> str | None:
    """Return a notebook as Markdown; other pages are read as usual."""
    if not page.file.src_uri.endswith(".ipynb"):
        return None
    return notebook_markdown(json.loads((ROOT / page.file.src_uri).read_text(encoding="utf-8")))


def notebook_markdown(notebook: dict[str, Any]) -> str:
    """Return a notebook's cells and printed outputs as Markdown."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        printed = "".join("".join(output.get("text", "")) for output in cell.get("outputs", ()))
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def _pages() -> Iterator[str]:
    """Yield the paths of all pages, from the repository's root."""
    yield from OUTSIDE
    for ending in ("md", "ipynb"):
        for path in sorted((ROOT / "docs").rglob(f"*.{ending}")):
            yield path.relative_to(ROOT).as_posix()


def _page(path: str, config: Any) -> File:
    """Return a page; what lies in docs/ has no docs/ in its address."""
    place = Path(path.removeprefix("docs/"))
    folder = place.parent if place.stem in ("README", "index") else place.with_suffix("")
    target = (folder / "index.html").as_posix()
    return Page(path, str(ROOT), config.site_dir, config.use_directory_urls, dest_uri=target)


def _linked(path: str) -> Iterator[Path]:
    """Yield the files and folders of the repository that a page links."""
    text = (ROOT / path).read_text(encoding="utf-8")
    for link in _LINK.findall(text):
        target = (ROOT / Path(path).parent / link).resolve()
        if target != ROOT and ROOT in target.parents:
            yield target


def _copies(paths: list[Path], config: Any) -> Iterator[tuple[str, File]]:
    """Yield files that are copied as they are; tables in Markdown become pages."""
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        if path.is_file():
            file = File(name, str(ROOT), config.site_dir, config.use_directory_urls)
            file.inclusion = InclusionLevel.NOT_IN_NAV
            yield name, file


def _listing(folder: Path, config: Any) -> Iterator[tuple[str, File]]:
    """Yield the page that lists a folder, unless it has a README."""
    if not (folder / "README.md").exists():
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        text = "\n".join([f"# {folder.name}", "", *(f"- [{name}]({name})" for name in names), ""])
        name = (folder.relative_to(ROOT) / "index.md").as_posix()
        level = InclusionLevel.NOT_IN_NAV
        yield name, File.generated(config, name, content=text, inclusion=level)


def _of_folder(link: str, here: Path) -> str:
    """Return a link to the page of a folder, or the link as it is."""
    folder = here / link
    if not folder.is_dir():
        return link
    page = "README.md" if (folder / "README.md").exists() else "index.md"
    return f"{link.rstrip('/')}/{page}"
