"""Reading images: CIFAR's format, class folders, digits; and what is said where files are missing or damaged."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from sg_support import context
from sobolev_synthetic_gradients.data import augment, cifar, open_images
from sobolev_synthetic_gradients.data.generated import write_archive
from sobolev_synthetic_gradients.networks import Convolutional
from sobolev_synthetic_gradients.settings import Cifar, Digits, Folder, Generated, GeneratedFolder
from torch import nn

from sobolev import DataError, Site

needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write_archive(tmp_path, Generated(use="generated", train=100, test=20, noise=0.1))
    return tmp_path


def read(directory: Path, **options) -> cifar.CifarImages:
    return cifar.CifarImages(Cifar(use="cifar10", directory=str(directory), augment=False, **options), directory, 0)


def test_archive_is_read_as_it_was_written(archive: Path) -> None:
    images = read(archive, validation=30)
    assert [images.size(split) for split in ("train", "validation", "test")] == [70, 30, 20]
    train, labels = images.load("train", torch.arange(70))
    assert train.shape == (70, 3, 32, 32) and set(labels.tolist()) == set(range(10))
    assert torch.allclose(train.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(train.std((0, 2, 3)), torch.ones(3), atol=1e-3)
    with tarfile.open(archive / "cifar-10-python.tar.gz") as tar:
        held = pickle.loads(tar.extractfile("cifar-10-batches-py/data_batch_2").read(), encoding="bytes")
    # 100 images in five files of 20: the second file begins at image 20; planes are red, green, blue, by rows.
    raw = held[b"data"].reshape(20, 3, 32, 32)[0]
    assert int(labels[20]) == held[b"labels"][0]
    back = train[20] * images._scale + images._mean
    assert np.abs(back.numpy() - raw).max() < 0.01


def test_unpacked_folder_and_subset(archive: Path) -> None:
    with tarfile.open(archive / "cifar-10-python.tar.gz") as tar:
        tar.extractall(archive, filter="data")
    (archive / "cifar-10-python.tar.gz").unlink()
    assert read(archive, train=15, validation=10).size("train") == 15
    with pytest.raises(DataError, match="95 training and 10 validation"):
        read(archive, train=95, validation=10)


def test_missing_archive_says_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"cifar-10-python.tar.gz is not there.*www.cs.toronto.edu.*target.data.directory"
    ):
        read(tmp_path)


def test_truncated_archive(archive: Path) -> None:
    file = archive / "cifar-10-python.tar.gz"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(DataError, match="damaged"):
        read(archive)


def test_changed_archive_fails_its_checksum(archive: Path) -> None:
    _rewrite(archive, "test_batch", {b"data": np.zeros((20, 3072), np.uint8), b"labels": [0] * 20}, correct=False)
    with pytest.raises(DataError, match="MD5 sum of test_batch"):
        read(archive)


def test_an_unknown_archive_needs_the_original_sums(archive: Path) -> None:
    (archive / cifar.CHECKSUMS).unlink()
    with pytest.raises(DataError, match="c99cafc152244af753f735de768cd75f"):
        read(archive)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({b"data": np.zeros((20, 3072), np.uint8), b"labels": [10] * 20}, "labels from 10 to 10; 10 classes"),
        ({b"data": np.zeros((20, 3000), np.uint8), b"labels": [0] * 20}, "3072 bytes"),
        ({b"data": np.zeros((20, 3072), np.uint8)}, "KeyError"),
        ({b"data": Path(), b"labels": []}, "is not admitted"),
    ],
)
def test_contents_that_do_not_fit(archive: Path, content: dict, told: str) -> None:
    _rewrite(archive, "test_batch", content, correct=True)
    with pytest.raises(DataError, match=told):
        read(archive)


def test_files_are_read_as_python_2_wrote_them() -> None:
    """The original archives come from Python 2: texts of bytes, and numpy's old module names."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    array = empty + b"(K\x01K\x02M\x00\x0c\x86" + dtype + b"\x89T" + struct.pack("<i", 6144) + pixels.tobytes() + b"tb"
    content = b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x07K\x01eu."
    images, labels = cifar._images(content, cifar.LAYOUTS["cifar10"], "here")
    assert labels.tolist() == [7, 1]
    assert np.array_equal(images.numpy(), pixels.reshape(2, 3, 32, 32))


def _rewrite(directory: Path, name: str, content: dict, correct: bool) -> None:
    """Replace a file of the archive; give it a right sum, or leave the old one."""
    import hashlib

    file, sums = directory / "cifar-10-python.tar.gz", directory / cifar.CHECKSUMS
    with tarfile.open(file) as tar:
        kept = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}
    written = kept[f"cifar-10-batches-py/{name}"] = pickle.dumps(content, protocol=2)
    with tarfile.open(file, "w:gz") as tar:
        for path, data in kept.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    if correct:
        lines = [line for line in sums.read_text().splitlines() if not line.endswith(name)]
        sums.write_text("\n".join([*lines, f"{hashlib.md5(written).hexdigest()}  {name}"]))


def test_hundred_classes(tmp_path: Path) -> None:
    images = open_images(Generated(use="generated", classes=100, train=200, test=100), context(tmp_path))
    assert images.classes == 100
    assert set(images.load("test", torch.arange(100))[1].tolist()) == set(range(100))


def test_generated_images_are_written_once_and_can_be_learned(tmp_path: Path) -> None:
    settings = Generated(use="generated", train=1500, test=200, noise=0.05)
    images = open_images(settings, context(tmp_path))
    (file,) = tmp_path.glob("generated/*/cifar-10-python.tar.gz")
    written = file.stat().st_mtime_ns
    open_images(settings, context(tmp_path))
    assert file.stat().st_mtime_ns == written and len(list(tmp_path.glob("generated/*"))) == 1
    torch.manual_seed(0)
    network = Convolutional([16, 32, 32], [2, 2, 2], norm=True).build(Site({"x": images.shape}, 10, ()))
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    x, labels = images.load("train", torch.arange(1500))
    for step in range(200):
        rows = torch.randint(1500, (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[rows]), labels[rows]).backward()
        optimizer.step()
    test, labels = images.load("test", torch.arange(200))
    network.eval()
    assert (network(test).argmax(1) == labels).float().mean() > 0.5  # by chance 0.1


def test_augmentation_is_a_function_of_seed_and_batch(tmp_path: Path) -> None:
    settings = Generated(use="generated", train=100, test=20, augment=True)
    ids = torch.arange(16)
    first, again = (open_images(settings, context(tmp_path)).load("train", ids)[0] for _ in range(2))
    assert torch.equal(first, again)
    images = open_images(settings, context(tmp_path))
    assert not torch.equal(first[:8], images.load("train", ids[:8])[0])  # another batch, other changes
    assert torch.equal(images.load("test", ids)[0], images.load("test", ids)[0])


def test_shift_and_mirror() -> None:
    x = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4) + 1
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        moved = augment.shift(x, 1, generator)
        for image, original in zip(moved, x, strict=True):
            padded = nn.functional.pad(original, (1,) * 4)
            assert any(torch.equal(image, padded[:, i : i + 4, j : j + 4]) for i in range(3) for j in range(3))
    turned = augment.mirror(x.repeat(50, 1, 1, 1), generator)
    flips = [bool(torch.equal(a, b.flip(-1))) for a, b in zip(turned, x.repeat(50, 1, 1, 1), strict=True)]
    assert 30 < sum(flips) < 70


def test_digits_are_split_always_alike(tmp_path: Path) -> None:
    images = open_images(Digits(use="digits", train=1000, validation=300), context(tmp_path))
    assert [images.size(s) for s in ("train", "validation", "test")] == [1000, 300, 497]
    seen = [images.load(s, torch.arange(images.size(s)))[0] for s in ("train", "validation", "test")]
    assert len(torch.unique(torch.cat(seen).flatten(1), dim=0)) > 1790  # no image twice, but for a few that are equal
    with pytest.raises(DataError, match="none is left to test"):
        open_images(Digits(use="digits", train=1797), context(tmp_path))


@needs_timm
def test_class_folders_through_timm(tmp_path: Path) -> None:
    settings = GeneratedFolder(use="generated-folder", classes=3, images=2, size=32)
    images = open_images(settings, context(tmp_path))
    try:
        assert images.shape == (3, 32, 32) and images.size("train") == 6 and images.size("validation") == 0
        first, labels = images.load("train", torch.arange(6))
        assert first.shape == (6, 3, 32, 32) and labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert torch.equal(first, images.load("train", torch.arange(6))[0])
        assert not torch.equal(first[:3], images.load("train", torch.arange(3))[0])
        held = images.load("test", torch.arange(6))[0]
        assert torch.equal(held[:3], images.load("test", torch.arange(3))[0])
    finally:
        images.close()


@needs_timm
def test_class_folders_that_are_missing_or_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train is not there.*train/CLASS"):
        open_images(Folder(use="image-folder", directory="nowhere"), context(tmp_path))
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
    with pytest.raises(DataError, match="holds 2 class folders, 1000 are expected"):
        open_images(Folder(use="image-folder", directory="."), context(tmp_path))
