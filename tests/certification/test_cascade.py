"""Certification against exact truth, stage by stage, and never more than an attack allows."""

import dataclasses
import math
import warnings

import pytest
import torch
from torch import nn

from lirpa_multinorm import (AttackSettings, BoundedModule, CertifySettings, PerturbationL1Box, PerturbationL2Box,
                             PerturbationLinf, PerturbationLpBox, build_loss, certify, margin_matrix, pgd)
from lirpa_multinorm.attacks import margin_loss
from lirpa_multinorm.certification import (CERTIFIED, EVALUATION_ATTACK, EVALUATION_ATTACKS, FALSIFIED, METHODS,
                                           MISCLASSIFIED, STATUSES, UNKNOWN, cascade, stages)
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.models import cnn3, cnn_small, mlp

SETS = [PerturbationLinf(0.05), PerturbationL2Box(0.15), PerturbationL1Box(0.4)]
BOUNDS = ("IBP", "CROWN-IBP", "CROWN")  # without a search, whose last digits depend on what else is in the batch
NO_ATTACK = CertifySettings(BOUNDS, attack=None)
USUAL = {CERTIFIED, FALSIFIED, UNKNOWN, MISCLASSIFIED}


@torch.no_grad()
def lively(model, x):
    """Every class is predicted for some of x, and the logits change within the small sets of these tests."""
    model.train()(x)  # BatchNorm statistics of its own
    model.eval()
    for layer in model:
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.weight.mul_(2)
    model[-1].bias.sub_(model(x).mean(0))
    return model


def network():
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 3))
    return lively(model, torch.rand(200, 6))


def inputs(count=40, features=6):
    return torch.rand(count, features)


def own_labels(model, x):
    """The network's predictions, but wrong for every fifth input."""
    y = model(x).argmax(1)
    y[::5] = (y[::5] + 1) % 3
    return y


def linear(dtype=torch.float64):
    return nn.Sequential(nn.Linear(6, 3)).to(dtype)


# --- exact truth of a linear classifier ---------------------------------------------------------------------------

def worst_margin(model, x, y, norm, eps, clip):
    """min over the set of f_y - max f_k: exact, each row by the dual norm of the ball, or greedily with clip."""
    W, b = model[0].weight.detach(), model[0].bias.detach()
    worst = []
    for point, label in zip(x, y):
        rows = [(W[label] - W[k], b[label] - b[k]) for k in range(3) if k != label]
        worst.append(min((a @ point + shift).item() - decrease(-a, point, norm, eps, clip) for a, shift in rows))
    return torch.tensor(worst, dtype=x.dtype)


def decrease(a, point, norm, eps, clip):
    """max a.d over the set."""
    if clip is None:
        return eps * torch.linalg.vector_norm(a, {math.inf: 1, 2: 2, 1: math.inf}[norm]).item()
    low, high = clip[0] - point, clip[1] - point
    if norm == math.inf:
        return (a * torch.where(a > 0, high.clamp(max=eps), low.clamp(min=-eps))).sum().item()
    reach = torch.where(a > 0, high, -low)
    if norm == 1:  # spend the budget where it pays most
        left, total = eps, 0.0
        for i in a.abs().argsort(descending=True).tolist():
            spent = min(left, reach[i].item())
            total, left = total + abs(a[i].item()) * spent, left - spent
        return total
    low_t, high_t = 0.0, 1e6
    for _ in range(200):
        t = (low_t + high_t) / 2
        long = torch.minimum(a.abs() * t, reach).norm() > eps
        low_t, high_t = (low_t, t) if long else (t, high_t)
    return (a.abs() * torch.minimum(a.abs() * low_t, reach)).sum().item()


@pytest.mark.parametrize("clip", [(0.0, 1.0), None], ids=["clip", "ball"])
@pytest.mark.parametrize("norm, eps", [(math.inf, 0.06), (2, 0.15), (1, 0.35)], ids=["linf", "l2", "l1"])
@pytest.mark.parametrize("methods", [("IBP",), ("CROWN",), METHODS], ids=["ibp", "crown", "all"])
def test_linear_classifiers_are_certified_exactly_where_they_are_robust(norm, eps, clip, methods):
    model, x = linear(), inputs(60).double()
    y = own_labels(model, x)
    truth = worst_margin(model, x, y, norm, eps, clip)
    assert (truth.abs() > 1e-9).all()  # no input sits on the boundary
    found = certify(model, x, y, [PerturbationLpBox(norm, eps, clip)], CertifySettings(methods, None))
    assert 5 < int((truth > 0).sum()) < 55  # both kinds occur
    assert found.is_status(CERTIFIED)[0].tolist() == (truth > 0).tolist()
    right = model(x).argmax(1) == y
    assert torch.allclose(found.margin[0][right].double(), truth[right], atol=1e-6)


def test_certified_radius_of_a_linear_classifier():
    """Just below the exact l_2 distance to the boundary all is certified, just above nothing is."""
    model, x = linear(), inputs(10).double()
    y = model(x).argmax(1)
    W, z = model[0].weight.detach(), model(x).detach()
    radius = torch.stack([min((z[i, y[i]] - z[i, k]) / (W[y[i]] - W[k]).norm() for k in range(3) if k != y[i])
                          for i in range(10)])
    for factor, share in ((1 - 1e-6, 1.0), (1 + 1e-6, 0.0)):
        found = certify(model, x, y, [PerturbationL2Box(radius * factor, clip=None)], NO_ATTACK)
        assert found.summary()["certified"] == [share]


# --- stages -------------------------------------------------------------------------------------------------------

def test_stages_see_open_pairs_only(monkeypatch):
    """Neither wrong, nor falsified, nor already certified pairs, nor classes already proved, are bounded again."""
    torch.manual_seed(1)
    model, x = network(), inputs(60)
    y, calls = own_labels(model, x), []

    class Spy(stages.Stage):
        def bound(self, bounded, pairs, deadline):
            calls.append((self.name, pairs, known[self.name].bound(bounded, pairs, deadline)))
            return calls[-1][2]

    known = dict(stages.STAGES)
    for name in BOUNDS:
        monkeypatch.setitem(stages.STAGES, name, Spy(name))
    sets = [PerturbationLinf(0.02), PerturbationL2Box(0.05)]
    found = certify(model, x, y, sets, CertifySettings(BOUNDS, batch_size=60))
    assert [name for name, _, _ in calls] == list(BOUNDS) and {"clean", "PGD", *BOUNDS} == set(found.method[0])
    for place, (status, method) in enumerate(zip(found.status, found.method)):
        before = {i for i in range(60) if status[i] in (CERTIFIED, UNKNOWN)}  # open after the attacks
        for name, pairs, _ in calls:
            assert set(pairs.image[pairs.place == place].tolist()) == before
            before -= {i for i in before if method[i] == name}
    for (_, earlier, bounds), (_, later, _) in zip(calls, calls[1:]):
        proved = {key for key, value in zip(keys(earlier), bounds.tolist()) if value > 0}
        assert proved and not proved & set(keys(later)) and set(keys(later)) < set(keys(earlier))


def test_crown_of_other_networks_is_the_hosts():
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 3)).eval(), torch.rand(20, 6)
    y, sets = own_labels(model, x), [PerturbationLinf(0.02)]
    found = certify(model, x, y, sets, CertifySettings(["CROWN"], None))
    lower, _ = BoundedModule(model, perturbations=sets).compute_bounds(x, C=margin_matrix(y, 3), method="CROWN")
    assert found.is_status(CERTIFIED)[0].tolist() == (lower > 0).all(1).tolist() and "CROWN" in found.method[0]


def keys(pairs):
    return list(zip(pairs.place.tolist(), pairs.image.tolist(), pairs.rival.tolist()))


def test_methods_and_statuses_belong_together():
    torch.manual_seed(1)
    model, x = network(), inputs(60)
    found = certify(model, x, own_labels(model, x), [*SETS, PerturbationLinf(0.3)])
    allowed = {CERTIFIED: set(METHODS), FALSIFIED: {"PGD"}, UNKNOWN: {""}, MISCLASSIFIED: {"clean"}}
    for statuses, methods, margins in zip(found.status, found.method, found.margin):
        assert all(method in allowed[status] for status, method in zip(statuses, methods))
        for status, margin in zip(statuses, margins.tolist()):
            assert (margin > 0) == (status == CERTIFIED)
            assert (margin == -math.inf) == (status in (FALSIFIED, MISCLASSIFIED))
    assert {status for row in found.status for status in row} == USUAL


def test_statuses_add_up_and_union_is_per_image():
    torch.manual_seed(1)
    model, x = network(), inputs(53)
    found = certify(model, x, own_labels(model, x), SETS, CertifySettings(batch_size=20))
    assert sum(found.is_status(status).sum(1) for status in STATUSES).tolist() == [53] * 3
    by_image = [all(row[i] == CERTIFIED for row in found.status) for i in range(53)]
    summary = found.summary()
    assert summary["certified_union"] == sum(by_image) / 53 and summary["n"] == 53
    assert summary["certified_union"] <= min(summary["certified"])
    assert summary["certified_union"] <= summary["attacked_union"] <= summary["clean"]


def test_misclassified_inputs_are_wrong_for_every_set():
    model, x = network(), inputs()
    y = own_labels(model, x)
    found = certify(model, x, y, SETS)
    wrong = (model(x).argmax(1) != y).tolist()
    assert any(wrong)
    for row in found.status:
        assert [one == MISCLASSIFIED for one in row] == wrong


def test_ties_are_not_correct():
    model = nn.Sequential(nn.Linear(2, 2))
    nn.init.zeros_(model[0].weight), nn.init.zeros_(model[0].bias)
    found = certify(model, torch.rand(3, 2), torch.tensor([0, 1, 0]), SETS[:1])
    assert found.status == [[MISCLASSIFIED] * 3]


def test_without_attack_nothing_is_falsified_and_no_certificate_is_lost():
    torch.manual_seed(1)
    model, x = network(), inputs()
    y, sets = own_labels(model, x), [PerturbationLinf(0.15), PerturbationL2Box(0.3)]
    with_attack, without = certify(model, x, y, sets, CertifySettings(BOUNDS)), certify(model, x, y, sets, NO_ATTACK)
    assert with_attack.is_status(FALSIFIED).any() and not without.is_status(FALSIFIED).any()
    assert torch.equal(with_attack.is_status(CERTIFIED), without.is_status(CERTIFIED))


def test_more_methods_certify_more():
    torch.manual_seed(1)
    model, x = network(), inputs(80)
    y = own_labels(model, x)
    shares = [certify(model, x, y, SETS, CertifySettings(METHODS[:count], None)).is_status(CERTIFIED)
              for count in (1, 2, 3)]
    assert (shares[0] <= shares[1]).all() and (shares[1] <= shares[2]).all() and shares[2].sum() > shares[0].sum()


# --- soundness ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("make, options", [(mlp, {}), (cnn_small, {"width": 4}), (cnn3, {"width": 4})],
                         ids=["mlp", "cnn", "batch_norm"])
def test_no_certificate_is_broken_by_a_strong_attack(make, options):
    torch.manual_seed(2)
    x = torch.rand(40, 1, 4, 4)
    model = lively(make((1, 4, 4), 3, **options), x)
    y = model(x).argmax(1)
    sets = [PerturbationLinf(0.03), PerturbationL2Box(0.08), PerturbationL1Box(0.2)]
    found = certify(model, x, y, sets, NO_ATTACK)
    certified = found.is_status(CERTIFIED)
    assert certified.any() and not certified.all()
    points = pgd(model, x, y, sets, AttackSettings(steps=100, restarts=5))
    for broken, row in zip([margin_loss(model(point), y) >= 0 for point in points], certified):
        assert not (broken & row).any()


def test_margins_bound_what_an_attack_reaches():
    torch.manual_seed(2)
    model, x = network(), inputs(30)
    y = model(x).argmax(1)
    found = certify(model, x, y, SETS, NO_ATTACK)
    for points, margins in zip(pgd(model, x, y, SETS, AttackSettings(steps=60, restarts=3)), found.margin):
        assert (-margin_loss(model(points), y) >= margins - 1e-5).all()


def test_falsified_means_an_adversarial_example_is_there():
    torch.manual_seed(2)
    model, x = network(), inputs(30)
    y, sets = model(x).argmax(1), [PerturbationLinf(0.2), PerturbationL2Box(0.2)]
    found = certify(model, x, y, sets)
    falsified = found.is_status(FALSIFIED)
    assert falsified.any() and not falsified.all()
    assert set(found.adversarial) == {tuple(pair) for pair in falsified.nonzero().tolist()}
    for (place, image), point in found.adversarial.items():
        assert sets[place].contains(point[None], x[image:image + 1]).all() and model(point).argmax() != y[image]


def test_points_outside_the_set_falsify_nothing(monkeypatch):
    """An attack that cheats is not believed."""
    model, x = linear(torch.float32), inputs(20)
    y = model(x).argmax(1)
    monkeypatch.setattr(cascade, "attack_regions", lambda _, regions, *rest: [one.center.flip(0) for one in regions])
    found = certify(model, x, y, [PerturbationLinf(1e-4)])
    assert not found.is_status(FALSIFIED).any()


@pytest.mark.parametrize("attack", [None, EVALUATION_ATTACK], ids=["no_attack", "attack"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_broken_weights_certify_nothing(layer, value, attack):
    model, x = network(), inputs(10)
    y = model(x).argmax(1)
    with torch.no_grad():
        model[layer].weight[0, 0] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # images with the status "error"
        found = certify(model, x, y, SETS, CertifySettings(attack=attack))
    assert all("NaN" in message for message in found.errors.values())
    for row, wrong in zip(found.is_status(CERTIFIED), [~torch.isfinite(model(x)).all(1)] * 3):
        assert not (row & wrong).any()
    if math.isnan(value):
        assert not found.is_status(CERTIFIED).any()


# --- batches, radii per example, modes ----------------------------------------------------------------------------

@pytest.mark.parametrize("batch_size", [1, 7, 40, 1000])
def test_batch_boundaries_do_not_matter(batch_size):
    torch.manual_seed(1)
    model, x = network(), inputs()
    y = own_labels(model, x)
    whole = certify(model, x, y, SETS, NO_ATTACK)
    parts = certify(model, x, y, SETS, dataclasses.replace(NO_ATTACK, batch_size=batch_size))
    assert (parts.status, parts.method) == (whole.status, whole.method)
    assert torch.allclose(parts.margin, whole.margin, atol=1e-5)


def test_a_radius_per_example_follows_its_image():
    torch.manual_seed(1)
    model, x = network(), inputs(23)
    y, eps = own_labels(model, x), torch.rand(23) * 0.1
    sets = [PerturbationLinf(eps), PerturbationL2Box(3 * eps)]
    found = certify(model, x, y, sets, CertifySettings(BOUNDS, batch_size=5, attack=None))
    for i in range(23):
        alone = [PerturbationLinf(float(eps[i])), PerturbationL2Box(3 * float(eps[i]))]
        one = certify(model, x[i:i + 1], y[i:i + 1], alone, NO_ATTACK)
        assert [row[i] for row in found.status] == [row[0] for row in one.status]
        assert torch.allclose(found.margin[:, i], one.margin[:, 0], atol=1e-5)
    assert found.perturbations[0].eps is eps
    attacked = certify(model, x, y, [PerturbationLinf(4 * eps)], CertifySettings(batch_size=5))
    assert attacked.is_status(FALSIFIED).any()


def test_a_radius_of_the_wrong_length_is_refused():
    model, x = network(), inputs(4)
    with pytest.raises(InvalidArgumentError, match="eps has 3 values for a batch of 4"):
        certify(model, x, model(x).argmax(1), [PerturbationLinf(torch.full((3,), 0.1))])


def test_a_single_image():
    model, x = network(), inputs(1)
    found = certify(model, x, model(x).argmax(1), SETS)
    assert found.margin.shape == (3, 1) and found.summary()["n"] == 1 and found.summary()["clean"] == 1


def test_radius_zero_certifies_what_is_correct():
    model, x = network(), inputs()
    y = own_labels(model, x)
    found = certify(model, x, y, [one.with_eps(0.0) for one in SETS]).summary()
    assert found["certified"] == [found["clean"]] * 3 and found["clean"] == 0.8


def mixed_modes():
    """A BatchNorm layer frozen in eval mode within a model in training mode."""
    model = cnn3((1, 4, 4), 3, width=2).train()
    model[1].eval()
    return model


@pytest.mark.parametrize("wrap", [lambda model: model, BoundedModule], ids=["plain", "bounded"])
def test_modes_statistics_and_gradients_are_left_alone(wrap):
    model = mixed_modes()
    modes = [module.training for module in model.modules()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    x = torch.rand(5, 1, 4, 4)
    certify(wrap(model), x, torch.zeros(5, dtype=torch.long), SETS)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


WRONG = {"labels": lambda x, y: (x, y + 3), "count": lambda x, y: (x, y[:-1]),
         "float_labels": lambda x, y: (x, y.float()), "shape": lambda x, y: (x[:, :-1], y),
         "outside_clip": lambda x, y: (x * 3, y), "nan": lambda x, y: (x * math.nan, y),
         "dtype": lambda x, y: (x.double(), y), "empty": lambda x, y: (x[:0], y[:0])}


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
def test_wrong_inputs_are_refused_and_the_mode_is_restored(spoil):
    model, x = network().train(), inputs(4)
    with pytest.raises(InvalidArgumentError):
        certify(model, *spoil(x, model(x).argmax(1)), SETS)
    assert all(module.training for module in model.modules())


def test_an_interruption_restores_the_mode(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cascade.Cascade, "certify", interrupted)
    model, x = network().train(), inputs(4)
    with pytest.raises(KeyboardInterrupt):
        certify(model, x, model(x).argmax(1), SETS)
    assert all(module.training for module in model.modules())


BAD = {"batch_size": ({"batch_size": 0}, "batch_size=0"), "method": ({"methods": ["IBP", "magic"]}, "'magic'"),
       "string": ({"methods": "IBP"}, r"methods='IBP' must be a list")}


@pytest.mark.parametrize("arguments, match", BAD.values(), ids=BAD)
def test_unusable_settings_are_refused(arguments, match):
    with pytest.raises(InvalidArgumentError, match=match):
        CertifySettings(**arguments)


@pytest.mark.parametrize("call", ["certify", "pgd", "loss"])
def test_labels_on_another_device_are_refused(call):
    model, x, y = nn.Sequential(nn.Linear(3, 2)), torch.rand(2, 3), torch.zeros(2, dtype=torch.long, device="meta")
    sets = [PerturbationLinf(0.1)]
    calls = {"certify": lambda: certify(model, x, y, sets), "pgd": lambda: pgd(model, x, y, sets),
             "loss": lambda: build_loss("ibp", sets)(BoundedModule(model), x, y)}
    with pytest.raises(InvalidArgumentError, match="labels is on meta.*labels.to"):
        calls[call]()


# --- attacks ------------------------------------------------------------------------------------------------------

FEW_STEPS = dataclasses.replace(EVALUATION_ATTACK, steps=3)


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_adversarial_examples_do_not_depend_on_the_batch(batch_size):
    torch.manual_seed(1)
    model, x = network(), inputs()
    y, sets = own_labels(model, x), [PerturbationLinf(0.15), PerturbationL2Box(0.3), PerturbationL1Box(0.5)]
    settings = CertifySettings(["IBP"], [FEW_STEPS, dataclasses.replace(FEW_STEPS, loss="ce")], 13)
    found = certify(model, x, y, sets, settings)
    other = certify(model, x, y, sets, dataclasses.replace(settings, batch_size=batch_size))
    assert found.adversarial and found.adversarial.keys() == other.adversarial.keys()
    assert all(torch.allclose(point, other.adversarial[key], atol=1e-5) for key, point in found.adversarial.items())
    assert torch.equal(found.prediction, model(x).argmax(1))


def test_another_seed_starts_elsewhere():
    torch.manual_seed(1)
    model, x = network(), inputs()
    settings = [CertifySettings([], FEW_STEPS, seed=seed) for seed in (0, 0, 1)]
    found = [certify(model, x, model(x).argmax(1), [PerturbationL2Box(0.3)], one).adversarial for one in settings]
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert any(key not in found[2] or not torch.equal(found[0][key], found[2][key]) for key in found[0])


def test_later_attacks_see_only_what_is_not_broken(monkeypatch):
    torch.manual_seed(1)
    model, x = network(), inputs()
    calls, attack = [], cascade.attack_regions

    def spy(model, regions, labels, settings, starts):
        calls.append((settings.loss, sum(len(one.center) for one in regions)))
        return attack(model, regions, labels, settings, starts)

    monkeypatch.setattr(cascade, "attack_regions", spy)
    found = certify(model, x, model(x).argmax(1), [PerturbationLinf(0.1), PerturbationL2Box(0.1)])
    (first, every), (second, rest) = calls
    assert (first, second, every) == ("margin", "ce", 80) and CertifySettings().attack == EVALUATION_ATTACKS
    assert 0 < 80 - rest <= len(found.adversarial)
