"""Data sets: the embedded ones, folders, npz and IDX files, torchvision's, published corruptions, and bad files."""

import gzip
import hashlib
import os
import tarfile
import types
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from howsure import ArrayImages, Dataset, FolderImages, MissingData, UserError
from howsure.corruptions import CORRUPTIONS
from howsure.image_files import FileImages
from howsure.images import Joined, Subset, as_images
from howsure.material import Material
from howsure.plugins import DATASETS
from howsure.sources import resolve
from howsure.suite import load_suite, suite_names

EMBEDDED = ["digits", "digits-unseen", "letters", "photos", "noise"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("HOWSURE_DATA", str(tmp_path))
    return tmp_path


def picture(value: int = 0, side: int = 4) -> np.ndarray:
    return np.full((side, side, 3), value, dtype=np.uint8)


def folder_of(root, names: dict[str, int]):
    """Image files by name, each of one brightness."""
    for name, value in names.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(value)).save(file)
    return root


def test_no_file_is_broken():
    assert DATASETS.broken == {}


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sets_are_grey_distinct_and_always_the_same(name):
    dataset = resolve(name)
    images = dataset.split("test")
    image, label = images[0]
    assert (image.mode, image.size) == ("L", (8, 8))
    assert 0 <= label < len(dataset.classes)
    assert len(images) >= 350
    assert len(np.unique(images.x.reshape(len(images), -1), axis=0)) == len(images)
    assert images.fingerprint == DATASETS[name]().split("test").fingerprint
    assert dataset.missing() is None


def test_letters_are_the_same_with_any_matplotlib():
    assert resolve("letters").split("test").fingerprint.startswith("d1045458bcd90562")


def test_digit_splits_are_disjoint_stratified_and_of_known_classes():
    digits = resolve("digits")
    splits = [digits.split(name) for name in digits.splits]
    assert [len(split) for split in splits] == [865, 144, 434]
    seen = [{image.tobytes() for image in split.x} for split in splits]
    assert sum(map(len, seen)) == len(set.union(*seen))
    for split in splits:
        assert set(split.y) == set(range(8))
        assert np.ptp(np.bincount(split.y)) <= 4
    unseen = resolve("digits-unseen").split("test")
    assert set(unseen.y) == {0, 1}
    with pytest.raises(UserError, match="no split 'all'"):
        digits.split("all")


@pytest.mark.parametrize("name", ["gaussian-noise", "uniform-noise"])
def test_colour_noise(name):
    images = resolve(name).split("test")
    assert images.x.shape == (2000, 32, 32, 3)
    assert images.x.mean() == pytest.approx(127.5, abs=0.3)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match="did you mean cifar10"):
        resolve("cifar-10")


def test_a_bare_path_is_told_its_scheme(tmp_path):
    folder_of(tmp_path, {"photos of mine/a.png": 1})
    with pytest.raises(UserError, match="write imagefolder:photos of mine"):
        resolve("photos of mine", tmp_path)
    with pytest.raises(UserError, match="give a path"):
        resolve("npz:", tmp_path)


# Folders


def test_a_folder_without_splits_serves_all(tmp_path):
    folder_of(tmp_path / "pets", {"cat/1.png": 10, "cat/deep/2.jpg": 20, "dog/1.bmp": 30, ".cache/x.png": 0})
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("no image")
    dataset = resolve("imagefolder:pets", tmp_path)
    assert (dataset.splits, dataset.classes, dataset.missing()) == (("train", "val", "test"), ["cat", "dog"], None)
    images = dataset.split("test")
    assert images.y.tolist() == [0, 0, 1]
    image, label = images[2]
    assert (np.asarray(image)[0, 0].tolist(), label) == ([30, 30, 30], 1)


def test_splits_share_the_class_order_of_train(tmp_path):
    folder_of(tmp_path, {"train/b/1.png": 1, "train/a/1.png": 2, "train/c/1.png": 3, "test/c/1.png": 4})
    dataset = resolve(f"imagefolder:{tmp_path}")
    assert dataset.splits == ("train", "test")
    assert dataset.split("test").y.tolist() == [2]
    with pytest.raises(UserError, match=r"no folder 'val' in it; it has train, test"):
        dataset.split("val")
    folder_of(tmp_path, {"test/zebra/1.png": 4})
    with pytest.raises(UserError, match="class 'zebra' is not one of the 3"):
        dataset.split("test")


def test_a_test_folder_named_apart_follows_the_training_classes(tmp_path):
    folder_of(tmp_path, {"t/dog/1.png": 1})
    assert resolve("imagefolder:t", tmp_path, classes=["cat", "dog"]).split("test").y.tolist() == [1]
    with pytest.raises(UserError, match="class 'dog'"):
        resolve("imagefolder:t", tmp_path, classes=["cat"]).split("test")


def test_a_flat_folder_is_one_class(tmp_path):
    folder_of(tmp_path, {"1.png": 1, "2.PNG": 2})
    images = FolderImages(tmp_path)
    assert (images.classes, images.y.tolist()) == ([], [0, 0])
    folder_of(tmp_path, {"cat/1.png": 1})
    with pytest.raises(UserError, match="loose image"):
        FolderImages(tmp_path)


def test_missing_and_empty_folders(tmp_path):
    dataset = resolve("imagefolder:nowhere", tmp_path)
    assert "no such folder" in str(dataset.missing())
    with pytest.raises(UserError, match="nowhere") as error:
        dataset.split("test")
    assert not isinstance(error.value, MissingData)
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="contains no image"):
        resolve("imagefolder:empty", tmp_path).split("test")


# Lists


def openood(root, lists: dict[str, str], images: str = "images_classic"):
    """OpenOOD's folders: a 4×4 image for each line of each list, as bright as its place in the list."""
    for name, text in lists.items():
        file = root / "benchmark_imglist" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        folder_of(root / images, {line.rpartition(" ")[0]: i for i, line in enumerate(text.splitlines())})
    return root


def test_a_list_takes_paths_from_its_own_folder(tmp_path):
    folder_of(tmp_path / "here", {"a b/1.png": 10, "2.png": 20})
    (tmp_path / "here" / "mine.txt").write_text("a b/1.png 2\n\n2.png -1\n")
    dataset = resolve("imglist:here/mine.txt", tmp_path)
    assert (dataset.splits, dataset.classes, dataset.missing()) == (("train", "val", "test"), ["0", "1", "2"], None)
    images = dataset.split("test")
    assert images.y.tolist() == [2, -1]
    assert [np.asarray(image)[0, 0, 0] for image, _ in (images[0], images[1])] == [10, 20]


def test_a_list_with_tabs_and_names_with_spaces(tmp_path):
    folder_of(tmp_path, {"a b.png": 10})
    (tmp_path / "l.txt").write_text("a b.png\t3\n")
    images = resolve("imglist:l.txt", tmp_path).split("test")
    assert (np.asarray(images[0][0])[0, 0, 0], images.y.tolist()) == (10, [3])


def test_a_list_of_absolute_paths(tmp_path, tmp_path_factory):
    elsewhere = folder_of(tmp_path_factory.mktemp("elsewhere"), {"1.png": 10})
    (tmp_path / "l.txt").write_text(f"{elsewhere / '1.png'} 0\n")
    images = resolve("imglist:l.txt", tmp_path).split("test")
    assert np.asarray(images[0][0])[0, 0, 0] == 10
    before = images.fingerprint
    folder_of(elsewhere, {"1.png": 11})
    assert resolve("imglist:l.txt", tmp_path).split("test").fingerprint != before


def test_openoods_lists_lie_below_the_data_root_beside_their_images(root, tmp_path):
    openood(root, {"cifar10/test_texture.txt": "texture/a.png -1\ntexture/b.png -1\n"})
    openood(root, {"imagenet/test_ninco.txt": "ninco/c.png -1\n"}, "images_largescale")
    texture = resolve("imglist:benchmark_imglist/cifar10/test_texture.txt", tmp_path / "suites")
    ninco = resolve("imglist:benchmark_imglist/imagenet/test_ninco.txt", tmp_path / "suites")
    assert texture.split("test").folder == root / "images_classic"
    assert ninco.split("test").folder == root / "images_largescale"
    assert texture.classes == []
    before = texture.split("test").fingerprint
    (root / "benchmark_imglist" / "cifar10" / "test_texture.txt").write_text("texture/b.png -1\ntexture/a.png -1\n")
    assert resolve("imglist:benchmark_imglist/cifar10/test_texture.txt").split("test").fingerprint != before


def test_a_suites_own_folder_comes_before_the_data_root(root, tmp_path):
    folder_of(root / "suites" / "pets", {"1.png": 1})
    folder_of(root / "pets", {"1.png": 2, "2.png": 2})
    folder_of(root / "only there", {"1.png": 3})
    assert len(resolve("imagefolder:pets", root / "suites").split("test")) == 1
    assert len(resolve("imagefolder:only there", root / "suites").split("test")) == 1


@pytest.mark.parametrize("line", ["a.png", "a.png one", "a.png -2", " 3", "a.png 1.0", "a.png 100000"])
def test_a_line_that_is_not_a_path_and_a_label_is_named(tmp_path, line):
    folder_of(tmp_path, {"a.png": 1})
    (tmp_path / "l.txt").write_text(f"a.png 0\n{line}\n")
    with pytest.raises(UserError, match=r"l\.txt: line 2 is '.*'; give the image's path and its class index"):
        resolve("imglist:l.txt", tmp_path).split("test")


def test_lists_that_are_not_there_or_empty_or_without_images(tmp_path):
    with pytest.raises(UserError, match="nor is there one below the data root") as error:
        resolve("imglist:no.txt", tmp_path).split("test")
    assert not isinstance(error.value, MissingData)
    (tmp_path / "l.txt").write_text("\n")
    with pytest.raises(UserError, match="no image in it"):
        resolve("imglist:l.txt", tmp_path).split("test")
    (tmp_path / "l.txt").write_text("gone.png 0\n")
    with pytest.raises(MissingData, match=r"no .*gone\.png, its first image"):
        resolve("imglist:l.txt", tmp_path).split("test")


@pytest.mark.parametrize("name", [name for name in suite_names() if name.startswith("openood")])
def test_openoods_suites_name_its_lists(name, root):
    """Every list of the suite, made up, is found and read; what is not there is left out of the shifts alone."""
    suite = load_suite(name)
    specs = [suite.id.train, suite.id.val, suite.id.test, *(shift.data for shift in suite.shift)]
    for spec in specs:
        label = 0 if "train" in spec or spec == suite.id.test or spec == suite.id.val else -1
        stem = spec.rpartition("/")[2]
        openood(root, {spec.removeprefix("imglist:benchmark_imglist/"): f"{stem}.png {label}\n"})
    found = Material(suite)
    assert found.missing == {}
    assert sorted(found.splits) == sorted(["train", "val", "test", *(shift.name for shift in suite.shift)])
    assert {shift.group for shift in found.shifts(found.splits)} == {"near", "far"}


@pytest.mark.parametrize("content", [b"", b"not an image", "cut"])
def test_an_unreadable_image_is_named(tmp_path, content):
    file = folder_of(tmp_path, {"cat/1.png": 9}) / "cat" / "1.png"
    file.write_bytes(file.read_bytes()[:-30] if content == "cut" else content)
    with pytest.raises(UserError, match=r"1\.png: not a readable image"):
        FolderImages(tmp_path)[0]


def test_the_fingerprint_of_a_folder_changes_with_its_files_and_labels(tmp_path):
    folder_of(tmp_path, {"a/1.png": 1, "b/2.png": 2})
    first = FolderImages(tmp_path).fingerprint
    assert first == FolderImages(tmp_path).fingerprint
    assert first != FolderImages(tmp_path, classes=["b", "a"]).fingerprint
    folder_of(tmp_path, {"a/3.png": 1})
    assert first != FolderImages(tmp_path).fingerprint


def test_links_that_lead_back_are_not_followed_and_underscores_hide_nothing(tmp_path):
    folder_of(tmp_path, {"a/1.png": 1, "b/2.png": 2, "__c__/3.png": 3})
    (tmp_path / "elsewhere" / "d").mkdir(parents=True)
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "aside").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "back").symlink_to(tmp_path / "a")
    images = FolderImages(tmp_path)
    assert images.classes == ["__c__", "a", "b"]
    assert [str(file.relative_to(tmp_path)) for file in images.files] == [
        "__c__/3.png", "a/1.png", "a/aside/2.png", "b/2.png", "b/back/1.png",
    ]  # fmt: skip


def test_a_class_folder_that_may_not_be_read_is_an_error(tmp_path, monkeypatch):
    folder_of(tmp_path, {"a/1.png": 1, "b/2.png": 2})
    own = os.scandir

    def scandir(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return own(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"/b: cannot be read \(Permission denied\)"):
        FolderImages(tmp_path)


@pytest.mark.parametrize("most", [65535, 4095])
def test_a_pgm_of_more_than_eight_bits_is_read(tmp_path, most):
    (tmp_path / "1.pgm").write_bytes(b"P5 2 1 %d\n" % most + np.array([most, most // 2], ">u2").tobytes())
    assert np.asarray(FolderImages(tmp_path)[0][0]).tolist() == [[255, 127]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_of_no_known_range_and_broken_links_name_the_file(tmp_path, mode):
    Image.fromarray(np.ones((4, 4), np.int32 if mode == "I" else np.float32)).save(tmp_path / "1.tif")
    (tmp_path / "2.png").symlink_to("/nowhere.png")
    images = FolderImages(tmp_path)
    with pytest.raises(UserError, match=rf"1\.tif: of mode {mode}"):
        images[0]
    with pytest.raises(UserError, match=r"2\.png: not a readable image \(No such file"):
        _ = images.fingerprint


# Plugins


class Raising(list):
    """A data set whose images cannot be had."""

    def __getitem__(self, index):
        raise RuntimeError("bad\nitem")


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (None, "mine: `split` gave a NoneType; give a torch data set"),
        (iter([]), "mine: `split` gave a list_iterator"),
        (Raising([1]), r"test_datasets\.py:\d+: RuntimeError: bad item; give pairs"),
        ([3], "mine: image 0: .*TypeError: cannot unpack"),
        ([(Image.new("L", (4, 4)), "cat")], "mine: image 0 has the label 'cat'; give class indices"),
        ([(Image.new("L", (4, 4)), 1.7)], "mine: image 0 has the label 1.7; give class indices"),
        ([(Image.new("F", (4, 4)), 0)], "mine: image 0: of mode F"),
    ],
)
def test_a_plugin_that_gives_no_images_is_one_line(images, says):
    with pytest.raises(UserError, match=says) as error:
        _ = as_images(images, "mine").y
    assert "\n" not in str(error.value)


def test_a_plugin_without_split():
    class Forgetful(Dataset):
        name = "forgetful"

    with pytest.raises(UserError, match="data set 'forgetful': its class Forgetful has no `split`"):
        Forgetful().split("test")


@pytest.mark.parametrize("mode", ["P", "PA"])
def test_the_fingerprint_of_a_plugins_images_changes_with_a_palette(mode):
    def painted(colour: int) -> Image.Image:
        image = Image.new("P", (2, 2))
        image.putpalette([colour, 0, 0])
        return image.convert(mode)

    red, again, black = (as_images([(painted(colour), 0)], "mine").fingerprint for colour in (255, 255, 0))
    assert red == again != black


# Views


def test_subsets_and_joined_sets():
    one, two = ArrayImages(np.stack([picture(i) for i in range(3)]), [0, 1, 2]), ArrayImages(picture(9)[None], [7])
    subset = Subset(one, np.array([2, 0]))
    joined = Joined([subset, two])
    assert subset.y.tolist() == [2, 0]
    assert joined.y.tolist() == [2, 0, 7] == [joined[i][1] for i in range(3)]
    assert np.asarray(joined[2][0])[0, 0, 0] == 9
    assert len(list(joined)) == 3
    assert len({images.fingerprint for images in (one, two, subset, joined)}) == 4


# npz


@settings(max_examples=25, deadline=None)
@given(data=st.data(), n=st.integers(1, 5), side=st.integers(1, 9), channels=st.sampled_from([(), (1,), (3,)]))
def test_npz_gives_back_what_was_saved(tmp_path_factory, data, n, side, channels):
    file = tmp_path_factory.mktemp("npz") / "set.npz"
    x = data.draw(hnp.arrays(np.uint8, (n, side, side, *channels)))
    y = data.draw(hnp.arrays(data.draw(st.sampled_from([np.int64, np.uint8])), n, elements=st.integers(0, 9)))
    np.savez(file, x=x, y=y)
    images = resolve(f"npz:{file}").split("test")
    for index in range(n):
        image, label = images[index]
        assert np.array_equal(np.asarray(image).reshape(x[index].shape), x[index])
        assert label == y[index]


def save(file, **arrays):
    np.savez(file, **arrays)


X, Y = np.zeros((2, 4, 4, 3), dtype=np.uint8), np.array([0, 1])


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": Y}, "no array 'x' in it"),
        ({"x": X}, r"no array 'y' in it \(it has x\)"),
        ({"x": X.astype(np.float32), "y": Y}, "must be uint8"),
        ({"x": X[0, 0], "y": Y}, "must be uint8"),
        ({"x": np.zeros((2, 4, 4, 4), np.uint8), "y": Y}, "C 1 or 3"),
        ({"x": X, "y": Y[:1]}, r"labels must be integers \[2\]"),
        ({"x": X, "y": Y.astype(float)}, "labels must be integers"),
        ({"x": X, "y": Y - 1}, "label -1"),
        ({"x": X[:0], "y": Y[:0]}, "no image"),
        ({"x": X[:, :0], "y": Y}, "no pixel"),
        ({"x": np.array([None, 1], dtype=object), "y": Y}, "not a readable"),
    ],
)
def test_a_bad_npz_is_one_line(tmp_path, arrays, says):
    save(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=says) as error:
        resolve("npz:bad.npz", tmp_path).split("train")
    assert "\n" not in str(error.value)


def test_a_huge_label_is_no_class(tmp_path):
    save(tmp_path / "huge.npz", x=X, y=Y + 10**9)
    source = resolve("npz:huge.npz", tmp_path)
    assert len(source.split("test")) == 2
    with pytest.raises(UserError, match="label 1000000001 in y; number the classes"):
        _ = source.classes


@pytest.mark.parametrize("damage", [(300, bytes(20)), (8, b"\x63"), (6, b"\x01")], ids=["values", "method", "locked"])
def test_a_damaged_npz_is_one_line(tmp_path, damage):
    rng = np.random.default_rng(0)
    np.savez_compressed(tmp_path / "bad.npz", x=rng.integers(0, 9, (9, 8, 8, 3), dtype=np.uint8), y=np.arange(9))
    content = bytearray((tmp_path / "bad.npz").read_bytes())
    directory = content.find(b"PK\x01\x02") + 2  # says the same of each file as what stands before its values
    place, new = damage
    for start in (0, directory) if place < 30 else (0,):
        content[start + place : start + place + len(new)] = new
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.npz: not a readable \.npz of plain arrays") as error:
        resolve("npz:bad.npz", tmp_path).split("train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"text"])
def test_what_is_no_npz_at_all(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"not an \.npz archive; write it with np\.savez"):
        resolve("npz:bad.npz", tmp_path).split("train")
    with pytest.raises(UserError, match="no such file") as error:
        resolve("npz:none.npz", tmp_path).split("train")
    assert not isinstance(error.value, MissingData)  # a mistyped path, not a data set to get


def test_a_npy_called_npz(tmp_path):
    with (tmp_path / "bad.npz").open("wb") as stream:
        np.save(stream, X)
    with pytest.raises(UserError, match=r"not an \.npz archive; write it with np\.savez"):
        resolve("npz:bad.npz", tmp_path).split("train")


# IDX


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(side).to_bytes(4, "big") for side in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder, stem: str, x: np.ndarray, y: np.ndarray, zipped: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for what, array in (("images-idx3", x), ("labels-idx1", y)):
        content = idx(array)
        file = folder / f"{stem}-{what}-ubyte{'.gz' if zipped else ''}"
        file.write_bytes(gzip.compress(content) if zipped else content)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("kmnist", "KMNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_idx_files_in_torchvisions_folders(root, name, folder, zipped):
    x = np.arange(2 * 28 * 28).reshape(2, 28, 28) % 251
    write_idx(root / folder / "raw", "t10k", x, np.array([3, 9]), zipped)
    images = resolve(name).split("test")
    assert np.array_equal(images.x, x)
    assert images.y.tolist() == [3, 9]


def test_emnist_letters_are_turned_upright_and_counted_from_zero(root):
    x = np.zeros((1, 28, 28))
    x[0, 3, 20] = 255
    write_idx(root / "EMNIST" / "raw", "emnist-letters-test", x, np.array([26]))
    images = resolve("emnist-letters").split("test")
    assert (images.x[0, 20, 3], images.y[0]) == (255, 25)


def test_missing_idx_files_say_how_to_get_them(root, monkeypatch):
    monkeypatch.setattr(DATASETS["fashion-mnist"], "elsewhere", ())
    for name in ("mnist", "kmnist", "fashion-mnist", "emnist-letters"):
        assert f"howsure data fetch {name}" in str(resolve(name).missing())
        with pytest.raises(MissingData, match="howsure data fetch"):
            resolve(name).split("train")


def test_fashion_mnist_is_read_from_a_second_place(root, tmp_path_factory, monkeypatch):
    debian = tmp_path_factory.mktemp("debian")
    monkeypatch.setattr(DATASETS["fashion-mnist"], "elsewhere", (str(debian),))
    for stem in ("train", "t10k"):
        write_idx(debian, stem, np.ones((2, 28, 28)), np.array([0, 1]), zipped=True)
    assert resolve("fashion-mnist").missing() is None
    assert len(resolve("fashion-mnist").split("train")) == 2


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda content: content[:-1], "its header says"),
        (lambda content: content[:7], "not an IDX file"),
        (lambda content: b"", "not an IDX file"),
        (lambda content: b"<html>", "not an IDX file"),
    ],
)
def test_a_damaged_idx_file_is_named(root, spoil, says):
    folder = root / "MNIST" / "raw"
    write_idx(folder, "t10k", np.ones((2, 28, 28)), np.array([0, 1]))
    file = folder / "t10k-images-idx3-ubyte"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(UserError, match=says):
        resolve("mnist").split("test")


def test_a_cut_gzip_and_mismatched_counts(root):
    folder = root / "MNIST" / "raw"
    write_idx(folder, "t10k", np.ones((2, 28, 28)), np.array([0, 1, 2]), zipped=True)
    with pytest.raises(UserError, match=r"\[2, 28, 28\] images with \[3\] labels"):
        resolve("mnist").split("test")
    file = folder / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        resolve("mnist").split("test")


# torchvision


def fake(**data):
    """A stand-in for a data set class of torchvision that notes how it was opened."""
    calls = []

    def make(root, **options):
        calls.append(options)
        return types.SimpleNamespace(**data)

    make.calls = calls
    return make


LAST, FIRST = np.ones((2, 32, 32, 3), np.uint8), np.ones((2, 3, 32, 32), np.uint8)
IN_MEMORY = [
    ("cifar10", "CIFAR10", ["cifar-10-batches-py"], {"data": LAST, "targets": [1, 2]}),
    ("cifar100", "CIFAR100", ["cifar-100-python"], {"data": LAST, "targets": [1, 2], "classes": "ab"}),
    ("svhn", "SVHN", ["svhn/train_32x32.mat", "svhn/test_32x32.mat"], {"data": FIRST, "labels": np.array([1, 2])}),
    ("stl10", "STL10", ["stl10_binary"], {"data": FIRST, "labels": np.array([1, 2], np.uint8)}),
]


@pytest.mark.parametrize(("name", "cls", "places", "data"), IN_MEMORY)
def test_torchvision_sets_in_memory(root, monkeypatch, name, cls, places, data):
    opened = fake(**data)
    monkeypatch.setattr(torchvision.datasets, cls, opened)
    dataset = resolve(name)
    assert f"howsure data fetch {name}" in str(dataset.missing())
    with pytest.raises(MissingData):
        dataset.split("test")
    assert not list(dataset.classes) or len(dataset.classes) == 10
    dataset.fetch()
    assert [options["download"] for options in opened.calls] == [True, True]
    for place in places:
        (root / place).mkdir(parents=True)
    images = dataset.split("test")
    assert images.x.shape[0] == 2
    assert images.x.shape[3] == 3
    assert images.y.tolist() == [1, 2]
    assert opened.calls[-1].get("train") is False or opened.calls[-1].get("split") == "test"
    assert len(dataset.classes) in (2, 10)


def test_a_corrupted_download_is_missing_data(root, monkeypatch):
    def broken(root, **options):
        raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", broken)
    (root / "cifar-10-batches-py").mkdir()
    with pytest.raises(MissingData, match="corrupted; run `howsure data fetch cifar10`"):
        resolve("cifar10").split("test")


@pytest.mark.parametrize("name", ["cifar10", "mnist", "emnist-letters", "lsun", "tiny-imagenet", "places365", "dtd"])
def test_a_failed_download_is_one_line(root, monkeypatch, name):
    def fail(*args, **options):
        raise OSError("no route to host\nmore")

    for cls in ("CIFAR10", "MNIST", "EMNIST", "Places365", "DTD"):
        monkeypatch.setattr(torchvision.datasets, cls, fail)
    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fail)
    with pytest.raises(UserError, match=f"{name}: download failed \\(no route to host\\)"):
        resolve(name).fetch()


@pytest.mark.parametrize("error", [tarfile.ReadError, zipfile.BadZipFile, zlib.error])
def test_a_download_that_is_no_archive_is_one_line(root, monkeypatch, error):
    """Such as a page that says that the file has moved; it stays in the folder, and would be taken for the archive."""

    def fail(*args, **options):
        raise error("not an archive")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", lambda *args: None)
    monkeypatch.setattr(torchvision.datasets.utils, "extract_archive", fail)
    with pytest.raises(UserError, match=rf"lsun-crop: download failed \(not an archive\); remove .* in {root}"):
        resolve("lsun-crop").fetch()


ARCHIVES = {"lsun": "LSUN_resize/LSUN_resize", "isun": "iSUN/iSUN_patches", "lsun-crop": "LSUN/test"}


@pytest.fixture
def archive(root, tmp_path_factory, monkeypatch):
    """What puts a data set's archive below the data root, as downloaded; cut short if that is asked."""

    def give(name, spoil=lambda content: content):
        place, first = tmp_path_factory.mktemp("archive"), Path(ARCHIVES[name]).parts[0]
        folder_of(place / ARCHIVES[name], {f"{i}.jpg": i for i in range(40)})
        file = root / Path(DATASETS[name].url).name
        with tarfile.open(file, "w:gz") as packed:
            packed.add(place / first, first)
        file.write_bytes(spoil(file.read_bytes()))
        monkeypatch.setattr(DATASETS[name], "md5", hashlib.md5(file.read_bytes()).hexdigest())

    return give


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_is_fetched(root, archive, name):
    assert len(DATASETS[name].md5) == 32
    archive(name)
    for _ in range(2):
        resolve(name).fetch()
        assert resolve(name).missing() is None
        assert len(resolve(name).split("test")) == 40
    assert [path for path in root.iterdir() if path.name.startswith(".")] == []


def test_half_an_archive_is_still_missing(root, archive):
    archive("lsun", lambda content: content[: len(content) // 2])
    with pytest.raises(UserError, match="lsun: download failed"):
        resolve("lsun").fetch()
    assert "howsure data fetch lsun" in str(resolve("lsun").missing())


def test_what_is_there_need_not_be_fetched(root):
    resolve("digits").fetch()
    with pytest.raises(UserError, match="unpack CIFAR-10-C"):
        resolve("cifar10-c").fetch()


def test_dtd(root):
    folder_of(
        root / "dtd" / "dtd" / "images", {"banded/banded_1.jpg": 1, "dotted/dotted_1.jpg": 2, "dotted/dotted_2.jpg": 3}
    )
    labels = root / "dtd" / "dtd" / "labels"
    labels.mkdir()
    (labels / "test1.txt").write_text("dotted/dotted_2.jpg\nbanded/banded_1.jpg\n")
    images = resolve("dtd").split("test")
    assert images.y.tolist() == [1, 0]
    assert images[0][0].size == (4, 4)
    assert images.fingerprint
    (root / "dtd" / "dtd" / "images" / "dotted" / "dotted_2.jpg").unlink()
    (root / "dtd" / "dtd" / "images" / "banded" / "banded_1.jpg").unlink()
    (root / "dtd" / "dtd" / "images" / "banded").rmdir()
    with pytest.raises(UserError, match=r"banded_1\.jpg: not a readable image"):
        resolve("dtd").split("test")[1]


FOLDERS = {"places365": "places365/val_256", "lsun": "LSUN_resize", "lsun-crop": "LSUN", "isun": "iSUN"}


@pytest.mark.parametrize(("name", "folder"), FOLDERS.items())
def test_folders_of_images_only(root, name, folder):
    assert "howsure data fetch" in str(resolve(name).missing())
    folder_of(root / folder, {"1.jpg": 1, "2.jpg": 2})
    assert len(resolve(name).split("test")) == 2


def test_tiny_imagenet_from_either_layout(root):
    assert "howsure data fetch tiny-imagenet" in str(resolve("tiny-imagenet").missing())
    official = root / "tiny-imagenet-200"
    folder_of(
        official,
        {
            "train/n1/images/a.JPEG": 1,
            "train/n2/images/b.JPEG": 2,
            "val/images/val_0.JPEG": 3,
            "val/images/val_1.JPEG": 4,
        },
    )
    (official / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn2\t0\t0\t1\t1\nval_1.JPEG\tn1\t0\t0\t1\t1\n")
    assert resolve("tiny-imagenet").split("test").y.tolist() == [1, 0]
    assert resolve("tiny-imagenet").split("train").y.tolist() == [0, 1]
    (official / "train" / ".thumbnails").mkdir()
    (official / "train" / "n0").mkdir()
    assert resolve("tiny-imagenet").split("test").y.tolist() == [2, 1]
    assert resolve("tiny-imagenet").split("train").y.tolist() == [1, 2]
    (official / "train" / "n0").rmdir()
    folder_of(root / "tiny-imagenet-val", {"n2/x.jpg": 5})
    assert resolve("tiny-imagenet").split("test").y.tolist() == [1]


def test_half_a_tiny_imagenet_is_missing_data(root):
    val = root / "tiny-imagenet-200" / "val"
    folder_of(root / "tiny-imagenet-200", {"train/n1/images/a.JPEG": 1, "val/images/val_0.JPEG": 3})
    with pytest.raises(MissingData, match=r"no .*val_annotations\.txt; run `howsure data fetch tiny-imagenet`"):
        resolve("tiny-imagenet").split("test")
    (val / "val_annotations.txt").write_text("val_0.JPEG\tn2\t0\t0\t1\t1\n")
    with pytest.raises(MissingData, match=r"no class 'n2' in .*train; run `howsure data fetch tiny-imagenet`"):
        resolve("tiny-imagenet").split("test")


def test_cifar10_as_a_folder(root):
    dataset = resolve("cifar10-jpeg")
    assert "put one folder of images per class there" in str(dataset.missing())
    folder_of(root / "cifar10-jpeg", {"train/cat/1.jpg": 1, "test/dog/1.jpg": 2, "test/airplane/1.jpg": 2})
    assert dataset.split("test").y.tolist() == [0, 5]
    folder_of(root / "cifar10-jpeg", {"test/unicorn/1.jpg": 2})
    with pytest.raises(UserError, match="class 'unicorn'"):
        dataset.split("test")


# Published corrupted sets


@pytest.fixture
def cifar_c(root):
    folder = root / "CIFAR-10-C"
    folder.mkdir()
    levels = np.repeat(np.arange(1, 6, dtype=np.uint8), 2)
    for kind in ("fog", "snow"):
        np.save(folder / f"{kind}.npy", np.stack([picture(10 * level, 32) for level in levels]))
    np.save(folder / "labels.npy", np.tile(np.array([3, 4], np.uint8), 5))
    return folder


def test_cifar_c_by_kind_and_severity(cifar_c):
    images = resolve("cifar10-c:fog:3").split("test")
    assert (len(images), images.y.tolist()) == (2, [3, 4])
    image, label = images[1]
    assert (image.size, np.asarray(image)[0, 0, 0], label) == ((32, 32), 30, 4)
    assert images.fingerprint != resolve("cifar10-c:fog:4").split("test").fingerprint
    whole = resolve("cifar10-c").split("test")
    assert (len(whole), whole.y.tolist()) == (20, [3, 4] * 10)
    assert np.asarray(whole[19][0])[0, 0, 0] == 50


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("cifar10-c:frog:3", "did you mean fog"),
        ("cifar10-c:fog:6", "from 1 to 5"),
        ("cifar10-c:fog", "write cifar10-c:KIND:SEVERITY"),
        ("cifar100-c:fog:1", "unpack CIFAR-100-C.tar"),
        ("imagenet-c:fog:1", "unpack the archives"),
    ],
)
def test_cifar_c_refuses(cifar_c, spec, says):
    with pytest.raises(UserError, match=says):
        resolve(spec).split("test")


def test_damaged_cifar_c(cifar_c):
    (cifar_c / "fog.npy").write_bytes(b"cut")
    np.save(cifar_c / "snow.npy", np.zeros((9, 32, 32, 3), np.uint8))
    for kind, says in (("fog", "not a readable"), ("snow", "expected uint8")):
        with pytest.raises(UserError, match=says):
            resolve(f"cifar10-c:{kind}:1").split("test")
    np.save(cifar_c / "snow.npy", np.zeros((10, 32, 32, 3), np.uint8))
    np.save(cifar_c / "labels.npy", np.zeros((10, 1), np.uint8))
    with pytest.raises(UserError, match=r"got uint8 \[10, 32, 32, 3\] and labels \[10, 1\]"):
        resolve("cifar10-c:snow:1").split("test")


@pytest.mark.parametrize("name", ["cifar10-c", "imagenet-c"])
def test_an_empty_folder_of_corrupted_images_is_missing_data(root, name):
    resolve(name).root.mkdir()
    with pytest.raises(MissingData, match=r"no corrupted images in .*; unpack"):
        resolve(name).split("test")


@pytest.mark.parametrize("above", ["", "weather/"])
def test_imagenet_c(root, above):
    folder_of(
        root / "ImageNet-C", {f"{above}fog/{level}/n{c}/{c}.JPEG": level for level in range(1, 6) for c in (1, 2)}
    )
    assert resolve("imagenet-c").kinds() == ["fog"]
    assert "fog" in CORRUPTIONS
    assert resolve("imagenet-c:fog:2").split("test").y.tolist() == [0, 1]
    assert len(resolve("imagenet-c").split("test")) == 10


def test_cure_tsr_by_its_file_names(root):
    folder_of(root / "CURE-TSR", {
        "Real_Train/ChallengeFree/01_06_00_00_0001.bmp": 1,
        "Real_Test/ChallengeFree/01_14_00_00_0001.bmp": 2,
        "Real_Test/Rain-5/01_01_09_05_0001.bmp": 3,
        "Real_Test/Rain-5/01_02_09_05_0002.bmp": 4,
        "Real_Test/Rain-5/readme_01.bmp": 4,
        "Unreal_Test/Rain-5/02_03_09_05_0003.bmp": 5,
    })  # fmt: skip
    signs = resolve("cure-tsr")
    assert signs.kinds() == ["rain"]
    assert [signs.classes[label] for label in (*signs.split("train").y, *signs.split("test").y)] == ["stop", "parking"]
    rain = resolve("cure-tsr:rain:5").split("test")
    assert isinstance(rain, FileImages)
    assert rain.y.tolist() == [0, 1]
    with pytest.raises(UserError, match="no rain at level 1"):
        resolve("cure-tsr:rain:1").split("test")
