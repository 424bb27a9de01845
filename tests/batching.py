"""A Gaussian field measured many times, as files, and results as files."""

from __future__ import annotations

import json
import os

import numpy as np
import torch
from conftest import SHAPE, make_operator

import emprior
from emprior._noise import generator

QUICK = {"method": "continuation", "steps": 4, "progress": False}
CORRUPT = {"i03": "as an array", "i08": "NaN or infinite", "i11": "y has shape", "i17": "divide it by 255", "i20": "."}
r"""What :func:`spoil` breaks, and a part of the reason that is given for each."""


def measured(field, count, name="blur", dtype=torch.float32):
    r"""Returns truths and measurements of `count` images."""
    operator = make_operator(name)
    x = field.sample(count, seed=3)
    clean = operator.A(x)
    white = torch.randn(clean.shape, generator=generator("batch"), dtype=torch.float64)
    return x.to(dtype), (clean + 0.05 * white * (operator.A(torch.ones_like(x)) != 0)).to(dtype)


def write_items(folder, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    for index, tensor in enumerate(tensors):
        np.save(folder / f"i{index:02d}.npy", tensor.numpy())
    return folder


def read_all(out):
    return {path.stem: np.load(path) for path in sorted(out.glob("*.npy"))}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


def spoil(folder):
    r"""Breaks five files, each in a way of its own."""
    (folder / "i03.npy").write_bytes((folder / "i03.npy").read_bytes()[:150])
    np.save(folder / "i08.npy", np.full(SHAPE, np.nan, np.float32))
    np.save(folder / "i11.npy", np.zeros((1, 9, 9), np.float32))
    np.save(folder / "i17.npy", np.full(SHAPE, 200, np.float32))
    os.remove(folder / "i20.npy")
    os.symlink(folder / "nowhere", folder / "i20.npy")


def untouched(y):
    r"""Returns measurements as if they were their own reconstructions."""
    status = emprior.Status.CONVERGED
    run = emprior.Diagnostics((status,) * len(y), {}, torch.ones(len(y)))
    return emprior.Result(y, y[None], y, None, run, status, {})
