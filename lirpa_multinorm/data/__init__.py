"""Image data sets: loading, checks, batches and augmentations."""

from .augment import (
    AUGMENTATIONS,
    CROP_TINYIMAGENET,
    augment_cifar,
    augment_shift,
    augment_tinyimagenet,
    augmentation,
    center_crop,
)
from .batches import batches, to_unit
from .checks import checked_data
from .image_data import ImageData
from .loading import NAMES, default_data_dir, load

__all__ = [
    "AUGMENTATIONS",
    "CROP_TINYIMAGENET",
    "ImageData",
    "NAMES",
    "augment_cifar",
    "augment_shift",
    "augment_tinyimagenet",
    "augmentation",
    "batches",
    "center_crop",
    "checked_data",
    "default_data_dir",
    "load",
    "to_unit",
]
