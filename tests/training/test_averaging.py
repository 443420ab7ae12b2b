"""The mean of the weights, and checkpoints that hold it."""

import pytest
import torch
from torch import nn

from lirpa_multinorm.training.averaging import WeightAverage


def networks(count, dtype=torch.float32):
    for seed in range(count):
        torch.manual_seed(seed)
        yield nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)


def mean_by_hand(models):
    """The running mean, as checkpoints of before torch's AveragedModel were made."""
    means = {}
    for count, model in enumerate(models, 1):
        for name, value in model.named_parameters():
            mean = means.setdefault(name, value.detach().clone())
            mean += (value.detach() - mean) / count
    return means


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_mean_is_that_of_before_bit_for_bit(count, dtype):
    models = list(networks(count, dtype))
    average = WeightAverage(models[0])
    for model in models:
        average.add(model)
    state = average.state_dict()
    expected = mean_by_hand(models)
    assert state["count"] == count and list(state["weights"]) == list(expected)
    assert all(torch.equal(state["weights"][name], expected[name]) for name in expected)


def test_a_state_of_before_goes_on_to_the_same_mean():
    models = list(networks(4))
    average = WeightAverage(models[0])
    average.load_state_dict({"count": 2, "weights": mean_by_hand(models[:2])})
    for model in models[2:]:
        average.add(model)
    target = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    average.apply_to(target)
    expected = mean_by_hand(models)
    assert all(torch.equal(value, expected[name]) for name, value in target.named_parameters())


def test_what_is_averaged_does_not_follow_the_model():
    (model,) = networks(1)
    average = WeightAverage(model)
    average.load_state_dict({"count": 0, "weights": {}})
    assert average.state_dict() == {"count": 0, "weights": {}}
    average.add(model)
    before = mean_by_hand([model])
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(average.state_dict()["weights"]["0.weight"], before["0.weight"])
