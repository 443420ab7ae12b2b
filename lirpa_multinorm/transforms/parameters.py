"""The parameters of a transform, in the order in which tensors hold them."""

from __future__ import annotations

from torch import Tensor

#: Rotation in degrees, clockwise; translations in pixels, to the right and down; scale, shear of x
#: along y, contrast and brightness as factors or shares.
PARAMETERS = (
    "rotation",
    "translation_x",
    "translation_y",
    "scale",
    "shear",
    "contrast",
    "brightness",
)
#: The values that change nothing.
IDENTITY = (0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0)
ROTATION, TRANSLATION_X, TRANSLATION_Y, SCALE, SHEAR, CONTRAST, BRIGHTNESS = range(len(PARAMETERS))
#: Those that move pixels; the others change their values.
MOVING = (ROTATION, TRANSLATION_X, TRANSLATION_Y, SCALE, SHEAR)


def parameter(parameters: Tensor, index: int) -> Tensor:
    """Return one parameter of each transform as a column, (S, 1), of (S, 7)."""
    return parameters[:, index : index + 1]
