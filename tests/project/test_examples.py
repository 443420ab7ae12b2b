"""The examples run as scripts."""

import contextlib
import importlib.util
import io
import json
import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from lirpa_multinorm import read_records
from lirpa_multinorm.certification import CERTIFIED
from lirpa_multinorm.errors import RecordsError
from lirpa_multinorm.experiments.rows import ROWS
from lirpa_multinorm.perturbations import NORMS
from lirpa_multinorm.training import ModelSpec, load_checkpoint
from tests.processes import Process
from tests.toy import write_npz

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
#: Thin command lines, and programs to read and to change.
COMMANDS = ("finetune", "train_cifar", "train_digits", "train_mnist")
PROGRAMS = (
    "add_a_norm",
    "bound_your_network",
    "certify_your_network",
    "train_your_loop",
    "train_lightning",
)


def run(script, *arguments):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS="1")
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


def printed(name, *arguments):
    """Run a program in this process and return what it prints, which is all it has to say."""
    script = str(ROOT / "examples" / f"{name}.py")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                runpy.run_path(script, run_name="__main__")
            except SystemExit as end:
                assert not end.code, out.getvalue()
    assert not [str(warning.message) for warning in caught if warning.category is UserWarning]
    return out.getvalue()


def script(name, *arguments):
    """Of a process of its own: it runs an example."""
    sys.argv = [f"{name}.py", *arguments]
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")


@pytest.fixture(autouse=True)
def registered():
    """Take out again what an example registers."""
    before = dict(NORMS)
    yield
    NORMS.clear()
    NORMS.update(before)


def table(text, first):
    """Return the numbers of the lines that start with one of some words, by word."""
    number = r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.])"
    lines = text.splitlines()
    return {
        word: [float(item) for item in re.findall(number, line[len(word) :])]
        for word in first
        for line in lines
        if line.startswith(f"{word} ")
    }


def test_there_are_examples():
    assert {path.stem for path in EXAMPLES} == {*COMMANDS, *PROGRAMS}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"examples/{name}.py" in readme for name in PROGRAMS)


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_help(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(script), run_name="__main__")
    text = capsys.readouterr().out
    assert not exit_.value.code and f"python examples/{script.name}" in text
    assert "--output" in text or script.stem in PROGRAMS


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_can_be_read_in_one_go(name):
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert 40 <= len(text.splitlines()) <= 100
    modules = set(re.findall(r"^from (lirpa_multinorm\S*) import", text, re.MULTILINE))
    public = ("certification", "data", "models", "perturbations", "training")
    assert modules <= {"lirpa_multinorm", *(f"lirpa_multinorm.{item}" for item in public)}


def test_bounds_lie_below_the_attack_and_get_tighter():
    text = printed("bound_your_network", "--images", 4)
    methods = ["IBP", "CROWN-IBP", "CROWN", "SDP-CROWN"]
    rows = table(text, [*methods, "attack (PGD)"])
    means = {name: row[:3] for name, row in rows.items()}  # union, l_inf, l_2
    assert list(means) == [*methods, "attack (PGD)"]
    for lower, upper in zip(methods, [*methods[1:], "attack (PGD)"]):
        assert all(a <= b + 1e-3 for a, b in zip(means[lower], means[upper])), text
    assert all(row[0] <= min(row[1:3]) + 1e-3 for row in means.values())
    counts = [row[3] for row in rows.values()]
    assert counts == sorted(counts) and all(row[4] == 4 for row in rows.values())
    (union,) = re.findall("union in one call, by CROWN: (.*)", text)
    assert float(union) == means["CROWN"][0]
    assert "sound: " in text and "UNSOUND" not in text


@pytest.mark.parametrize("loss", ["max", pytest.param("joint", marks=pytest.mark.slow)])
def test_a_certified_loss_certifies_more(loss):
    rows = table(
        printed("train_your_loop", "--loss", loss, "--epochs", 12, "--images", 60),
        ["natural", loss],
    )
    for clean, linf, l2, attacked, union in rows.values():
        assert union <= min(linf, l2) and max(linf, l2, attacked) <= clean and union <= attacked
    assert rows[loss][-1] > rows["natural"][-1] + 5 and rows[loss][0] > 70


@pytest.mark.parametrize("loss", ["max", pytest.param("joint", marks=pytest.mark.slow)])
def test_lightning_trains_for_both_norms(loss):
    pytest.importorskip("lightning")
    path = ROOT / "examples" / "train_lightning.py"
    done = run(path, "--loss", loss, "--epochs", 8, "--images", 60)
    assert done.returncode == 0, done.stderr
    clean, both = map(float, re.findall(r"([\d.]+) %", done.stdout))
    # Natural training certifies none of them.
    assert 25 < both <= clean and clean > 70


def test_what_is_printed_is_what_is_recorded(tmp_path):
    arguments = ["--output", tmp_path / "run", "--images", 12]
    text = printed("certify_your_network", *arguments)
    records = read_records(tmp_path / "run")
    assert len(records) == 12 and not records.summary()["not_run"]
    for ball, status, method in zip(records.perturbations, records.status, records.method):
        (line,) = (line for line in text.splitlines() if line.startswith(ball.title()))
        (methods,) = re.findall(re.escape(line) + r"\n +decided by (.*)", text)
        assert all(f"{status.count(word)} {word}" in line for word in set(status))
        assert all(f"{name}: {method.count(name)}" in methods for name in set(method) - {""})
    proved = records.is_status(CERTIFIED)
    both, (linf, l2) = int(proved.all(0).sum()), proved.sum(1).tolist()
    assert f"for both: {both}, l_inf only: {linf - both}, l_2 only: {l2 - both}" in text
    assert f"union certified accuracy {100 * both / 12:.1f} %" in text and both > 6
    assert f"{len(records.adversarial)} adversarial examples" in text
    again = printed("certify_your_network", *arguments)  # nothing is left to do
    assert "got through 12 of 12 images" in again
    assert again.splitlines()[1:] == text.splitlines()[1:]
    torch.save(module_of("certify_your_network").Net().state_dict(), tmp_path / "other.pt")
    with pytest.raises(RecordsError, match="records of another certification"):
        printed("certify_your_network", *arguments, "--weights", tmp_path / "other.pt")


def test_a_norm_of_ones_own_lies_between_its_neighbours():
    rows = table(printed("add_a_norm", "--p", 1.5), ["1", "1.5", "2", "inf"])
    assert list(rows) == ["1", "1.5", "2", "inf"]
    for ibp, crown, sdp, attacked, certified, count in rows.values():
        assert ibp <= crown + 1e-3 <= sdp + 2e-3 and sdp <= attacked and certified <= count == 20
    for inner, outer in zip(["1", "1.5", "2"], ["1.5", "2", "inf"]):  # the balls are nested
        assert all(a >= b for a, b in zip(rows[inner], rows[outer]))


@pytest.mark.parametrize("p", [1.2, 1.5, 3.0, 6.0])
def test_the_support_of_a_norm_of_ones_own(p):
    norm = module_of("add_a_norm").LpNorm(p)
    a, lo, hi = torch.randn(50, 6), -0.3 * torch.rand(50, 6), 0.3 * torch.rand(50, 6)
    hi[:, 0] = 0
    for eps in (0.05, 0.3, 2.0):
        radius = torch.full((50,), eps)
        top = norm.support(a, lo, hi, radius)
        corner = (a.clamp(min=0) * hi + a.clamp(max=0) * lo).sum(1)
        ball = eps * torch.linalg.vector_norm(a, norm.dual, dim=1)
        assert (top <= torch.minimum(corner, ball) * (1 + 1e-4)).all()
        whole = norm.support(a, -torch.ones(6) * eps, torch.ones(6) * eps, radius)
        assert torch.allclose(whole, ball, rtol=1e-4)  # the box lets the whole ball be
        best = torch.full((50,), -torch.inf)
        for scale in torch.logspace(-4, 7, 800):  # the maximiser is one of these, cut with the box
            step = scale * a.sign() * a.abs() ** (norm.dual - 1)
            point = norm.project(torch.minimum(torch.maximum(step, lo), hi), radius)
            best = torch.maximum(best, (a * point).sum(1))
        assert (best <= top + 1e-5).all() and (best >= 0.98 * top - 1e-5).all()


def module_of(name):
    """Import an example without running it."""
    path = ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_example_from_end_to_end(tmp_path):
    write_npz(tmp_path / "toy.npz", n_test=6)
    done = run(
        ROOT / "examples" / "train_cifar.py",
        "--data",
        tmp_path / "toy.npz",
        "--output",
        tmp_path / "run",
        "--model",
        "cnn3",
        "--width",
        2,
        "--epochs",
        3,
        "--batch-size",
        16,
        "--anneal-epochs",
        1,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "run" / "table.json").read_text())
    assert [row["method"] for row in written["rows"]] == list(ROWS)
    train = written["settings"]["train"]
    assert (train["epochs"], train["learning_rate"], train["augment"]) == (3, 5e-4, "cifar")
    assert train["milestones"] == [2, 2]  # of 160 epochs: 120 and 140
    assert train["loss_options"]["ratio_inf"] == 0.1
    assert written["settings"]["perturbations"][0]["eps"] == pytest.approx(2 / 255)
    assert (tmp_path / "run" / "table.png").is_file() and "| Random" in done.stdout


def test_fine_tuning_from_end_to_end(tmp_path):
    write_npz(tmp_path / "toy.npz", n_test=6)
    spec = ModelSpec("cnn3", (1, 4, 4), 3, options={"width": 2})
    torch.save(spec.build().state_dict(), tmp_path / "weights.pt")
    arguments = [
        tmp_path / "weights.pt",
        "--data",
        tmp_path / "toy.npz",
        "--output",
        tmp_path / "run",
        "--model",
        "cnn3",
        "--width",
        2,
        "--epochs",
        2,
        "--batch-size",
        16,
        "--milestones",
        1,
        "--anneal-epochs",
        1,
        "--eps-inf",
        0.05,
        "--eps-2",
        0.1,
    ]
    code, errors = Process(script, "finetune", *map(str, arguments)).ended(300)
    assert code == 0, errors
    (row,) = json.loads((tmp_path / "run" / "table.json").read_text())["rows"]
    assert row["method"] == "Finetune"
    assert "| Finetune" in (tmp_path / "run" / "table.md").read_text()
    loaded = load_checkpoint(tmp_path / "run" / "finetune" / "checkpoint.pt")
    assert (loaded.config.loss, loaded.epoch) == ("cure", 2) and [
        item.eps for item in loaded.perturbations
    ] == [0.05, 0.1]


def test_a_missing_data_set_is_one_line(tmp_path):
    flags = ["--data-dir", tmp_path, "--no-download", "--output", tmp_path / "run"]
    code, printed_errors = Process(script, "train_mnist", *map(str, flags)).ended()
    errors = [line for line in printed_errors.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and "Traceback" not in printed_errors
    assert str(tmp_path) in errors[0] and "digits" in errors[0]
