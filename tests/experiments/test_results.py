"""A result that is damaged, or lacks something, is made again."""

import json
import shutil

import pytest

from lirpa_multinorm import AttackSettings, CertifySettings
from lirpa_multinorm.experiments.comparison import Experiment
from lirpa_multinorm.experiments.rows import ROWS
from tests.toy import CONFIG, SETS, SPEC, data

pytestmark = pytest.mark.usefixtures("no_figures")
NATURAL = {"natural": ROWS["natural"]}


def go(folder, resume=False):
    certification = CertifySettings(methods=("IBP", "CROWN"), attack=AttackSettings(steps=5))
    made = Experiment(data(), SPEC, SETS, CONFIG, certification)
    return made.run(folder, NATURAL, progress=False, resume=resume)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a finished comparison, and its table."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, go(folder)


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(whole[0], tmp_path / "run")


def timeless(rows):
    return [{**row, "seconds": 0} for row in rows]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"settings": 3}'])
def test_a_damaged_result_is_made_again(content, whole, finished):
    path = finished / "natural" / "result.json"
    path.write_text(content)
    assert timeless(go(finished, resume=True)) == timeless(whole[1])
    assert json.loads(path.read_text())["row"]["method"] == "natural"


@pytest.mark.parametrize("name", ["seed", "clean", "certified union", "n", "seconds", "method"])
def test_a_result_that_lacks_something_is_made_again(name, finished):
    path = finished / "natural" / "result.json"
    content = json.loads(path.read_text())
    del content["row"][name]
    path.write_text(json.dumps(content))
    assert name in go(finished, resume=True)[0] or name == "seed"
    assert name in json.loads(path.read_text())["row"]
