from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from emprior.frechet import to_bytes
from emprior.io import read_image
from emprior.train.data import as_public, as_signed, load_images


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.mark.parametrize("shape", [(4, 6, 5), (4, 6, 5, 1), (4, 6, 5, 3)])
def test_array(tmp_path, shape):
    array = pixels(*shape)
    np.save(tmp_path / "x.npy", array)
    images = load_images(tmp_path / "x.npy")
    assert images.dtype == torch.uint8
    assert images.shape == (4, shape[3] if len(shape) == 4 else 1, 6, 5)
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy().reshape(shape), array)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats(tmp_path, dtype):
    array = np.random.default_rng(0).normal(0.5, 1, (4, 3, 6, 5)).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    images = load_images(tmp_path / "x.npy")
    array = array.astype(np.float32) if dtype == np.float64 else array
    np.testing.assert_array_equal(images.numpy(), array)
    np.testing.assert_array_equal(as_public(images).numpy(), array.astype(np.float32))
    np.testing.assert_array_equal(as_signed(images).numpy(), 2 * array.astype(np.float32) - 1)


@pytest.mark.parametrize(("low", "warned"), [(-1, True), (0, False)])
def test_images_in_other_units_are_warned_of(tmp_path, caplog, low, warned):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).uniform(low, 1, (4, 3, 6, 5)).astype(np.float32))
    load_images(tmp_path / "x.npy")
    assert ("looks like images in [-1, 1]" in caplog.text) == warned


def test_pixels_and_floats_are_the_same_images():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(as_public(levels)), levels)
    torch.testing.assert_close(as_signed(levels), as_signed(as_public(levels)))
    assert as_signed(levels)[[0, -1]].tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((4, 6, 5, 3), np.float32),
            r"holds float32 of shape \(4, 6, 5, 3\), expected floats of .*channels first",
        ),
        (np.zeros((4, 6, 5), np.float16), r"expected floats of \(N, C, H, W\).*x\[:, None\]"),
        (np.zeros((0, 3, 6, 5), np.float32), "holds no images"),
        (np.full((4, 3, 6, 5), 255, np.float32), r"up to 255, .*Divide 8-bit pixels by 255"),
        (np.full((4, 3, 6, 5), np.nan, np.float32), r"up to nan, expected finite images"),
        (np.zeros((4, 3, 6, 5), np.int32), r"int32 .*expected uint8 .* or floats"),
        (pixels(6, 5), r"expected uint8 of \(N, H, W\)"),
        (pixels(4, 3, 6, 5), r"channels last. Transpose"),
        (pixels(0, 6, 5), "holds no images"),
    ],
)
def test_wrong_arrays(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path / "x.npy")


def test_broken_arrays(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"is not a .npy array.*numpy.save"):
        load_images(tmp_path / "x.npy")
    with (tmp_path / "y.npy").open("wb") as file:
        np.savez(file, x=pixels(2, 4, 4))
    with pytest.raises(ValueError, match="archive of arrays"):
        load_images(tmp_path / "y.npy")


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="there is no data at"):
        load_images(tmp_path / "none.npy")
    with pytest.raises(ValueError, match=r"holds no images. Known suffixes: .bmp"):
        load_images(tmp_path)


def test_folder_of_colour(tmp_path):
    first, second = pixels(8, 8, 3), pixels(8, 12, 3, seed=1)
    save(tmp_path / "a" / "0.png", first)
    save(tmp_path / "b.PNG", second, format="PNG")
    (tmp_path / "c.png").mkdir()
    images = load_images(tmp_path, 8)
    np.testing.assert_array_equal(images[0].permute(1, 2, 0).numpy(), first)
    np.testing.assert_array_equal(images[1].permute(1, 2, 0).numpy(), second[:, 2:10])
    halves = load_images(tmp_path, 4)
    for image, path in zip(halves, (tmp_path / "a" / "0.png", tmp_path / "b.PNG"), strict=True):
        assert torch.equal(image, (255 * read_image(path, size=4)).round().byte())


def test_transparent_pixels_are_laid_on_white(tmp_path):
    rgba = pixels(8, 8, 4)
    rgba[..., 3] = 255 * (np.arange(8) < 4)
    save(tmp_path / "rgba.png", rgba)
    image = load_images(tmp_path, 8)[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(image[:, :4], rgba[:, :4, :3])
    assert (image[:, 4:] == 255).all()


def test_sixteen_bits_are_rounded_to_eight(tmp_path):
    array = np.random.default_rng(0).integers(0, 2**16, (8, 8), dtype=np.uint16)
    save(tmp_path / "deep.png", array)
    np.testing.assert_array_equal(load_images(tmp_path, 8)[0, 0].numpy(), np.round(array / 257))


def test_folder_of_gray(tmp_path):
    save(tmp_path / "gray.png", pixels(8, 8))
    save(tmp_path / "same.png", np.repeat(pixels(8, 8, 1), 3, axis=-1))
    assert load_images(tmp_path, 8).shape == (2, 1, 8, 8)
    save(tmp_path / "colour.png", pixels(8, 8, 3))
    assert load_images(tmp_path, 8).shape == (3, 3, 8, 8)


def test_unreadable_images_are_named(tmp_path):
    save(tmp_path / "good.png", pixels(8, 8))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read .*text.png as an image.*or remove it from the folder"):
        load_images(tmp_path, 8)
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "text.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot read .*text.png as an image"):
        load_images(tmp_path, 8)
    (tmp_path / "text.png").unlink()
    save(tmp_path / "large.tif", np.full((8, 8), 2.0, np.float32))
    with pytest.raises(ValueError, match=r"large.tif holds values from 2 to 2.*or remove it from the folder"):
        load_images(tmp_path, 8)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def test_torchvision_root_has_two_sets(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    sets = {"train": pixels(5, 28, 28), "t10k": pixels(3, 28, 28, seed=1)}
    for name, array in sets.items():
        write_idx(raw / f"{name}-images-idx3-ubyte", array)
        write_idx(raw / f"{name}-labels-idx1-ubyte", np.zeros(len(array), np.uint8))
    np.testing.assert_array_equal(load_images(tmp_path)[:, 0].numpy(), sets["train"])
    np.testing.assert_array_equal(load_images(tmp_path, held_out=True)[:, 0].numpy(), sets["t10k"])


@pytest.mark.parametrize("mark", ["cifar-10-batches-py", "MNIST"])
def test_incomplete_torchvision_root(tmp_path, mark):
    (tmp_path / mark).mkdir()
    with pytest.raises(ValueError, match=rf"{mark} looks like a torchvision data set but cannot be read.*download"):
        load_images(tmp_path)
