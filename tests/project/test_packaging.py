"""The wheel holds the package and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that no build folder is left in the checkout or taken from it."""
    pytest.importorskip("setuptools", minversion="70.1")  # older ones need the wheel package too
    source = tmp_path_factory.mktemp("source") / "checkout"
    skip = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "runs", "*.egg-info", "__pycache__"
    )
    shutil.copytree(ROOT, source, ignore=skip)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", "out", "."], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (source / "out").iterdir()
    return zipfile.ZipFile(path)


def test_wheel_holds_only_the_package(wheel):
    names = wheel.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"lirpa_multinorm", f"lirpa_multinorm-{version()}.dist-info"}
    source = {p.relative_to(ROOT).as_posix() for p in (ROOT / "lirpa_multinorm").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == source
    presets = {p.relative_to(ROOT).as_posix() for p in (ROOT / "lirpa_multinorm").rglob("*.json")}
    data = {name for name in names if name.endswith((".json", ".pt"))}
    assert presets and data == presets | set(networks_in_the_wheel())
    assert any(name.endswith("/LICENSE") for name in names)


def networks_in_the_wheel():
    """Return the files of the networks that come with the package, by their names in the wheel."""
    manifest = ROOT / "lirpa_multinorm" / "networks" / "manifest.json"
    return {
        f"lirpa_multinorm/networks/{name}/{file}": ROOT / "networks" / name / file
        for name, entry in json.loads(manifest.read_text()).items()
        for file in (entry["sha256"] if entry["wheel"] else ())
    }


def test_the_wheel_holds_the_networks_of_the_manifest(wheel, tmp_path):
    files = networks_in_the_wheel()
    assert len(files) >= 9 and sum(wheel.getinfo(name).file_size for name in files) < 8 << 20
    assert all(wheel.read(name) == path.read_bytes() for name, path in files.items())
    wheel.extractall(tmp_path)
    code = (
        "import lirpa_multinorm as package; network = package.pretrained('digits-union-0.1-0.4'); "
        "print(network.path, network.card['certified union'])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "lirpa_multinorm" / "networks" / "digits-union-0.1-0.4") in done.stdout


def test_metadata_can_be_resolved_beside_a_current_torch(wheel):
    folder = f"lirpa_multinorm-{version()}.dist-info"
    metadata = message_from_string(wheel.read(f"{folder}/METADATA").decode())
    assert (metadata["Name"], metadata["Version"]) == ("lirpa-multinorm", version())
    assert metadata["Requires-Python"] == ">=3.9"
    assert set(metadata.get_all("Provides-Extra")) == {
        "demo",
        "dev",
        "docs",
        "export",
        "tensorboard",
        "test",
        "tune",
    }
    needed = [re.split(r"[<>=! ;]", line)[0].lower() for line in metadata.get_all("Requires-Dist")]
    # auto_LiRPA 0.3 pins torch<1.13, so that nothing with it in here could be installed.
    assert not any("lirpa" in name for name in needed)
    assert {"torch", "torchvision", "numpy", "appdirs", "tqdm"} <= set(needed)
    scripts = wheel.read(f"{folder}/entry_points.txt").decode()
    assert "lirpa-multinorm = lirpa_multinorm.cli:main" in scripts


def version():
    source = (ROOT / "lirpa_multinorm" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'__version__ = "(.+)"', source).group(1)
