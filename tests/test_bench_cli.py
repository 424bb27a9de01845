r"""`emprior bench` from its words to its files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
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
        (
            ("--suite", "cifar10"),
            r"suite 'cifar10' needs test images, .* \(N, 32, 32, 3\) of uint8, .*: --data cifar10_",
        ),
        (("--suite", "mixtures"), "unknown suite 'mixtures'. Did you mean 'mixture'"),
        (("--engine", "slurm"), "unknown engine 'slurm'"),
        (("--engine", "dask"), "--engine dask and --scheduler, the address of a Dask cluster, go together"),
        (("--scheduler", "tcp://head:8786"), "--engine dask and --scheduler, the address of a Dask cluster, go"),
        (("--into", "nowhere.md"), "--into: there is no file nowhere.md"),
        (("--lpips", "nowhere.pt"), "there is no file .*nowhere.pt for LPIPS. Give a TorchScript file"),
        (("--images", "0"), "expected a positive whole number"),
    ],
)
def test_bad_usage(call, tmp_path, words, message):
    with pytest.raises(UsageError, match=message):
        call(*SMALL, *words, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def records_of(folder):
    r"""Returns the records, less what differs from run to run, and the arrays beside them as bytes."""
    texts = {path.relative_to(folder): json.loads(path.read_text()) for path in folder.rglob("records/**/*.json")}
    arrays = {path.relative_to(folder): dict(np.load(path)) for path in folder.rglob("*.npz")}
    run = [text.pop("run") for text in texts.values()]
    bits = {name: {key: part.tobytes() for key, part in parts.items()} for name, parts in arrays.items()}
    return texts, bits, run


def test_two_processes_give_the_records_of_one(call, tmp_path):
    words = (*SMALL, "--problems", "blur", "denoising", "--methods", "pnp-pgd", "tikhonov", "--tune", "2")
    _, alone = call(*words, "--out", str(tmp_path / "one"))
    code, text = call(*words, "--out", str(tmp_path / "two"), "--workers", "2")
    assert code == 0
    texts, bits, run = records_of(tmp_path / "two")
    assert (texts, bits) == records_of(tmp_path / "one")[:2]
    assert len(texts) == 4 + 2 * 4
    assert all(entry["seconds"] > 0 for entry in run)
    tuned = [line for line in alone.splitlines() if line.startswith("  tuned")]
    assert len(tuned) == 4
    assert sorted(line for line in text.splitlines() if line.startswith("  tuned")) == sorted(tuned)


def test_finished_records_go_into_a_file_and_nothing_is_run(call, tmp_path, monkeypatch):
    out, file = str(tmp_path / "out"), tmp_path / "README.md"
    file.write_text("before\n<!-- bench: gaussian -->\n<!-- /bench -->\nafter\n")
    words = (*SMALL, "--problems", "blur", "--methods", "tikhonov", "pnp-pgd")
    _, text = call(*words, "--out", out, "--into", str(file))
    assert text.splitlines()[-1] == str(file)
    first = file.read_text()
    assert "| pnp-pgd |" in first
    assert "--suite gaussian --images 2 --samples 2 --batch 1 --seed 0 --budget 20 --problems blur --methods" in first
    monkeypatch.setattr("emprior.bench.job.load_suite", None)
    code, text = call("--out", out, "--into", str(file))
    assert (code, file.read_text()) == (0, first)
    assert "pnp-pgd" not in text
    with pytest.raises(UsageError, match=r"--into: .*index.html has no line <!-- bench: gaussian -->, expected one"):
        call("--out", out, "--into", f"{out}/index.html")


def test_a_place_is_looked_for_before_anything_is_run(call, tmp_path):
    file = tmp_path / "README.md"
    file.write_text("<!-- bench: cifar10 -->\n<!-- /bench -->\n")
    with pytest.raises(UsageError, match=r"README.md has no line <!-- bench: gaussian -->"):
        call(*SMALL, "--out", str(tmp_path / "out"), "--into", str(file))
    assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_what_is_finished(call, tmp_path, monkeypatch):
    def interrupted(task, models, samples, seed, settings):
        raise KeyboardInterrupt

    words = (*SMALL, "--problems", "blur", "--methods", "tikhonov", "pnp-pgd", "--out", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "pnp-pgd", replace(METHODS["pnp-pgd"], run=interrupted))
        code, text = call(*words)
    assert code == 130
    assert text.count("blur ") == 1
    _, text = call(*words)
    assert ["(kept)" in line for line in text.splitlines() if "/2  blur" in line] == [True, False]


def test_every_example_names_methods_that_there_are(call):
    parser = Parser(prog="emprior")
    bench.add(parser.add_subparsers())
    for line in bench.EXAMPLES.strip().splitlines():
        options = parser.parse_args(line.split()[1:])
        kinds = {method.kind for method in METHODS.values()} | {method.source for method in METHODS.values()}
        assert set(options.methods or ["all"]) <= {"all", *METHODS, *kinds}
