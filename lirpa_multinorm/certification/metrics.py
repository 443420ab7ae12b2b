"""What a certification found, and the accuracies that follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..perturbations import PerturbationLpBox
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
        method: What decided each pair: a method's name, or "" where nothing did.
        margin: Best lower margin bound of each pair, (sets, n); -inf where none is known for every
            class.
        prediction: Predicted classes, (n,); -1 where none is known. None: all -1.
        correct: Which images are classified correctly, (n,); a tie or a NaN is not. None: read off
            the statuses.
        seconds: Time spent on each image, (n,); None: zeros.
        adversarial: Adversarial examples by (set, image).
        errors: Messages by image.

    Example:
        >>> found = Certification([PerturbationLpBox(2, 0.1)], [["certified", "unknown"]],
        ...                       [["IBP", ""]],
        ...                       torch.tensor([[0.5, -0.1]]))
        >>> found.summary()["certified"], found.summary()["intervals"]["certified"]
        ([0.5], [(0.0945..., 0.9054...)])
    """

    def __init__(
        self,
        perturbations: Sequence[PerturbationLpBox],
        status: list[list[str]],
        method: list[list[str]],
        margin: Tensor,
        prediction: Tensor | None = None,
        correct: Tensor | None = None,
        seconds: Tensor | None = None,
        adversarial: dict[tuple[int, int], Tensor] | None = None,
        errors: dict[int, str] | None = None,
    ) -> None:
        self.perturbations, self.status, self.method, self.margin = (
            list(perturbations),
            status,
            method,
            margin,
        )
        n = len(status[0])
        self.prediction = torch.full((n,), -1) if prediction is None else prediction
        self.correct = (
            correct
            if correct is not None
            else torch.tensor(
                [one not in (MISCLASSIFIED, ERROR, NOT_RUN) for one in status[0]], dtype=torch.bool
            )
        )
        self.seconds = torch.zeros(n, dtype=torch.float64) if seconds is None else seconds
        self.adversarial, self.errors = dict(adversarial or {}), dict(errors or {})

    @classmethod
    def not_run(cls, perturbations: Sequence[PerturbationLpBox], n: int) -> Certification:
        """Return the state of n images before anything is done."""
        count = len(perturbations)
        return cls(
            perturbations,
            [[NOT_RUN] * n for _ in range(count)],
            [[""] * n for _ in range(count)],
            torch.full((count, n), -math.inf, dtype=torch.float64),
        )

    @classmethod
    def concatenate(
        cls, parts: Sequence[Certification], sets: Sequence[PerturbationLpBox]
    ) -> Certification:
        """Return one certification of all the parts' images, against the sets they are parts of."""
        joined = {
            name: torch.cat([getattr(part, name) for part in parts], dim=-1)
            for name in ("margin", "prediction", "correct", "seconds")
        }
        rows = {
            name: [
                [one for part in parts for one in getattr(part, name)[place]]
                for place in range(len(sets))
            ]
            for name in ("status", "method")
        }
        adversarial, errors, start = {}, {}, 0
        for part in parts:
            adversarial.update(
                {(place, start + image): one for (place, image), one in part.adversarial.items()}
            )
            errors.update({start + image: one for image, one in part.errors.items()})
            start += len(part)
        return cls(sets, **rows, **joined, adversarial=adversarial, errors=errors)

    def __len__(self) -> int:
        return len(self.status[0])

    def predict(self, images: Tensor, prediction: Tensor, correct: Tensor) -> None:
        """Take the clean predictions of some images.

        Those that are wrong are decided, the others open.
        """
        self.prediction[images], self.correct[images] = prediction, correct
        for place in range(len(self.status)):
            self.decide(place, images[correct], UNKNOWN, "")
            self.decide(place, images[~correct], MISCLASSIFIED, "clean")

    def open(self, place: int) -> Tensor:
        """Return the indices of the images still open for a set."""
        return self.is_status(UNKNOWN)[place].nonzero().squeeze(1)

    def decide(self, place: int, images: Tensor, status: str, method: str) -> None:
        """Give some images a final status for a set."""
        for image in images.tolist():
            self.status[place][image], self.method[place][image] = status, method

    def close(self, image: int, status: str) -> None:
        """Give an image another status for every set that is not decided."""
        for row in self.status:
            if row[image] in (UNKNOWN, NOT_RUN):
                row[image] = status

    def is_status(self, status: str) -> Tensor:
        """Return which pairs have a status, bool of shape (sets, n)."""
        return torch.tensor(
            [[one == status for one in row] for row in self.status], dtype=torch.bool
        )

    def summary(self) -> dict[str, Any]:
        """Return the accuracies as shares of all n images.

        See :meth:`CertifiedAccuracy.compute`.
        """
        return certified_accuracy(self)


class CertifiedAccuracy:
    """Clean, certified and attacked accuracy over any number of certifications.

    Each is given per set and for the union of the sets.

    In the style of torchmetrics, without needing it: ``update`` as results come, ``compute`` at any
        time, ``reset``.

    Example:
        >>> part = Certification([PerturbationLpBox(2, 0.1)], [["certified", "falsified"]],
        ...                      [["IBP", "PGD"]],
        ...                      torch.tensor([[0.5, -0.1]]))
        >>> metric = CertifiedAccuracy()
        >>> metric.update(part)
        >>> metric.update(part)
        >>> found = metric.compute()
        >>> falsified = found["counts"][0]["falsified"]
        >>> found["n"], found["certified_union"], found["attacked_union"], falsified
        (4, 0.5, 0.5, 2)
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._n, self._sets, self._sums, self._counts = 0, None, {}, []
        self._not_run: list[int] = []

    def update(self, certification: Certification) -> None:
        """Add the images of a certification.

        Raises:
            InvalidArgumentError: It is against other sets than the ones before.
        """
        titles = [one.title() for one in certification.perturbations]
        if self._sets not in (None, titles):
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


def _each(value, function):
    return [function(one) for one in value] if isinstance(value, list) else function(value)
