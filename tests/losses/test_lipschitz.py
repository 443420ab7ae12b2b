"""The Lipschitz term against the formula by hand and a gradient attack."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lirpa_multinorm import BoundedModule, PerturbationL2Box, build_loss, pgd
from lirpa_multinorm.errors import InvalidArgumentError, NaNBoundError, UnsupportedModelError
from lirpa_multinorm.losses import LossTerm, MultiNormLoss
from lirpa_multinorm.losses.lipschitz import lipschitz_margins
from lirpa_multinorm.verifier.lipschitz.estimate import LipschitzEstimate
from tests.losses.cases import assert_same_gradients, gradients
from tests.losses.lipschitz_cases import L1, L2, LINF, images, network, networks
from tests.losses.slow_intervals import specification


@networks
@pytest.mark.parametrize("emma", [True, False])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_value_and_gradients_are_the_formulas(name, emma, mode):
    model, (x, y) = network(name), images()
    bounded = BoundedModule(model, perturbations=[L2]).train(mode == "train")
    result = build_loss("cure_l2", [L2], region_2="lipschitz", emma_2=emma)(bounded, x, y)
    bounded.lipschitz_vectors.clear()  # once more from the start: the same vectors
    [falls] = bounded.class_falls(x)
    logits = result.logits
    losses = []
    for row, label in zip(logits, y.tolist()):
        terms = [torch.zeros((), dtype=x.dtype)]
        for k in range(3):
            if k != label:
                gap, fall = row[label] - row[k], L2.eps * falls[label, k]
                share = float((gap / fall).clamp(0.01, 1)) if emma else 1.0
                terms.append(-(gap - share * fall))
        losses.append(torch.logsumexp(torch.stack(terms), 0))
    expected = torch.stack(losses).mean()
    assert result.value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_same_gradients(gradients(result.value, model), gradients(expected, model))
    assert result.hidden is None


@networks
@pytest.mark.parametrize("ptb", [L2, PerturbationL2Box(0.4), L1, LINF], ids=str)
def test_margins_with_converged_constants_hold_against_an_attack(name, ptb):
    model, (x, y) = network(name), images()
    bounded = BoundedModule(model, perturbations=[ptb])
    term = LossTerm(ptb, "lipschitz")
    for _ in range(5):
        [falls] = bounded.class_falls(x, [term.lipschitz_norm])
    C = specification(y, 3)
    margins, _ = lipschitz_margins(model(x), falls, term.lipschitz_reach(x), C)
    for points in pgd(model, x, y, [ptb]):
        attacked = torch.einsum("bsk,bk->bs", C, model(points))
        assert bool((margins.detach() <= attacked + 1e-3).all())


@pytest.mark.parametrize(
    "name, options",
    [
        ("joint", {}),
        ("max", {}),
        ("random", {}),
        ("cure", {}),
        ("cure", {"target": "inf"}),
        ("mtl_ibp", {}),
        ("cc_ibp", {}),
        ("exp_ibp", {}),
        ("joint", {"region_1": "lipschitz"}),
        ("joint", {"region_inf": "lipschitz"}),
        ("joint", {"region_inf": "set", "ratio_2": 0.5}),
    ],
)
def test_it_combines_with_every_loss(name, options):
    model, (x, y) = network("BatchNorm", torch.float32), images(9, torch.float32)
    bounded = BoundedModule(model, perturbations=[LINF, L2, L1]).train()
    options = {"region_2": "lipschitz", **options}
    result = build_loss(name, [LINF, L2, L1], **options)(bounded, x, y)
    result.value.backward()
    assert torch.isfinite(result.value) and len(result.margins) == 3
    assert all(
        p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters()
    )


def test_no_attack_and_no_propagation_for_the_branch(monkeypatch):
    model, (x, y) = network("mlp", torch.float32), images(6, torch.float32)
    bounded, calls = BoundedModule(model, perturbations=[L2]), []
    monkeypatch.setattr(
        BoundedModule, "compute_region_bounds", lambda *args, **options: calls.append(1)
    )
    monkeypatch.setattr(
        "lirpa_multinorm.losses.regions.attack_regions", lambda *args, **options: calls.append(1)
    )
    build_loss("cure_l2", [L2], region_2="lipschitz")(bounded, x, y).value.backward()
    assert not calls


def test_radius_zero_is_the_cross_entropy():
    model, (x, y) = network("strided"), images()
    result = build_loss("cure_l2", [L2], region_2="lipschitz")(
        BoundedModule(model), x, y, eps_scale=0.0
    )
    assert result.value.item() == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-12)
    result.value.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


# --- bad input ------------------------------------------------------------------------------------


def test_an_operator_without_a_constant_is_named():
    model, (x, y) = (
        nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.Sigmoid(), nn.Linear(4, 3)),
        images(4, torch.float32),
    )
    with pytest.raises(UnsupportedModelError, match="sigmoid"):
        build_loss("cure_l2", [L2], region_2="lipschitz")(BoundedModule(model), x, y)


def test_a_weight_computed_from_another_is_named():
    model = nn.Sequential(
        nn.Flatten(), torch.nn.utils.parametrizations.weight_norm(nn.Linear(72, 3))
    )
    with pytest.raises(UnsupportedModelError, match="computes a weight from another"):
        LipschitzEstimate(model, images(1, torch.float32)[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value):
    model, (x, _) = network("mlp", torch.float32), images(4, torch.float32)
    bounded = BoundedModule(model)
    bounded.class_falls(x)
    model[1].weight.data[0, 0] = value
    with pytest.raises(NaNBoundError, match="NaN or infinite"):
        bounded.class_falls(x)


def test_a_layer_of_zeros_has_a_constant_of_zero_and_finite_gradients():
    model, (x, y) = network("mlp", torch.float32), images(4, torch.float32)
    nn.init.zeros_(model[3].weight)
    result = build_loss("cure_l2", [L2], region_2="lipschitz")(BoundedModule(model), x, y)
    result.value.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_a_shrunk_branch_is_refused():
    with pytest.raises(InvalidArgumentError, match="shrink.*lipschitz"):
        LossTerm(L2, "lipschitz", shrink=0.5)


def test_a_branch_cannot_be_aligned_with_itself():
    with pytest.raises(InvalidArgumentError, match="two"):
        build_loss("cure", [L2], region_2="lipschitz")
    assert MultiNormLoss([LossTerm(L2, "lipschitz")]).regularized == 0
