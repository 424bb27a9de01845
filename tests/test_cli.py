from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import emprior.train
from emprior import Result, Status, __version__, list_problems
from emprior._grid import CAPTION, to_pixels
from emprior.cli import build_parser, main
from emprior.cli._input import bundled_images
from emprior.hub import CARD, WEIGHTS, save_prior
from emprior.nets import make_potential
from emprior.problem import load_problem
from emprior.solvers import METHODS

DENOISING = ["solve", "--problem", "cifar10/denoising"]
SAMPLE = ["--input", "skimage:astronaut", "--degrade"]
QUICK = ["--method", "flow", "--steps", "20"]
NO_PRIOR = "'cifar10-features' is a feature extractor, not a prior."


@pytest.fixture(scope="session")
def prior(tmp_path_factory):
    r"""The folder of a tiny, untrained prior, so weak that the data decide."""
    folder = tmp_path_factory.mktemp("priors") / "tiny"
    arguments = {"channels": 3, "patch": 2, "widths": [8, 8], "blocks": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        potential = make_potential("inner_product", **arguments)
    density = {"objective": "energy_matching", "arguments": {}, "epsilon": 10.0}
    facts = {"name": "tiny", "architecture": "inner_product", "arguments": arguments, "shape": [3, 32, 32]}
    save_prior(folder, potential, density=density, description="Untrained.", **facts)
    return str(folder)


@pytest.fixture
def corrupted(prior, tmp_path):
    folder = tmp_path / "corrupted"
    folder.mkdir()
    (folder / CARD).write_bytes((Path(prior) / CARD).read_bytes())
    weights = bytearray((Path(prior) / WEIGHTS).read_bytes())
    weights[-5] ^= 0xFF
    (folder / WEIGHTS).write_bytes(bytes(weights))
    return str(folder)


@pytest.fixture
def cache(prior, tmp_path, monkeypatch):
    r"""A cache in which the tiny prior is `tiny`, and no bundled priors."""
    (tmp_path / "cache/priors").mkdir(parents=True)
    (tmp_path / "bundled").mkdir()
    (tmp_path / "cache/priors/tiny").symlink_to(prior)
    monkeypatch.setenv("EMPRIOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("emprior.hub.pretrained_dir", lambda: tmp_path / "bundled")
    return tmp_path / "cache/priors"


@pytest.fixture
def call(capsys):
    r"""Runs a command; returns its exit code, output and errors."""

    def run(*words):
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


def failed(outcome, code, *parts):
    r"""Whether a command failed with one paragraph that contains some words, in order."""
    got, _, errors = outcome
    assert got == code, errors
    assert errors.startswith("emprior: error: ")
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    for part in parts:
        assert part in errors
        errors = errors.partition(part)[2]
    return True


def leaves(parser, path=("emprior",)):
    inner = [action for action in parser._actions if hasattr(action, "choices") and isinstance(action.choices, dict)]
    yield path, parser
    for action in inner:
        for name, child in action.choices.items():
            yield from leaves(child, (*path, name))


@pytest.mark.parametrize("path", [" ".join(path) for path, _ in leaves(build_parser())])
def test_help(call, path):
    code, out, errors = call(*path.split()[1:], "--help")
    assert (code, errors) == (0, "")
    assert out.startswith(f"usage: {path}")
    if path != "emprior":
        examples = out.partition("examples:\n")[2].splitlines()
        assert 2 <= len(examples) <= 5
        assert all(" ".join(path.split()[1:]) in line for line in examples)


def test_help_names_every_method(call):
    _, out, _ = call("solve", "--help")
    assert all(name in out for name in METHODS)


def examples():
    r"""The examples in the help of all commands, parsed."""
    for _, parser in leaves(build_parser()):
        for line in (parser.epilog or "").splitlines()[1:]:
            words = line.partition(" | ")[0].partition(" > ")[0].partition("   (")[0].split()
            start = words.index("emprior") + 1
            yield vars(build_parser().parse_args(words[start:]))


def test_examples_in_the_help_can_be_parsed():
    assert len(list(examples())) > 15


def test_examples_in_the_help_name_the_priors_that_training_writes():
    written = {options["out"] / "prior" for options in examples() if {"config", "out"} <= set(options)}
    named = [name for options in examples() for name in [options.get("prior"), *options.get("priors", [])] if name]
    folders = [Path(name) for name in named if "/" in name]
    assert len(folders) >= 4
    assert set(folders) <= written
    assert set(named) - set(map(str, folders)) == {"cifar10"}


def test_version(call):
    assert call("--version") == (0, f"emprior {__version__}\n", "")


def test_module():
    process = subprocess.run([sys.executable, "-m", "emprior", "problems", "list"], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    assert len(process.stdout.splitlines()) == len(list_problems())


def test_help_needs_no_torch():
    # a bare stand-in for the package, whose own imports are not the command line's
    code = (
        "import importlib.util, sys, types; package = types.ModuleType('emprior'); "
        "package.__path__ = importlib.util.find_spec('emprior').submodule_search_locations; "
        "sys.modules['emprior'] = package; import emprior.cli; emprior.cli.main(['solve', '--help']); "
        "sys.exit(bool({'torch', 'deepinv', 'numpy', 'yaml'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["required: COMMAND", "See: emprior --help"]),
        (["sovle"], ["invalid choice: 'sovle'", "'solve'"]),
        (["solve"], ["required: --problem, --input", "See: emprior solve --help"]),
        (["priors"], ["required: list|show|verify"]),
        (["sample", "--out", "x.png", "-n", "0"], ["argument -n: expected a positive whole number, got '0'"]),
        (["sample", "--out", "x.jpg"], ["ends in '.jpg'", ".png or .npy", "Try --out x.png"]),
        (["sample", "--out", "x.png", "--trajectory", "t.gif"], ["--trajectory t.gif ends in '.gif'", "as .png"]),
        (["sample", "--out", "x.png", "--gif", "t.png"], ["--gif t.png ends in '.png'", "Try --gif t.gif"]),
        (["sample", "--out", "x.png", "--trajectory", "./x.png"], ["--trajectory and --out are the same file"]),
        (["evaluate"], ["required: prior|generation"]),
        (["evaluate", "prior", "--images", "."], ["required: --prior"]),
        (["evaluate", "generation"], ["required: --images"]),
        (["evaluate", "generation", "--images", "nosuch.npy"], ["no folder or .npy file of images nosuch.npy"]),
        (["sample", "--out", "."], ["--out . is a folder. Give a file, such as file.png"]),
        (["sample", "--out", "x.npy", "--gif", ".."], ["--gif .. is a folder. Give a file, such as ../file.gif"]),
        (["sample", "--out", "x.png", "--prior", "cifar10-features"], [NO_PRIOR, "Did you mean 'cifar10"]),
        ([*DENOISING, *SAMPLE, "--prior", "cifar10-features"], [NO_PRIOR, "The choices are: cifar10,"]),
        (["evaluate", "generation", "--images", ".", "--prior", "nosuch"], ["unknown prior or denoiser 'nosuch'"]),
        (["evaluate", "generation", "--images", ".", "--prior", "cifar10-features"], [NO_PRIOR[:-1], "or denoiser."]),
        (["evaluate", "generation", "--images", ".", "--inception", "nosuch.pt"], ["no Inception network nosuch.pt"]),
        ([*DENOISING, *SAMPLE, "--weight", "nan"], ["--weight: expected a positive number or 'estimate', got 'nan'"]),
        ([*DENOISING, *SAMPLE, "--weight", "guess"], ["--weight: expected a positive number or 'estimate'", "'guess'"]),
        (
            [*DENOISING, *SAMPLE, "--weight", "estimate", "--sigma", "estimate"],
            ["sigma and weight cannot be estimated at once"],
        ),
        (
            [*DENOISING, *SAMPLE, "--method", "flow", "--sigma", "estimate"],
            ["'flow' cannot estimate sigma. Use one of:"],
        ),
        ([*DENOISING, *SAMPLE, "--sigma", "-1"], ["--sigma: expected"]),
        ([*DENOISING, *SAMPLE, "--frobnicate"], ["--frobnicate"]),
        ([*DENOISING, *SAMPLE, "--method", "malla"], ["'malla'", "Did you mean 'mala'", "flow"]),
        ([*DENOISING, *SAMPLE, "--method", "flow", "--steps", "5"], ["--steps 5: ", "at least 20 steps, got 5. Leave"]),
        ([*DENOISING, *SAMPLE, "--prior", "nosuch"], ["unknown prior 'nosuch'", "emprior priors list"]),
        ([*DENOISING, "--input", "nosuch.png"], ["no input file nosuch.png"]),
        ([*DENOISING, "--input", "skimage:astronaut"], ["clean image", "--degrade"]),
        ([*DENOISING, "--input", "skimage:astronout", "--degrade"], ["'astronaut'", "chelsea"]),
        (["problems", "show", "cifar10/inpaintin"], ["Did you mean 'cifar10/inpainting'"]),
        (["problems", "show", "inpainting.yaml"], ["no problem file inpainting.yaml", "'cifar10/inpainting'"]),
        (["priors", "show", "cifar10-feature"], ["unknown prior or ", "Did you mean 'cifar10-features'"]),
        (["priors", "verify", "nosuch"], ["unknown prior or denoiser or feature extractor 'nosuch'"]),
        (["train", "nosuch.yaml", "--out", "x"], ["no configuration nosuch.yaml"]),
        (["train", "nosuch.yaml", "--out", "x", "--seconds", "soon"], ["--seconds: expected a positive number"]),
    ],
)
def test_bad_usage(call, tmp_path, monkeypatch, words, parts):
    monkeypatch.chdir(tmp_path)
    assert failed(call(*words), 2, *parts)
    assert not any(tmp_path.iterdir())


def test_unknown_problems(call, prior, tmp_path):
    rest = [*SAMPLE, "--prior", prior]
    assert failed(call("solve", "--problem", "cifar10/denoise", *rest), 2, "Did you mean 'cifar10/denoising'")
    assert failed(call("solve", "--problem", tmp_path / "x.yaml", *rest), 2, "no problem file")
    (tmp_path / "x.yaml").write_text("description: A line.\nshape: [3, 32]\noperator: {}\nnoise: {}\n")
    assert failed(call("solve", "--problem", tmp_path / "x.yaml", *rest), 1, "x.yaml, line 2", "'shape'")
    assert call("problems", "show", tmp_path / "x.yaml")[0] == 0


def test_one_lookup_of_problems(call, prior, tmp_path):
    for name in ("cifar10/denoise", "nowhere.yaml", tmp_path):
        solved = call("solve", "--problem", name, *SAMPLE, "--prior", prior)
        assert solved == call("problems", "show", name)
        assert failed(solved, 2, "there is no problem")


def test_a_broken_file_is_no_bad_usage_even_if_it_came_with_emprior(call, prior, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("description: A line.\n")
    monkeypatch.setattr("emprior.problem.problems_dir", lambda: tmp_path)
    assert failed(call("solve", "--problem", "mine", *SAMPLE, "--prior", prior), 1, "mine.yaml, line 1", "lacks")
    assert call("problems", "list") == (0, "mine  A line.\n", "")


def test_devices(call, prior):
    assert failed(call(*DENOISING, *SAMPLE, "--prior", prior, "--device", "gpu"), 2, "'gpu'", "--device cpu")
    if not torch.cuda.is_available():
        outcome = call(*DENOISING, *SAMPLE, "--prior", prior, "--device", "cuda")
        assert failed(outcome, 2, "device 'cuda' cannot be used")


@pytest.mark.parametrize("degrade", [True, False])
def test_solve_saves_and_prints(call, prior, tmp_path, degrade):
    problem = load_problem("cifar10/denoising")
    truth = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "x.npy", truth[0].numpy())
    np.save(tmp_path / "y.npy", problem.measure(truth, seed=3)[0].numpy())
    source = ["--input", tmp_path / "x.npy", "--degrade"] if degrade else ["--input", tmp_path / "y.npy"]
    out = tmp_path / "new/folder"
    words = [*DENOISING, *source, "--prior", prior, *QUICK, "--seed", "3", "--samples", "2", "--out", out]
    code, printed, errors = call(*words, "--json")
    assert (code, errors) == (0, "")
    figures = json.loads(printed)
    assert printed.count("\n") == 1
    assert figures == json.loads((out / "figures.json").read_text())
    assert ("psnr" in figures) == ("ssim" in figures) == degrade
    assert set(figures["energies"]) == {"energy", "fidelity", "prior"}
    assert figures["status"] == "sampled"
    assert figures["gradient_evaluations"] == 20
    assert figures["residual"] > 0
    assert figures["seconds"] > 0

    result = Result.load(out)
    assert result.samples.shape == (2, 1, 3, 32, 32)
    assert result.config["problem"] == "cifar10/denoising"
    torch.testing.assert_close(result.measurement, problem.measure(truth, seed=3))
    if degrade:
        torch.testing.assert_close(figures["psnr"], emprior.metrics.psnr(result.estimate, truth).item())
    with Image.open(out / "figure.png") as picture:
        assert min(picture.size) > 100
    assert not [path for path in out.parent.iterdir() if path != out]
    assert not [path for path in out.iterdir() if path.name.startswith(".")]

    code, printed, errors = call(*words)  # in place of the first
    assert (code, errors) == (0, "")
    assert printed.startswith("cifar10/denoising, tiny, flow: ")
    assert printed.count("\n") == 1
    assert ("PSNR" in printed) == degrade


def test_solve_reaches_the_verb_with_its_options(call, prior, monkeypatch):
    seen = {}

    def spy(operator, y, prior, **options):
        seen.update(options, y=y, prior=prior, level=float(operator.noise_model.sigma))
        return real(operator, y, prior, **options)

    real = emprior.solve
    monkeypatch.setattr("emprior.solve", spy)
    options = ["--method", "ula", "--steps", "4", "--samples", "2", "--weight", "0.5", "--sigma", "0.2", "--seed", "7"]
    code, printed, _ = call(*DENOISING, *SAMPLE, "--prior", prior, *options, "--json")
    assert code == 0
    expected = {"method": "ula", "weight": 0.5, "samples": 2, "steps": 4, "seed": 7, "progress": False}
    assert {name: seen[name] for name in expected} == expected
    assert seen["level"] == pytest.approx(0.2)
    figures = json.loads(printed)
    assert figures["sigma"] == 0.2
    assert abs(figures["residual"] - 1) < 0.5


@pytest.mark.parametrize(("name", "other"), [("sigma", "weight"), ("weight", "sigma")])
def test_solve_tells_its_estimates(call, prior, tmp_path, name, other):
    out, known = tmp_path / "out", {"sigma": load_problem("cifar10/denoising").sigma, "weight": 1.0}
    options = ["--method", "mala", "--steps", "40", "--samples", "2", f"--{name}", "estimate", "--out", out]
    code, printed, _ = call(*DENOISING, *SAMPLE, "--prior", prior, *options)
    assert code == 0
    figures, found = json.loads((out / "figures.json").read_text()), Result.load(out).diagnostics
    assert figures[name] == pytest.approx(float(getattr(found, name)))
    assert f"; {name} {figures[name]:.4g} (" in printed
    assert f"{name}_std" in figures
    assert figures[other] == pytest.approx(known[other])
    assert f"{other}_std" not in figures
    assert f"; {other} " not in printed


def test_a_result_is_the_same_again(call, prior):
    words = [*DENOISING, *SAMPLE, "--prior", prior, *QUICK, "--json"]
    first, second = (json.loads(call(*words)[1]) for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_inputs_are_fitted_to_the_problem(call, prior, tmp_path):
    pixels = np.linspace(0, 255, 40 * 50).reshape(40, 50).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "gray.png")
    rest = ["--prior", prior, *QUICK]
    assert call(*DENOISING, "--input", tmp_path / "gray.png", "--degrade", *rest)[0] == 0
    outcome = call(*DENOISING, "--input", tmp_path / "gray.png", *rest)
    assert failed(outcome, 1, "shape (1, 40, 50)", "(3, 32, 32)", "add --degrade")
    np.save(tmp_path / "batch.npy", np.full((1, 3, 32, 32), 0.5, np.float32))
    assert call(*DENOISING, "--input", tmp_path / "batch.npy", *rest)[0] == 0


def test_gray_problems_take_colour_images(tmp_path):
    from emprior.cli._input import read_clean

    gray, colour = read_clean("skimage:astronaut", (1, 16, 16)), read_clean("skimage:astronaut", (3, 16, 16))
    assert gray.shape == (1, 1, 16, 16)
    assert 0 <= gray.min() < gray.max() <= 1
    torch.testing.assert_close(gray[:, 0], 0.299 * colour[:, 0] + 0.587 * colour[:, 1] + 0.114 * colour[:, 2])
    assert {"astronaut", "chelsea", "camera"} <= set(bundled_images())


def test_unreadable_inputs(call, prior, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n garbage")
    np.save(tmp_path / "nan.npy", np.full((3, 32, 32), np.nan, np.float32))
    for flags in ([], ["--degrade"]):
        outcome = call(*DENOISING, "--input", tmp_path / "bad.png", *flags, "--prior", prior)
        assert failed(outcome, 1, "cannot read", "bad.png")
    assert failed(call(*DENOISING, "--input", tmp_path / "nan.npy", "--prior", prior), 1, "NaN")
    assert failed(call(*DENOISING, "--input", tmp_path, "--prior", prior), 1, "is a folder")


@pytest.mark.parametrize("name", ["thesis.tex", "result.json"])
def test_a_folder_of_something_else_is_left_alone(call, prior, tmp_path, monkeypatch, name):
    monkeypatch.setattr("emprior.solve", lambda *_, **__: pytest.fail("solved in vain"))
    (tmp_path / name).write_text('"years of work"')
    outcome = call(*DENOISING, *SAMPLE, "--prior", prior, *QUICK, "--out", tmp_path)
    assert failed(outcome, 2, f"--out: {tmp_path} already holds something", "empty folder")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    outcome = call(*DENOISING, *SAMPLE, "--prior", prior, *QUICK, "--out", tmp_path / name)
    assert failed(outcome, 2, "already holds something")


def test_an_unwritable_folder_is_found_before_the_work(call, prior, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("emprior.solve", lambda *_, **__: pytest.fail("solved in vain"))
    (tmp_path / "file").write_text("name: mine")
    solve = [*DENOISING, *SAMPLE, "--prior", prior, *QUICK, "--out"]
    train = ["train", tmp_path / "file", "--out"]
    for words in (solve, train):
        outcome = call(*words, tmp_path / "file/inside")
        assert failed(outcome, 2, "--out", "file/inside cannot be written", "is a file, not a folder. Choose another")
    monkeypatch.setattr("os.access", lambda *_: False)
    for words in (solve, train, ["sample", "--prior", prior, "--out"]):
        outcome = call(*words, tmp_path / "new/x.png")
        assert failed(outcome, 2, "x.png cannot be written", f"{tmp_path} cannot be written to. Choose another")
    assert not trained


@pytest.mark.parametrize(
    ("status", "code"), [(Status.EXHAUSTED, 0), (Status.NON_FINITE, 1), (Status.INTERRUPTED, 130), (Status.STALLED, 0)]
)
def test_exit_code_of_a_status(call, prior, tmp_path, monkeypatch, status, code):
    from dataclasses import replace

    real = emprior.solve
    monkeypatch.setattr("emprior.solve", lambda *given, **options: replace(real(*given, **options), status=status))
    outcome = call(*DENOISING, *SAMPLE, "--prior", prior, *QUICK, "--out", tmp_path / "out", "--json")
    assert json.loads(outcome[1])["status"] == status.name.lower()
    if code:
        assert failed(outcome, code, status.value, "saved in", "out")
    else:
        assert outcome[0] == 0
        assert outcome[2] == (f"emprior: {status.value}\n" if status is Status.EXHAUSTED else "")
    assert Result.load(tmp_path / "out").status is status


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (FloatingPointError("too\n  large"), 1, "too large"),
        (RuntimeError("out of memory"), 1, "RuntimeError: out of memory (This was not foreseen. EMPRIOR_DEBUG=1"),
        (MemoryError(), 1, "MemoryError"),
    ],
)
def test_errors_are_one_paragraph(call, prior, monkeypatch, error, code, part):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr("emprior.solve", broken)
    words = [*DENOISING, *SAMPLE, "--prior", prior]
    assert failed(call(*words), code, part)
    monkeypatch.setenv("EMPRIOR_DEBUG", "1")
    if isinstance(error, Exception):
        with pytest.raises(type(error)):
            call(*words)


def test_strict_json(call, prior, monkeypatch):
    monkeypatch.setattr("emprior.metrics.psnr", lambda x, truth: torch.tensor([float("inf")]))
    code, printed, _ = call(*DENOISING, *SAMPLE, "--prior", prior, *QUICK, "--json")
    assert code == 0
    assert json.loads(printed, parse_constant=pytest.fail)["psnr"] is None


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_only(prior, monkeypatch):
    words = [*DENOISING, *SAMPLE, "--prior", prior, *QUICK]
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(words) == 0
        assert ("step" in stream.getvalue()) == shown


def test_logging(call, monkeypatch):
    logger = logging.getLogger("emprior")
    before = logger.handlers.copy(), logger.level

    def chatty():
        logger.info("some detail")
        logger.warning("a caution")
        return []

    monkeypatch.setattr("emprior.problem.list_problems", chatty)
    assert call("problems", "list") == (0, "", "emprior: a caution\n")
    for words in (["problems", "-v", "list"], ["problems", "list", "-v"]):
        assert call(*words) == (0, "", "emprior: some detail\nemprior: a caution\n")
    assert (logger.handlers, logger.level) == before


def test_a_closed_pipe_is_no_error():
    code = "import sys; from emprior.cli import main; sys.exit(main(['problems', 'list']))"
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (process.returncode, process.stderr) == (1, "")


def test_sample(call, prior, tmp_path):
    words = ["sample", "--prior", prior, "-n", 3, "--steps", 4, "--out"]
    assert call(*words, tmp_path / "grid.png") == (0, f"{tmp_path / 'grid.png'}: 3 samples of tiny\n", "")
    assert Image.open(tmp_path / "grid.png").size == (2 * (2 * 33 + 1), 2 * (2 * 33 + 1))
    for name in ("a.npy", "b.npy"):
        assert call(*words, tmp_path / name, "--seed", 1)[0] == 0
    a, b = np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")
    assert a.shape == (3, 3, 32, 32)
    assert a.dtype == np.float32
    assert np.array_equal(a, b)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b.npy", "grid.png"]


@pytest.mark.parametrize("steps", [3, 12])
def test_trajectories_and_animations(call, prior, tmp_path, steps):
    extras = ["--trajectory", tmp_path / "new/t.png", "--gif", tmp_path / "g.gif"]
    words = ["sample", "--prior", prior, "-n", 3, "--steps", steps, "--out", tmp_path / "x.npy", *extras]
    code, out, errors = call(*words)
    assert (code, errors) == (0, "")
    times = f"{steps} steps from noise to images"
    assert out.splitlines()[1:] == [f"{tmp_path / 'new/t.png'}: {times}", f"{tmp_path / 'g.gif'}: {times}"]
    x = torch.from_numpy(np.load(tmp_path / "x.npy"))
    noise = emprior.load_prior(prior).sample(3, steps=0)
    columns = min(10, steps + 1)
    picture = np.asarray(Image.open(tmp_path / "new/t.png"))[CAPTION:][2::2, 2::2]
    assert picture.shape == (3 * 33, columns * 33, 3)
    assert np.array_equal(picture[33:65, :32], to_pixels(noise)[1])
    assert np.array_equal(picture[33:65, -33:-1], to_pixels(x)[1])
    with Image.open(tmp_path / "g.gif") as film:
        assert film.n_frames == steps + 1
        assert film.size == (2 * 67, 2 * 67 + CAPTION)
        film.seek(film.n_frames - 1)
        last = np.asarray(film.convert("RGB")).astype(int)[CAPTION:][2:66:2, 2:66:2]
    assert np.abs(last - to_pixels(x)[0]).mean() < 20
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["g.gif", "new", "t.png", "x.npy"]


def test_files_that_cannot_be_written_are_refused_before_any_work(call, prior, tmp_path, monkeypatch):
    monkeypatch.setattr("emprior.hub.load_prior", lambda *_: pytest.fail("worked in vain"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.gif").mkdir()
    words = ["sample", "--prior", prior, "--out", tmp_path / "x.png"]
    outcome = call(*words, "--trajectory", tmp_path / "file/t.png")
    assert failed(outcome, 2, "--trajectory", "cannot be written", "file is a file, not a folder. Choose another")
    assert failed(call(*words, "--gif", tmp_path / "folder.gif"), 2, "folder.gif is a folder. Give a file")
    assert failed(call(*words[:-1], tmp_path / "file/x.png"), 2, "--out", "cannot be written")


def test_samples_that_are_not_finite(call, prior, tmp_path, monkeypatch):
    wild = torch.full((1, 3, 8, 8), float("inf"))
    monkeypatch.setattr("emprior.priors.network.NetworkPrior.sample", lambda *_, **__: wild)
    outcome = call("sample", "--prior", prior, "-n", 1, "--out", tmp_path / "grid.png")
    assert failed(outcome, 1, "not finite")
    assert not any(tmp_path.iterdir())


@pytest.fixture
def held_out(tmp_path, monkeypatch):
    r"""A file of 20 random images; and features of six numbers in place of the bundled ones."""
    from emprior.nets import make_features

    arguments = {"channels": 3, "widths": [4, 6], "classes": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make_features("classifier", **arguments)
    facts = {"name": "f", "kind": "features", "architecture": "classifier", "arguments": arguments, "density": {}}
    save_prior(tmp_path / "features", network, shape=[3, 32, 32], **facts)
    monkeypatch.setattr("emprior.frechet.FEATURES", str(tmp_path / "features"))
    np.save(tmp_path / "real.npy", np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8))
    return tmp_path / "real.npy"


@pytest.fixture
def denoiser(tmp_path):
    from emprior.nets import make_velocity

    arguments = {"channels": 3, "widths": [8, 8], "blocks": 1}
    facts = {"name": "base", "kind": "denoiser", "architecture": "velocity", "arguments": arguments, "density": {}}
    save_prior(tmp_path / "base", make_velocity("velocity", **arguments), shape=[3, 32, 32], **facts)
    return str(tmp_path / "base")


def halves(held_out):
    r"""The two random halves of the images, as the command parts them."""
    from emprior._noise import generator
    from emprior.train import load_images

    images = load_images(held_out)[torch.randperm(20, generator=generator("halves"))]
    return images[:10], images[10:]


def test_evaluate_generation(call, prior, denoiser, held_out):
    from emprior.frechet import cifar_extractor, features, frechet_distance, to_bytes

    words = ["evaluate", "generation", "--images", held_out, "-n", 8, "--steps", 2, "--prior"]
    code, out, errors = call(*words, prior, "--json")
    assert (code, errors, out.count("\n")) == (0, "", 1)
    figures = json.loads(out)
    counts = {"prior": "tiny", "images": str(held_out), "n": 8, "real": 10, "seed": 0}
    assert {name: figures[name] for name in counts} == counts
    assert set(figures) == {*counts, "frechet_cifar", "floor"}
    x = to_bytes(emprior.load_prior(prior).sample(8, steps=2))
    others, real = halves(held_out)
    made, few, reference = (features(images, cifar_extractor()) for images in (x, others[:8], real))
    assert figures["frechet_cifar"] == pytest.approx(frechet_distance(made, reference), rel=1e-4)
    assert figures["floor"] == pytest.approx(frechet_distance(few, reference), rel=1e-4)

    assert call(*words, prior, "--json")[1] == out
    code, out, errors = call(*words, denoiser)
    assert (code, errors) == (0, "")
    assert out.startswith("base: frechet_cifar ")
    assert "8 generated against 10 real images\n" in out
    assert "8 other real images against the same: the floor" in out
    assert "FID" not in out


def test_evaluate_prior(call, prior, denoiser, held_out, tmp_path):
    from emprior.hub import Card, find_prior, load_prior
    from emprior.train import load_images
    from emprior.train.evaluate import denoising_psnr

    folder = tmp_path / "mine"
    shutil.copytree(prior, folder)
    words = ["evaluate", "prior", "--images", held_out, "-n", 4, "--prior"]
    code, out, errors = call(*words, folder, "--json")
    assert (code, errors, out.count("\n")) == (0, "", 1)
    figures = json.loads(out)
    assert (figures["prior"], figures["images"], figures["chain"]["images"]) == ("tiny", 4, 4)
    x = load_images(held_out)[:4].float() / 255
    assert Card.read(folder).metrics == {}

    code, out, errors = call(*words, folder, "--write")
    assert (code, errors) == (0, "")
    assert out.startswith("tiny: 4 images\ndenoising: ")
    assert "outward drift: " in out
    card = Card.read(folder)
    assert card == replace(Card.read(find_prior(prior)), metrics=card.metrics)
    assert figures["denoising_psnr"]["0.1"] == pytest.approx(denoising_psnr(load_prior(folder), x, 0.1), abs=0.005)
    assert card.metrics == {key: value for key, value in figures.items() if key != "prior"}
    assert load_prior(folder).spectrum is not None

    code, out, errors = call(*words, denoiser)
    assert (code, errors, out.count("\n")) == (0, "", 2)
    assert out.startswith("base: 4 images\ndenoising: ")


def test_evaluate_prior_messages(call, prior, tmp_path):
    np.save(tmp_path / "gray.npy", np.zeros((4, 32, 32), dtype=np.uint8))
    words = ["evaluate", "prior", "--images", tmp_path / "gray.npy", "--prior"]
    code, _, errors = call(*words, prior)
    assert code == 1
    assert "images of 1 channels" in errors
    code, _, errors = call(*words, "cifar10-mixture")
    assert code == 2
    assert "'cifar10-mixture' is a mixture of Gaussians" in errors


@pytest.mark.parametrize(("asked", "n"), [(8, 8), (2000, 10)])
def test_a_perfect_prior_is_at_the_floor(call, prior, held_out, monkeypatch, asked, n):
    r"""Whose samples are the very images that the floor is of, and never fewer nor more."""
    perfect = halves(held_out)[0].float() / 255
    monkeypatch.setattr("emprior.priors.network.NetworkPrior.sample", lambda _, count, **__: perfect[:count])
    words = ["evaluate", "generation", "--images", held_out, "-n", asked, "--prior", prior, "--json"]
    code, out, errors = call(*words)
    figures = json.loads(out)
    assert (code, figures["n"]) == (0, n)
    assert figures["frechet_cifar"] == pytest.approx(figures["floor"], rel=1e-4)
    told = f"emprior: -n is 2000, but half of the 20 images at {held_out} is 10: that many are generated.\n"
    assert errors == (told if asked > n else "")


class Colours(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean((2, 3)).repeat(1, 683)[:, :2048]


class MeanColour(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean((2, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_evaluate_generation_with_inception(call, prior, held_out, monkeypatch):
    monkeypatch.setattr("emprior.frechet.INCEPTION_DIMENSION", 3)
    (held_out.parent / "inception.pt").write_text("")
    words = ["evaluate", "generation", "--prior", prior, "--images", held_out, "-n", 8, "--steps", 2]
    words += ["--inception", held_out.parent / "inception.pt"]
    assert failed(call(*words), 1, "inception.pt is not a TorchScript file", "Give the standard Inception")
    torch.jit.save(torch.jit.script(Colours()), str(held_out.parent / "inception.pt"))
    assert failed(call(*words), 1, "expected the (1, 3) pooled features of Inception")
    with monkeypatch.context() as patch:
        patch.setattr("emprior.frechet.INCEPTION_DIMENSION", 2048)
        outcome = call(*words[:6], *words[8:])
        assert failed(outcome, 2, "-n is 2000, but the covariance of 2048 features", "at least 2049. Generate more: ")
        assert int(outcome[2].split("-n ")[-1]) == 5000

    torch.jit.save(torch.jit.script(MeanColour()), str(held_out.parent / "inception.pt"))
    code, out, errors = call(*words)
    assert (code, errors) == (0, "")
    assert out.startswith("tiny: FID ")
    figures = json.loads(call(*words, "--json")[1])
    assert "fid" in figures
    assert "frechet_cifar" not in figures


def test_evaluate_generation_messages(call, prior, held_out, monkeypatch):
    monkeypatch.setattr("emprior.priors.network.NetworkPrior.sample", lambda *_, **__: pytest.fail("worked in vain"))
    words = ["evaluate", "generation", "--prior", prior, "--images"]
    outcome = call(*words, held_out, "-n", 6)
    assert failed(outcome, 2, "-n is 6, but the covariance of 6 features needs at least 7. Generate more: -n 2000")
    few, small = held_out.with_name("few.npy"), held_out.with_name("small.npy")
    np.save(few, np.load(held_out)[:13])
    np.save(small, np.load(held_out)[:, :8])
    assert failed(call(*words, few), 1, "half of the 13 images at", "is 6", "at least 7. Give more real images")
    assert failed(call(*words, small), 1, "small.npy holds images of shape (3, 8, 32)", "generates (3, 32, 32)")
    features = str(held_out.parent / "features")
    words[words.index(prior)] = features
    assert failed(call(*words, held_out), 2, f"{features!r} is a feature extractor, not a prior or denoiser")


def test_corrupted_weights(call, corrupted, tmp_path):
    for words in (
        ["priors", "verify", corrupted],
        ["sample", "--prior", corrupted, "--out", tmp_path / "grid.png"],
        [*DENOISING, *SAMPLE, "--prior", corrupted, "--out", tmp_path / "out"],
    ):
        assert failed(call(*words), 1, "corrupted: its SHA-256", "Restore the file")
    assert [path.name for path in tmp_path.iterdir()] == ["corrupted"]


def test_priors(call, cache, corrupted):
    assert call("priors", "list") == (0, "tiny  3 x 32 x 32  Untrained.\n", "")
    code, out, _ = call("priors", "show", "tiny")
    assert code == 0
    assert out.startswith(f"# {cache / 'tiny' / CARD}\nname: tiny\n")
    code, out, errors = call("priors", "verify")
    assert (code, errors) == (0, "")
    assert out.startswith("tiny: ok, sha256 ")
    outcome = call("priors", "verify", corrupted, "tiny")
    assert failed(outcome, 1, "corrupted")
    assert outcome[1].startswith("tiny: ok")

    (cache / "bad").mkdir()
    (cache / "bad" / CARD).write_text("name: bad\n")
    code, out, _ = call("priors", "list")
    assert code == 0
    assert "bad   broken: " in out
    assert failed(call("priors", "verify"), 1, "bad: ", "incomplete")
    assert failed(call("priors", "show", "bad"), 1, "incomplete")


def test_all_that_is_there_is_verified(call, cache, denoiser, held_out):
    (cache / "base").symlink_to(denoiser)
    (cache / "features").symlink_to(held_out.parent / "features")
    code, out, errors = call("priors", "verify")
    assert (code, errors) == (0, "")
    assert [line.partition(":")[0] for line in out.splitlines()] == ["base", "features", "tiny"]
    assert call("priors", "show", "features")[0] == 0
    assert call("priors", "list")[1].splitlines() == ["tiny  3 x 32 x 32  Untrained."]


def test_no_priors(call, cache):
    (cache / "tiny").unlink()
    code, out, errors = call("priors", "list")
    assert (code, out) == (0, "")
    assert "emprior train" in errors
    assert failed(call("priors", "verify"), 1, "no priors to verify")


def test_problems(call, tmp_path):
    code, out, errors = call("problems", "list")
    assert (code, errors) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == list_problems()
    assert "Seventy per cent" in out
    code, out, _ = call("problems", "show", "cifar10/inpainting")
    assert code == 0
    (tmp_path / "mine.yaml").write_text(out)
    assert load_problem(tmp_path / "mine.yaml").shape == (3, 32, 32)
    assert call("problems", "show", tmp_path / "mine.yaml")[0] == 0


@pytest.fixture
def trained(monkeypatch):
    r"""Stands in for the training, and keeps what it was called with."""
    calls = []

    def run_training(config, out, **options):
        calls.append((config, out, options))
        return {"out": str(out), "iterations": 5, "images": 320, "finished": options["seconds"] is None}

    monkeypatch.setattr(emprior.train, "run_training", run_training, raising=False)
    return calls


def test_train(call, trained, tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\ntrain: {batch_size: 32}\n")
    out = tmp_path / "run"
    outcome = call("train", tmp_path / "mine.yaml", "--out", out, "--set", "train.seed=3", "data.source=x", "--fresh")
    assert outcome == (0, f"{out}: 5 iterations, 320 images; finished\n", "")
    config, where, options = trained[0]
    assert (config.name, config.train.batch_size, config.train.seed, config.data.source) == ("mine", 32, 3, "x")
    assert where == out
    assert options == {"device": "cpu", "progress": False, "seconds": None, "fresh": True}
    _, printed, _ = call("train", tmp_path / "mine.yaml", "--out", out, "--seconds", "0.5")
    assert "the same command goes on" in printed
    assert trained[1][2] == {"device": "cpu", "progress": False, "seconds": 0.5, "fresh": False}


def test_train_for_real(call, tmp_path):
    random = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", random.integers(0, 256, (16, 8, 8, 3), np.uint8))
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ndata: {source: SOURCE}\n".replace("SOURCE", str(tmp_path / "images.npy"))
        + "net: {arguments: {patch: 2, widths: [8, 8], blocks: 1}}\n"
        + "train: {batch_size: 4, compile: false, sample_every: 0}\n"
        + "transport: {steps: 2}\ncontrast: {steps: 1, chains: 4, batch_size: 4, langevin_steps: 1}\n"
    )
    words = ["train", tmp_path / "mine.yaml", "--out", tmp_path / "run"]
    code, out, errors = call(*words)
    assert (code, out, errors) == (0, f"{tmp_path / 'run'}: 3 iterations, 12 images; finished\n", "")
    assert call(*words)[0] == 0
    assert call("priors", "verify", tmp_path / "run/prior")[0] == 0
    assert failed(call(*words, "--set", "data.source=nowhere", "--fresh"), 1, "there is no data at nowhere")


@pytest.mark.parametrize("what", ["train", "gradient"])
@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("kind=foo", ["kind is 'foo', which is unknown. The choices are: denoiser, prior"]),
        ("train.batch_size=0", ["train.batch_size is 0, expected a number at least 1"]),
        ("net.architecture=inner_prodct", ["net.architecture is 'inner_prodct'", "Did you mean 'inner_product'"]),
        ("net.arguments.width=[8]", ["argument 'width'. Did you mean 'widths'", "--set net.arguments={}"]),
        ("density.objective=denoising", ["unexpected keyword argument 'blend'", "--set density.arguments={}"]),
        ("train.batch_sise=4", ["Did you mean 'batch_size'"]),
    ],
)
def test_settings_are_checked_before_they_are_profiled(call, tmp_path, monkeypatch, what, override, parts):
    for measure in ("profile_training", "profile_gradient"):
        monkeypatch.setattr(f"emprior.train.profile.{measure}", lambda *_: pytest.fail("worked in vain"))
    (tmp_path / "mine.yaml").write_text("name: mine\ndensity: {arguments: {blend: 0.2}}\n")
    assert failed(call("profile", what, tmp_path / "mine.yaml", "--set", override), 2, *parts)


def test_arguments_of_another_objective(call, tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\ndensity: {arguments: {sigma_star: 0.06, blend: 0.1}}\n")
    words = ["train", tmp_path / "mine.yaml", "--out", tmp_path / "run", "--set", "data.source=nowhere"]
    outcome = call(*words, "density.objective=equilibrium_matching")
    parts = ("unexpected keyword argument 'sigma_star'", "scale, width", "--set density.arguments={}")
    assert failed(outcome, 1, *parts)
    outcome = call(*words, "density.objective=equilibrium_matching", "density.arguments={}")
    assert failed(outcome, 1, "there is no data at nowhere")


def test_train_messages(call, trained, tmp_path):
    path, out = tmp_path / "mine.yaml", ["--out", tmp_path / "run"]
    path.write_text("name: mine\n")
    assert failed(call("train", path, *out, "--set", "train.batch=3"), 2, "--set train.batch=3", "batch_size")
    assert failed(call("train", path, *out, "--set", "train.seed"), 2, "no value")
    assert failed(call("train", path, *out, "--set", "train.seed=[1"), 2, "--set", "train.seed=[1")
    assert failed(call("train", path, *out, "--set", "train.seed=x"), 2, "should be int")
    assert failed(call("train", path, "--out", path), 2, "is a file")
    path.write_text("nmae: mine\n")
    assert failed(call("train", path, *out), 1, "unknown key 'nmae'", "Did you mean 'name'")
    path.write_text("name: [mine\n")
    assert failed(call("train", path, *out), 1, "mine.yaml")
    assert not trained
