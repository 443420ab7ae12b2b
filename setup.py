"""Packaging of lirpa-multinorm."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read(name: str) -> str:
    """Text of a file beside this one, or an empty string where it is missing."""
    path = ROOT / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def version() -> str:
    """The package's version, read from its source: importing it would need torch."""
    source = read("lirpa_multinorm/__init__.py")
    found = re.search(r'^__version__ = "([^"]+)"', source, re.MULTILINE)
    if found is None:
        raise RuntimeError('lirpa_multinorm/__init__.py: no line __version__ = "..." found')
    return found.group(1)


setup(
    name="lirpa-multinorm",
    version=version(),
    description="Multi-norm certified training and certification with auto_LiRPA",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    author="lirpa-multinorm contributors",
    license="BSD-3-Clause",
    python_requires=">=3.9",
    packages=find_packages(include=["lirpa_multinorm", "lirpa_multinorm.*"]),
    package_data={"lirpa_multinorm": ["**/*.json"]},
    # auto_LiRPA is missing on purpose: 0.3, the version on the index, pins torch<1.13 and can
    # not be resolved beside a current torch, although it runs there. Install it with
    #   pip install --no-deps auto_LiRPA==0.3
    # appdirs is what it imports besides torch, numpy and tqdm.
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "numpy",
        "appdirs",
        "packaging",
        "tqdm",
        "matplotlib>=3.7",
    ],
    extras_require={
        "demo": ["scikit-learn"],
        "tensorboard": ["tensorboard"],
        "export": ["onnx"],
        # foolbox, not torchattacks: the latter pins requests to a release of 2020.
        "test": ["pytest>=8.2", "pytest-xdist", "scikit-learn", "foolbox", "onnx", "pyyaml"],
    },
    entry_points={"console_scripts": ["lirpa-multinorm = lirpa_multinorm.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
