"""The released networks: settings, weights, certificates and their table belong together."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import release
from lirpa_multinorm import (
    BoundedModule,
    CertifySettings,
    PerturbationLpBox,
    certify,
    margin_matrix,
)
from lirpa_multinorm.certification import METHODS
from lirpa_multinorm.certification.record_header import digest
from lirpa_multinorm.experiments.presets import load_preset
from lirpa_multinorm.experiments.presets.tables import of_this_package
from lirpa_multinorm.training import load_checkpoint
from lirpa_multinorm.training.config import describe_sets

NETWORKS = Path(__file__).resolve().parents[2] / "networks"
NAMES = sorted(path.parent.name for path in NETWORKS.glob("*/checkpoint.pt"))


def certificates(name):
    return json.loads((NETWORKS / name / "certified.json").read_text())


#: Recipes without a network: those of papers take a GPU, the others were not trained to the end.
WITHOUT_NETWORK = {
    "cifar10-linf-dist-8_255-published",
    "mnist-linf-dist-0.1-published",
    "mnist-linf-dist-0.3-published",
    "mnist-patch-5x5-ibp",
}


#: The constant decides there; bounds that are propagated add next to none.
BY_THE_CONSTANT = {"mnist-l2-0.5", "mnist-l2-1.0", "mnist-l2-1.58"}


def test_every_recipe_has_its_network():
    assert set(NAMES) == set(of_this_package()) - WITHOUT_NETWORK


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_trained_by_the_recipe_of_its_name(name):
    result, preset = load_checkpoint(NETWORKS / name / "checkpoint.pt"), load_preset(name)
    assert result.config == preset.train.in_epochs() and result.epoch == preset.train.epochs
    assert (result.spec.name, result.spec.options) == (preset.model, preset.model_options)
    assert describe_sets(result.perturbations) == describe_sets(preset.perturbations())


@pytest.mark.parametrize("name", NAMES)
def test_certificates_are_of_the_weights_beside_them_and_of_the_cascade(name):
    path, written = NETWORKS / name / "checkpoint.pt", certificates(name)
    assert path.stat().st_size <= release.LARGEST
    model = load_checkpoint(path).model
    assert written["weights_sha256"] == digest(model.state_dict().items())
    methods = ["Lipschitz"] if name in BY_THE_CONSTANT else list(METHODS)
    assert written["settings"]["methods"] == methods
    assert written["result"]["n"] >= (500 if written["data"] == "digits" else 1000)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_can_be_certified(name):
    actual = load_checkpoint(NETWORKS / name / "checkpoint.pt")
    x = torch.zeros(1, *actual.spec.in_shape)  # no image of the data set, and far from deciding
    y = actual.model.eval()(x).argmax(1)
    result = certify(
        actual.model, x, y, actual.perturbations, CertifySettings(["IBP", "CROWN"], attack=None)
    )
    assert result.summary()["clean"] == 1


def test_the_table_is_that_of_the_certificates():
    table = release.table(NETWORKS)
    assert table in (NETWORKS / "README.md").read_text()
    assert table.replace("](", "](networks/") in (NETWORKS.parent / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("norm", [2, 1])
def test_sdp_crown_is_no_looser_than_the_constants(norm):
    """Of a network made for its constant, lines through the activations alone are looser."""
    model = load_checkpoint(NETWORKS / "mnist-l2-1.58" / "checkpoint.pt").model.eval()
    torch.manual_seed(0)
    x = torch.rand(1, 1, 4, 4).repeat_interleave(7, 2).repeat_interleave(7, 3)
    bounded = BoundedModule(model, perturbations=[PerturbationLpBox(norm, 0.5)])
    C = margin_matrix(model(x).argmax(1), 10)
    by_constants, by_sdp_crown = (
        bounded.compute_bounds(x, C=C, method=method, bound_upper=False)[0]
        for method in ("Lipschitz", "SDP-CROWN")
    )
    assert bool((by_sdp_crown >= by_constants).all())
