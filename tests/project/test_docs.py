"""The pages on extending the package are followed to the letter.

Every Python block runs, in order.
"""

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

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def restored():
    """Take out again what a page registers."""
    tables = [COMBINE, LOSSES, ROWS, NORMS]
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before):
        table.clear()
        table.update(content)


def follow(page):
    names = {}
    for block in re.findall(
        r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL
    ):
        exec(compile(block, page, "exec"), names)
    return names


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
    found, again = names["found"], names["again"]
    assert found.summary()["certified"][0] > 0.3 and set(found.method[1]) - {"", "PGD"}
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
