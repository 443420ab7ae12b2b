"""Operators that the host bounds wrongly, with the methods and modes in which it does."""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional, Tuple

from ._load import HostModule
from .nodes import perturbed_inputs, sees_input

_BACKWARD = ("CROWN-IBP", "CROWN", "CROWN-Optimized")
_OLD_HOST = hasattr(HostModule, "_set_input")


class Fault(NamedTuple):
    """An operator that bounds of some methods are wrong for.

    Args:
        operator: Class name of the host's node.
        applies: Whether a node with perturbed inputs is of the faulty kind.
        title: What to call it in a message.
        methods: Methods whose bounds are wrong.
        modes: Convolution modes in which they are.
    """

    operator: str
    applies: Callable[[object], bool]
    title: str
    methods: Tuple[str, ...] = _BACKWARD
    modes: Tuple[str, ...] = ("patches", "matrix")


def _is_dilated(node) -> bool:
    dilation = node.dilation
    return any(step != 1 for step in (dilation if isinstance(dilation, (list, tuple)) else [dilation]))


def _overlaps_or_pads(node) -> bool:
    """Whether the windows of an average pooling overlap, leave gaps or reach over the edge."""
    padding = node.padding if isinstance(node.padding, (list, tuple)) else [node.padding]
    return list(node.kernel_size) != list(node.stride) or any(padding)


FAULTS = [
    Fault("BoundConv", _is_dilated, "a dilated convolution", modes=("patches",)),
    Fault("BoundTile", lambda node: True, "repeat"),
    Fault("BoundPow", lambda node: True, "a power"),
    *([Fault("BoundAveragePool", _overlaps_or_pads, "average pooling that overlaps or pads")] if _OLD_HOST else []),
]


def host_fault(module: HostModule, method: str, mode: str) -> Optional[str]:
    """Return the name and place of an operator that the host bounds wrongly by a method in a mode, or None.

    Args:
        module: A traced module.
        method: The method's name in :data:`lirpa_multinorm.bounds.traced.METHODS`.
        mode: The host's ``conv_mode``.
    """
    for node in module._modules.values():
        for fault in FAULTS:
            if (type(node).__name__ == fault.operator and method in fault.methods and mode in fault.modes
                    and sees_input(node) and perturbed_inputs(node) and fault.applies(node)):
                return f"{fault.title} at {node.name}"
    return None

