"""ReceptiveFields.

Only what they see counts, so bounds through them are those of the whole network.
"""

import pytest
import torch
from torch import nn

from lirpa_multinorm.verifier import receptive_fields as fields_module
from lirpa_multinorm.verifier.affine_matrices import AffineMatrices
from lirpa_multinorm.verifier.receptive_fields import ReceptiveField, ReceptiveFields, WholeLayer
from lirpa_multinorm.verifier.relaxations.crown import CrownSlopes, crown_bounds
from lirpa_multinorm.verifier.relu_network import ReluNetwork
from tests.checks import assert_same
from tests.verifier.conv_networks import SETS, prepared


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("name", ["strided", "dense", "skip"])
def test_bounds_through_windows_are_those_through_the_network(name, layer, monkeypatch):
    monkeypatch.setattr(fields_module, "WORTH", 1e9)  # also where it does not pay
    network, regions, hidden = prepared(name)
    x = regions[0].center
    slopes, whole = CrownSlopes.of(hidden, layer), WholeLayer(network, layer, torch.device("cpu"))
    seen, rows = [], torch.arange(2 * len(SETS))
    for window in ReceptiveFields(AffineMatrices(network)).of(layer, x):
        assert isinstance(window, ReceptiveField)
        for place, neuron in enumerate(window.neurons[::11].tolist()):
            v = torch.zeros(len(rows), len(window.neurons))
            v[:, 11 * place] = 1
            whole_v = torch.zeros(len(rows), len(whole.neurons))
            whole_v[:, neuron] = 1
            for sign in (1, -1):
                assert_same(
                    *[
                        crown_bounds(
                            part.network,
                            part.regions(regions, rows),
                            CrownSlopes(*[part.rows(values, rows) for values in slopes]),
                            sign * form,
                        )
                        for part, form in ((window, v), (whole, whole_v))
                    ]
                )
        seen.extend(window.neurons.tolist())
    assert sorted(seen) == list(range(network.shapes[layer].numel()))  # every neuron has its window


def fields_of(name):
    """The receptive fields of a network, and an image."""
    network, regions, _ = prepared(name)
    return ReceptiveFields(AffineMatrices(network)), regions[0].center


def identity(field):
    return torch.eye(len(field.neurons))


def test_windows_are_small_behind_convolutions_and_given_up_where_all_is_seen():
    fields, x = fields_of("strided")
    second = fields.of(1, x)
    assert len(second) == 9 and all(isinstance(field, ReceptiveField) for field in second)
    assert max(field.size for field in second) == 5 + 3 * 3 * 4 + 7 * 7 * 3
    assert second is fields.of(1, x)  # made once
    few = fields.of(1, x, neurons=10)  # larger ones, so that there are few
    assert len(few) <= 9 and sum(len(field.neurons) for field in few) == 45


def test_whole_layers_take_over_where_matrices_would_be_too_large(monkeypatch):
    network, regions, _ = prepared("strided")
    large = AffineMatrices(network)
    large.sizes = [1 << 16] * len(large.sizes)
    for matrices, worth in ((AffineMatrices(network), 1), (large, 1e9)):
        monkeypatch.setattr(fields_module, "WORTH", worth)
        (field,) = ReceptiveFields(matrices).of(1, regions[0].center)
        assert isinstance(field, WholeLayer)
        assert len(field.neurons) == network.shapes[1].numel()


def test_large_images_are_cut_into_few_tiles(monkeypatch):
    monkeypatch.setattr(fields_module, "WORTH", 1e9)
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1980, 2)).eval()
    x = torch.rand(1, 1, 20, 33)
    tiles = ReceptiveFields(AffineMatrices(ReluNetwork(model, x))).of(0, x)
    assert len(tiles) == 7 * 7
    assert torch.equal(torch.cat([tile.neurons for tile in tiles]).sort()[0], torch.arange(1980))


def test_a_map_in_chunks_is_the_map_in_one(monkeypatch):
    def pulled():
        fields, x = fields_of("skip")
        return [field.pull(2, identity(field)) for field in fields.of(2, x)]

    whole, rows = pulled(), ReluNetwork.rows
    monkeypatch.setattr(
        ReluNetwork, "rows", lambda network, layer, like, _: rows(network, layer, like, 1500)
    )
    for (constant, at_input, at_relus), (other, same, relus) in zip(whole, pulled()):
        assert_same([constant, at_input, *at_relus], [other, same, *relus])


def test_large_windows_are_made_each_time(monkeypatch):
    """Of a layer of rows, which is not cut into tiles: all its neurons see all the pixels."""
    monkeypatch.setattr(fields_module, "WORTH", 1e9)
    made = []
    for size in (100, 4100):
        model = nn.Sequential(
            nn.Conv1d(1, 1, 1), nn.ReLU(), nn.Conv1d(1, 1, 1), nn.ReLU(), nn.Conv1d(1, 1, 1)
        ).eval()
        x = torch.rand(1, 1, size)
        fields = ReceptiveFields(AffineMatrices(ReluNetwork(model, x)))
        (first,), (second,) = fields.of(1, x), fields.of(1, x)
        made.append(first is not second)
        v = torch.randn(2, size)
        (constant, _, (at_relu,)), (other, _, (same,)) = first.pull(1, v), second.pull(1, v)
        assert torch.equal(first.neurons, second.neurons)
        assert_same([constant, at_relu], [other, same], 0, 0)
        assert_same(at_relu, v * model[2].weight.detach().squeeze())
    assert made == [False, True]
