"""Operators that the host bounds wrongly, with the methods and modes concerned."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

from ._load import HostModule
from .nodes import perturbed_inputs, sees_input

_BACKWARD = ("CROWN-IBP", "CROWN", "CROWN-Optimized")


class Fault(NamedTuple):
    """An operator for which the bounds of some methods are wrong.

    Args:
        operator: Class name of the host's node.
        applies: Whether a node with perturbed inputs is of the faulty kind.
        title: Its name in messages.
        methods: Methods whose bounds are wrong.
        modes: Convolution modes with wrong bounds.
    """

    operator: str
    applies: Callable[[Any], bool]
    title: str
    methods: tuple[str, ...] = _BACKWARD
    modes: tuple[str, ...] = ("patches", "matrix")


def _always(node) -> bool:
    return True


def _is_dilated_or_grouped(node) -> bool:
    dilation = node.dilation
    return node.groups != 1 or any(
        step != 1 for step in (dilation if isinstance(dilation, (list, tuple)) else [dilation])
    )


def _overlaps_or_pads(node) -> bool:
    """Whether the windows of an average pooling overlap, leave gaps or reach over the edge."""
    padding = node.padding if isinstance(node.padding, (list, tuple)) else [node.padding]
    return list(node.kernel_size) != list(node.stride) or any(padding)


def _adds_a_number(node) -> bool:
    """Whether a constant with fewer axes than an image is added to images.

    Patches that overlap an edge would count it in the padding.
    """
    constants = [previous for previous in node.inputs if not sees_input(previous)]
    return len(node.output_shape) == 4 and any(
        previous.forward().ndim < 3 if not previous.inputs else True for previous in constants
    )


def _negative_slope(node) -> float:
    # In the newer host ``alpha`` holds CROWN's slopes.
    return float(node.leaky_alpha if hasattr(node, "leaky_alpha") else node.alpha)


def _slope_is_no_share(node) -> bool:
    """Whether a LeakyReLU's negative side falls, or is steeper than its positive one."""
    return not 0 <= _negative_slope(node) <= 1


def _is_no_natural_power(node) -> bool:
    exponent = node.inputs[1]
    if exponent.inputs or sees_input(exponent):
        return True
    value = exponent.forward()
    return value.numel() != 1 or not (float(value) >= 1 and float(value).is_integer())


#: The faults of this host.
FAULTS = [
    Fault(
        "BoundConv", _is_dilated_or_grouped, "a dilated or grouped convolution", modes=("patches",)
    ),
    # Bounds of what is added to distances, which are no images.
    Fault("BoundLinfDistance", _always, "an l_inf-distance layer", modes=("patches",)),
    Fault("BoundConvTranspose", _always, "a transposed convolution", modes=("patches",)),
    *[
        Fault(name, _adds_a_number, "a constant added to images", modes=("patches",))
        for name in ("BoundAdd", "BoundSub")
    ],
    Fault(
        "BoundUnsqueeze",
        lambda node: len(node.output_shape) > 4,
        "images with an axis more (unfold)",
        modes=("patches",),
    ),
    Fault(
        "BoundLeakyRelu", _slope_is_no_share, "a LeakyReLU whose negative slope is not in [0, 1]"
    ),
    Fault(
        "BoundLeakyRelu",
        lambda node: not _negative_slope(node) >= 0,
        "a LeakyReLU whose negative side falls",
        methods=("IBP",),
    ),
    Fault("BoundTile", _always, "repeat"),
    Fault("BoundSqrt", _always, "a square root"),
    Fault("BoundPow", _always, "a power"),
    Fault("BoundPow", _is_no_natural_power, "a power that is no natural number", methods=("IBP",)),
]
if hasattr(HostModule, "_set_input"):  # the old host
    FAULTS += [
        Fault("BoundAveragePool", _overlaps_or_pads, "average pooling that overlaps or pads"),
        Fault("BoundGather", _always, "indexing"),
        Fault("BoundGatherElements", _always, "gather"),
    ]


def host_fault(module: HostModule, method: str, mode: str) -> str | None:
    """Return title and node of an operator the host bounds wrongly by a method in a mode, or None.

    Args:
        module: A traced module.
        method: The method's name in :data:`lirpa_multinorm.bounds.methods.METHODS`.
        mode: The host's ``conv_mode``.
    """
    for node in module._modules.values():
        for fault in FAULTS:
            if (
                type(node).__name__ == fault.operator
                and method in fault.methods
                and mode in fault.modes
                and sees_input(node)
                and perturbed_inputs(node)
                and fault.applies(node)
            ):
                return f"{fault.title} at {node.name}"
    return None
