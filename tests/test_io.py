from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emprior.batch import Stack
from emprior.io import read_image, read_measurements, write_image


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("height", [1, 3])
def test_a_low_picture_keeps_its_axes(tmp_path, height):
    Image.fromarray(np.zeros((height, 20, 3), np.uint8)).save(tmp_path / "low.png")
    assert read_image(tmp_path / "low.png").shape == (3, height, 20)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(tmp_path, channels):
    x = torch.from_numpy(pixels(channels, 6, 9)).float() / 255
    write_image(tmp_path / "x.png", x)
    assert torch.equal(read_image(tmp_path / "x.png"), x)
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_close(tmp_path, channels):
    x = torch.linspace(0, 1, 32).expand(channels, 32, 32)
    write_image(tmp_path / "x.JPG", x)
    assert (read_image(tmp_path / "x.JPG") - x).abs().max() < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_npy_holds_floats_as_they_are(tmp_path, dtype):
    x = 3 * torch.randn(3, 4, 5, dtype=dtype)
    write_image(tmp_path / "x.npy", x)
    assert torch.equal(read_measurements(tmp_path / "x.npy"), x)


def test_values_outside_are_clipped_in_pixels(tmp_path):
    write_image(tmp_path / "x.png", torch.tensor([[[-1.0, 0.5, 2.0]]]))
    torch.testing.assert_close(read_image(tmp_path / "x.png"), torch.tensor([[[0.0, 128 / 255, 1.0]]]))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pixels(5, 7), (1, 5, 7)),
        (pixels(3, 5, 7), (3, 5, 7)),
        (pixels(5, 7, 3), (3, 5, 7)),
        (pixels(5, 7, 1), (1, 5, 7)),
        (pixels(3, 7, 3), (3, 7, 3)),
    ],
)
def test_npy_layouts(tmp_path, array, expected):
    np.save(tmp_path / "x.npy", array)
    image = read_image(tmp_path / "x.npy")
    assert image.shape == expected
    assert image.dtype == torch.float32
    channels_first = array[None] if array.ndim == 2 else array if array.shape == expected else array.transpose(2, 0, 1)
    np.testing.assert_array_equal(image.numpy(), channels_first / np.float32(255))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", bool, np.uint16, ">u2"])
def test_npy_types(tmp_path, dtype):
    np.save(tmp_path / "x.npy", (np.eye(4) * (65535 if np.dtype(dtype).kind == "u" else 1)).astype(dtype))
    assert torch.equal(read_image(tmp_path / "x.npy"), torch.eye(4)[None])


def test_modes_of_pillow(tmp_path):
    rgba = pixels(4, 4, 4)
    rgba[..., 3] = 0
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    assert torch.equal(read_image(tmp_path / "clear.png"), torch.ones(3, 4, 4))
    Image.fromarray(pixels(4, 4, 2), "LA").save(tmp_path / "la.png")
    assert read_image(tmp_path / "la.png").shape == (1, 4, 4)
    Image.fromarray(pixels(4, 4, 3)).quantize(8).save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png").shape == (3, 4, 4)
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").tolist() == [[[0, 1]]]
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bits.png")
    assert read_image(tmp_path / "bits.png").tolist() == [[[0, 1]]]


def test_exif_orientation(tmp_path):
    picture = Image.fromarray(pixels(4, 6, 3))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape == (3, 6, 4)


def test_size_crops_the_centre_and_resizes(tmp_path):
    x = torch.zeros(3, 8, 24)
    x[..., 8:16] = 1
    write_image(tmp_path / "x.png", x)
    assert torch.equal(read_image(tmp_path / "x.png", size=8), torch.ones(3, 8, 8))
    torch.testing.assert_close(read_image(tmp_path / "x.png", size=4), torch.ones(3, 4, 4))
    assert read_image(tmp_path / "x.png", size=(16, 48)).shape == (3, 16, 48)
    resized = read_image(tmp_path / "x.png", size=(5, 11))
    assert resized.shape == (3, 5, 11)
    assert 0 <= resized.min() <= resized.max() <= 1
    with pytest.raises(ValueError, match="at least 1"):
        read_image(tmp_path / "x.png", size=0)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.npy", "x"])
@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_files_that_are_no_image(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*(Give a PNG, JPEG or \.npy file|Write it by np\.save)"):
        read_image(tmp_path / name)
    with pytest.raises(ValueError, match="cannot read"):
        read_measurements(tmp_path / name)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.npy"])
def test_files_cut_short(tmp_path, name):
    write_image(tmp_path / name, torch.rand(3, 64, 64))
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cannot read"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("read", [read_image, read_measurements])
@pytest.mark.parametrize("name", ["x.png", "x.npy"])
def test_files_that_are_not_there(tmp_path, read, name):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 8, 8)), r"shape \(2, 3, 8, 8\), but an image is \(H, W\)"),
        (np.zeros((8, 8, 4)), r"shape \(8, 8, 4\)"),
        (np.full((8, 8), -0.5), r"values from -0.5 to -0.5, but an image of floats is in \[0, 1\]"),
        (np.full((8, 8), np.nan), "values from nan"),
        (np.zeros((0, 8)), "holds nothing"),
        (np.zeros((8, 8), np.int64), "int64 values, but an image is uint8"),
        (np.zeros((8, 8), np.complex64), "complex64 values"),
        (np.array([[object()]]), "cannot read .* as an array"),
    ],
)
def test_arrays_that_are_no_image(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=message):
        read_image(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.ones(5), torch.float64),
        (np.ones((2, 3, 4), np.float16), torch.float32),
        (np.ones(5, ">f8"), torch.float64),
        (np.ones((1, 2, 2), np.complex64), torch.complex64),
        (np.ones(3, np.complex128), torch.complex128),
        (np.array([7, 90000]), torch.float32),
        (np.array(3.5), torch.float64),
    ],
)
def test_measurements(tmp_path, array, dtype):
    np.save(tmp_path / "y.npy", array)
    y = read_measurements(tmp_path / "y.npy")
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.numpy(), array)


def test_measurements_that_are_pixels(tmp_path):
    np.save(tmp_path / "y.npy", pixels(3, 4, 4))
    np.testing.assert_array_equal(read_measurements(tmp_path / "y.npy"), pixels(3, 4, 4) / np.float32(255))
    write_image(tmp_path / "y.png", torch.ones(1, 4, 4))
    assert torch.equal(read_measurements(tmp_path / "y.png"), torch.ones(1, 4, 4))


def test_measurements_that_are_no_numbers(tmp_path):
    np.save(tmp_path / "y.npy", np.array(["a"]))
    with pytest.raises(ValueError, match="measurements are numbers"):
        read_measurements(tmp_path / "y.npy")
    np.save(tmp_path / "y.npy", np.array([np.nan]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        read_measurements(tmp_path / "y.npy")
    with (tmp_path / "y.npy").open("wb") as file:
        np.savez(file, a=np.ones(2))
    with pytest.raises(ValueError, match="archive of several arrays"):
        read_measurements(tmp_path / "y.npy")


def write_text(path):
    path.write_text("no array")


def write_objects(path):
    np.save(path, np.array([{}]))


def write_half(path):
    np.save(path, np.ones(8))
    path.write_bytes(path.read_bytes()[:-32])


@pytest.mark.parametrize("read", [read_measurements, lambda path: len(Stack(path))])
@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_text, "it holds no plain array"),
        (write_objects, "it holds no plain array"),
        (Path.touch, "[Nn]o data left in file|cannot mmap an empty file"),
        (write_half, r"Failed to read all data|cannot reshape|mmap length"),
    ],
)
def test_files_that_hold_no_array(tmp_path, read, write, reason):
    write(tmp_path / "y.npy")
    with pytest.raises(
        ValueError, match=rf"cannot read .*y\.npy as an array: ({reason}).*\. Write it by np\.save"
    ) as caught:
        read(tmp_path / "y.npy")
    assert "pickle" not in str(caught.value)
    assert ".." not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        ("x.pgn", torch.ones(3, 4, 4), r"ends in '\.pgn'.*Did you mean '\.png'"),
        ("x", torch.ones(3, 4, 4), "no format to write"),
        ("x.png", torch.ones(2, 3, 4, 4), r"x has shape \(2, 3, 4, 4\).*Write a batch by x\[0\]"),
        ("x.png", torch.ones(2, 4, 4), "an image is"),
        ("x.png", torch.full((1, 4, 4), torch.nan), "NaN"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, x, message):
    with pytest.raises(ValueError, match=message):
        write_image(tmp_path / name, x)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "writer"), [("x.png", "PIL.Image.Image.save"), ("x.npy", "numpy.save")])
def test_a_full_disk_leaves_the_earlier_file(tmp_path, monkeypatch, name, writer):
    write_image(tmp_path / name, torch.zeros(1, 4, 4))
    before = (tmp_path / name).read_bytes()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, fail)
    with pytest.raises(OSError, match=r"No space left on device.*free some space"):
        write_image(tmp_path / name, torch.ones(1, 4, 4))
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == before
