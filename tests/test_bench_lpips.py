r"""LPIPS by a network that is given: exact distances of a stand-in, and what is said of networks that will not do."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from emprior.bench import Plan, Shelf, Sources, load_suite, run, tables
from emprior.bench.block import block
from emprior.bench.figures import figures
from emprior.bench.lpips import Lpips
from emprior.bench.methods import Answer, Task
from emprior.bench.page import command
from emprior.bench.text import markdown, networks
from emprior.verify import fields

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")

PLAN = Plan(images=2, samples=2, budget=20)
FEW = ["ddnm", "tikhonov"]


class Squares(nn.Module):
    r"""The mean square difference, weighted by channel, in the shape that LPIPS is often given in."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if x.shape[1] != 3 or float(x.abs().max()) > 1:
            raise RuntimeError("expected RGB in [-1, 1]")
        return ((x - y).square() * self.weights[:, None, None]).mean((1, 2, 3), keepdim=True)


class Mean(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).square().mean()


class Pair(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, y


class Shifted(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).square().mean((1, 2, 3)) + 0.5


class Blind(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.zeros(x.shape[0])


class Broken(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.full((x.shape[0],), float("nan"))


class Single(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((1, 2, 3))


@pytest.fixture
def scripted(tmp_path):
    def save(module, name="lpips.pt"):
        torch.jit.save(torch.jit.script(module), str(tmp_path / name))
        return tmp_path / name

    return save


def test_distances_of_colours_and_grays(scripted):
    r"""Twice the range is four times the squares; what lies outside of it is clipped; gray is all three channels."""
    lpips = Lpips.load(scripted(Squares()), (3, 8, 8))
    x, other = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = 4 * (x - other).square().mean((2, 3)) @ torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) / 3
    torch.testing.assert_close(lpips(x, other), expected, rtol=1e-5, atol=0)
    gray = lpips(torch.full((1, 1, 8, 8), 7.0), torch.zeros(1, 1, 8, 8))
    torch.testing.assert_close(gray, torch.tensor([8.0], dtype=torch.float64))
    assert torch.equal(lpips(x, other)[:1], lpips(x[:1], other[:1]))


def test_figures_of_the_estimate_and_of_one_sample(scripted):
    lpips = Lpips.load(scripted(Squares()), (1, 8, 8))
    x, draws = torch.zeros(1, 1, 8, 8), torch.tensor([0.1, 0.5])[:, None, None, None].expand(2, 1, 8, 8)
    task = Task(fields.make_operator("denoising", 8), x, 0.5, (1, 8, 8))
    found = figures(Answer.drawn(draws, 2), x, task, lpips=lpips)
    assert float(found["lpips"]) == pytest.approx(4 * 0.3**2 * 2)
    assert float(found["lpips_sample"]) == pytest.approx(4 * 0.1**2 * 2)
    point = figures(Answer(draws[:1]), x, task, lpips=lpips)
    assert "lpips" in point
    assert "lpips_sample" not in point
    assert not {"lpips", "lpips_sample"} & figures(Answer.drawn(draws, 2), x, task).keys()


def test_columns_are_there_if_the_network_is(scripted, tmp_path):
    file = scripted(Squares())
    plain, given = load_suite("gaussian", Sources()), load_suite("gaussian", Sources(lpips=str(file)))
    without = [record for record, _ in run(plain, ["blur"], FEW, PLAN, Shelf(tmp_path / "without"))]
    records = [record for record, _ in run(given, ["blur"], FEW, PLAN, Shelf(tmp_path / "with"))]
    for one, other in zip(without, records, strict=True):
        assert one.key != other.key
        assert one.figures.items() <= other.figures.items()
    told = markdown(tables(without)), block(without, ""), command(without), json.dumps(without[0].models)
    assert not any("lpips" in text.lower() for text in told)
    assert "| LPIPS | LPIPS of a sample |" in markdown(tables(records))
    assert "| PSNR | LPIPS | CRPS |" in block(records, "")
    assert " --lpips LPIPS.pt " in command(records)
    assert networks(records[0].models[-1]).startswith("LPIPS: lpips.pt (sha256 ")
    assert networks(records[0].models[-1]).endswith("), 3 parameters")


def test_records_with_and_without_are_not_mixed(scripted, tmp_path):
    r"""Nor those of two networks of one name."""
    plain, given = (load_suite("gaussian", Sources(lpips=path)) for path in (None, str(scripted(Squares()))))
    shelf, facts = Shelf(tmp_path / "out"), PLAN.facts()
    list(run(plain, ["blur"], ["tikhonov"], PLAN, shelf))
    shelf.check("gaussian", facts, plain.facts)
    with pytest.raises(FileExistsError, match="holds records with LPIPS none, which cannot stand in one table"):
        shelf.check("gaussian", facts, given.facts)
    with_it = Shelf(tmp_path / "with")
    list(run(given, ["blur"], ["tikhonov"], PLAN, with_it))
    with pytest.raises(FileExistsError, match=r"with LPIPS lpips.pt \(sha256 "):
        with_it.check("gaussian", facts, plain.facts)
    changed = Squares()
    changed.weights.data *= 2
    other = load_suite("gaussian", Sources(lpips=str(scripted(changed))))
    with pytest.raises(FileExistsError, match=r"with LPIPS lpips.pt \(sha256 "):
        with_it.check("gaussian", facts, other.facts)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Mean(), r"gives shape \(\) for 2 pairs of images. Give a TorchScript file"),
        (Pair(), "gives tuple for 2 pairs of images. Give a TorchScript file"),
        (Shifted(), "gives 0.5 for an image and itself, and .* for two of noise, expected 0 and more than 0"),
        (Blind(), "gives 0 for an image and itself, and 0 for two of noise, expected 0 and more than 0"),
        (Broken(), "gives nan for an image and itself"),
        (Single(), r"does not take two batches \(2, 3, 8, 8\): .*Give a TorchScript file"),
    ],
)
def test_what_is_no_distance(scripted, module, message):
    with pytest.raises(ValueError, match=message):
        Lpips.load(scripted(module), (3, 8, 8))


def test_what_is_no_torchscript(tmp_path):
    torch.save(Squares().state_dict(), tmp_path / "weights.pth")
    (tmp_path / "text.pt").write_text("no network")
    for name in ("weights.pth", "text.pt"):
        with pytest.raises(
            ValueError, match=f"{name} is not a TorchScript file .*state_dict, does not hold the network"
        ):
            Lpips.load(tmp_path / name, (3, 8, 8))
    with pytest.raises(ValueError, match=r"there is no file .*none.pt for LPIPS"):
        Lpips.load(tmp_path / "none.pt", (3, 8, 8))
