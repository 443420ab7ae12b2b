"""A network with BatchNorm, and its bounds by a plain call."""

import functools

import torch

from lirpa_multinorm import BoundedModule, PerturbationL2Box, PerturbationLinf
from tests.bounds.small_network import OPTIONS, images
from tests.bounds.small_network import network as batch_norm_network

METHODS = ["IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized", "Lipschitz", "Sparse-CROWN", "SDP-CROWN"]
SETS = [PerturbationLinf(0.02), PerturbationL2Box(0.1)]


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return batch_norm_network(norm=True).to(dtype)


def inputs(dtype=torch.float32):
    return images(2, seed=1).to(dtype)


def module(model):
    return BoundedModule(model, perturbations=SETS, bound_opts=OPTIONS)


def bound(model, x, method):
    return module(model).compute_bounds(x, method=method)


@functools.cache
def plain_bounds(method):
    return bound(network(), inputs(), method)
