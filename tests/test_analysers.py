from __future__ import annotations

import pytest
import torch

import emprior
from emprior.hub import Card, find_prior, list_names, load_prior, save_prior, verify_prior
from emprior.priors import GaussianMixturePrior
from emprior.priors.analysers import LEAST, Analysers, fit_analysers, make_analysers

SHAPE, SIZE, RANK = (1, 3, 4), 12, 2
WEIGHTS = torch.tensor([0.35, 0.65], dtype=torch.float64)


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truth(apart=3.0):
    means = apart * rand(2, SIZE, seed=1)
    return GaussianMixturePrior.low_rank(WEIGHTS, means.unflatten(1, SHAPE), rand(2, SIZE, RANK, seed=2), 0.3)


def fitted(images, *args, **options):
    likelihoods: list[float] = []
    prior = fit_analysers(images, *args, callback=lambda step, value: likelihoods.append(value), **options)
    return prior, torch.tensor(likelihoods, dtype=torch.float64)


def test_a_mixture_is_recovered():
    r"""In standard errors: of shares, of means, and of the entries of covariances."""
    n, known = 6000, truth()
    prior = fit_analysers(known.sample(n, seed=3), 2, RANK, 30)
    order = prior.weights.argsort()
    weights, means = prior.weights[order], prior.means.flatten(1)[order]
    assert ((weights - WEIGHTS) / (WEIGHTS * (1 - WEIGHTS) / n).sqrt()).abs().max() < 4
    C = known.covariance_matrices()
    variances, counts = C.diagonal(dim1=1, dim2=2), (n * WEIGHTS)[:, None]
    assert ((means - known.means.flatten(1)) / (variances / counts).sqrt()).abs().max() < 4.5
    errors = ((variances[:, :, None] * variances[:, None] + C.square()) / counts[:, None]).sqrt()
    z = (prior.covariance_matrices()[order] - C) / errors
    assert z.abs().max() < 4.5
    assert z.square().mean() < 1.5


def test_one_component_is_the_closed_form_of_tipping_and_bishop():
    x = rand(400, SIZE, seed=4) @ rand(SIZE, SIZE, seed=5)
    prior = fit_analysers(x.unflatten(1, SHAPE), 1, 3, 400)
    values, basis = torch.linalg.eigh(torch.cov(x.mT, correction=0))
    floor = values[:-3].mean()
    leading = basis[:, -3:]
    expected = leading * (values[-3:] - floor) @ leading.mT + floor * torch.eye(SIZE)
    torch.testing.assert_close(prior.means.flatten(), x.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(prior.covariance_matrices()[0], expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("apart", "components", "rank"), [(0.5, 2, 2), (0.5, 3, 1), (0.2, 4, 5), (3.0, 3, 3)])
def test_the_likelihood_never_falls(apart, components, rank):
    x = truth(apart).sample(500, seed=6)
    prior, found = fitted(x, components, rank, 60)
    assert found.diff().min() > -1e-10 * found.abs().max()
    assert -prior(x).mean() >= found[-1] - 1e-10
    assert found[-1] - found[0] > 0.05


def test_the_likelihood_is_that_of_the_mixture():
    x = truth(0.5).sample(300, seed=7)
    _, found = fitted(x, 3, 2, 6)
    assert -fit_analysers(x, 3, 2, 5)(x).mean().item() == pytest.approx(found[5].item(), rel=1e-11)


def test_a_maximum_beats_the_truth():
    known = truth()
    x = known.sample(2000, seed=8)
    assert fit_analysers(x, 2, RANK, 30)(x).sum() < known(x).sum()


def test_single_precision_finds_the_same():
    x = truth().sample(1000, seed=9)
    double, single = (fit_analysers(images, 2, RANK, 30) for images in (x, x.float()))
    assert single.means.dtype == torch.float32
    torch.testing.assert_close(single(x[:50].float()).double(), double(x[:50]), rtol=0, atol=1e-3)


def test_a_fit_depends_on_its_seed_alone():
    x = truth(0.5).sample(200, seed=10)
    copy, state = x.clone(), torch.get_rng_state()
    first, again, other = (fit_analysers(x, 3, 2, 3, seed=seed)(x) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(x, copy)
    assert torch.equal(state, torch.get_rng_state())


def test_images_without_variance_keep_that_of_rounding():
    prior = fit_analysers(torch.full((20, *SHAPE), 0.5), 1, 2, 3)
    torch.testing.assert_close(prior.covariance_matrices()[0], LEAST * torch.eye(SIZE), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize(
    ("images", "arguments", "message"),
    [
        (rand(7, *SHAPE), (2, 2, 3), "there are 7 images of 12 pixels for 2 components of rank 2: pass at least 8"),
        (rand(90, *SHAPE), (2, SIZE, 3), "a rank below 12"),
        (rand(90, *SHAPE), (0, 2, 3), "components is 0"),
        (rand(90, *SHAPE), (2, 2, 0), "steps is 0"),
        (rand(90, *SHAPE) / 0, (2, 2, 3), "images has .* not finite"),
        (torch.zeros(90, *SHAPE, dtype=torch.uint8), (2, 2, 3), "images is torch.uint8"),
    ],
)
def test_bad_fits(images, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_analysers(images, *arguments)


def test_what_is_stored_is_the_mixture():
    prior, x = truth(), rand(4, *SHAPE, seed=11)
    stored = Analysers.of(prior)
    torch.testing.assert_close(stored.prior(SHAPE)(x), prior(x), rtol=1e-11, atol=0)
    assert {name: tuple(part.shape) for name, part in stored.state_dict().items()} == {
        "weights": (2,), "means": (2, SIZE), "factors": (2, SIZE, RANK), "noise": (2,)
    }  # fmt: skip
    dense = GaussianMixturePrior(WEIGHTS, prior.means, prior.covariance_matrices())
    with pytest.raises(TypeError, match=r"the covariances are Rotated.*Pass what fit_analysers"):
        Analysers.of(dense)
    with pytest.raises(ValueError, match=r"unknown architecture 'analyser'. Did you mean 'analysers'"):
        make_analysers("analyser")
    with pytest.raises(ValueError, match="unexpected keyword argument 'size'"):
        make_analysers("analysers", components=2, size=3, rank=1)


@pytest.fixture
def folder(tmp_path):
    facts = {"name": "tiny", "kind": "mixture", "architecture": "analysers", "shape": list(SHAPE), "density": {}}
    facts["arguments"] = {"components": 2, "pixels": SIZE, "rank": RANK}
    facts["solver"] = {"map": {"steps": 7}}
    save_prior(tmp_path / "priors/tiny", Analysers.of(truth()), **facts)
    return tmp_path / "priors/tiny"


def test_a_folder_gives_the_mixture(folder, monkeypatch):
    prior, x = load_prior(folder), rand(4, *SHAPE, seed=12)
    assert isinstance(prior, GaussianMixturePrior)
    torch.testing.assert_close(prior(x.float()).double(), truth()(x), rtol=1e-4, atol=0)
    assert (prior.title, prior.settings, prior.typical) == ("tiny", {"map": {"steps": 7}}, None)
    assert verify_prior(folder) == Card.read(folder)
    monkeypatch.setenv("EMPRIOR_CACHE", str(folder.parents[1]))
    assert "tiny" in emprior.list_priors()
    assert list_names(["mixture"]) == emprior.list_priors()
    assert "tiny" not in emprior.list_denoisers()
    with pytest.raises(ValueError, match="'tiny' is a prior, not a feature extractor"):
        find_prior("tiny", ["features"])


def test_a_folder_that_does_not_fit_is_refused(folder):
    card = folder / "card.yaml"
    text = card.read_text()
    card.write_text(text.replace("rank: 2", "rank: 3"))
    with pytest.raises(ValueError, match="does not fit the architecture of its card"):
        load_prior(folder)
    card.write_text(text.replace("rank: 2", "ranks: 2"))
    with pytest.raises(ValueError, match=r"card\.yaml.*unexpected keyword argument 'ranks'"):
        load_prior(folder)
    card.write_text(text)
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(ValueError, match="is corrupted"):
        load_prior(folder)


def test_the_bundled_mixture():
    prior, card = load_prior("cifar10-mixture"), Card.read(find_prior("cifar10-mixture"))
    assert isinstance(prior, GaussianMixturePrior)
    assert (card.kind, card.shape, prior.title) == ("mixture", [3, 32, 32], "cifar10-mixture")
    assert (find_prior("cifar10-mixture") / "weights.safetensors").stat().st_size < 4e6
    x = prior.sample(2, seed=1)
    problem = emprior.load_problem("cifar10/denoising")
    result = emprior.solve(problem.operator, problem.measure(x), "cifar10-mixture", steps=3)
    assert result.config["prior"] == "cifar10-mixture"
    mean, spread = card.metrics["energy"]["mean"], card.metrics["energy"]["spread"]
    assert prior.typical == (mean, spread)
    assert -mean / 3072 == pytest.approx(card.metrics["likelihood"]["nats_per_pixel"], abs=1e-4)
    assert ((prior(x) - mean) / spread).abs().max() < 4
