"""Read a data set from a folder of image files, once, into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import DatasetNotFoundError, InvalidArgumentError

_RGB = 3


class Files(NamedTuple):
    """Image files and the class number of each."""

    paths: list[Path]
    labels: list[int]


def read_folder(root: Path) -> tuple[int, dict[str, Tensor]]:
    """Read the user's images from ``train/<class>/`` and ``test/<class>/`` (or ``val/<class>/``).

    Args:
        root: Folder of the parts. Class folders may have subfolders; the classes are numbered in
            alphabetical order of their names in ``train``.

    Returns:
        The number of classes, and ``x_train``, ``y_train``, ``x_test``, ``y_test``: uint8 images
        (N, C, H, W), with one channel if all are grey and three otherwise, and int64 labels (N,).
        Both parts are in an order shuffled once and for all, so that the first images are of all
        classes.

    Raises:
        DatasetNotFoundError: If a part is missing.
        InvalidArgumentError: If an image cannot be read or has another size, or a class cannot be
            used.
    """
    train, classes = class_files(_part(root, "train"))
    test = class_files(_part(root, "test", "val"), classes)[0]
    return len(classes), read_parts(_shuffled(train), _shuffled(test))


def read_tinyimagenet(root: Path) -> tuple[int, dict[str, Tensor]]:
    """Read the extracted ``tiny-imagenet-200``; the validation images are the test part.

    Args:
        root: Folder with ``train/<wnid>/images`` and either ``val/images`` beside
            ``val/val_annotations.txt`` (as extracted) or ``val/<wnid>`` (as many scripts rearrange
            it).

    Returns:
        As :func:`read_folder`, always with three channels; test images in the official order.

    Raises:
        DatasetNotFoundError: If a part is missing.
        InvalidArgumentError: If a file cannot be used, or there are not 200 classes.
    """
    train, classes = class_files(_part(root, "train"))
    if len(classes) != 200:
        raise InvalidArgumentError(
            f"data_dir: {str(root / 'train')!r} has {len(classes)} class folders, but TinyImageNet"
            " has 200. Extract the archive again, or pass the folder as the name to load it as a"
            " data set of your own."
        )
    val = _part(root, "val")
    test = _annotated(val, classes) if (val / "images").is_dir() else class_files(val, classes)[0]
    # val_10.JPEG comes after val_9.JPEG; class folders would put all images of a class first.
    order = sorted(
        range(len(test.paths)), key=lambda i: (len(test.paths[i].name), test.paths[i].name)
    )
    test = Files([test.paths[i] for i in order], [test.labels[i] for i in order])
    return 200, read_parts(_shuffled(train), test, size=(64, 64), grey_allowed=False)


def class_files(folder: Path, classes: Sequence[str] | None = None) -> tuple[Files, list[str]]:
    """List the images of a folder of class folders, in alphabetical order.

    Args:
        folder: The folder.
        classes: Names of the classes by number; ``None`` takes them from the folder.

    Returns:
        The files and the names of the classes.

    Raises:
        InvalidArgumentError: If there is no class folder, one is empty, or one is not among
            ``classes``.
    """
    from torchvision.datasets import ImageFolder

    try:
        images = ImageFolder(str(folder))
    except FileNotFoundError as error:  # no class folder, or one without images
        raise InvalidArgumentError(
            f"name: {str(folder)!r} is not a folder of class folders that all have images"
            f" ({error}). Store images as <class name>/<file>, and remove empty folders."
        ) from error
    classes = images.classes if classes is None else list(classes)
    unknown = [name for name in images.classes if name not in classes]
    if unknown:
        raise InvalidArgumentError(
            f"name: {str(folder)!r} has the class folder {unknown[0]!r}, which the training images"
            " lack. Use the same class names in both parts."
        )
    number = [classes.index(name) for name in images.classes]
    paths = [Path(path) for path, _ in images.samples]
    return Files(paths, [number[label] for _, label in images.samples]), classes


def read_parts(
    train: Files, test: Files, size: tuple[int, int] | None = None, grey_allowed: bool = True
) -> dict[str, Tensor]:
    """Decode the images of both parts.

    Args:
        train: Training files.
        test: Test files.
        size: Height and width that all images must have; ``None`` means those of the first.
        grey_allowed: Whether one channel is kept where no image has colours.

    Returns:
        ``x_train``, ``y_train``, ``x_test``, ``y_test``, as :func:`read_folder`.

    Raises:
        InvalidArgumentError: If an image cannot be read or has another size.
    """
    size = _decoded(train.paths[0])[0].shape[:2] if size is None else size
    tensors, grey = {}, grey_allowed
    for name, files in (("train", train), ("test", test)):
        images = torch.empty(len(files.paths), _RGB, *size, dtype=torch.uint8, device="cpu")
        title = f"reading {name}ing images" if name == "train" else "reading test images"
        # disable=None: the bar is shown in a terminal only.
        bar = tqdm(files.paths, desc=title, unit="image", leave=False, disable=None)
        for index, path in enumerate(bar):
            pixels, without_colour = _decoded(path)
            if pixels.shape[:2] != tuple(size):
                raise InvalidArgumentError(
                    f"name: {str(path)!r} has {pixels.shape[0]}x{pixels.shape[1]} pixels, but"
                    f" {size[0]}x{size[1]} were expected. Resize the images to one size."
                )
            images[index] = torch.from_numpy(pixels).permute(2, 0, 1)
            grey = grey and without_colour
        tensors[f"x_{name}"] = images
        tensors[f"y_{name}"] = torch.tensor(files.labels, dtype=torch.int64, device="cpu")
    if grey:
        tensors.update({key: tensors[key][:, :1].clone() for key in ("x_train", "x_test")})
    return tensors


def _decoded(path: Path) -> tuple[np.ndarray, bool]:
    """Return pixels (H, W, 3) of 8 bits, and whether the file is grey."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"mode {image.mode}: more than 8 bits per channel")
            return np.array(image.convert("RGB")), image.mode in ("1", "L")
    # Pillow raises these for what is no image, is cut short, is damaged or is far too large.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidArgumentError(
            f"name: {str(path)!r} cannot be read as an image of 8 bits per channel ({error})."
            " Replace or remove it."
        ) from error


def _part(root: Path, *names: str) -> Path:
    """Return the first folder of these names that exists."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise DatasetNotFoundError(
        f"name: {str(root)!r} has no folder {' or '.join(map(repr, names))}. "
        "Store the images as train/<class name>/<file> and test/<class name>/<file>."
    )


def _shuffled(files: Files) -> Files:
    """Return the files in an order that depends on their number only."""
    generator = torch.Generator("cpu").manual_seed(0)
    order = torch.randperm(len(files.paths), generator=generator, device="cpu").tolist()
    return Files([files.paths[i] for i in order], [files.labels[i] for i in order])


def _annotated(val: Path, classes: Sequence[str]) -> Files:
    """Return the images that TinyImageNet's val_annotations.txt names, with their classes."""
    table = val / "val_annotations.txt"
    number = {name: index for index, name in enumerate(classes)}
    try:
        rows = [
            line.split("\t")
            for line in table.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
        return Files([val / "images" / row[0] for row in rows], [number[row[1]] for row in rows])
    except (OSError, UnicodeDecodeError, IndexError, KeyError) as error:
        raise InvalidArgumentError(
            f"data_dir: {str(table)!r} is missing or is not TinyImageNet's table of file names and"
            f" known classes ({type(error).__name__}: {error}). Extract the archive again."
        ) from error
