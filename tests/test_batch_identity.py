"""What a batch is known by: operators that differ in anything that matters, and priors with all their settings."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys

import deepinv as dinv
import numpy as np
import pytest
import scipy.sparse
import torch
import yaml
from batching import QUICK, measured, write_items
from conftest import SHAPE, make_operator

import emprior
from emprior._bands import Spectrum
from emprior.batch import reconstruct_many
from emprior.batch.identity import identify, identify_prior
from emprior.hub import Card, find_prior
from emprior.problem import Problem

SINGLE = torch.eye(8)


class Odd(dinv.physics.Physics):
    r"""A physics that takes no image that it is tried with, and holds a number outside its tensors."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def A(self, x, **kwargs):  # noqa: N802
        raise RuntimeError("not these")


class Shaped(Odd):
    r"""A physics of images of a shape that it names itself."""

    img_size = (1, 4, 4)

    def A(self, x, **kwargs):  # noqa: N802
        assert x.shape[1:] == (1, 4, 4)
        return self.number * x


def linear(function):
    return dinv.physics.LinearPhysics(A=function, A_adjoint=function)


def sparse(factor):
    return emprior.as_operator(scipy.sparse.eye(64, format="csr") * factor, shape=SHAPE)


def blur(padding):
    return dinv.physics.Blur(filter=torch.ones(1, 1, 3, 3) / 9, padding=padding)


def smaller(factor):
    return dinv.physics.Downsampling(img_size=SHAPE, factor=factor, filter=None)


PAIRS = {
    "sparse": lambda: (sparse(1.0), sparse(1.0001)),
    "blur": lambda: (blur("circular"), blur("reflect")),
    "downsampling": lambda: (smaller(2), smaller(4)),
    "functions": lambda: (linear(lambda x: x), linear(lambda x: 2 * x)),
    "single": lambda: (linear(lambda x: x @ SINGLE), linear(lambda x: x @ SINGLE.flip(0))),
    "attributes": lambda: (Odd(1), Odd(2)),
    "shape": lambda: (Shaped(1), Shaped(2)),
    "noise": lambda: tuple(dinv.physics.Denoising(dinv.physics.GaussianNoise(sigma)) for sigma in (0.1, 0.2)),
    "problems": lambda: tuple(Problem("mine", sparse(factor), 0.1, SHAPE) for factor in (1, 2)),
    "levels": lambda: tuple(Problem("mine", sparse(1), sigma, SHAPE) for sigma in (0.1, 0.2)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_operators_that_differ_are_told_apart(name):
    (one, other), (same, _) = PAIRS[name](), PAIRS[name]()
    assert identify(one, SHAPE) == identify(same, SHAPE) == identify(copy.deepcopy(one), SHAPE)
    assert identify(one, SHAPE) != identify(other, SHAPE)


def test_an_operator_is_told_by_its_name_where_nothing_else_can_be(monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    assert identify(Odd(1)) == identify(Odd(1)) != identify(Odd(2))
    functions = linear(lambda x: x), linear(lambda x: 2 * x)
    assert identify(functions[0]) == identify(functions[1])
    assert identify(functions[0]).startswith("LinearPhysics ")


def test_an_identity_changes_nothing_and_is_that_of_any_process():
    operators = {name: make_operator(name) for name in ("inpainting", "blur", "compressed_sensing")}
    known = {name: identify(operator, SHAPE) for name, operator in operators.items()}
    code = (
        "import sys, json, torch; from conftest import *; from emprior.batch.identity import identify\n"
        "torch.set_num_threads(3)\n"
        f"print(json.dumps({{name: identify(make_operator(name), SHAPE) for name in {list(known)}}}))\n"
        "assert torch.get_num_threads() == 3"
    )
    path = "from sys import path; path[:0] = " + repr(sys.path) + "\n"
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", path + code], capture_output=True, check=True)
    assert json.loads(told.stdout) == known
    assert known == {name: identify(operator, SHAPE) for name, operator in operators.items()}


def test_the_last_bits_of_a_map_do_not_count():
    matrix = torch.randn(32, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def by(product):
        return identify(linear(lambda x: product(x.flatten(1), matrix.mT)), SHAPE)

    halves = by(lambda x, m: x[:, 32:] @ m[32:] + x[:, :32] @ m[:32])
    assert by(torch.matmul) == halves
    assert by(torch.matmul) != by(lambda x, m: 1.0001 * (x @ m))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epsilon", 0.3),
        ("typical", (3.0, 1.5)),
        ("settings", {"map": {"steps": 7}}),
        ("spectrum", Spectrum((0.0, 1.0), ((1.0, 2.0),))),
    ],
)
def test_priors_of_other_settings_are_told_apart(field, name, value):
    other = copy.deepcopy(field)
    assert identify_prior(other) == identify_prior(field)
    setattr(other, name, value)
    assert identify_prior(other) != identify_prior(field)


@pytest.mark.parametrize("key", ["density", "solver", "metrics"])
def test_cards_of_other_settings_are_told_apart(tmp_path, key):
    folder = tmp_path / "prior"
    shutil.copytree(find_prior("mnist"), folder)
    before = identify_prior(folder)
    tree = yaml.safe_load((folder / "card.yaml").read_text())
    changed = {"density": {"epsilon": 0.5}, "solver": {"map": {"steps": 7}}, "metrics": {"energy": {"mean": 9.0}}}
    tree[key] = tree.get(key, {}) | changed[key]
    (folder / "card.yaml").write_text(yaml.safe_dump(tree))
    assert Card.read(folder).sha256 == Card.read(find_prior("mnist")).sha256
    assert identify_prior(folder) != before


def test_results_of_another_map_are_not_taken_for_done(field, tmp_path):
    folder = write_items(tmp_path / "in", measured(field, 4, "denoising")[1].flatten(1))
    noise = dinv.physics.GaussianNoise(0.1)

    def go(factor):
        operator = sparse(factor)
        operator.set_noise_model(noise)
        return reconstruct_many(operator, folder, tmp_path / "out", field, **QUICK)

    assert go(1.0).fresh == 4
    first = np.load(tmp_path / "out/i00.npy")
    assert go(1.0).fresh == 0
    with pytest.raises(ValueError, match=r"operator was 'SciPyPhysics .*' and is 'SciPyPhysics "):
        go(0.5)
    assert np.array_equal(np.load(tmp_path / "out/i00.npy"), first)
