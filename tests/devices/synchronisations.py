"""Counts the calls at which Python would have to wait for a device."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_TORCH = Path(torch.__file__).parent
_OPTIMIZERS = _TORCH / "optim"
#: Functions whose result is a Python value, or has a size that depends on values.
_WAITING = frozenset(
    [
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
        "__complex__",
        "__array__",
        "__contains__",
        "item",
        "tolist",
        "numpy",
        "cpu",
        "is_nonzero",
        "equal",
        "allclose",
        "nonzero",
        "argwhere",
        "masked_select",
        "unique",
        "_unique2",
        "unique_consecutive",
        "bincount",
    ]
)


class Synchronisations(TorchFunctionMode):
    """A context that counts synchronising calls, by the line that makes them.

    On a CPU nothing waits; counted is what would let a GPU's queue run empty: values that Python
    reads, and indices by a mask. Adam's step counters are left out, which lie on the CPU.

    Example:
        >>> with Synchronisations() as counted:
        ...     _ = float(torch.ones(2).sum()), torch.ones(2)[torch.tensor([True, False])]
        >>> counted.total
        2
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """How many calls there were."""
        return sum(self.places.values())

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Count a call of torch, and make it."""
        name = getattr(function, "__name__", "")
        if name in _WAITING or _looks_for_a_mask(name, args, kwargs or {}):
            self._count(sys._getframe(1))
        return function(*args, **(kwargs or {}))

    def _count(self, frame: Any) -> None:
        while frame is not None and _TORCH in Path(frame.f_code.co_filename).parents:
            if _OPTIMIZERS in Path(frame.f_code.co_filename).parents:
                return
            frame = frame.f_back
        if frame is not None:
            path = Path(frame.f_code.co_filename)
            place = f"{path.parent.name}/{path.name}:{frame.f_lineno} {frame.f_code.co_name}"
            self.places[place] += 1


def _looks_for_a_mask(name: str, args: tuple, kwargs: dict) -> bool:
    """Whether a function looks for the places where a mask is true, or for repeats in a tensor."""
    if name == "where":
        return len(args) + len(kwargs) == 1
    if name == "repeat_interleave":
        return isinstance(args[-1], Tensor) and len(args) > 1 and "output_size" not in kwargs
    if name not in ("__getitem__", "__setitem__"):
        return False
    indices = args[1] if isinstance(args[1], tuple) else (args[1],)
    masks = any(isinstance(item, Tensor) and item.dtype == torch.bool for item in indices)
    # A single value is filled in where the mask is true, without looking where that is.
    return masks and (name == "__getitem__" or isinstance(args[2], Tensor) and args[2].ndim > 0)
