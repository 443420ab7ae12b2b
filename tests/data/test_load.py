"""Data sets: shapes, scales and splits; clear errors; batches and augmentation."""

from __future__ import annotations

import gzip
import struct
import sys

import numpy as np
import pytest
import torch

from lirpa_multinorm import data
from lirpa_multinorm.data import loading
from lirpa_multinorm.errors import DatasetNotFoundError, InvalidArgumentError


def arrays(**changes):
    """The content of a good file of 6 + 4 colour images in 3 classes."""
    rng = np.random.default_rng(0)
    good = {
        "x_train": rng.integers(0, 256, (6, 3, 5, 4), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": rng.integers(0, 256, (4, 3, 5, 4), dtype=np.uint8),
        "y_test": np.array([2, 1, 0, 0], dtype=np.uint8),
    }
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


def save(folder, **changes):
    path = folder / "mine.npz"
    np.savez(path, **arrays(**changes))
    return path


# --- named data sets ---


def test_digits_split_is_fixed_stratified_and_scaled():
    pytest.importorskip("sklearn")
    digits, again = data.load("digits"), data.load("digits")
    assert digits.x_train.shape == (1297, 1, 8, 8) and digits.x_test.shape == (500, 1, 8, 8)
    assert digits.x_train.dtype == torch.float32 and digits.y_train.dtype == torch.int64
    assert (digits.x_train.min(), digits.x_train.max()) == (0, 1)
    assert (digits.in_shape, digits.num_classes, digits.mean, digits.std) == (
        (1, 8, 8),
        10,
        (0.0,),
        (1.0,),
    )
    assert torch.equal(digits.x_test, again.x_test) and torch.equal(digits.y_train, again.y_train)
    # Each class has 174 to 183 of the 1797 images, so 48 to 51 of the 500.
    assert digits.y_test.bincount().min() >= 48 and digits.y_test.bincount().max() <= 51
    seen = {tuple(x.flatten().tolist()) for x in digits.x_train}
    assert not any(tuple(x.flatten().tolist()) in seen for x in digits.x_test)


def test_digits_without_sklearn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(
        DatasetNotFoundError, match=r'pip install "lirpa-multinorm\[demo\]"'
    ) as caught:
        data.load("digits")
    assert isinstance(caught.value.__cause__, ImportError)


def write_mnist(folder, count):
    """MNIST's four files with ``count`` images each, whose pixels count upwards."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = (np.arange(count * 784) % 256).astype(np.uint8)
    for part in ("train", "t10k"):
        images = struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        labels = struct.pack(">2i", 2049, count) + bytes(range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return raw, pixels


def test_mnist_is_read_from_the_folder_of_the_variable(tmp_path, monkeypatch):
    _, pixels = write_mnist(tmp_path, 10)
    monkeypatch.setenv(loading.DATA_VARIABLE, str(tmp_path))
    assert data.default_data_dir() == tmp_path
    mnist = data.load("mnist", download=False)
    assert mnist.x_train.shape == (10, 1, 28, 28) and mnist.x_train.dtype == torch.uint8
    assert mnist.x_test.flatten().tolist() == pixels.tolist()
    assert mnist.y_test.tolist() == list(range(10)) and mnist.y_test.dtype == torch.int64
    assert (mnist.mean, mnist.std, mnist.num_classes) == ((0.0,), (1.0,), 10)


def test_cifar10_is_turned_to_channels_first(tmp_path, monkeypatch):
    from torchvision import datasets

    class Stub:
        """What torchvision's class offers: (N, H, W, C) bytes and a list of labels."""

        def __init__(self, root, train, download):
            self.data = (
                np.arange(2 * 32 * 32 * 3, dtype=np.uint32).reshape(2, 32, 32, 3).astype(np.uint8)
            )
            self.targets = [3, 8] if train else [1, 9]

    monkeypatch.setattr(datasets, "CIFAR10", Stub)
    cifar = data.load("cifar10", data_dir=tmp_path)
    assert cifar.in_shape == (3, 32, 32) and cifar.x_train.is_contiguous()
    assert cifar.x_test[1, 2, 5, 7] == Stub("", False, False).data[1, 5, 7, 2]
    assert (cifar.y_train.tolist(), cifar.y_test.tolist()) == ([3, 8], [1, 9])
    assert (cifar.mean, cifar.std) == (loading.CIFAR10_MEAN, loading.CIFAR10_STD)


def test_default_data_dir_is_a_cache_of_its_own(monkeypatch):
    monkeypatch.delenv(loading.DATA_VARIABLE, raising=False)
    assert data.default_data_dir().name == "lirpa-multinorm"


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_data_says_where_it_looked_and_what_else_to_do(tmp_path, name):
    with pytest.raises(DatasetNotFoundError) as caught:
        data.load(name, data_dir=tmp_path / "empty", download=False)
    for part in (
        name,
        str(tmp_path / "empty"),
        "data_dir",
        "examples/train_digits.py",
        "--data file.npz",
    ):
        assert part in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_failed_download_is_chained(tmp_path, monkeypatch):
    from torchvision import datasets

    def no_network(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr(datasets.CIFAR10, "download", no_network)
    with pytest.raises(
        DatasetNotFoundError, match="downloading it failed .network is unreachable"
    ) as caught:
        data.load("cifar10", data_dir=tmp_path)
    assert str(caught.value.__cause__) == "network is unreachable"


def test_damaged_mnist_is_not_a_traceback_from_torchvision(tmp_path):
    raw, _ = write_mnist(tmp_path, 10)
    whole = (raw / "t10k-images-idx3-ubyte").read_bytes()
    (raw / "t10k-images-idx3-ubyte").write_bytes(whole[:500])
    with pytest.raises(DatasetNotFoundError, match="not intact"):
        data.load("mnist", data_dir=tmp_path, download=False)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(
        InvalidArgumentError, match="name: .*'cifar'.*Did you mean 'cifar10'.*digits, mnist"
    ):
        data.load("cifar")


# --- files ---


def test_npz_keeps_uint8_and_ignores_other_keys(tmp_path):
    mine = data.load(save(tmp_path, extra=np.arange(3)))
    assert (mine.name, mine.num_classes, mine.in_shape) == ("mine", 3, (3, 5, 4))
    assert mine.x_train.dtype == torch.uint8 and mine.y_test.dtype == torch.int64
    assert np.array_equal(mine.x_test.numpy(), arrays()["x_test"])
    assert mine.y_test.tolist() == [2, 1, 0, 0]
    assert (mine.mean, mine.std) == ((0.0,) * 3, (1.0,) * 3)
    assert "tensor" not in repr(mine)


def test_npz_of_cifar_shape_gets_cifar_normalisation(tmp_path):
    images = np.zeros((6, 3, 32, 32))
    mine = data.load(str(save(tmp_path, x_train=images, x_test=images[:4])))
    assert (mine.mean, mine.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert mine.x_train.dtype == torch.float32


def test_npz_may_store_the_number_of_classes(tmp_path):
    assert data.load(save(tmp_path, num_classes=10)).num_classes == 10


X = arrays()["x_train"]
BAD_FILES = {
    "missing key": ({"y_test": None}, "y_test: .*missing.*x_train, y_train, x_test"),
    "channels last": ({"x_train": X.transpose(0, 2, 3, 1)}, r"x_train: .*transpose\(0, 3, 1, 2\)"),
    "no channel axis": ({"x_test": X[:4, 0]}, r"x_test: shape \(4, 5, 4\).*x\[:, None\]"),
    "empty": ({"x_train": X[:0], "y_train": np.arange(0)}, "x_train: shape .0, 3, 5, 4"),
    "other shape": ({"x_test": X[:4, :, :3]}, "x_test: .*x_train"),
    "lengths differ": ({"y_train": np.arange(5)}, "y_train: 5 labels for the 6 images"),
    "negative label": ({"y_test": np.array([0, -1, 0, 1])}, "y_test: label -1.*from 0"),
    "label too large": (
        {"y_test": np.array([0, 7, 0, 1])},
        r"y_test: label 7, .*0\.\.2 by y_train",
    ),
    "beyond num_classes": ({"num_classes": 2}, r"y_train: label 2, .*0\.\.1 by num_classes"),
    "bad num_classes": ({"num_classes": np.array([2, 3])}, "num_classes: "),
    "one-hot": ({"y_test": np.eye(4, 3, dtype=int)}, "y_test: .*one-hot"),
    "float labels": ({"y_train": np.zeros(6)}, "y_train: dtype float64"),
    "0..255 as float": (
        {"x_train": X.astype(float)},
        r"x_train: values from .* leave \[0, 1\].*255",
    ),
    "normalised": ({"x_train": X / 255 - 0.5}, r"x_train: values from -0\.\d+ to .*Undo"),
    "nan": ({"x_test": np.full((4, 3, 5, 4), np.nan)}, "x_test: has NaN"),
    "int64 images": ({"x_train": X.astype(np.int64)}, "x_train: dtype int64 .*uint8"),
    "objects": ({"y_train": np.array([0, None] * 3)}, "name: .*not a readable .npz"),
}


@pytest.mark.parametrize("changes, message", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_npz_names_the_key_and_the_remedy(tmp_path, changes, message):
    with pytest.raises(InvalidArgumentError, match=message):
        data.load(save(tmp_path, **changes))


def test_damaged_npz(tmp_path):
    path = save(tmp_path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    for content in (
        b"",
        b"not a zip",
        whole[:-200],
        whole[:100],
        gzip.compress(whole),
        bytes(flipped),
    ):
        path.write_bytes(content)
        with pytest.raises(InvalidArgumentError, match="name: .*mine.npz.*not a readable .*again"):
            data.load(path)


def test_single_array_under_an_npz_name(tmp_path):
    with open(tmp_path / "mine.npz", "wb") as file:
        np.save(file, X)
    with pytest.raises(InvalidArgumentError, match="single array"):
        data.load(tmp_path / "mine.npz")


def test_npz_that_is_not_there(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="no file .*gone.npz.*Check the path"):
        data.load(tmp_path / "gone.npz")


# --- use ---


def test_subset_takes_the_first(tmp_path):
    mine = data.load(save(tmp_path))
    part = mine.subset(n_train=2)
    assert torch.equal(part.x_train, mine.x_train[:2]) and part.y_train.tolist() == [0, 1]
    assert torch.equal(part.x_test, mine.x_test) and part.name == mine.name
    for n in (0, -1, 5):
        with pytest.raises(InvalidArgumentError, match=f"n_test: {n} of the 4 images"):
            mine.subset(n_test=n)


def test_to_unit_scales_bytes_and_leaves_floats():
    assert data.to_unit(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0.0, 1.0]
    x = torch.rand(3, dtype=torch.float64)
    assert data.to_unit(x) is x
    with pytest.raises(InvalidArgumentError, match="x: dtype torch.int64"):
        data.to_unit(torch.zeros(2, dtype=torch.int64))


def test_batches_in_order_and_complete():
    x = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    got = list(data.batches(x, torch.arange(10), 4))
    assert [len(images) for images, _ in got] == [4, 4, 2]
    for images, labels in got:
        assert torch.equal(images.flatten(), labels / 255)
    assert [len(images) for images, _ in data.batches(x, torch.arange(10), 4, drop_last=True)] == [
        4,
        4,
    ]


def test_batches_shuffle_by_the_generator_only():
    x, y = torch.arange(50.0).view(50, 1, 1, 1) / 50, torch.arange(50)

    def epoch(generator):
        parts = list(data.batches(x, y, 7, generator=generator))
        assert all(torch.equal(images.flatten(), x.flatten()[labels]) for images, labels in parts)
        return torch.cat([labels for _, labels in parts]).tolist()

    generator = torch.Generator().manual_seed(3)
    first, second = epoch(generator), epoch(generator)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second and first != list(range(50))
    torch.manual_seed(99)
    assert epoch(torch.Generator().manual_seed(3)) == first


def test_batches_hand_images_and_generator_to_augment():
    generator, seen = torch.Generator().manual_seed(0), []

    def augment(images, source):
        seen.append((images.max().item(), source))
        return images * 0

    x = torch.full((3, 1, 2, 2), 255, dtype=torch.uint8)
    parts = list(data.batches(x, torch.zeros(3), 2, generator=generator, augment=augment))
    assert seen == [(1.0, generator)] * 2 and all(not images.any() for images, _ in parts)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((4, 3, 2, False), "y: 3 labels for 4"),
        ((4, 4, 0, False), "batch_size: 0"),
        ((4, 4, 5, True), "Pass at most 4"),
    ],
)
def test_batches_check_before_the_first_batch(arguments, message):
    images, labels, batch_size, drop_last = arguments
    with pytest.raises(InvalidArgumentError, match=message):
        data.batches(
            torch.zeros(images, 1, 1, 1), torch.zeros(labels), batch_size, drop_last=drop_last
        )


# --- validation split ---


def numbered(count=20, size=2, test_size=2):
    """Images whose pixels are the image's number, of class number modulo 3."""
    x = (
        torch.arange(count, dtype=torch.uint8)
        .view(-1, 1, 1, 1)
        .expand(-1, 1, size, size)
        .contiguous()
    )
    y = torch.arange(count) % 3
    hidden = torch.full((5, 1, test_size, test_size), 99, dtype=torch.uint8)
    return data.ImageData(
        "numbers", 3, (0.5,), (2.0,), x, y, hidden, torch.zeros(5, dtype=torch.int64)
    )


def test_split_parts_the_training_images_and_drops_the_test_images():
    whole = numbered()
    part = whole.split(6, seed=1)
    train, validation = part.x_train[:, 0, 0, 0].tolist(), part.x_test[:, 0, 0, 0].tolist()
    assert (len(train), len(validation)) == (14, 6)
    assert sorted(train + validation) == list(range(20))
    assert part.y_train.tolist() == [n % 3 for n in train] and part.y_test.tolist() == [
        n % 3 for n in validation
    ]
    assert (part.name, part.mean, part.std, part.num_classes) == (
        "numbers (validation split)",
        (0.5,),
        (2.0,),
        3,
    )
    assert validation != list(range(14, 20))  # a permutation, for files may be sorted by class
    assert whole.x_train[:, 0, 0, 0].tolist() == list(range(20)) and len(whole.x_test) == 5


def test_split_depends_on_its_seed_only():
    torch.manual_seed(1)
    first = numbered().split(6, seed=4)
    torch.manual_seed(2)
    second, other = numbered().split(6, seed=4), numbered().split(6, seed=5)
    assert torch.equal(first.x_test, second.x_test) and torch.equal(first.x_train, second.x_train)
    assert not torch.equal(first.x_test, other.x_test)
    # The last of one permutation: a smaller part lies inside a larger one.
    assert torch.equal(numbered().split(2, seed=4).x_test, first.x_test[-2:])


def test_split_cuts_validation_images_as_the_model_gets_them():
    x = torch.arange(2 * 36, dtype=torch.uint8).view(2, 1, 6, 6)
    whole = data.ImageData(
        "crops", 2, (0.0,), (1.0,), x, torch.tensor([0, 1]), x[:, :, :4, :4], torch.tensor([0, 1])
    )
    part = whole.split(1)
    assert part.in_shape == whole.in_shape == (1, 4, 4) and part.x_train.shape == (1, 1, 6, 6)
    assert torch.equal(part.x_test[0], x[int(part.y_test)][:, 1:5, 1:5])


@pytest.mark.parametrize("n", [0, -3, 20, 21])
def test_split_leaves_images_on_both_sides(n):
    with pytest.raises(InvalidArgumentError, match=f"n_validation: {n} of the 20 .* from 1 to 19"):
        numbered().split(n)
