"""The result of a certification, and the accuracies that follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Callable

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..perturbations.described import AnySet
from ..utils.statistics import proportion_interval

#: Status of an (image, set) pair. Pairs that all methods have left open are "unknown": neither
#: proved nor broken.
CERTIFIED, FALSIFIED, UNKNOWN, MISCLASSIFIED = "certified", "falsified", "unknown", "misclassified"
#: The limit per image was over before all methods were tried; a method failed on the image; the
#: total limit was over.
TIMEOUT, ERROR, NOT_RUN = "timeout", "error", "not run"
STATUSES = (CERTIFIED, FALSIFIED, UNKNOWN, MISCLASSIFIED, TIMEOUT, ERROR, NOT_RUN)


class Certification:
    """Status, deciding method and best margin bound of every (image, set) pair.

    Args:
        perturbations: The sets.
        status: One list of statuses per set.
        method: The method that decided each pair, or "" where none did.
        margin: Best lower margin bound of each pair, (sets, n); -inf where some class has none.
        prediction: Predicted classes, (n,); -1 where there is none. None: all -1.
        correct: Which images are classified correctly, (n,); a tie or a NaN is not. None: read off
            the statuses.
        seconds: Time spent on each image, (n,); None: zeros.
        adversarial: Adversarial examples by (set, image).
        errors: Messages by image.

    Example:
        >>> from lirpa_multinorm import PerturbationLpBox
        >>> result = Certification([PerturbationLpBox(2, 0.1)], [["certified", "unknown"]],
        ...                        [["IBP", ""]],
        ...                        torch.tensor([[0.5, -0.1]]))
        >>> result.summary()["certified"], result.summary()["intervals"]["certified"]
        ([0.5], [(0.0945..., 0.9054...)])
    """

    def __init__(
        self,
        perturbations: Sequence[AnySet],
        status: list[list[str]],
        method: list[list[str]],
        margin: Tensor,
        prediction: Tensor | None = None,
        correct: Tensor | None = None,
        seconds: Tensor | None = None,
        adversarial: dict[tuple[int, int], Tensor] | None = None,
        errors: dict[int, str] | None = None,
    ) -> None:
        self.perturbations = list(perturbations)
        self.status, self.method, self.margin = status, method, margin
        n = len(status[0])
        self.prediction = torch.full((n,), -1, device="cpu") if prediction is None else prediction
        if correct is None:
            wrong = (MISCLASSIFIED, ERROR, NOT_RUN)
            correct = torch.tensor([entry not in wrong for entry in status[0]], device="cpu")
        self.correct = correct
        self.seconds = (
            torch.zeros(n, dtype=torch.float64, device="cpu") if seconds is None else seconds
        )
        self.adversarial, self.errors = dict(adversarial or {}), dict(errors or {})

    @classmethod
    def not_run(cls, perturbations: Sequence[AnySet], n: int) -> Certification:
        """Return the state of n images before anything is done."""
        count = len(perturbations)
        return cls(
            perturbations,
            [[NOT_RUN] * n for _ in range(count)],
            [[""] * n for _ in range(count)],
            torch.full((count, n), -math.inf, dtype=torch.float64, device="cpu"),
        )

    @classmethod
    def concatenate(cls, chunks: Sequence[Certification], sets: Sequence[AnySet]) -> Certification:
        """Return the certification of all images of the chunks, against the sets around all."""

        def tensors(name: str) -> Tensor:
            return torch.cat([getattr(chunk, name) for chunk in chunks], dim=-1)

        def rows(name: str) -> list[list[str]]:
            return [
                [entry for chunk in chunks for entry in getattr(chunk, name)[set_index]]
                for set_index in range(len(sets))
            ]

        adversarial: dict[tuple[int, int], Tensor] = {}
        errors: dict[int, str] = {}
        start = 0
        for chunk in chunks:
            for (set_index, image), point in chunk.adversarial.items():
                adversarial[set_index, start + image] = point
            errors.update({start + image: message for image, message in chunk.errors.items()})
            start += len(chunk)
        return cls(
            sets,
            rows("status"),
            rows("method"),
            tensors("margin"),
            tensors("prediction"),
            tensors("correct"),
            tensors("seconds"),
            adversarial,
            errors,
        )

    def __len__(self) -> int:
        return len(self.status[0])

    def predict(self, images: Tensor, prediction: Tensor, correct: Tensor) -> None:
        """Take the clean predictions of some images.

        Those that are wrong are decided, the others open.
        """
        self.prediction[images], self.correct[images] = prediction, correct
        for set_index in range(len(self.status)):
            self.decide(set_index, images[correct], UNKNOWN, "")
            self.decide(set_index, images[~correct], MISCLASSIFIED, "clean")

    def open(self, set_index: int) -> Tensor:
        """Return the indices of the images still open for a set."""
        return self.is_status(UNKNOWN)[set_index].nonzero().squeeze(1)

    def decide(self, set_index: int, images: Tensor, status: str, method: str) -> None:
        """Give some images a final status for a set."""
        for image in images.tolist():
            self.status[set_index][image], self.method[set_index][image] = status, method

    def close(self, image: int, status: str) -> None:
        """Give an image another status for every set that is not decided."""
        for row in self.status:
            if row[image] in (UNKNOWN, NOT_RUN):
                row[image] = status

    def is_status(self, status: str) -> Tensor:
        """Return which pairs have a status, bool of shape (sets, n)."""
        return torch.tensor(
            [[entry == status for entry in row] for row in self.status],
            dtype=torch.bool,
            device="cpu",
        )

    def summary(self) -> dict[str, Any]:
        """Return the accuracies as shares of all n images.

        See :meth:`CertifiedAccuracy.compute`.
        """
        return certified_accuracy(self)


class CertifiedAccuracy:
    """Clean, certified and attacked accuracy over any number of certifications.

    Each is given per set and for the union of the sets.

    Its methods are those of torchmetrics, which it does not need: ``update`` as results come,
    ``compute`` at any time, ``reset``.

    Example:
        >>> from lirpa_multinorm import PerturbationLpBox
        >>> result = Certification([PerturbationLpBox(2, 0.1)], [["certified", "falsified"]],
        ...                        [["IBP", "PGD"]],
        ...                        torch.tensor([[0.5, -0.1]]))
        >>> metric = CertifiedAccuracy()
        >>> metric.update(result)
        >>> metric.update(result)
        >>> summary = metric.compute()
        >>> falsified = summary["counts"][0]["falsified"]
        >>> summary["n"], summary["certified_union"], summary["attacked_union"], falsified
        (4, 0.5, 0.5, 2)
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the certifications added so far."""
        self._n = 0
        self._sets: list[str] | None = None
        self._sums: dict[str, Tensor] = {}
        self._counts = torch.zeros(0, device="cpu")
        self._not_run: list[int] = []

    def update(self, certification: Certification) -> None:
        """Add the images of a certification.

        Raises:
            InvalidArgumentError: It is against other sets than the ones before.
        """
        titles = [perturbation.title() for perturbation in certification.perturbations]
        if self._sets is not None and self._sets != titles:
            raise InvalidArgumentError(
                f"certification: it is against {'; '.join(titles)}, the ones before against "
                f"{'; '.join(self._sets)}; call reset() in between, or use another object"
            )
        masks = {status: certification.is_status(status) for status in STATUSES}
        certified = masks[CERTIFIED]
        unbroken = certification.correct & ~masks[FALSIFIED] & ~masks[MISCLASSIFIED]
        sums = {
            "clean": certification.correct.sum(),
            "certified": certified.sum(1),
            "attacked": unbroken.sum(1),
            "certified_union": certified.all(0).sum(),
            "attacked_union": unbroken.all(0).sum(),
        }
        counts = torch.stack([masks[status].sum(1) for status in STATUSES], dim=1)
        self._not_run += [
            self._n + image for image in masks[NOT_RUN].any(0).nonzero().squeeze(1).tolist()
        ]
        if self._sets is None:
            self._sets, self._sums, self._counts = titles, sums, counts
        else:
            self._sums = {name: self._sums[name] + value for name, value in sums.items()}
            self._counts = self._counts + counts
        self._n += len(certification)

    def compute(self) -> dict[str, Any]:
        """Return the accuracies as shares of all n images.

        An image that was not run, or failed before it was classified, counts in none of them.

        Returns:
            ``n`` and ``sets`` (in words); ``clean``, ``certified`` and ``attacked`` (one value per
            set), ``certified_union`` (certified for every set at once), ``attacked_union`` (correct
            and broken in no set: an upper bound of the union where all images were run);
            ``intervals``, 95 % by Wilson, under the same five names; ``counts`` of every status,
            one dictionary per set; ``not_run``, the images left out.

        Raises:
            InvalidArgumentError: Nothing was added.
        """
        if self._sets is None:
            raise InvalidArgumentError(
                "there is nothing to compute: call update(certification) first"
            )
        sums = {name: value.tolist() for name, value in self._sums.items()}
        return {
            "n": self._n,
            "sets": list(self._sets),
            **{name: _each(value, lambda count: count / self._n) for name, value in sums.items()},
            "intervals": {
                name: _each(value, lambda count: proportion_interval(count, self._n))
                for name, value in sums.items()
            },
            "counts": [dict(zip(STATUSES, row)) for row in self._counts.tolist()],
            "not_run": list(self._not_run),
        }


def certified_accuracy(certification: Certification) -> dict[str, Any]:
    """Return the accuracies of one certification; see :meth:`CertifiedAccuracy.compute`."""
    metric = CertifiedAccuracy()
    metric.update(certification)
    return metric.compute()


def _each(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return a function's value of a number, or of each in a list."""
    return [function(entry) for entry in value] if isinstance(value, list) else function(value)
