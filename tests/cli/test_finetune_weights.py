"""``finetune`` from weights without a checkpoint, and from what are none."""

import pytest
import torch

from lirpa_multinorm.training import ModelSpec, initial_weights, load_checkpoint
from tests.cli.runs import error_of, finetune
from tests.toy import SPEC

#: Takes three channels, with a normalisation.
NORMALIZED = ModelSpec("mlp", (3, 4, 4), 3, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3), {"hidden": [8]})
pytestmark = pytest.mark.usefixtures("no_figures")


def renamed(state):
    return {f"layers.{i}": value for i, value in enumerate(state.values())}


def without_counts(state):
    return {name: value for name, value in state.items() if "num_batches" not in name}


SHAPES = {
    "bare": lambda state: state,
    "renamed": renamed,
    "without_counts": without_counts,
    "data_parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": renamed(state), "optimizer": {}},
    "model_state_dict": lambda state: {
        "epoch": 3,
        "model_state_dict": state,
        "optimizer_state_dict": {},
    },
    "net": lambda state: {
        "net": {f"module.{name}": value for name, value in state.items()},
        "acc": 0.9,
    },
    "nested": lambda state: {"state_dict": {"model": state}},
    "two_prefixes": lambda state: {
        f"_orig_mod.module.{name}": value for name, value in state.items()
    },
    "double": lambda state: {name: value.double() for name, value in state.items()},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_finetuning_from_a_plain_state_dict(shape, file, tmp_path):
    model = ModelSpec("cnn3", (1, 4, 4), 3, options={"width": 2}).build()
    torch.save(shape(model.state_dict()), tmp_path / "weights.pt")
    assert (
        finetune(
            tmp_path / "weights.pt",
            file,
            tmp_path / "run",
            "--model",
            "cnn3",
            "--width",
            2,
            "--eps-inf",
            0.05,
            "--eps-2",
            0.1,
            "--learning-rate",
            1e-12,
        )
        == 0
    )
    loaded = load_checkpoint(tmp_path / "run" / "finetune" / "checkpoint.pt").model
    for item, other in zip(model.parameters(), loaded.parameters()):
        assert torch.allclose(item, other, atol=1e-6)


def test_weights_of_a_network_without_normalisation(tmp_path):
    model = NORMALIZED.build()
    with torch.no_grad():
        plain = {
            name: torch.rand_like(value) for name, value in list(model.state_dict().items())[2:]
        }
    plain = {
        f"{int(name[0]) - 1}{name[1:]}": value for name, value in plain.items()
    }  # layers count from 0 again
    torch.save(plain, tmp_path / "weights.pt")
    before = model.state_dict()["0.mean"].clone()
    initial_weights(tmp_path / "weights.pt", model)
    assert all(torch.equal(item, other) for item, other in zip(model.parameters(), plain.values()))
    assert torch.equal(model.state_dict()["0.mean"], before)


class Code:
    """Pickles to a call that would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def unsafe(path):
    torch.save({"0.weight": Code(path.with_name("trace"))}, path)


def whole_model(path):
    torch.save(SPEC.build(), path)


def other_shape(path):
    torch.save(ModelSpec("mlp", (1, 4, 4), 3, options={"hidden": [9]}).build().state_dict(), path)


def no_weights(path):
    torch.save({"epoch": 3}, path)


def a_list(path):
    torch.save([1, 2], path)


def empty(path):
    torch.save({}, path)


def text(path):
    path.write_text("weights")


def no_file(path):
    assert not path.exists()


UNUSABLE = {
    no_file: "CHECKPOINT: there is no file",
    unsafe: "could run code",
    whole_model: "could run code",
    other_shape: "another architecture",
    no_weights: "hold no state dict (it has epoch)",
    a_list: "hold no state dict",
    empty: "hold no state dict",
    text: "cannot be read",
}


@pytest.mark.parametrize("make", UNUSABLE, ids=lambda item: item.__name__)
def test_files_that_nothing_can_start_from(make, file, tmp_path, capsys):
    path = tmp_path / "weights.pt"
    make(path)
    line = error_of(
        capsys,
        finetune(path, file, tmp_path / "run", "--model", "mlp", "--eps-inf", 0.05, "--eps-2", 0.1),
    )
    assert UNUSABLE[make] in line and str(path) in line
    assert not (tmp_path / "trace").exists() and not list(tmp_path.rglob("checkpoint.pt"))
