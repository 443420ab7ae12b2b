"""Norms of sets, and images of which some pixels stand at the ends of the range."""

import math

import pytest

from tests.networks import pixels

NORMS = {"linf": math.inf, "l2": 2, "l1": 1}


every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


def images(batch=3):
    return pixels(batch, 2, 3, 3, seed=1, beyond=0.3)
