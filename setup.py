"""Packaging: everything is in pyproject.toml, but for the networks that come with the package."""

import json
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MANIFEST = ROOT / "lirpa_multinorm" / "networks" / "manifest.json"


class BuildWithNetworks(build_py):
    """Builds the package, and copies the networks of the manifest's wheel into it.

    They lie in ``networks/``; an editable installation reads them there.
    """

    def run(self):
        """Build."""
        super().run()
        if self.editable_mode:
            return
        manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
        for name, entry in manifest.items():
            for file in entry["sha256"] if entry["wheel"] else ():
                target = Path(self.build_lib) / "lirpa_multinorm" / "networks" / name / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / "networks" / name / file, target)


setup(cmdclass={"build_py": BuildWithNetworks})
