"""How much goes through a stage at once: half as much whenever memory runs out."""

from __future__ import annotations

from typing import Callable, Dict

import torch
from torch import Tensor

from ..errors import NotEnoughMemoryError

_SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that memory is used up."""
    while error is not None:
        if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
            return True
        if isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS):
            return True
        error = error.__cause__ or error.__context__
    return False


class MemoryBudget:
    """The number of images that each stage takes at once, learnt from where memory ran out.

    Example:
        >>> sizes, budget = [], MemoryBudget()
        >>> def bound(images):
        ...     sizes.append(len(images))
        ...     if len(images) > 3:
        ...         raise MemoryError
        >>> budget.run("CROWN", torch.arange(8), bound)
        >>> sizes
        [8, 4, 2, 2, 2, 2]
    """

    def __init__(self) -> None:
        self.most: Dict[str, int] = {}

    def run(self, name: str, images: Tensor, work: Callable[[Tensor], None]) -> None:
        """Call ``work`` with the images, in as few parts as memory allows.

        Args:
            name: The stage.
            images: Indices of images, shape (b,).
            work: What to do with some of them; may fail half-way and be called again.

        Raises:
            NotEnoughMemoryError: Memory runs out even for one image.
        """
        start = 0
        while start < len(images):
            part = images[start:start + self.most.get(name, len(images))]
            if self._fits(name, part, work):
                start += len(part)
            elif torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _fits(self, name: str, part: Tensor, work: Callable[[Tensor], None]) -> bool:
        try:
            work(part)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(part) == 1:
                raise NotEnoughMemoryError(f"methods: {name} runs out of memory even for one image ({error}); leave it "
                                           "out, or use a machine with more memory") from error
            self.most[name] = len(part) // 2
            return False
        return True
