"""What a batch reads, and the list that it makes of it."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from emprior.batch import Folder, Item, Stack, Table
from emprior.batch.manifest import Manifest, even, write_manifest
from emprior.batch.reconstruct import open_source
from emprior.io import read_measurements, write_image


def write_table(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Table(path)


def test_a_folder_lists_arrays_and_images_by_their_relative_stems(tmp_path):
    for name in ("b.npy", "a.npy", "deep/er/c.npy", ".hidden.npy", ".cache/d.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / name, np.zeros((1, 2, 2), np.float32))
    write_image(tmp_path / "deep/p.png", torch.full((1, 2, 2), 0.6))
    (tmp_path / "notes.txt").write_text("not an item")
    folder = open_source(tmp_path)
    assert [tuple(item)[:2] for item in folder.items()] == [
        ("a", "a.npy"), ("b", "b.npy"), ("deep/p", "deep/p.png"), ("deep/er/c", "deep/er/c.npy"),
    ]  # fmt: skip
    assert torch.equal(folder.read("deep/p.png"), read_measurements(tmp_path / "deep/p.png"))


def test_a_source_holds_where_it_is_and_not_how_it_was_called(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.ones((1, 2)))
    monkeypatch.chdir(tmp_path)
    sources = Folder("."), Folder(Path("../") / tmp_path.name), Stack(Path("x.npy"))
    monkeypatch.chdir("/")
    assert [item.id for source in sources for item in source.items()] == ["x", "x", "0"]
    assert all(source.path.is_absolute() for source in sources)


def test_files_of_one_stem_are_both_named(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(2))
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.npy and x\.png beside it have the same id 'x'"):
        list(Folder(tmp_path).items())


def test_a_table_names_items_problems_and_truths(tmp_path):
    table = write_table(
        tmp_path / "list.csv",
        ["path,id,problem,truth", "in/a.npy,,ct,", "in/b.npy,second,p/mine.yaml,t/b.npy", "../c.npy,,/far/x.yml,"],
    )
    assert list(open_source(table.path).items()) == [
        Item("in/a", "in/a.npy", "ct"),
        Item("second", "in/b.npy", str(tmp_path / "p/mine.yaml"), "t/b.npy"),
        Item("c", "../c.npy", "/far/x.yml"),
    ]


def test_a_table_says_what_is_wrong_with_it(tmp_path):
    with pytest.raises(ValueError, match=r"unknown column 'problems'\. Did you mean 'problem'\?"):
        list(write_table(tmp_path / "a.csv", ["path,problems", "x.npy,"]).items())
    with pytest.raises(ValueError, match="lacks the column 'path'"):
        list(write_table(tmp_path / "b.csv", ["id", "x"]).items())
    with pytest.raises(ValueError, match="line 3"):
        list(write_table(tmp_path / "c.csv", ["path,id", "x.npy,x", ",y"]).items())


@pytest.mark.parametrize("kind", ["npy", "h5", "zarr"])
def test_stacks_of_every_kind_hold_the_same_rows(tmp_path, kind):
    array = np.random.default_rng(0).random((12, 1, 3, 3))
    path = tmp_path / f"stack.{kind}"
    if kind == "npy":
        np.save(path, array)
    elif kind == "h5":
        with pytest.importorskip("h5py").File(path, "w") as file:
            file["y"], file["other"] = array, array
    else:
        zarr = pytest.importorskip("zarr")
        zarr.create_array(path, data=array, chunks=(1, 1, 3, 3))
    stack = open_source(f"{path}::y" if kind == "h5" else path)
    assert [item.id for item in stack.items()] == [f"{row:02d}" for row in range(12)]
    for item in stack.items():
        assert torch.equal(stack.read(item.where), torch.from_numpy(array[int(item.id)]))
    if kind == "h5":
        with pytest.raises(ValueError, match=r"holds 2 arrays: other, y\. Say which: .*::other"):
            len(Stack(path))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, np.float32, np.float64, ">f4", np.complex128])
def test_a_row_of_a_stack_is_read_as_a_file_is(tmp_path, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    np.save(tmp_path / "stack.npy", array)
    np.save(tmp_path / "row.npy", array[1])
    row, file = Stack(tmp_path / "stack.npy").read("1"), read_measurements(tmp_path / "row.npy")
    assert row.dtype == file.dtype
    assert torch.equal(row, file)


def test_an_address_opens_the_same_source_again(tmp_path):
    np.save(tmp_path / "y.npy", np.zeros((2, 1, 2, 2)))
    (tmp_path / "y.h5").write_bytes(b"")
    write_table(tmp_path / "list.csv", ["path"])
    for name in ("", "y.npy", "y.h5::first", "list.csv"):
        source = open_source(tmp_path / name)
        assert open_source(source.address) == source
        assert source.address == str(tmp_path / name)


def test_inputs_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match="is no list of items"):
        open_source(tmp_path / "x.png")
    with pytest.raises(FileNotFoundError, match="there is no input"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(TypeError, match=r"Save an array first: numpy\.save"):
        open_source(np.zeros((2, 1, 2, 2)))


def test_even_parts_are_as_few_as_can_be_and_waste_less_than_one_each():
    for count in range(1, 300):
        for most in (1, 7, 64, 512):
            size, parts = even(count, most), -(-count // most)
            assert size <= most
            assert -(-count // size) == parts
            assert 0 <= size * parts - count < parts


def test_chunks_hold_every_item_once_and_in_order(tmp_path):
    names = ["plain", 'a "quoted" one', "with, comma", "two\nlines", "ünïcode", os.fsdecode(b"not-utf8-\xff")]
    items = [Item(f"{name}-{i}", f"{name}/{i}.npy", "p" * (i % 2)) for i in range(9) for name in names]
    manifest, digest, problems = write_manifest(iter(items), tmp_path, 16)
    assert (len(manifest), manifest.chunk, problems) == (4, 14, {"", "p"})
    opened = Manifest.open(tmp_path, manifest.count, manifest.chunk)
    assert [item for number in range(4) for item in opened.read(number)] == items
    assert [opened.size(number) for number in range(4)] == [14, 14, 14, 12]
    assert write_manifest(iter(items), tmp_path, 7)[1] == digest
    assert write_manifest(iter(items[::-1]), tmp_path, 7)[1] != digest


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../b", ".batch/x", "a/.b", ""])
def test_ids_that_could_leave_the_output_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="cannot name a file"):
        write_manifest([Item(name, "x.npy")], tmp_path, 4)


def test_ids_given_twice_are_refused_however_far_apart(tmp_path):
    items = [Item(f"i{row}", f"{row}.npy") for row in range(100)] + [Item("i3", "late.npy")]
    with pytest.raises(ValueError, match=r"3\.npy and late\.npy have the same id 'i3'"):
        write_manifest(items, tmp_path, 8)


def test_a_batch_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there are no items"):
        write_manifest([], tmp_path, 8)


@pytest.mark.parametrize("odd", ["a,b", 'a"b', "a\nb", "a\rb", "ä\udce9", ""])
def test_a_manifest_is_the_csv_of_its_items(tmp_path, odd):
    items = [Item(f"i{row}", f"{row}.npy") for row in range(2000)]
    items[1500] = Item("odd", odd, odd, odd)
    manifest, _, problems = write_manifest(items, tmp_path, 64)
    text = io.StringIO(newline="")
    csv.writer(text).writerows(items)
    assert (tmp_path / "manifest.csv").read_bytes() == text.getvalue().encode("utf-8", "surrogateescape")
    assert [item for number in range(len(manifest)) for item in manifest.read(number)] == items
    assert problems == {"", odd}
