"""The Lipschitz term against the formula by hand, exact norms and a gradient attack."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lirpa_multinorm import (
    BoundedModule,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    build_loss,
    pgd,
)
from lirpa_multinorm.errors import InvalidArgumentError, NaNBoundError, UnsupportedModelError
from lirpa_multinorm.losses import LossTerm, MultiNormLoss
from lirpa_multinorm.losses.lipschitz import lipschitz_margins
from lirpa_multinorm.models import Normalize
from lirpa_multinorm.verifier.lipschitz.constants import lipschitz_bounds
from lirpa_multinorm.verifier.lipschitz.estimate import LipschitzEstimate
from lirpa_multinorm.verifier.relu_network import ReluNetwork
from tests.losses.cases import assert_same_gradients, gradients

L2, LINF, L1 = PerturbationL2Box(0.3, None), PerturbationLinf(0.05), PerturbationL1Box(0.5)


class Skip(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return 0.5 * x + self.layers(x)


NETWORKS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3)),
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)
    ),
    "strided": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(4, 5, (2, 3), (1, 2)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(10, 3),
    ),
    "normalised": lambda: nn.Sequential(
        Normalize([0.4, 0.5], [0.2, 0.4]),
        nn.Conv2d(2, 3, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 3),
    ),
    "BatchNorm": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ),
    "skips": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        Skip(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 3),
    ),
    "MaxPool": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    ),
}
networks = pytest.mark.parametrize("name", NETWORKS)


def network(name, dtype=torch.float64):
    model = NETWORKS[name]().to(dtype)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.normal_(layer.weight)
    return model.eval()


def images(count=6, dtype=torch.float64):
    return torch.rand(count, 2, 6, 6, dtype=dtype), torch.arange(count) % 3


def exact_falls(model, x, norm=2):
    """(K, K) by exact norms, as the certifying method has them."""
    relus = ReluNetwork(model, x)
    constants = [1.0, *lipschitz_bounds(relus, x, norm).layers]
    falls = torch.zeros(3, 3, dtype=x.dtype)
    eye = torch.eye(3, dtype=x.dtype)
    v = (eye.unsqueeze(1) - eye.unsqueeze(0)).flatten(0, 1)
    _, at_input, at_relus = relus.maps(len(v), x).pull(len(relus.shapes) - 1, v)
    for i, (part, constant) in enumerate(zip([at_input, *at_relus], constants)):
        if part is not None:
            dual = float("inf") if norm == 1 and i == 0 else 2
            falls += constant * torch.linalg.vector_norm(part.flatten(1), dual, dim=1).view(3, 3)
    return falls


# --- the estimate ---------------------------------------------------------------------------------


@networks
def test_constants_converge_to_the_exact_norms_from_below(name):
    model, (x, _) = network(name), images()
    estimate = LipschitzEstimate(model, x[:1])
    for _ in range(10):
        found = estimate.class_falls(norms=(2, 1))
    for falls, norm in zip(found, (2, 1)):
        exact = exact_falls(model, x, norm)
        assert bool((falls <= exact * (1 + 1e-9)).all())
        assert torch.allclose(falls, exact, rtol=1e-3)
        assert torch.equal(falls.diagonal(), torch.zeros(3, dtype=x.dtype))
    assert bool((found[1] <= found[0]).all())


@networks
@pytest.mark.parametrize("norm", [2, 1])
def test_gradients_are_those_of_the_last_step(name, norm):
    """By hand: ``sigma = u .

    (A v)`` for fixed v, or the length of the longest column, by differences in each weight.
    """
    model, (x, _) = network(name), images()
    estimate = LipschitzEstimate(model, x[:1])
    weights = [p for p in model.parameters() if p.ndim > 1]
    largest, original = {}, LipschitzEstimate._stepped

    def remembered(target, source, basis, *others):
        if (target, source) not in largest:
            largest[target, source] = original(estimate, target, source, basis, *others)[1]
        return basis, largest[target, source]

    def value():
        [falls] = estimate.class_falls(norms=(norm,))
        return float(falls[0, 2] + falls[1, 2])

    for _ in range(5):  # so that one more step changes nothing
        estimate.class_falls(norms=(norm,))
    estimate._stepped = remembered
    [falls] = estimate.class_falls(norms=(norm,))
    found = torch.autograd.grad(falls[0, 2] + falls[1, 2], weights, allow_unused=True)

    for weight, gradient in zip(weights, found):
        place = tuple(0 for _ in weight.shape)
        with torch.no_grad():
            before, step = float(weight[place]), 1e-6
            weight[place] = before + step
            above = value()
            weight[place] = before - step
            below = value()
            weight[place] = before
        assert float(gradient[place]) == pytest.approx(
            (above - below) / (2 * step), rel=1e-4, abs=1e-6
        )


def test_within_one_per_cent_of_the_exact_norms_while_weights_move():
    torch.manual_seed(0)
    model, (x, y) = network("strided", torch.float32).train(), images(32, torch.float32)
    bounded = BoundedModule(model, perturbations=[L2, L1])
    loss = build_loss("joint", [L2, L1], region_2="lipschitz", region_1="lipschitz")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss(bounded, x, y).value.backward()
        optimizer.step()
    for found, norm in zip(bounded.class_falls(x, (2, 1)), (2, 1)):
        found, exact = found.detach(), exact_falls(copy.deepcopy(model).eval(), x, norm)
        assert float((found / exact).fill_diagonal_(1).min()) > 0.99 and bool(
            (found <= exact * 1.0001).all()
        )


def test_the_vectors_are_kept_and_restored():
    model, (x, _) = network("strided"), images()
    first, second = BoundedModule(model), BoundedModule(copy.deepcopy(model))
    for _ in range(3):
        first.class_falls(x, (2, 1))
    second.lipschitz_vectors.update(
        {pair: vector.clone() for pair, vector in first.lipschitz_vectors.items()}
    )
    for _ in range(3):
        for one, other in zip(first.class_falls(x, (1, 2)), second.class_falls(x, (1, 2))):
            assert torch.equal(one, other)
    assert not torch.equal(BoundedModule(model).class_falls(x)[0], first.class_falls(x)[0])


# --- the loss -------------------------------------------------------------------------------------


@networks
@pytest.mark.parametrize("emma", [True, False])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_value_and_gradients_are_the_formulas(name, emma, mode):
    model, (x, y) = network(name), images()
    bounded = BoundedModule(model, perturbations=[L2]).train(mode == "train")
    found = build_loss("cure_l2", [L2], region_2="lipschitz", emma_2=emma)(bounded, x, y)
    bounded.lipschitz_vectors.clear()  # once more from the start: the same vectors
    [falls] = bounded.class_falls(x)
    logits = found.logits
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
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_same_gradients(gradients(found.value, model), gradients(expected, model))
    assert found.hidden is None


@networks
@pytest.mark.parametrize("ptb", [L2, PerturbationL2Box(0.4), L1, LINF], ids=str)
def test_margins_with_converged_constants_hold_against_an_attack(name, ptb):
    model, (x, y) = network(name), images()
    bounded = BoundedModule(model, perturbations=[ptb])
    term = LossTerm(ptb, "lipschitz")
    for _ in range(5):
        [falls] = bounded.class_falls(x, [term.lipschitz_norm])
    C = torch.stack(
        [
            torch.stack(
                [
                    F.one_hot(label, 3) - F.one_hot(torch.tensor(k), 3)
                    for k in range(3)
                    if k != label
                ]
            )
            for label in y
        ]
    ).to(x)
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
    found = build_loss(name, [LINF, L2, L1], **options)(bounded, x, y)
    found.value.backward()
    assert torch.isfinite(found.value) and len(found.margins) == 3
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
    found = build_loss("cure_l2", [L2], region_2="lipschitz")(
        BoundedModule(model), x, y, eps_scale=0.0
    )
    assert found.value.item() == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-12)
    found.value.backward()
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
    found = build_loss("cure_l2", [L2], region_2="lipschitz")(BoundedModule(model), x, y)
    found.value.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_a_shrunk_branch_is_refused():
    with pytest.raises(InvalidArgumentError, match="shrink.*lipschitz"):
        LossTerm(L2, "lipschitz", shrink=0.5)


def test_a_branch_cannot_be_aligned_with_itself():
    with pytest.raises(InvalidArgumentError, match="two"):
        build_loss("cure", [L2], region_2="lipschitz")
    assert MultiNormLoss([LossTerm(L2, "lipschitz")]).regularized == 0
