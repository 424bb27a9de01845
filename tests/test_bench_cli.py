r"""`emprior bench` from its words to its files."""

from __future__ import annotations

import json

import pytest

from emprior.bench import METHODS
from emprior.cli import bench
from emprior.cli._common import Parser, UsageError


@pytest.fixture
def call(capsys):
    parser = Parser(prog="emprior")
    bench.add(parser.add_subparsers())

    def run(*words):
        options = parser.parse_args(["bench", *words])
        return options.run(options), capsys.readouterr().out

    return run


SMALL = ("--suite", "gaussian", "--images", "2", "--samples", "2", "--budget", "20")


def test_records_tables_and_page(call, tmp_path):
    out = tmp_path / "report"
    words = (*SMALL, "--problems", "denoising", "compressed sensing", "--methods", "pnp-pgd", "deepinv-ddrm")
    code, text = call(*words, "--out", str(out))
    assert code == 0
    assert "prior and denoiser: Gaussian field, in closed form" in text
    assert "compressed sensing           deepinv-ddrm             failed: TypeError: DDRM needs" in text
    assert "1 of 4 failed; the tables say why" in text
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    cells = {f"records/{p}/{m}.json" for p in ("denoising", "compressed_sensing") for m in ("pnp-pgd", "deepinv-ddrm")}
    assert names >= cells | {"table.md", "figures.csv", "index.html"}
    record = json.loads((out / "records/denoising/pnp-pgd.json").read_text())
    assert record["plan"]["budget"] == 20
    assert record["settings"] == {"steps": 20, "noise": 0.05}
    assert record["evaluations"] == 20
    assert len(record["figures"]["psnr"]) == 2
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    _, text = call(*words, "--out", str(out))
    assert text.count("(kept)") == 4
    assert {path: path.read_bytes() for path in before} == before


def test_tuned_settings_are_printed_and_kept(call, tmp_path):
    words = (*SMALL, "--problems", "blur", "--methods", "pnp-pgd", "pseudo-inverse", "--tune", "3", "--validation", "2")
    _, text = call(*words, "--out", str(tmp_path))
    assert "tuned pnp-pgd on blur: 3 trials, noise" in text
    assert "tuned pseudo-inverse on blur: 1 trials, nothing to choose" in text
    trials = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("tune/*/records/blur/pnp-pgd.json"))]
    assert len(trials) == 3
    chosen = json.loads((tmp_path / "records/blur/pnp-pgd.json").read_text())["settings"]
    best = max(trials, key=lambda trial: sum(trial["figures"]["psnr"]))
    assert chosen == best["settings"]
    _, text = call(*words, "--out", str(tmp_path))
    assert text.count("(kept)") == 2


def test_other_plans_are_not_mixed(call, tmp_path):
    words = ("--problems", "blur", "--methods", "tikhonov", "--out", str(tmp_path))
    call(*SMALL, *words)
    with pytest.raises(UsageError, match="holds records with images 2, which cannot stand in one table"):
        call(*SMALL, *words, "--images", "3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "deepinv-dsp"), "unknown method 'deepinv-dsp'. Did you mean 'deepinv-dps'"),
        (("--problems", "bluur"), "suite 'gaussian' has no problem 'bluur'. Did you mean 'blur'"),
        (("--suite", "cifar10"), "suite 'cifar10' needs test images"),
        (("--suite", "mixtures"), "unknown suite 'mixtures'. Did you mean 'mixture'"),
        (("--engine", "slurm"), "unknown engine 'slurm'"),
        (("--images", "0"), "expected a positive whole number"),
    ],
)
def test_bad_usage(call, tmp_path, words, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        call(*SMALL, *words, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_every_example_names_methods_that_there_are(call):
    parser = Parser(prog="emprior")
    bench.add(parser.add_subparsers())
    for line in bench.EXAMPLES.strip().splitlines():
        options = parser.parse_args(line.split()[1:])
        kinds = {method.kind for method in METHODS.values()} | {method.source for method in METHODS.values()}
        assert set(options.methods) <= {"all", *METHODS, *kinds}
