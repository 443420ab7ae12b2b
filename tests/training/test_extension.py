"""A run that is given more epochs."""

import pytest
import torch

from lirpa_multinorm.errors import CheckpointError, OutputFolderError
from lirpa_multinorm.training import load_checkpoint
from lirpa_multinorm.training.step import TrainingStep
from tests.training import runs
from tests.training.folders import config_of, contents, run
from tests.training.runs import log_of, same

pytestmark = pytest.mark.usefixtures("plain_logs")


def test_more_epochs_need_to_be_asked_for(tmp_path):
    run(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(OutputFolderError, match=r"train.epochs: 3 -> 5.*--extend \(extend=True\)"):
        run(tmp_path, resume=True, epochs=5)
    with pytest.raises(
        OutputFolderError,
        match=r"train.epochs: 3 -> 2\. Give the same ones to go on with it, replace",
    ):
        run(tmp_path, resume=True, extend=True, epochs=2)
    with pytest.raises(OutputFolderError, match="train.epochs: 3 -> 5; train.seed: 0 -> 1"):
        run(tmp_path, resume=True, extend=True, epochs=5, seed=1)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("first, then", [([4], 5), ([4, 5], 6)], ids=str)
def test_an_extended_run_is_the_longer_run(first, then, tmp_path):
    """Also where the finished network was the average of the weights.

    It goes on from the last ones.
    """
    for epochs in first:
        runs.run(tmp_path / "run", resume=True, extend=True, epochs=epochs)
    name = config_of(tmp_path / "run")["run_sha256"]
    model = runs.run(tmp_path / "run", resume=True, extend=True, epochs=then)
    assert same(model, runs.run(tmp_path / "long", epochs=then))
    timeless = [
        [
            {
                key: value
                for key, value in line.items()
                if "seconds" not in key and key != "run_sha256"
            }
            for line in log_of(tmp_path / folder)
        ]
        for folder in ("run", "long")
    ]
    assert timeless[0] == timeless[1] and {
        line["run_sha256"] for line in log_of(tmp_path / "run")
    } == {name}
    steps = list(zip(first, [*first[1:], then]))
    for recorded in (
        config_of(tmp_path / "run")["continuations"],
        load_checkpoint(tmp_path / "run" / "checkpoint.pt").run["origin"]["run"]["continuations"],
    ):
        assert [(item["from_epoch"], item["epochs"], item["new_epochs"]) for item in recorded] == [
            (epochs, epochs, more) for epochs, more in steps
        ]
        assert all(item["time"] for item in recorded)
    assert config_of(tmp_path / "run")["train"]["epochs"] == then
    assert same(runs.run(tmp_path / "run", resume=True, epochs=then), model)  # and it is finished


def test_an_extension_that_is_killed_goes_on(tmp_path, monkeypatch):
    run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path, resume=True, extend=True, epochs=5)
    with pytest.raises(OutputFolderError, match="train.epochs: 5 -> 3"):
        run(tmp_path, resume=True)
    assert same(run(tmp_path, resume=True, epochs=5), run(epochs=5))
    assert len(config_of(tmp_path)["continuations"]) == 1


def test_a_finished_run_of_an_older_version_cannot_be_extended(tmp_path):
    run(tmp_path)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save(dict(content, state=None), tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="no state to resume from.*--overwrite"):
        run(tmp_path, resume=True, extend=True, epochs=5)
    run(tmp_path, resume=True)
