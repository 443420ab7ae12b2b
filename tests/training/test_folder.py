"""Data sets from folders of image files.

Every pixel and label in place, and errors that name the file.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lirpa_multinorm import data
from lirpa_multinorm.data import loading
from lirpa_multinorm.errors import DatasetNotFoundError, InvalidArgumentError


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)
    return path


def colour(seed, height=4, width=5):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def own_folder(root, test="test", classes=("cat", "dog"), count=6):
    """Images by part and class.

    The pixels are those of ``colour`` of a number that holds all three.
    """
    for part_number, part in enumerate(("train", test)):
        for label, name in enumerate(classes):
            for index in range(count):
                write(
                    root / part / name / f"{index}.png",
                    colour(1000 * part_number + 100 * label + index),
                )
    return root


@pytest.mark.parametrize("test", ["test", "val"])
def test_own_folder_keeps_pixels_with_their_labels(tmp_path, test):
    mine = data.load(own_folder(tmp_path / "pets", test))
    assert (mine.name, mine.num_classes, mine.in_shape) == ("pets", 2, (3, 4, 5))
    assert (mine.mean, mine.std) == ((0.0,) * 3, (1.0,) * 3)
    for part, (x, y) in enumerate(((mine.x_train, mine.y_train), (mine.x_test, mine.y_test))):
        assert x.dtype == torch.uint8 and y.dtype == torch.int64 and len(x) == len(y) == 12
        want = {
            colour(1000 * part + 100 * label + index).transpose(2, 0, 1).tobytes(): label
            for label in (0, 1)
            for index in range(6)
        }
        result = {image.numpy().tobytes(): int(label) for image, label in zip(x, y)}
        assert result == want
        assert y.tolist() != sorted(y.tolist())  # the first images are not all of one class


def test_own_folder_is_read_the_same_twice_and_by_text(tmp_path, monkeypatch):
    own_folder(tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    first = data.load("pets")
    torch.manual_seed(6)
    second = data.load(str(tmp_path / "pets"))
    assert torch.equal(first.x_train, second.x_train) and first.name == second.name == "pets"


def test_test_part_may_lack_a_class_but_not_add_one(tmp_path):
    root = own_folder(tmp_path, classes=("ant", "bee", "cow"))
    shutil.rmtree(root / "test" / "ant")
    mine = data.load(root)
    assert mine.num_classes == 3 and sorted(set(mine.y_test.tolist())) == [1, 2]
    (root / "test" / "bee").rename(root / "test" / "yak")
    with pytest.raises(
        InvalidArgumentError,
        match="test' has the class folder 'yak', which the training images lack",
    ):
        data.load(root)


def test_grey_images_have_one_channel_unless_one_has_colours(tmp_path):
    for part in ("train", "test"):
        for name in ("a", "b"):
            write(tmp_path / part / name / "0.png", colour(1)[..., 0])
    mine = data.load(tmp_path)
    assert mine.in_shape == (1, 4, 5) and mine.mean == (0.0,)
    assert np.array_equal(mine.x_test[0, 0].numpy(), colour(1)[..., 0])
    write(tmp_path / "test" / "b" / "1.png", colour(2))
    mixed = data.load(tmp_path)
    assert mixed.in_shape == (3, 4, 5)
    assert all(np.array_equal(channel, colour(1)[..., 0]) for channel in mixed.x_train[0].numpy())


def test_own_folder_of_cifar_shape_gets_cifar_normalisation(tmp_path):
    for part in ("train", "test"):
        for name in ("a", "b"):
            write(tmp_path / part / name / "0.png", colour(1, 32, 32))
    assert data.load(tmp_path).std == loading.CIFAR10_STD


def test_an_image_of_another_size_is_named(tmp_path):
    root = own_folder(tmp_path)
    write(root / "test" / "dog" / "odd.png", colour(0, 4, 6))
    with pytest.raises(
        InvalidArgumentError, match=r"odd\.png' has 4x6 pixels, but 4x5 were expected.*Resize"
    ):
        data.load(root)


def damaged(path):
    path.write_bytes(path.read_bytes()[:60])


def no_image(path):
    path.write_text("not an image")


def sixteen_bits(path):
    Image.fromarray(np.full((4, 5), 4000, dtype=np.uint16)).save(path)


@pytest.mark.parametrize(
    "spoil", [damaged, no_image, sixteen_bits], ids=lambda change: change.__name__
)
def test_an_unreadable_image_is_named(tmp_path, spoil):
    root = own_folder(tmp_path)
    spoil(root / "train" / "dog" / "3.png")
    with pytest.raises(
        InvalidArgumentError, match=r"dog.3\.png' cannot be read as an image of 8 bits"
    ) as caught:
        data.load(root)
    assert caught.value.__cause__ is not None


def test_folders_without_images_or_parts(tmp_path):
    root = own_folder(tmp_path / "pets")
    (root / "train" / "eel").mkdir()
    with pytest.raises(
        InvalidArgumentError, match="train' is not a folder of class folders.*eel.*remove empty"
    ):
        data.load(root)
    shutil.rmtree(root / "train")
    with pytest.raises(
        DatasetNotFoundError, match="pets' has no folder 'train'. Store the images as train/<class"
    ):
        data.load(root)
    shutil.rmtree(own_folder(tmp_path / "only") / "test")
    with pytest.raises(DatasetNotFoundError, match="only' has no folder 'test' or 'val'"):
        data.load(tmp_path / "only")
    with pytest.raises(DatasetNotFoundError, match="there is no folder '.*gone'. Check the path"):
        data.load(tmp_path / "gone")


# --- TinyImageNet ---

WNIDS = [f"n{9000 - 7 * i:08d}" for i in range(200)]  # not in alphabetical order, as in wnids.txt
VAL_LABELS = [137, 4, 4, 199, 0, 60, 11, 12, 13, 14, 15, 16]


def jpeg(path, level, colours=True):
    """A flat image, which JPEG keeps exactly but for rounding."""
    shape = (64, 64, 3) if colours else (64, 64)
    write(path, np.full(shape, level, dtype=np.uint8))


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """The folder as extracted, with one training image per class and twelve validation images."""
    root = tmp_path_factory.mktemp("data") / "tiny-imagenet-200"
    for number, wnid in enumerate(sorted(WNIDS)):
        jpeg(root / "train" / wnid / "images" / f"{wnid}_0.JPEG", number, colours=number != 7)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    lines = []
    for index, label in enumerate(VAL_LABELS):
        jpeg(root / "val" / "images" / f"val_{index}.JPEG", 20 * index)
        lines.append(f"val_{index}.JPEG\t{sorted(WNIDS)[label]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "test" / "images").mkdir(parents=True)
    jpeg(root / "test" / "images" / "test_0.JPEG", 0)
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    return root


def assert_is_tinyimagenet(tiny):
    assert (tiny.name, tiny.num_classes, tiny.in_shape) == ("tinyimagenet", 200, (3, 56, 56))
    assert (tiny.mean, tiny.std) == ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))
    assert tiny.x_train.shape == (200, 3, 64, 64) and tiny.x_train.dtype == torch.uint8
    # Classes are numbered by name, and every image keeps its class through the shuffling.
    assert sorted(tiny.y_train.tolist()) == list(range(200)) != tiny.y_train.tolist()
    assert (tiny.x_train[:, :, 5, 5].int() - tiny.y_train[:, None]).abs().max() <= 1
    assert tiny.y_test.tolist() == VAL_LABELS  # val_2 before val_10
    assert (tiny.x_test[:, 0, 0, 0].int() - 20 * torch.arange(12)).abs().max() <= 1


def test_tinyimagenet_as_extracted(extracted):
    assert_is_tinyimagenet(data.load("tinyimagenet", data_dir=extracted.parent))
    assert_is_tinyimagenet(data.load("tinyimagenet", data_dir=extracted))


@pytest.mark.parametrize("inner", ["", "images"])
def test_tinyimagenet_with_rearranged_validation_images(extracted, tmp_path, inner):
    root = shutil.copytree(extracted, tmp_path / "tiny-imagenet-200")
    for index, label in enumerate(VAL_LABELS):
        target = root / "val" / sorted(WNIDS)[label] / inner
        target.mkdir(parents=True, exist_ok=True)
        (root / "val" / "images" / f"val_{index}.JPEG").rename(target / f"val_{index}.JPEG")
    (root / "val" / "images").rmdir()
    assert_is_tinyimagenet(data.load("tinyimagenet", data_dir=tmp_path))


def test_tinyimagenet_test_images_are_the_middle(extracted, tmp_path):
    root = shutil.copytree(extracted, tmp_path / "tiny-imagenet-200")
    ramp = np.zeros((64, 64, 3), dtype=np.uint8)
    ramp[4:60, 4:60] = 205
    write(root / "val" / "images" / "val_0.png", ramp)  # JPEG would blur the edge
    table = root / "val" / "val_annotations.txt"
    table.write_text(table.read_text().replace("val_0.JPEG", "val_0.png"))
    tiny = data.load("tinyimagenet", data_dir=tmp_path)
    assert [index for index in range(12) if (tiny.x_test[index] == 205).all()] == [0]
    assert tiny.x_test.is_contiguous()


def test_tinyimagenet_can_be_split_and_augmented(extracted):
    tiny = data.load("tinyimagenet", data_dir=extracted).split(50)
    assert tiny.in_shape == (3, 56, 56) and tiny.x_test.shape == (50, 3, 56, 56)
    assert tiny.x_train.shape == (150, 3, 64, 64)
    augment = data.augmentation("tinyimagenet")
    images, _ = next(
        data.batches(tiny.x_train, tiny.y_train, 8, generator=torch.Generator(), augment=augment)
    )
    assert images.shape == (8, *tiny.in_shape)


def test_missing_tinyimagenet_says_where_to_get_it(tmp_path):
    with pytest.raises(DatasetNotFoundError) as caught:
        data.load("tinyimagenet", data_dir=tmp_path)
    for part in (
        "never downloaded",
        str(tmp_path),
        "tiny-imagenet-200.zip",
        "data_dir",
        loading.DATA_VARIABLE,
    ):
        assert part in str(caught.value)


def half_extracted(root):
    shutil.rmtree(root / "train" / WNIDS[3])


def unknown_class(root):
    table = root / "val" / "val_annotations.txt"
    table.write_text(table.read_text() + "val_0.JPEG\tn99999999\t0\t0\t1\t1\n")


def no_table(root):
    (root / "val" / "val_annotations.txt").unlink()


def missing_image(root):
    (root / "val" / "images" / "val_3.JPEG").unlink()


def wrong_size(root):
    write(root / "val" / "images" / "val_3.JPEG", colour(0, 32, 32))


def no_validation(root):
    shutil.rmtree(root / "val")


SPOILT = {
    half_extracted: "data_dir: .*train' has 199 class folders, but TinyImageNet has 200. Extract",
    unknown_class: "val_annotations.txt' .*KeyError: 'n99999999'.*Extract the archive again",
    no_table: "val_annotations.txt' is missing",
    missing_image: r"val_3\.JPEG' cannot be read",
    wrong_size: r"val_3\.JPEG' has 32x32 pixels, but 64x64 were expected",
    no_validation: "has no folder 'val'",
}


@pytest.mark.parametrize(
    "spoil, message", SPOILT.items(), ids=[change.__name__ for change in SPOILT]
)
def test_spoilt_tinyimagenet(extracted, tmp_path, spoil, message):
    root = shutil.copytree(extracted, tmp_path / "tiny-imagenet-200")
    spoil(root)
    with pytest.raises((InvalidArgumentError, DatasetNotFoundError), match=message):
        data.load("tinyimagenet", data_dir=tmp_path)
