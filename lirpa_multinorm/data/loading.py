"""Load image data sets by name or from files, as plain tensors."""

from __future__ import annotations

import os
from pathlib import Path

import appdirs
import torch
from torch import Tensor

from ..errors import DatasetNotFoundError, InvalidArgumentError
from ..utils.hints import did_you_mean
from .augment import CROP_TINYIMAGENET, center_crop
from .checks import checked_data
from .image_data import ImageData
from .image_folder import read_folder, read_tinyimagenet
from .npz import read_npz

DATA_VARIABLE = "LIRPA_MULTINORM_DATA"
NAMES = ("digits", "mnist", "cifar10", "tinyimagenet")
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
TINYIMAGENET_MEAN, TINYIMAGENET_STD = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)


def default_data_dir() -> Path:
    """Return the folder of downloads: ``LIRPA_MULTINORM_DATA`` if set, else the user's cache."""
    return Path(
        os.environ.get(DATA_VARIABLE) or appdirs.user_cache_dir("lirpa-multinorm")
    ).expanduser()


def load(
    name: str | os.PathLike, data_dir: str | os.PathLike | None = None, download: bool = True
) -> ImageData:
    """Load a data set by name or from files.

    Args:
        name: ``"digits"`` (scikit-learn's, needs no download), ``"mnist"``, ``"cifar10"``,
            ``"tinyimagenet"``, or a path of your own: an ``.npz`` file with ``x_train``,
            ``y_train``, ``x_test``, ``y_test`` and optionally ``num_classes``, images (N, C, H, W),
            uint8 or floats in [0, 1]; or a folder of images of one size, ``train/<class>/<file>``
            and ``test/<class>/<file>`` (or ``val``), of which transparency is ignored.
        data_dir: Folder of the named data sets; ``None`` means :func:`default_data_dir`.
        download: Whether to fetch MNIST or CIFAR-10 if ``data_dir`` lacks it. TinyImageNet is never
            fetched: its extracted folder ``tiny-imagenet-200`` must be in ``data_dir`` or be it.

    Returns:
        The data set. TinyImageNet's training images have 64x64 pixels, of which the augmentation
        ``"tinyimagenet"`` cuts the 56x56 that the model gets; its test images are the middle 56x56
        of the validation images. Colour images of 32x32 of your own get CIFAR-10's normalisation.

    Raises:
        InvalidArgumentError: If the name is unknown or a file's content cannot be used.
        DatasetNotFoundError: If the data set is neither on disk nor downloadable.

    Example:
        >>> load("digits").in_shape
        (1, 8, 8)
    """
    return checked_data(_loaded(os.fspath(name), data_dir, download))


def _loaded(name: str, data_dir: str | os.PathLike | None, download: bool) -> ImageData:
    """Return a data set that is not checked yet."""
    path = Path(name).expanduser()
    if name.endswith(".npz"):
        return _users_data(path.stem, *read_npz(path))
    if name == "digits":
        return _digits()
    if name in NAMES:
        root = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
        return _tinyimagenet(root) if name == "tinyimagenet" else _torchvision(name, root, download)
    if path.is_dir():
        return _users_data(path.resolve().name, *read_folder(path))
    if len(path.parts) > 1:
        raise DatasetNotFoundError(
            f"name: there is no folder {name!r}. Check the path; it is taken relative to the"
            " working folder."
        )
    raise InvalidArgumentError(
        f"name: no data set {name!r}.{did_you_mean(name, NAMES)} Known: {', '.join(NAMES)}, "
        "or a path ending in .npz or of a folder."
    )


def _digits() -> ImageData:
    """Return scikit-learn's digits, split once and for all."""
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
    split = train_test_split(
        images, digits.target, test_size=500, stratify=digits.target, random_state=0
    )
    x_train, x_test = (torch.from_numpy(pixels).float() for pixels in split[:2])
    y_train, y_test = (torch.from_numpy(labels).long() for labels in split[2:])
    return ImageData("digits", 10, (0.0,), (1.0,), x_train, y_train, x_test, y_test)


def _torchvision(name: str, root: Path, download: bool) -> ImageData:
    """Return MNIST or CIFAR-10, downloaded if need be and allowed."""
    from torchvision import datasets

    dataset = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name]
    try:
        train, test = (
            dataset(root=str(root), train=train, download=download) for train in (True, False)
        )
    # torchvision raises these for a missing file, a failed download and a damaged file.
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError) as error:
        reason = f"downloading it failed ({error})" if download else "download is False"
        raise DatasetNotFoundError(
            f"name: {name!r} is not, or not intact, in {str(root)!r} and {reason}. Put the files"
            f" there, or name another folder with data_dir or {DATA_VARIABLE}. Without them: run on"
            " digits (python examples/train_digits.py) or on a file of yours (--data file.npz)."
        ) from error
    mean, std = ((0.0,), (1.0,)) if name == "mnist" else (CIFAR10_MEAN, CIFAR10_STD)
    x_train, x_test = (
        _nchw(torch.as_tensor(images.data, device="cpu")) for images in (train, test)
    )
    y_train, y_test = (
        torch.as_tensor(images.targets, dtype=torch.int64, device="cpu") for images in (train, test)
    )
    return ImageData(name, 10, mean, std, x_train, y_train, x_test, y_test)


def _nchw(images: Tensor) -> Tensor:
    """Return MNIST's (N, H, W) or CIFAR-10's (N, H, W, C) as (N, C, H, W)."""
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


def _tinyimagenet(root: Path) -> ImageData:
    """Return TinyImageNet from its extracted folder."""
    candidates = (root / "tiny-imagenet-200", root)
    folder = next((path for path in candidates if (path / "train").is_dir()), None)
    if folder is None:
        raise DatasetNotFoundError(
            f"name: 'tinyimagenet' is not in {str(root)!r} and is never downloaded. "
            "Extract http://cs231n.stanford.edu/tiny-imagenet-200.zip there, "
            f"or name the folder of tiny-imagenet-200 with data_dir or {DATA_VARIABLE}."
        )
    num_classes, tensors = read_tinyimagenet(folder)
    cropped = center_crop(tensors["x_test"], CROP_TINYIMAGENET, CROP_TINYIMAGENET)
    tensors["x_test"] = cropped.contiguous()
    return ImageData("tinyimagenet", num_classes, TINYIMAGENET_MEAN, TINYIMAGENET_STD, **tensors)


def _users_data(name: str, num_classes: int, tensors: dict[str, Tensor]) -> ImageData:
    """Return the user's images, with the normalisation that their shape suggests."""
    channels, height, width = tensors["x_train"].shape[1:]
    mean, std = (0.0,) * channels, (1.0,) * channels
    if (channels, height, width) == (3, 32, 32):
        mean, std = CIFAR10_MEAN, CIFAR10_STD
    return ImageData(name, num_classes, mean, std, **tensors)
