"""Bounds are computed in full precision, whatever torch is allowed to round elsewhere."""

import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationL2Box, host


def test_tensor_float_32_is_off_while_bounding_and_back_afterwards(monkeypatch):
    switches, seen = (torch.backends.cuda.matmul, torch.backends.cudnn), []
    original = host.HostModule.compute_bounds

    def recorded(*args, **kwargs):
        seen.append([one.allow_tf32 for one in switches])
        return original(*args, **kwargs)

    monkeypatch.setattr(host.HostModule, "compute_bounds", recorded)
    before = [one.allow_tf32 for one in switches]
    try:
        for one in switches:
            one.allow_tf32 = True
        bounded = BoundedModule(nn.Sequential(nn.Linear(3, 2)), perturbations=[PerturbationL2Box(0.1)])
        bounded.compute_bounds(torch.rand(1, 3), method="CROWN")
        assert seen and not any(any(one) for one in seen)
        assert [one.allow_tf32 for one in switches] == [True, True]
    finally:
        for one, allowed in zip(switches, before):
            one.allow_tf32 = allowed
