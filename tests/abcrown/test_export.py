"""Problems for alpha-beta-CROWN ask about the set that was asked for, and about what is open."""

import csv
import importlib.util
import json
import math
import re

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from lirpa_multinorm import Certification, PerturbationL1Box, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.abcrown import export_problems
from lirpa_multinorm.abcrown.vnnlib import box_of
from lirpa_multinorm.certification import (
    CERTIFIED,
    FALSIFIED,
    TIMEOUT,
    UNKNOWN,
    CertifySettings,
    record_header,
)
from lirpa_multinorm.errors import InvalidArgumentError, OutputFolderError
from lirpa_multinorm.models import Normalize

pytest.importorskip("onnx")

MODEL = nn.Sequential(Normalize([0.5], [0.25]), nn.Flatten(), nn.Linear(4, 3))
X, Y = torch.rand(4, 1, 2, 2), torch.tensor([0, 2, 1, 1])
SETS = [PerturbationLinf(0.3), PerturbationL2Box(0.1)]


def parse(text):
    """Return (lower, upper, {(k, y)}) of a VNNLIB file.

    Its box, and the pairs Y_k >= Y_y of its disjunction.
    """
    text = re.sub(r";.*", "", text)
    n, classes = (len(re.findall(rf"\(declare-const {kind}_\d+ Real\)", text)) for kind in "XY")
    ends = {}
    for sign, index, value in re.findall(r"\(assert \((<=|>=) X_(\d+) (\S+)\)\)", text):
        assert (sign, int(index)) not in ends
        ends[sign, int(index)] = float(value)
    disjunction = re.search(r"\(assert \(or (.*)\)\)\s*$", text)[1]
    clauses = re.findall(r"\(and \(>= Y_(\d+) Y_(\d+)\)\)", disjunction)
    assert re.sub(r"\(and \(>= Y_\d+ Y_\d+\)\)", "", disjunction) == "" and text.count(
        "("
    ) == text.count(")")
    return (
        torch.tensor([ends[">=", i] for i in range(n)], dtype=torch.float64),
        torch.tensor([ends["<=", i] for i in range(n)], dtype=torch.float64),
        classes,
        {(int(k), int(y)) for k, y in clauses},
    )


def export(tmp_path, sets=SETS, **options):
    return export_problems(tmp_path / "out", MODEL, X, Y, sets, **options)


@pytest.mark.parametrize(
    "ball",
    [
        PerturbationLinf(0.3),
        PerturbationLinf(0.1, clip=None),
        PerturbationLinf(0.0),
        PerturbationLinf(torch.tensor([0.1, 0.2, 0.3, 0.4])),
    ],
    ids=["clipped", "plain", "point", "radii"],
)
def test_vnnlib_files_hold_the_set(ball, tmp_path):
    (folder,) = export(tmp_path, [ball])
    assert len(list(folder.glob("*.vnnlib"))) == 4
    lower, upper = (end.flatten(1) for end in ball.enclosing_box(X.double()))
    for image in range(4):
        low, high, classes, clauses = parse((folder / f"image_{image:05d}.vnnlib").read_text())
        assert bool((low <= lower[image]).all() and (high >= upper[image]).all())  # never smaller
        assert torch.allclose(low, lower[image], atol=1e-7) and torch.allclose(
            high, upper[image], atol=1e-7
        )
        assert torch.equal(low, low.float().double())  # read in float32 it is the same
        assert classes == 3 and clauses == {(k, int(Y[image])) for k in range(3) if k != Y[image]}


def test_a_box_is_rounded_outwards_and_no_further():
    x = torch.rand(50, 1, 3, 3)
    single = PerturbationLinf(0.1)
    exact, result = single.enclosing_box(x.double()), box_of(x, single)
    for sign, end, wide in zip((-1, 1), exact, result):
        assert bool(((wide.double() - end) * sign >= 0).all())
        assert bool(
            (
                (torch.nextafter(wide, torch.tensor(-sign * math.inf)).double() - end) * sign < 0
            ).all()
        )


def test_the_instances_and_configuration_of_l_inf(tmp_path):
    folder = export(tmp_path, time_limit=60)[0]
    with open(folder / "instances.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["../model.onnx", f"image_0000{i}.vnnlib", "60"] for i in range(4)]
    assert all((folder / name).is_file() for row in rows for name in row[:2])
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config == {
        "general": {"csv_name": "instances.csv"},
        "model": {"input_shape": [-1, 1, 2, 2]},
        "bab": {"timeout": 60},
    }  # what holds for an image that is run by itself
    assert (
        folder / "results"
    ).is_dir()  # where the verifier then writes, but which it does not make


@pytest.mark.parametrize(
    "ball", [PerturbationL2Box(0.1), PerturbationL1Box(0.5, clip=None)], ids=["l_2", "l_1"]
)
def test_the_images_and_configuration_of_other_norms(ball, tmp_path):
    (folder,) = export(tmp_path, [ball])
    config = yaml.safe_load((folder / "config.yaml").read_text())
    eps = config["specification"].pop("epsilon")
    assert ball.eps <= eps < ball.eps * (1 + 1e-6) and eps == float(np.float32(eps))
    assert config["specification"] == {"type": "lp", "norm": ball.norm} and config["attack"] == {
        "pgd_order": "skip"
    }
    assert config["data"] == {
        "dataset": 'Customized("load_images.py", "load_images")',
        "num_outputs": 3,
    }
    assert (folder / config["model"]["onnx_path"]).is_file() and config["bab"]["timeout"] == 360
    spec = importlib.util.spec_from_file_location("loaded", folder / "load_images.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    data = module.load_images({"epsilon": eps, "norm": ball.norm})
    assert torch.equal(data["X"], X) and torch.equal(data["labels"], Y) and data["eps"] == eps
    assert "data_min" not in data  # the plain ball


def test_a_problem_says_what_it_is_of(tmp_path):
    folders = export(tmp_path)
    assert [folder.name for folder in folders] == ["0_l_inf", "1_l_2"]
    header = record_header.header_of(MODEL, X, Y, SETS, CertifySettings())
    for folder, described in zip(folders, header["sets"]):
        message = json.loads((folder / "problem.json").read_text())
        assert message == {
            **{name: header[name] for name in ("format", "model_sha256", "data_sha256", "n")},
            "set": described,
            "images": [0, 1, 2, 3],
        }


def test_only_what_is_open_is_exported(tmp_path):
    status = [[CERTIFIED, UNKNOWN, FALSIFIED, TIMEOUT], [CERTIFIED] * 4]
    result = Certification(SETS, status, [[""] * 4] * 2, torch.zeros(2, 4))
    (folder,) = export(tmp_path, certification=result)
    assert json.loads((folder / "problem.json").read_text())["images"] == [1, 3]
    assert sorted(path.name for path in folder.glob("*.vnnlib")) == [
        "image_00001.vnnlib",
        "image_00003.vnnlib",
    ]
    decided = Certification(SETS, [[CERTIFIED] * 4] * 2, [[""] * 4] * 2, torch.ones(2, 4))
    with pytest.raises(InvalidArgumentError, match="nothing to export"):
        export(tmp_path, certification=decided)
    with pytest.raises(
        InvalidArgumentError,
        match="certification: it is of 4 images against .*radius 0.3 .*, not of 4",
    ):
        export(tmp_path, [PerturbationLinf(0.2)], certification=result)


def test_results_of_other_problems_stay_theirs(tmp_path):
    folders = export(tmp_path)
    before = [(folder / "problem.json").read_bytes() for folder in folders]
    assert export(tmp_path, time_limit=60) == folders  # the same again
    assert (
        export(tmp_path, SETS[:1]) == folders[:1]
    )  # a part of it: the other problem still has its model.onnx
    result = Certification(
        SETS, [[CERTIFIED] + [UNKNOWN] * 3, [UNKNOWN] * 4], [[""] * 4] * 2, torch.zeros(2, 4)
    )
    for changes in (
        {"sets": [PerturbationLinf(0.2)]},
        {"certification": result},
    ):  # a log would be read as of these
        with pytest.raises(
            OutputFolderError, match="0_l_inf' holds another problem.*export into a new folder"
        ):
            export(tmp_path, **changes)
    with pytest.raises(
        OutputFolderError, match="1_l_2' holds another problem"
    ):  # which would read another model.onnx
        (folders[0] / "problem.json").unlink()
        export_problems(
            tmp_path / "out", nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), X, Y, SETS[:1]
        )
    (folders[0] / "problem.json").write_bytes(before[0])
    assert [(folder / "problem.json").read_bytes() for folder in folders] == before
    (folders[0] / "problem.json").write_text("[]")
    with pytest.raises(OutputFolderError, match="0_l_inf' holds another problem"):
        export(tmp_path)


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(InvalidArgumentError, match="radius per image"):
        export(tmp_path, [PerturbationL2Box(torch.linspace(0.1, 0.4, 4))])
    for limit in (0, -1, math.nan, math.inf, "60"):
        with pytest.raises(InvalidArgumentError, match="time_limit="):
            export(tmp_path, time_limit=limit)
    with pytest.raises(InvalidArgumentError, match="x is empty"):
        export_problems(tmp_path / "out", MODEL, X[:0], Y[:0], SETS)
    with pytest.raises(InvalidArgumentError, match="outside clip"):
        export_problems(tmp_path / "out", MODEL, X + 1, Y, SETS)
    with pytest.raises(InvalidArgumentError, match="labels run from 0 to 9"):
        export_problems(tmp_path / "out", MODEL, X, torch.tensor([0, 9, 0, 0]), SETS)
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputFolderError, match="taken"):
        export_problems(tmp_path / "taken" / "out", MODEL, X, Y, SETS)


@pytest.mark.parametrize("value, kind", [(math.nan, "NaN"), (math.inf, "infinite values")])
def test_broken_weights_are_refused_by_name(value, kind, tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].bias[2] = value
    with pytest.raises(InvalidArgumentError, match=rf"parameter 1\.bias holds {kind}"):
        export_problems(tmp_path / "out", model, X, Y, SETS)
    assert not (tmp_path / "out").exists()
