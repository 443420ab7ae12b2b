"""Image data sets as plain tensors."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import appdirs
import torch
from torch import Tensor

from ._batches import augment_cifar, batches, to_unit
from ._npz import read_npz
from .errors import DatasetNotFoundError, InvalidArgumentError

__all__ = ["ImageData", "augment_cifar", "batches", "default_data_dir", "load", "to_unit"]

DATA_VARIABLE = "LIRPA_MULTINORM_DATA"
NAMES = ("digits", "mnist", "cifar10")
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set for classification, with the constants that normalise its inputs.

    Attributes:
        name: What the data set is called in reports.
        num_classes: Number of classes K.
        mean: Per channel mean of the images in [0, 1], subtracted by the model.
        std: Per channel divisor that the model applies afterwards.
        x_train: Images (N, C, H, W), uint8, or float32 in [0, 1].
        y_train: Labels (N,), int64 in 0..K-1.
        x_test: Images, as ``x_train``.
        y_test: Labels, as ``y_train``.
    """

    name: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    x_train: Tensor = field(repr=False)
    y_train: Tensor = field(repr=False)
    x_test: Tensor = field(repr=False)
    y_test: Tensor = field(repr=False)

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of one image."""
        return tuple(self.x_train.shape[1:])

    def subset(self, n_train: int | None = None, n_test: int | None = None) -> ImageData:
        """The first images of each part.

        Args:
            n_train: How many training images; ``None`` keeps all.
            n_test: How many test images; ``None`` keeps all.

        Returns:
            A data set that shares memory with this one.

        Raises:
            InvalidArgumentError: If a number is below one or more than there are.

        Example:
            >>> x, y = torch.rand(6, 1, 2, 2), torch.arange(6) % 2
            >>> data = ImageData("tiny", 2, (0.0,), (1.0,), x, y, x, y)
            >>> len(data.subset(n_test=4).x_test)
            4
        """
        for name, n, x in (("n_train", n_train, self.x_train), ("n_test", n_test, self.x_test)):
            if n is not None and not 1 <= n <= len(x):
                raise InvalidArgumentError(
                    f"{name}: {n} of the {len(x)} images of {self.name!r} asked for. "
                    f"Pass a number from 1 to {len(x)}, or None for all."
                )
        return replace(
            self,
            x_train=self.x_train[:n_train],
            y_train=self.y_train[:n_train],
            x_test=self.x_test[:n_test],
            y_test=self.y_test[:n_test],
        )


def default_data_dir() -> Path:
    """Folder that downloads go to: ``LIRPA_MULTINORM_DATA`` if set, else the user's cache."""
    return Path(os.environ.get(DATA_VARIABLE) or appdirs.user_cache_dir("lirpa-multinorm")).expanduser()


def load(name: str | os.PathLike, data_dir: str | os.PathLike | None = None, download: bool = True) -> ImageData:
    """Load a data set by name or from a file.

    Args:
        name: ``"digits"`` (scikit-learn's, needs no download), ``"mnist"``, ``"cifar10"``, or the
            path of an ``.npz`` file with ``x_train``, ``y_train``, ``x_test``, ``y_test`` and
            optionally ``num_classes``; images are (N, C, H, W), uint8 or floats in [0, 1].
        data_dir: Folder of MNIST and CIFAR-10; ``None`` means :func:`default_data_dir`.
        download: Whether to fetch what is not in ``data_dir``.

    Returns:
        The data set. Colour images of 32x32 from a file get CIFAR-10's normalisation.

    Raises:
        InvalidArgumentError: If the name is unknown or the file's content cannot be used.
        DatasetNotFoundError: If the data set is neither on disk nor downloadable.

    Example:
        >>> load("digits").in_shape
        (1, 8, 8)
    """
    name = os.fspath(name)
    if name.endswith(".npz"):
        return _npz(Path(name).expanduser())
    if name == "digits":
        return _digits()
    if name in NAMES:
        root = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
        return _torchvision(name, root, download)
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    known = ", ".join(NAMES)
    raise InvalidArgumentError(f"name: no data set {name!r}.{hint} Known: {known}, or a path ending in .npz.")


def _digits() -> ImageData:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DatasetNotFoundError(
            "name: 'digits' comes with scikit-learn, which cannot be imported. "
            'Run: pip install "lirpa-multinorm[demo]"'
        ) from error
    digits = load_digits()
    images = digits.images[:, None] / 16
    parts = train_test_split(images, digits.target, test_size=500, stratify=digits.target, random_state=0)
    x_train, x_test = (torch.from_numpy(part).float() for part in parts[:2])
    y_train, y_test = (torch.from_numpy(part).long() for part in parts[2:])
    return ImageData("digits", 10, (0.0,), (1.0,), x_train, y_train, x_test, y_test)


def _torchvision(name: str, root: Path, download: bool) -> ImageData:
    from torchvision import datasets

    dataset = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name]
    try:
        train, test = (dataset(root=str(root), train=train, download=download) for train in (True, False))
    # torchvision raises these for a missing file, a failed download and a damaged file.
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError) as error:
        reason = f"downloading it failed ({error})" if download else "download is False"
        raise DatasetNotFoundError(
            f"name: {name!r} is not, or not intact, in {str(root)!r} and {reason}. "
            f"Put the files there, or name another folder with data_dir or {DATA_VARIABLE}. "
            "Without them: run on digits (python examples/train_digits.py) or on a file of yours (--data file.npz)."
        ) from error
    mean, std = ((0.0,), (1.0,)) if name == "mnist" else (CIFAR10_MEAN, CIFAR10_STD)
    x_train, x_test = (_nchw(torch.as_tensor(part.data)) for part in (train, test))
    y_train, y_test = (torch.as_tensor(part.targets, dtype=torch.int64) for part in (train, test))
    return ImageData(name, 10, mean, std, x_train, y_train, x_test, y_test)


def _nchw(images: Tensor) -> Tensor:
    """MNIST's (N, H, W) or CIFAR-10's (N, H, W, C) as (N, C, H, W)."""
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


def _npz(path: Path) -> ImageData:
    num_classes, arrays = read_npz(path)
    channels, height, width = arrays["x_train"].shape[1:]
    mean, std = (0.0,) * channels, (1.0,) * channels
    if (channels, height, width) == (3, 32, 32):
        mean, std = CIFAR10_MEAN, CIFAR10_STD
    return ImageData(path.stem, num_classes, mean, std, **arrays)
