"""Every command that the documents name starts.

Its entry point runs, and it understands the arguments.
"""

import argparse
import contextlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import ablation
from benchmarks.run import names
from lirpa_multinorm.cli import COMMANDS, main
from lirpa_multinorm.experiments.presets import preset_names
from tests.processes import Process

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
]
STARTS = re.compile(
    r"(python (-W ignore )?-m (benchmarks|lirpa_multinorm)\b|python examples/|torchrun |"
    r"lirpa-multinorm [a-z]+\b|make [a-z])"
)
#: What documents write in place of a value that only some values can stand for.
WORDS = {"NAME": "eta"}
TARGETS = ("demo", "test", "bench", "bench-check", "device-check")


def lines_of(path):
    """Yield what looks like commands: lines, and spans of code within them."""
    text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
    for line in map(str.strip, text.splitlines()):
        if STARTS.match(line):
            yield re.split(r"\s#", line)[0].rstrip()
        for span in re.findall(r"`([^`]+)`", line):
            if STARTS.match(span) and not re.fullmatch(
                r"lirpa-multinorm \S+", span
            ):  # its mere name
                yield span


def from_makefile():
    """Return what the Makefile's targets would run."""
    if shutil.which("make") is None:
        return []
    done = subprocess.run(
        ["make", "-n", *TARGETS, "VENV=none", "PYTHON=python"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [
        line.partition(" ")[2] if line.startswith("OMP_NUM_THREADS=") else line
        for line in done.stdout.splitlines()
    ]
    return [line for line in lines if STARTS.match(line)]


def commands():
    """Return the documents' commands, each once, but for those to make."""
    loaded = dict.fromkeys(
        [line for path in DOCUMENTS for line in lines_of(path)] + from_makefile()
    )
    return [line for line in loaded if not line.startswith("make ")]


def words_of(command):
    """Return (entry point, arguments): a script, a module, or the program."""
    words = [
        WORDS.get(word, word) for word in shlex.split(re.sub(r"[\[\]]|, .*|\.\.\.$", "", command))
    ]
    if words[0] == "torchrun":
        start = next(i for i, word in enumerate(words) if word.endswith(".py"))
        return words[start], words[start + 1 :]
    if words[0] == "lirpa-multinorm":
        return "lirpa_multinorm", words[1:]
    words = [word for word in words[1:] if word not in ("-W", "ignore", "-m")]
    return words[0], words[1:]


def start(entry, arguments, monkeypatch):
    """Run an entry point in this process, as ``python`` and ``python -m`` do."""
    monkeypatch.setattr(sys, "argv", [entry, *arguments])
    for name in [
        name
        for name in sys.modules
        if name in (entry, f"{entry}.__main__") and name != "lirpa_multinorm"
    ]:
        monkeypatch.delitem(sys.modules, name)  # runpy warns about a module that is there already
    if entry.endswith(".py"):
        runpy.run_path(str(ROOT / entry), run_name="__main__")
    else:
        runpy.run_module(entry, run_name="__main__", alter_sys=True)


class Understood(Exception):
    """The arguments are parsed; nothing is done with them."""


@pytest.fixture
def parsing_only(monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parsed(self, *arguments, **options):
        raise Understood(parse(self, *arguments, **options))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)


def entry_points():
    """Return what can be started.

    The commands' entries, and each module of the benchmarks that has a main.
    """
    modules = [
        f"benchmarks.{path.stem}"
        for path in sorted((ROOT / "benchmarks").glob("*.py"))
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    ]
    scripts = [
        path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "examples").glob("*.py"))
    ]
    return sorted({words_of(command)[0] for command in commands()} | {*modules, *scripts})


def subcommands():
    """Return the names of the program's commands."""
    return sorted(command.name for command in COMMANDS)


def test_the_documents_name_commands():
    loaded = commands()
    assert len(loaded) > 35
    assert {
        "benchmarks.ablation",
        "benchmarks.run",
        "benchmarks.tradeoff",
        "lirpa_multinorm",
        "lirpa_multinorm.experiments.presets.tables",
        "examples/train_mnist.py",
    } <= {words_of(item)[0] for item in loaded}
    assert {words_of(item)[1][0] for item in loaded if item.startswith("lirpa-multinorm")} == set(
        subcommands()
    )


@pytest.mark.parametrize("entry", entry_points())
def test_every_entry_point_starts(entry, monkeypatch, capsys):
    if entry == "lirpa_multinorm.experiments.presets.tables":  # takes no arguments
        start(entry, [], monkeypatch)
        assert "###" in capsys.readouterr().out
        return
    with pytest.raises(SystemExit) as caught:
        start(entry, ["--help"], monkeypatch)
    assert not caught.value.code and "usage: " in capsys.readouterr().out


@pytest.mark.parametrize("command", subcommands())
def test_every_subcommand_starts(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert not caught.value.code and f"usage: lirpa-multinorm {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [item for item in commands() if not item.endswith("presets.tables")]
)
def test_every_command_is_understood(command, parsing_only, monkeypatch, capsys):
    entry, arguments = words_of(command)
    try:
        with pytest.raises(Understood) as caught:
            start(entry, arguments, monkeypatch)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    loaded = caught.value.args[0]
    if entry == "benchmarks.run":
        assert set(loaded.names) <= set(names())
    assert getattr(loaded, "preset", None) in (None, *preset_names())


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_every_target_of_make_is_there():
    targets = {
        line.split()[1] for path in DOCUMENTS for line in lines_of(path) if line.startswith("make ")
    }
    assert targets == set(TARGETS) and len(from_makefile()) >= 3


def as_a_program(module):
    """Of a process of its own: what ``python -m`` does."""
    sys.argv = [module, "--help"]
    with contextlib.redirect_stdout(sys.stderr):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


@pytest.mark.parametrize("module", ["benchmarks.ablation", "lirpa_multinorm"])
def test_as_a_process_of_its_own(module):
    code, printed = Process(as_a_program, module).ended()
    assert code == 0 and "usage: " in printed, printed


@pytest.mark.usefixtures("no_figures")
def test_an_ablation_from_end_to_end(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(
        ablation.ABLATIONS, "eta", dict(list(ablation.ABLATIONS["eta"].items())[:2])
    )
    command = [
        "eta",
        "--output",
        str(tmp_path / "run"),
        "--data",
        str(file),
        "--model",
        "mlp",
        "--epochs",
        "2",
        "--batch-size",
        "16",
        "--no-progress",
    ]
    assert ablation.main([*command, "--dry-run"]) == 0 and not (tmp_path / "run").exists()
    assert "nothing was written" in capsys.readouterr().out
    assert ablation.main(command) == 0
    assert "| 0 " in capsys.readouterr().out and (tmp_path / "run" / "figure.png").is_file()
