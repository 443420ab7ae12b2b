"""A data set for classification: training and test images as plain tensors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from .augment import center_crop


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set for classification, with the constants that normalise its inputs.

    Attributes:
        name: What the data set is called in reports.
        num_classes: Number of classes K.
        mean: Per channel mean of the images in [0, 1], subtracted by the model.
        std: Per channel divisor that the model applies afterwards.
        x_train: Images (N, C, H, W), uint8, or float32 in [0, 1]; larger than the test images where
            training takes random crops of them (TinyImageNet).
        y_train: Labels (N,), int64 in 0..K-1.
        x_test: Images (N, C, H, W) as the model gets them, uint8, or float32 in [0, 1].
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
        """Shape (C, H, W) of one image as the model gets it: that of the test images."""
        return tuple(self.x_test.shape[1:])

    def subset(self, n_train: int | None = None, n_test: int | None = None) -> ImageData:
        """Return the data set of the first training and test images.

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

    def split(self, n_validation: int, seed: int = 0) -> ImageData:
        """Put training images in place of the test images, to choose settings without seeing those.

        Args:
            n_validation: How many training images become the test part.
            seed: Of the permutation of the training images, of which the last ``n_validation`` are
                taken.

        Returns:
            A data set named ``"... (validation split)"`` of copies: the rest of the training
            images, and the validation images, cut to the size of the test images where they are
            larger.

        Raises:
            InvalidArgumentError: If no image would be left on one of the sides.

        Example:
            >>> x, y = torch.rand(6, 1, 2, 2), torch.arange(6) % 2
            >>> data = ImageData("tiny", 2, (0.0,), (1.0,), x, y, x, y).split(2)
            >>> data.name, len(data.x_train), len(data.x_test)
            ('tiny (validation split)', 4, 2)
        """
        count = len(self.x_train)
        if not 1 <= n_validation < count:
            raise InvalidArgumentError(
                f"n_validation: {n_validation} of the {count} training images of {self.name!r}"
                f" asked for. Pass a number from 1 to {count - 1}."
            )
        generator = torch.Generator("cpu").manual_seed(seed)
        order = torch.randperm(count, generator=generator, device="cpu").to(self.x_train.device)
        rest, chosen = order[:-n_validation], order[-n_validation:]
        return replace(
            self,
            name=f"{self.name} (validation split)",
            x_train=self.x_train[rest],
            y_train=self.y_train[rest],
            x_test=center_crop(self.x_train[chosen], *self.in_shape[1:]).contiguous(),
            y_test=self.y_train[chosen],
        )
