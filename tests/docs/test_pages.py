"""The pages are followed to the letter: every Python block of README and docs runs, in order."""

import json
import re
from pathlib import Path

import pytest
import torch

from lirpa_multinorm import PerturbationLpBox, certify
from lirpa_multinorm.attacks.geometry import project
from lirpa_multinorm.certification import STAGES, STATUSES
from lirpa_multinorm.experiments.rows import ROWS
from lirpa_multinorm.losses import LOSSES
from lirpa_multinorm.losses.multinorm import COMBINE
from lirpa_multinorm.perturbations import NORMS
from lirpa_multinorm.perturbations.rows import DenseRows
from lirpa_multinorm.training import train
from tests.toy import CONFIG, SETS, SPEC, data

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
#: Pages that a test of their own follows, below; the others only have to run.
CHECKED = (
    "docs/adding-a-loss.md",
    "docs/adding-a-norm.md",
    "docs/certification.md",
    "docs/choosing-a-certificate.md",
    "docs/data.md",
    "docs/getting-started.md",
    "docs/paper.md",
    "docs/transforms.md",
    "README.md",
)


def blocks(path):
    """Return the Python of a page."""
    text = path.read_text(encoding="utf-8")
    return re.findall(r"^ *```python\n(.*?)```", text, re.DOTALL | re.MULTILINE)


def pages_with_python():
    """Return the pages of the repository that hold Python, by their paths."""
    paths = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("networks/*.md")]
    paths += ROOT.glob("benchmarks/*.md")
    return sorted(path.relative_to(ROOT).as_posix() for path in paths if blocks(path))


@pytest.fixture
def restored():
    """Take out again what a page registers."""
    tables = [COMBINE, LOSSES, ROWS, NORMS]
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before):
        table.clear()
        table.update(content)


def follow(page, folder=DOCS):
    names = {}
    for block in blocks(folder / page):
        exec(compile(block, page, "exec"), names)
    return names


def test_the_pages_that_have_a_test_hold_python():
    assert set(CHECKED) <= set(pages_with_python())


@pytest.mark.parametrize("page", sorted(set(pages_with_python()) - set(CHECKED)))
def test_every_other_page_runs(page, restored, monkeypatch):
    monkeypatch.chdir(ROOT)  # pages name files of the repository
    assert follow(page, ROOT)


def test_readme():
    names = follow("README.md", ROOT)
    assert names["certified"].shape == (2,) and names["lb"].shape == names["lb_2"].shape == (2, 9)
    assert names["result"].logits.shape == (2, 10) and names["result"].value > 0


def test_getting_started():
    names = follow("getting-started.md")
    assert names["found"].summary()["certified_union"] > 0.5
    assert names["share"] > 0.1 and names["data"].name == "digits"


def test_choosing_a_certificate():
    names = follow("choosing-a-certificate.md")
    assert 0 < names["full"].summary()["certified_union"] <= 1


def test_which_method_decides_is_what_the_certificates_of_the_networks_say():
    page = (DOCS / "choosing-a-certificate.md").read_text(encoding="utf-8")
    table = page[page.index("| network | set | n |") :].partition("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    name, sets, expected = "", {}, {}
    for network, ball, *counts in rows:
        name = re.findall(r"\[(.*)\]", network)[0] if network else name
        sets.setdefault(name, []).append((ball.split()[0], list(map(int, counts))))
    for name in sets:
        path = ROOT / "networks" / name / "certified.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        expected[name] = [
            (f"l_{ball['norm']}", [sum(item.values()), *(item.get(word, 0) for word in head[3:])])
            for ball, item in zip(record["perturbations"], record["methods"])
        ]
        assert all(set(item) <= set(head[3:]) for item in record["methods"])
    assert sets == expected and len(sets) >= 6


def test_transforms():
    names = follow("transforms.md")
    assert len(names["sets"]) == 3 and len(names["loss"].terms) == 4


def test_adding_a_loss(restored):
    follow("adding-a-loss.md")
    config = dict(
        CONFIG.to_dict(),
        **ROWS["Soft max"],
        loss_options={"region_2": "ball", "ratio_2": 0.5},
        epochs=20,
    )
    model = train(SPEC, data(60, 30), SETS, type(CONFIG).from_dict(config), progress=False)
    images = data(60, 30)
    assert certify(model, images.x_test, images.y_test, SETS).summary()["certified_union"] > 0.8


def test_adding_a_norm(restored, capsys):
    names = follow("adding-a-norm.md")
    assert 0 <= float(capsys.readouterr().out) <= 1
    assert names["sets"][1].norm == 3
    # The page says why: the support is never too small, and the projection ends in the ball.
    rows, x = torch.randn(1, 4, 6), torch.rand(3, 6)
    ball = PerturbationLpBox(3, 0.3)
    points = [project(ball, x + offset, x) for offset in torch.randn(2000, 1, 6)]
    assert all(bool(ball.contains(point, x).all()) for point in points)
    top, reached = (
        ball.extreme(DenseRows(rows), x, 1),
        torch.stack([point @ rows[0].T for point in points]).amax(0),
    )
    assert bool((reached <= top + 1e-5).all()) and bool((reached > top - 0.25).any())


def test_certification():
    names = follow("certification.md")
    result, again = names["found"], names["again"]
    assert result.summary()["certified"][0] > 0.3 and set(result.method[1]) - {"", "PGD"}
    assert again.status == names["read_records"](names["folder"]).status and len(again) == 12
    assert names["lower"].shape == (12, 2)
    page = (DOCS / "certification.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in STAGES) and all(
        f"| {name}" in page or f", {name}" in page for name in STATUSES
    )


def test_data():
    names = follow("data.md")
    assert names["model"](names["x"]).shape == (64, 10) and names[
        "config"
    ].in_epochs().milestones == (3, 3)


def test_paper():
    names = follow("paper.md")
    assert 0 < names["certified"] <= names["attacked"] <= 1


def test_every_page_is_linked():
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert all(f"docs/{page.name}" in readme for page in DOCS.glob("*.md"))
