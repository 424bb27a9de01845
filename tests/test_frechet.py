from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from emprior.frechet import cifar_extractor, features, frechet_distance, inception_extractor, to_bytes
from emprior.hub import (
    Card,
    find_prior,
    list_denoisers,
    list_priors,
    load_features,
    load_prior,
    save_prior,
    verify_prior,
)
from emprior.nets import Classifier, make_features

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")

SIZES = {"channels": 3, "widths": [4, 6], "classes": 2}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(dimension, seed=0):
    return torch.linalg.qr(normal(dimension, dimension, seed=seed)).Q


def root(covariance):
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def exactly(mean, covariance, count=50, seed=0):
    r"""A set of vectors whose sample mean and covariance are those given."""
    x = normal(count, len(mean), seed=seed)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (count - 1))).T
    return mean + white @ root(covariance)


def test_commuting_gaussians():
    turn = rotation(5)
    a, b = torch.tensor([4.0, 1, 9, 0.25, 0]).double(), torch.tensor([1.0, 1, 4, 0, 16]).double()
    mean = normal(5, seed=1)
    first = exactly(torch.zeros(5).double(), turn * a @ turn.T)
    second = exactly(mean, turn * b @ turn.T, count=70, seed=1)
    expected = mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    assert frechet_distance(first, second) == pytest.approx(float(expected), rel=1e-10)


def test_gaussians_that_do_not_commute():
    r"""In two dimensions tr (A B)^1/2 = sqrt(tr A B + 2 sqrt(det A det B))."""
    a = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
    b = torch.tensor([[5.0, -2.0], [-2.0, 1.0]]).double()
    assert not torch.allclose(a @ b, b @ a)
    cross = (torch.trace(a @ b) + 2 * (torch.det(a) * torch.det(b)).sqrt()).sqrt()
    expected = torch.trace(a + b) - 2 * cross + 13
    mean = torch.tensor([2.0, 3.0]).double()
    got = frechet_distance(exactly(mean, a), exactly(0 * mean, b, seed=1))
    assert got == pytest.approx(float(expected), rel=1e-10)


def test_the_root_of_the_product_in_many_dimensions():
    a, b = (normal(8, 8, seed=seed) for seed in (0, 1))
    a, b = a @ a.T, b @ b.T
    expected = torch.trace(a + b - 2 * root(root(a) @ b @ root(a)))
    zero = torch.zeros(8).double()
    assert frechet_distance(exactly(zero, a), exactly(zero, b)) == pytest.approx(float(expected), rel=1e-8)


def test_a_set_is_at_no_distance_from_itself_nor_from_its_permutation():
    x = 100 + normal(80, 20) * torch.logspace(-6, 3, 20).double()
    scale = float(x.var(0).sum())
    assert frechet_distance(x, x) < 1e-12 * scale
    assert frechet_distance(x, x.flip(0)) < 1e-12 * scale


def test_invariance():
    a, b = normal(60, 12), 0.3 + 2 * normal(90, 12, seed=1) @ rotation(12, 2).cumsum(0)
    turn, shift = rotation(12, 3), normal(12, seed=4)
    distance = frechet_distance(a, b)
    assert distance > 1
    assert frechet_distance(a @ turn + shift, b @ turn + shift) == pytest.approx(distance, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-10)
    assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * distance, rel=1e-10)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(distance, rel=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (normal(5, 2, 2), normal(9, 4), r"a has shape \(5, 2, 2\).*flatten"),
        (normal(9, 4), normal(9, 3), "dimension 4 and b of 3"),
        (normal(9, 4), normal(4, 4), "b holds 4, but the covariance of 4 features needs at least 5. Take more"),
        (normal(9, 4) / 0, normal(9, 4), "a holds values that are NaN or infinite"),
    ],
)
def test_messages(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    facts = {"name": "tiny", "kind": "features", "architecture": "classifier", "arguments": SIZES}
    save_prior(tmp_path / "tiny", make_features("classifier", **SIZES), shape=[3, 8, 8], density={}, **facts)
    return tmp_path / "tiny"


def test_cards_of_features(folder, monkeypatch):
    assert verify_prior(folder).kind == "features"
    x = torch.rand(4, 3, 9, 7)
    network = load_features(folder)
    assert network.features(x).shape == (4, 6)
    torch.testing.assert_close(network.features(x)[:1], network.features(x[:1]))
    with pytest.raises(ValueError, match=r"'tiny' is a feature extractor, not a prior. Load it with emprior.hub.load_"):
        load_prior(folder)
    with pytest.raises(ValueError, match=r"'cifar10' is a prior, not a feature extractor"):
        load_features("cifar10")
    monkeypatch.setenv("EMPRIOR_CACHE", str(folder.parent / "cache"))
    (folder.parent / "cache/priors").mkdir(parents=True)
    folder.rename(folder.parent / "cache/priors/tiny")
    assert "tiny" not in list_priors() + list_denoisers()
    assert find_prior("tiny", ["features"]).is_dir()
    with pytest.raises(ValueError, match=r"'tiny' is a feature extractor, not a prior. .*The choices are: cifar10,"):
        find_prior("tiny")
    with pytest.raises(ValueError, match=r"unknown prior 'tinny'.*are: cifar10.*emprior priors list$") as caught:
        find_prior("tinny")
    assert "tiny" not in str(caught.value)
    with pytest.raises(ValueError, match=r"unknown feature extractor 'cifar10-feature'. Did you mean 'cifar10-featur"):
        load_features("cifar10-feature")
    with pytest.raises(ValueError, match=r"choices are: cifar10-features, tiny. A path to a folder .* works too.$"):
        load_features("nosuch")


def test_corrupted_features(folder):
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[-5] ^= 0xFF
    (folder / "weights.safetensors").write_bytes(bytes(weights))
    with pytest.raises(ValueError, match=r"corrupted: its SHA-256 is .*Restore the file"):
        load_features(folder)


def test_unknown_kinds(folder):
    card = folder / "card.yaml"
    card.write_text(card.read_text().replace("kind: features", "kind: feature"))
    with pytest.raises(ValueError, match=r"unknown kind 'feature'. Did you mean 'features'"):
        Card.read(folder)


def test_whole_numbers_are_stored_as_they_are(folder):
    network = make_features("classifier", **SIZES)
    network.stem[1].num_batches_tracked.fill_(70001)
    save_prior(
        folder, network, torch.float16, name="a", architecture="classifier", arguments=SIZES, shape=[3, 8, 8],
        density={}, kind="features",
    )  # fmt: skip
    assert int(load_features(folder).stem[1].num_batches_tracked) == 70001


def test_features_of_bytes(folder, monkeypatch):
    monkeypatch.setattr("emprior.frechet.FEATURES", str(folder))
    assert to_bytes(torch.tensor([-1.0, 0.0, 0.5, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]
    images = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8)
    extract = cifar_extractor()
    got = features(images, extract, batch_size=3)
    assert got.dtype == torch.float64
    expected = load_features(folder).features(images.expand(-1, 3, -1, -1).float() / 255).double()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_classifier_learns_from_any_size_of_image():
    network = Classifier(1, widths=(4, 6), classes=3)
    loss = nn.functional.cross_entropy(network(torch.rand(2, 1, 11, 6)), torch.tensor([0, 2]))
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters())


class Inception(nn.Module):
    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        pooled = x.float().mean((2, 3))
        return pooled.repeat(1, 683)[:, :2048] if return_features else pooled


class Plain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean((2, 3)).repeat(1, 683)[:, :2048]


class Logits(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean((2, 3))


class Choosy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError("expected float32")
        return x


@pytest.fixture
def scripted(tmp_path):
    def save(module):
        torch.jit.save(torch.jit.script(module), str(tmp_path / "inception.pt"))
        return tmp_path / "inception.pt"

    return save


@pytest.mark.parametrize("module", [Inception(), Plain()])
def test_inception_from_torchscript(scripted, module):
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    got = features(images, inception_extractor(scripted(module)))
    assert got.shape == (3, 2048)
    torch.testing.assert_close(got[:, 4], images[:, 1].double().mean((1, 2)), rtol=1e-5, atol=0)


def test_what_is_not_inception(scripted, tmp_path):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"gives \(2, 3\) of 2 images, expected the \(2, 2048\) pooled features"):
        features(images, inception_extractor(scripted(Logits())))
    with pytest.raises(ValueError, match=r"does not take images .* of uint8: .*expected float32. Wrap the"):
        features(images, inception_extractor(scripted(Choosy())))
    torch.save(Logits().state_dict(), tmp_path / "weights.pth")
    (tmp_path / "text.pt").write_text("no network")
    for name in ("weights.pth", "text.pt"):
        with pytest.raises(ValueError, match=f"{name} is not a TorchScript file .*state_dict, does not hold"):
            inception_extractor(tmp_path / name)


def test_it_needs_no_deepinv():
    code = "import sys, emprior.frechet; sys.exit('deepinv' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
