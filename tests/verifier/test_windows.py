"""ReceptiveFields.

Only what they see counts, so bounds through them are those of the whole network.
"""

import pytest
import torch

from lirpa_multinorm.verifier import affine_matrices as matrices_module
from lirpa_multinorm.verifier import receptive_fields as windows_module
from lirpa_multinorm.verifier.affine_matrices import AffineMatrices
from lirpa_multinorm.verifier.receptive_fields import ReceptiveField, ReceptiveFields, WholeLayer
from lirpa_multinorm.verifier.relaxations.crown import CrownSlopes, crown_bounds
from tests.verifier.conv_networks import SETS, prepared


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("name", ["strided", "dense", "skip"])
def test_bounds_through_windows_are_those_through_the_network(name, layer, monkeypatch):
    monkeypatch.setattr(windows_module, "WORTH", 1e9)  # also where it does not pay
    network, regions, hidden, x = prepared(name)
    slopes, whole = CrownSlopes.of(hidden, layer), WholeLayer(network, layer)
    seen, rows = [], torch.arange(2 * len(SETS))
    for window in ReceptiveFields(AffineMatrices(network)).of(layer, x):
        assert isinstance(window, ReceptiveField)
        for place, neuron in enumerate(window.neurons[::11].tolist()):
            v = torch.zeros(len(rows), len(window.neurons))
            v[:, 11 * place] = 1
            whole_v = torch.zeros(len(rows), len(whole.neurons))
            whole_v[:, neuron] = 1
            for sign in (1, -1):
                found, expected = (
                    crown_bounds(
                        part.network,
                        part.regions(regions, rows),
                        CrownSlopes(*[part.rows(one, rows) for one in slopes]),
                        sign * one,
                    )
                    for part, one in ((window, v), (whole, whole_v))
                )
                assert torch.allclose(found, expected, atol=1e-5)
        seen.extend(window.neurons.tolist())
    assert sorted(seen) == list(range(network.shapes[layer].numel()))  # every neuron has its window


def test_windows_are_small_behind_convolutions_and_given_up_where_all_is_seen():
    network, _, _, x = prepared("strided")
    windows = ReceptiveFields(AffineMatrices(network))
    second = windows.of(1, x)
    assert len(second) == 9 and all(isinstance(one, ReceptiveField) for one in second)
    assert max(one.size for one in second) == 5 + 3 * 3 * 4 + 7 * 7 * 3
    assert second is windows.of(1, x)  # made once
    few = windows.of(1, x, neurons=10)  # larger ones, so that there are few
    assert len(few) <= windows_module._COARSE**2 and sum(len(one.neurons) for one in few) == 45


def test_whole_layers_take_over_where_matrices_would_be_too_large(monkeypatch):
    network, _, _, x = prepared("strided")
    for module, name, value in (
        (windows_module, "WORTH", 1),
        (matrices_module, "_MAX_PULLED", 100),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            (one,) = ReceptiveFields(AffineMatrices(network)).of(1, x)
            assert isinstance(one, WholeLayer) and len(one.neurons) == network.shapes[1].numel()


def test_large_images_are_cut_into_few_tiles():
    tiles = windows_module._tiles(torch.Size([3, 20, 33]), 8)
    assert len(tiles) == 7 * 7 and torch.equal(
        torch.cat(tiles).sort()[0], torch.arange(3 * 20 * 33)
    )


def test_a_map_in_chunks_is_the_map_in_one(monkeypatch):
    network, _, _, x = prepared("skip")
    whole = [
        window.pull(2, torch.eye(len(window.neurons)))
        for window in ReceptiveFields(AffineMatrices(network)).of(2, x)
    ]
    monkeypatch.setattr(matrices_module, "_CHUNK", 1500)
    parts = [
        window.pull(2, torch.eye(len(window.neurons)))
        for window in ReceptiveFields(AffineMatrices(network)).of(2, x)
    ]
    for (constant, at_input, at_relus), (other, same, relus) in zip(whole, parts):
        assert torch.allclose(constant, other) and torch.allclose(at_input, same)
        assert all(torch.allclose(one, two) for one, two in zip(at_relus, relus))


def test_large_windows_are_made_each_time(monkeypatch):
    network, _, _, x = prepared("skip")
    windows = ReceptiveFields(AffineMatrices(network))
    kept = windows.of(2, x)
    monkeypatch.setattr(windows_module, "_MAX_KEPT", 0)
    windows = ReceptiveFields(AffineMatrices(network))
    for _ in range(2):
        made = list(windows.of(2, x))
        assert len(made) == len(kept) > 1
        for one, other in zip(kept, made):
            v = torch.eye(len(one.neurons))
            assert torch.equal(one.neurons, other.neurons) and torch.equal(
                one.pull(2, v)[0], other.pull(2, v)[0]
            )
    assert list(windows.of(2, x))[0] is not made[0]
