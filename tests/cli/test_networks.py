"""The network that a command names: a checkpoint, or any torch module with its weights."""

import sys

import pytest
import torch
from torch import nn

from lirpa_multinorm import PerturbationLinf, PerturbationLpBox, certify
from lirpa_multinorm.cli import main
from lirpa_multinorm.data import load, to_unit
from tests.cli.runs import summary_in
from tests.toy import SPEC

MODULE = """
import torch
from lirpa_multinorm import PerturbationLinf
from tests.toy import SPEC

number = 3
ready = SPEC.build()


def build():
    torch.manual_seed(5)
    return SPEC.build()


def needs(width):
    return SPEC.build()


def fails():
    raise OSError("no such file")


def returns_none():
    return None
"""


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """A module of the working folder under a name of its own, so that no test sees another's."""
    name = f"networks_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, name, None)
    sys.modules.pop(name)
    return name


def certified(*words):
    return main(["certify", *map(str, words), "--no-progress"])


@pytest.mark.parametrize("attribute", ["build", "ready"])
def test_a_module_is_certified_as_in_python(attribute, networks, file, tmp_path):
    """Its sets are those of the flags, and the certificates those of its weights."""
    torch.manual_seed(3)
    model = SPEC.build().eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pt")
    weights = ["--weights", tmp_path / "weights.pt", "--eps-inf", "0.05", "--eps-2", "1/10"]
    words = ["--model", f"{networks}:{attribute}", "--data", file, *weights]
    assert certified(*words, "--output", tmp_path / "r") == 0
    data = load(str(file))
    sets = [PerturbationLinf(0.05), PerturbationLpBox(2, 0.1)]
    expected = certify(model, to_unit(data.x_test), data.y_test, sets).summary()
    assert summary_in(tmp_path / "r")["result"]["counts"] == expected["counts"]
    assert sum(counts["certified"] for counts in expected["counts"]) > 0


def test_without_weights_the_module_keeps_its_own(networks, file, capsys):
    words = ["--model", f"{networks}:build", "--data", file, "--eps-inf", "0.05"]
    assert certified(*words) == 0
    assert f"{networks}:build on 12 images" in capsys.readouterr().out


ERRORS = {
    "nothing": ([], "named by nothing"),
    "two": (["net.pt", "--model", "m:f"], "net.pt and m:f"),
    "weights_alone": (["net.pt", "--weights", "w.pt"], "--weights w.pt: a checkpoint has its own"),
    "no_colon": (["--model", "networks"], "give MODULE:NAME"),
    "no_module": (["--model", "no_such_module:build"], "'no_such_module' cannot be imported"),
    "no_name": (["--model", "{networks}:bild"], "has no 'bild'. Did you mean 'build'?"),
    "no_module_type": (["--model", "{networks}:number"], "it is of type int"),
    "arguments": (["--model", "{networks}:needs"], "calling it without arguments raises TypeError"),
    "raises": (["--model", "{networks}:fails"], "raises OSError: no such file"),
    "returns": (["--model", "{networks}:returns_none"], "it returns a NoneType"),
    "no_file": (
        ["--model", "{networks}:build", "--weights", "w.pt"],
        "--weights: there is no file",
    ),
    "no_set": (["--model", "{networks}:build"], "comes without sets; give a radius"),
}


@pytest.mark.parametrize("words, message", ERRORS.values(), ids=ERRORS)
def test_what_is_wrong_is_named(words, message, networks, file, capsys):
    words = [word.format(networks=networks) for word in words]
    assert certified(*words, "--data", file) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error


def test_weights_run_no_code(networks, file, tmp_path, capsys):
    """A pickled module is refused: reading it could run anything."""
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    words = ["--model", f"{networks}:build", "--weights", tmp_path / "module.pt", "--data", file]
    assert certified(*words, "--eps-inf", "0.1") == 2
    assert "could run code" in capsys.readouterr().err


def test_weights_of_another_architecture_are_refused(networks, file, tmp_path, capsys):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    words = ["--model", f"{networks}:build", "--weights", tmp_path / "other.pt", "--data", file]
    assert certified(*words, "--eps-inf", "0.1") == 2
    assert "of another architecture" in capsys.readouterr().err
