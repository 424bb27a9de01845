"""What `emprior doctor` finds, and what it must not overlook."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest
import torch

import emprior
from emprior import doctor, selftest
from emprior.bench.cost import Cost
from emprior.cli import main
from emprior.hub import CARD, WEIGHTS
from emprior.priors import GaussianPrior, NetworkPrior
from emprior.selftest import Check

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def broken(tmp_path, monkeypatch):
    r"""A cache with a copy of `mnist` of which one bit is wrong, and no bundled networks."""
    folder = tmp_path / "cache/priors/spoilt"
    folder.mkdir(parents=True)
    (tmp_path / "bundled").mkdir()
    shutil.copy(ROOT / "pretrained/mnist" / CARD, folder)
    weights = bytearray((ROOT / "pretrained/mnist" / WEIGHTS).read_bytes())
    weights[-5] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(weights))
    monkeypatch.setenv("EMPRIOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("emprior.hub.pretrained_dir", lambda: tmp_path / "bundled")
    return "spoilt"


def test_all_is_well(capsys):
    assert main(["doctor", "--batch", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["versions"]["emprior"].startswith(emprior.__version__)
    assert found["machine"]["pretrained"] == str(ROOT / "pretrained")
    assert {f"files of {name}" for name in emprior.hub.list_names()} < found["checks"].keys()
    assert {"MAP of a Gaussian field", "chains of a Gaussian field", "MAP by cifar10"} < found["checks"].keys()
    speed = found["speed"]
    assert speed["shape"] == [3, 32, 32]
    assert speed["gradients"] > speed["evaluations"] * speed["images"] / 2 > 0


def test_a_broken_file_is_found(broken, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "checks", lambda prior, device: selftest.files())
    assert main(["doctor", "--prior", broken]) == 1
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("  files of spoilt"))
    assert "FAILED" in line
    assert "is corrupted: its SHA-256 is" in line
    assert "\nspeed\n" not in out
    assert out.endswith("1 of 2 checks failed\n")


def test_no_files_at_all_are_a_failure(monkeypatch):
    def gone():
        raise FileNotFoundError("this copy of emprior came without its pretrained/ folder")

    monkeypatch.setattr("emprior.hub.pretrained_dir", gone)
    assert [check.ok for check in selftest.files()] == [False]


def test_a_wrong_gradient_misses_the_normal_equations(monkeypatch):
    r"""By one per cent too long."""
    right = GaussianPrior.value_and_grad
    assert selftest.descent(CPU)[0]
    monkeypatch.setattr(GaussianPrior, "value_and_grad", lambda self, x: scaled(right(self, x), 1.01))
    good, words = selftest.descent(CPU)
    assert not good, words


def test_a_wrong_gradient_of_a_network_is_seen(monkeypatch):
    prior = emprior.load_prior("mnist").double()
    assert selftest.slope(prior)[0]
    right = NetworkPrior.value_and_grad
    monkeypatch.setattr(NetworkPrior, "value_and_grad", lambda self, x: scaled(right(self, x), 1 + 1e-3))
    assert not selftest.slope(prior)[0]
    turned = torch.randn(1, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(NetworkPrior, "value_and_grad", lambda self, x: (right(self, x)[0], right(self, x)[1] + turned))
    assert not selftest.slope(prior)[0]


def scaled(pair, factor):
    return pair[0], factor * pair[1]


def test_chains_of_another_law_are_seen(monkeypatch):
    r"""Of noise a quarter stronger than what the chains are told."""
    case, _ = selftest.known()
    other = case.prior.posterior(case.operator, case.y, 1.25 * case.sigma)
    monkeypatch.setattr(selftest, "known", lambda: (case, other))
    good, words = selftest.chains(CPU)
    assert not good, words
    assert words.endswith("mixed")


def test_the_drawing_is_an_image():
    for shape in ((1, 28, 28), (3, 32, 48)):
        x = selftest.drawing(shape)
        assert x.shape == (1, *shape)
        assert 0 <= float(x.min()) < 0.4 < float(x.max()) <= 1


def test_what_a_check_raises_is_a_failure():
    def test():
        raise RuntimeError("no\nkernel")

    assert selftest.attempt("x", test) == Check("x", False, "RuntimeError: no kernel")


def test_versions_name_what_is_missing(monkeypatch):
    lines = ["torch>=2.6", "gone>=2", 'nowhere>=3; extra == "batch"', 'numpy; extra == "bench"', 'ruff; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    needed, optional = doctor.versions()
    assert list(needed) == ["python", "emprior", "torch", "gone"]
    assert needed["gone"] == "missing; install it: pip install 'gone>=2'"
    assert optional["nowhere"] == "none; install it: pip install 'emprior[batch]'"
    assert optional["numpy"] == metadata.version("numpy")
    assert "ruff" not in optional


@pytest.mark.parametrize(("named", "found"), [(None, "/bin/clang++"), ("icpx", "none: nothing is compiled")])
def test_the_compiler_is_the_one_that_torch_takes(monkeypatch, named, found):
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/clang++" if name == "clang++" else None)
    monkeypatch.delenv("CXX", raising=False)
    if named:
        monkeypatch.setenv("CXX", named)
    assert doctor.machine()["compiler"].startswith(found)


def test_speed_is_of_images(monkeypatch):
    @contextmanager
    def slow(device):
        yield Cost(seconds=0.5, memory=3 * 2**20)

    monkeypatch.setattr(doctor, "measured", slow)
    prior = GaussianPrior(torch.full((1, 4, 4), 0.5), torch.full((16,), 0.1))
    speed = doctor.measure(prior, "field", (1, 4, 4), 6, CPU)
    assert speed.gradients == doctor.REPEATS * 6 / 0.5
    assert speed.lines()["memory of a gradient"] == "3 MiB"
    assert 0 < speed.evaluations <= 400


def test_a_report_can_be_pasted_and_parsed():
    checks = (Check("one", True, "fine"), Check("two", False, "wrong"))
    report = doctor.Report({"python": "3"}, {}, {"cuda": "none"}, checks, None)
    assert not report.ok
    assert "two                         FAILED, wrong" in str(report)
    assert "optional" not in str(report)
    assert str(report).isascii()
    facts = json.loads(json.dumps(report.facts()))
    assert facts["checks"] == {"one": {"ok": True, "words": "fine"}, "two": {"ok": False, "words": "wrong"}}
    assert facts["speed"] is None


def test_a_shape_that_the_prior_does_not_take_is_a_wrong_call(capsys):
    assert main(["doctor", "--prior", "mnist", "--shape", "3", "32", "32"]) == 2
    assert "--shape: prior 'mnist' is for images of shape (1, 28, 28)" in capsys.readouterr().err
