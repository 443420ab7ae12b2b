"""The number of images that go through a stage at once, halved whenever memory runs out."""

from __future__ import annotations

import gc
from typing import Callable

import torch
from torch import Tensor

from ..errors import NotEnoughMemoryError
from ..utils.memory import is_out_of_memory


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
        self.most: dict[str, int] = {}

    def run(self, name: str, images: Tensor, work: Callable[[Tensor], None]) -> None:
        """Call ``work`` with the images, in as few chunks as memory allows.

        Args:
            name: The stage.
            images: Indices of images, shape (b,).
            work: What to do with some of them; may fail half-way and be called again.

        Raises:
            NotEnoughMemoryError: Memory runs out even for one image.
        """
        start = 0
        while start < len(images):
            chunk = images[start : start + self.most.get(name, len(images))]
            if self._fits(name, chunk, work):
                start += len(chunk)
                continue
            gc.collect()  # the graph that was given up has cycles
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _fits(self, name: str, chunk: Tensor, work: Callable[[Tensor], None]) -> bool:
        """Call ``work`` with a chunk; False, with a smaller size learnt, if memory runs out."""
        try:
            work(chunk)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(chunk) == 1:
                raise NotEnoughMemoryError(
                    f"methods: {name} runs out of memory even for one image ({error}); leave it "
                    "out, or use a machine with more memory"
                ) from error
            self.most[name] = len(chunk) // 2
            return False
        return True
