"""`emprior batch`, through the parser, with the bundled MNIST prior."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import emprior
from emprior._noise import generator
from emprior.batch import item_seed
from emprior.cli import batch
from emprior.cli._common import Parser, UsageError
from emprior.io import write_image

PROBLEM = """
description: Noise alone.
shape: [1, 28, 28]
operator: {type: denoising}
noise: {type: gaussian, sigma: 0.1}
"""


def parse(*arguments):
    parser = Parser(prog="emprior")
    batch.add(parser.add_subparsers(required=True))
    return parser.parse_args(["batch", *map(str, arguments)])


def emprior_batch(*arguments):
    options = parse(*arguments)
    return options.run(options)


@pytest.fixture
def digits(tmp_path):
    r"""Five noisy squares as files, of which the last is an image, and the truth."""
    x = torch.zeros(1, 28, 28)
    x[:, 8:20, 12:16] = 1
    (tmp_path / "problem.yaml").write_text(PROBLEM)
    for name in ("in", "truth"):
        (tmp_path / name).mkdir()
    for index in range(5):
        y = x + 0.1 * torch.randn(x.shape, generator=generator("digits", index))
        if index < 4:
            np.save(tmp_path / f"in/d{index}.npy", y.numpy())
        else:
            write_image(tmp_path / f"in/d{index}.png", y)
        write_image(tmp_path / f"truth/d{index}.png", x)
    return tmp_path


def test_a_folder_is_restored_and_what_cannot_be_read_is_listed(digits, capsys):
    arguments = ["--problem", digits / "problem.yaml", "--input", digits / "in", "--prior", "mnist"]
    arguments += ["--truth", digits / "truth", "--steps", 12, "--out", digits / "out"]
    (digits / "in/broken.npy").write_bytes(b"no array")
    assert emprior_batch(*arguments, "--dry-run") == 0
    assert "6 items in 1 chunks of 6, 1 left; batches of 6" in capsys.readouterr().out
    assert not (digits / "out").exists()
    assert emprior_batch(*arguments) == 1
    printed = capsys.readouterr().out
    assert "5 of 6 items done; 1 failed" in printed
    assert printed.count("\n") == 1
    assert sorted(path.name for path in (digits / "out").iterdir()) == [
        ".batch", "d0.npy", "d1.npy", "d2.npy", "d3.npy", "d4.npy", "errors.jsonl", "records.jsonl",
    ]  # fmt: skip
    assert json.loads((digits / "out/errors.jsonl").read_text())["id"] == "broken"
    records = [json.loads(line) for line in (digits / "out/records.jsonl").read_text().splitlines()]
    assert all(record["psnr"] > 24 for record in records[1:])  # the noise alone has 20 dB
    operator, y = emprior.load_problem(digits / "problem.yaml").operator, np.load(digits / "in/d2.npy")

    def alone(name):
        seed = item_seed(0, name)
        return emprior.solve(operator, torch.from_numpy(y)[None], "mnist", steps=12, seed=seed).estimate[0].numpy()

    assert np.abs(np.load(digits / "out/d2.npy") - alone("d2")).max() < 1e-4
    np.save(digits / "in/broken.npy", y)
    assert emprior_batch(*arguments, "--retry") == 0
    assert np.abs(np.load(digits / "out/broken.npy") - alone("broken")).max() < 1e-4
    assert not np.array_equal(np.load(digits / "out/broken.npy"), np.load(digits / "out/d2.npy"))


def test_a_noise_level_is_estimated_of_each_item(digits):
    (digits / "one").mkdir()
    (digits / "in/d2.npy").rename(digits / "one/d2.npy")
    arguments = ["--problem", digits / "problem.yaml", "--input", digits / "one", "--prior", "mnist"]
    options = ["--method", "mala", "--steps", 20, "--samples", 2, "--sigma", "estimate", "--out", digits / "out"]
    assert emprior_batch(*arguments, *options) == 0
    record = json.loads((digits / "out/records.jsonl").read_text())
    assert 0 < record["sigma_std"] < 0.01
    assert abs(record["sigma"] - 0.1) < 4.5 * record["sigma_std"]


def test_a_weight_may_be_asked_for(digits):
    arguments = ["--problem", digits / "problem.yaml", "--input", digits / "in", "--out", digits / "out"]
    options = parse(*arguments, "--weight", "estimate", "--sigma", 0.2)
    job = batch._job(options)
    assert (job.weight, job.sigma) == ("estimate", 0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weight", "guess"], "--weight: expected a positive number or 'estimate', got 'guess'"),
        (["--weight", "estimate", "--sigma", "estimate"], "cannot be estimated at once"),
        (["--method", "ula", "--sigma", "estimate"], "'ula' cannot estimate sigma"),
        (["--method", "mapp"], r"unknown method 'mapp'\. Did you mean 'map'\?"),
        (["--format", "h5"], r"--format: unknown format 'h5'"),
        (["--save", "std"], "finds a mode, which has no std"),
        (["--quantiles", "1.5"], r"quantiles holds 1\.5, but they are probabilities from 0 to 1"),
        (["--truth", "few.npy"], r"few\.npy holds 3 true images, but there are 5 items"),
        (["--truth", "list.csv"], "cannot hold truths by itself"),
        (["--shard", "4/4"], "expected I/N with I from 0 to N - 1"),
        (["--scheduler", "tcp://x:1"], "Add --engine dask"),
        (["--prior", "mnits"], "Did you mean 'mnist'"),
        (["--input", "nowhere"], "there is no input nowhere"),
        (["--out", "in/out"], "lie in one another"),
    ],
)
def test_bad_usage_is_told_before_any_work(digits, arguments, message, monkeypatch):
    monkeypatch.chdir(digits)
    np.save("few.npy", np.zeros((3, 1, 28, 28), np.float32))
    (digits / "list.csv").write_text("path\n")
    given = {"--problem": "problem.yaml", "--input": "in", "--prior": "mnist", "--out": "out"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    with pytest.raises(UsageError, match=message):
        emprior_batch(*[part for pair in given.items() for part in pair], "--dry-run")
    assert not (digits / "out").exists()
    with pytest.raises(UsageError, match=message):
        emprior_batch(*[part for pair in given.items() for part in pair])
    assert not (digits / "out/.batch/plan.json").exists()
