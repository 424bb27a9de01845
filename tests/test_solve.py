"""The verb: what it takes, what it gives, and what it says of bad input."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from conftest import SHAPE, make_operator
from torch import nn

import emprior
from emprior._noise import Noise
from emprior._solve import _starts
from emprior.energy import Prior
from emprior.fidelity import GaussianFidelity
from emprior.hub import load_prior, save_prior, verify_prior
from emprior.interpolant import EnergyMatching
from emprior.nets import make_potential
from emprior.priors import GaussianPrior, NetworkPrior
from emprior.solvers import METHODS

TINY = {"channels": 3, "patch": 2, "widths": [8, 8], "blocks": 1}


def tiny(scale: float = 1.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_potential("inner_product", **TINY)


@pytest.fixture(scope="module")
def rgb() -> GaussianPrior:
    return GaussianPrior(torch.full((3, 8, 8), 0.5), torch.full((3, 8, 8), 0.05))


@pytest.fixture(scope="module")
def denoising():
    import deepinv as dinv

    return dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))


@pytest.fixture
def y():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_result(denoising, y, rgb):
    result = emprior.solve(denoising, y, rgb, method="mala", samples=4, steps=40)
    assert result.estimate.shape == result.mean.shape == result.std.shape == y.shape
    assert result.samples.shape == (4, *y.shape)
    assert result.measurement is not None
    assert torch.equal(result.measurement, y)
    assert result.diagnostics.trace["energy"].shape[1:] == (4, 2)
    total = result.diagnostics.trace["fidelity"] + result.diagnostics.trace["prior"]
    assert torch.allclose(total, result.diagnostics.trace["energy"])
    assert result.diagnostics.gradient_evaluations == 100 + 41
    assert result.config["sigma"] == 0.1
    assert result.config["method"] == "mala"


KNOWN = dict.fromkeys(["descent", "gibbs", "hmc", "mala", "tempering"], 0)


@pytest.mark.parametrize(("method", "asked"), [*KNOWN.items(), ("ula", 20), ("skrock", 20), ("flow", 20)])
def test_traces_ask_once_for_energies_that_a_method_does_not_know(denoising, y, method, asked):
    from emprior.bench.meter import Meter, MeteredPrior

    meter, x0 = Meter(), y.double().expand(2, 2, 3, 8, 8)
    prior = MeteredPrior(GaussianPrior(x0[0, 0] * 0 + 0.5, x0[0, 0] * 0 + 0.05), meter)
    result = emprior.solve(denoising, y.double(), prior, method=method, samples=2, steps=20, x0=x0)
    assert meter.forwards - meter.backwards == 4 * asked
    told = prior(result.samples.flatten(0, 1)).reshape(2, 2)
    assert (result.diagnostics.trace["prior"][-1] - told).abs().max() < 1e-9


def test_traces_of_langevin_chains_are_of_where_they_are(denoising, y, rgb):
    result = emprior.solve(denoising, y, rgb, method="ula", samples=2, steps=20)
    told = rgb(result.samples.flatten(0, 1)).reshape(2, 2)
    assert (result.diagnostics.trace["prior"][-1] - told).abs().max() < 1e-3
    for image, chains in enumerate(result.diagnostics.chains):
        assert (chains["energy"][-1] - chains["fidelity"][-1] - told[:, image]).abs().max() < 1e-3


@pytest.mark.parametrize("unknown", ["sigma", "weight"])
def test_traces_are_of_the_energy_that_was_asked_for(denoising, y, rgb, unknown):
    result = emprior.solve(denoising, y, rgb, method="hmc", samples=2, steps=40, **{unknown: "estimate"})
    told = rgb(result.samples.flatten(0, 1)).reshape(2, 2)
    assert (result.diagnostics.trace["prior"][-1] - told).abs().max() < 1e-3


def test_map_of_several_starts_keeps_the_lowest(denoising, y, rgb):
    result = emprior.solve(denoising, y, rgb, samples=3, steps=20)
    last = result.diagnostics.trace["energy"][-1]
    for image in range(2):
        best = int(last[:, image].argmin())
        assert torch.equal(result.estimate[image], result.samples[best, image])


def test_float64_and_x0(denoising, y, rgb):
    result = emprior.solve(denoising, y.double(), rgb, method="descent", x0=y.double() * 0)
    assert result.estimate.dtype == torch.float64
    exact = (y.double() / 0.01 + 0.5 / 0.05) / (1 / 0.01 + 1 / 0.05)
    assert (result.estimate - exact).abs().max() < 1e-6
    assert rgb.mean.dtype == torch.float32


def test_a_sigma_for_each_image(y, rgb):
    import deepinv as dinv

    sigma = torch.tensor([0.05, 0.2])
    result = emprior.solve(dinv.physics.Denoising(dinv.physics.ZeroNoise()), y, rgb, sigma=sigma)
    weight = (1 / sigma**2)[:, None, None, None]
    assert torch.allclose(result.estimate, (weight * y + 10) / (weight + 20), atol=1e-4)


def test_a_matrix_is_an_operator(field):
    matrix = torch.eye(64, dtype=torch.float64)[:20]
    y = field.sample(1, seed=0).flatten(1)[:, :20]
    result = emprior.solve(matrix, y, field, sigma=0.05, steps=300)
    assert (result.estimate - field.posterior(lambda x: x.flatten(1)[:, :20], y, 0.05).mean).abs().max() < 1e-4


def test_nonlinear_operator():
    import deepinv as dinv

    physics = dinv.physics.Physics(A=lambda x, **_: x.square(), noise_model=dinv.physics.GaussianNoise(0.05))
    prior = GaussianPrior(torch.full(SHAPE, 0.5).double(), torch.full(SHAPE, 0.02).double())
    x = prior.sample(2, seed=0).clamp(0.1, 1)
    result = emprior.solve(physics, physics.A(x), prior, steps=200)
    leaf = result.estimate.clone().requires_grad_()
    ((leaf.square() - x.square()).square().sum() / (2 * 0.05**2) + prior(leaf).sum()).backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().max() < 1e-2
    chains = emprior.solve(physics, physics.A(x), prior, method="mala", samples=4, steps=400)
    assert ((chains.mean - result.estimate) / chains.std).abs().mean() < 0.5


@pytest.mark.parametrize("method", METHODS)
def test_other_sizes_for_a_convolutional_prior(denoising, method):
    prior = NetworkPrior(tiny(), (3, 8, 8), EnergyMatching(), 0.01)
    result = emprior.solve(denoising, torch.rand(1, 3, 12, 20), prior, method=method, steps=20)
    assert result.estimate.shape == (1, 3, 12, 20)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_images_with_a_network(y, method):
    import deepinv as dinv

    prior = NetworkPrior(tiny().double(), (3, 8, 8), EnergyMatching(), 0.01)
    physics, sigma, y = (
        dinv.physics.Denoising(dinv.physics.ZeroNoise()),
        torch.tensor([0.05, 0.1], dtype=torch.float64),
        y.double(),
    )
    together = emprior.solve(physics, y, prior, method=method, samples=2, steps=20, sigma=sigma)
    for i in range(2):
        alone = emprior.solve(physics, y[i : i + 1], prior, method=method, samples=2, steps=20, sigma=float(sigma[i]))
        assert (together.samples[:, i] - alone.samples[:, 0]).abs().max() < 1e-10
        assert (together.estimate[i] - alone.estimate[0]).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["SinglePixelCamera", "MRI", "Downsampling", "CompressedSensing", "Blur"])
def test_operators_of_deepinv(name):
    import deepinv as dinv

    noise, random = dinv.physics.GaussianNoise(0.05), torch.Generator().manual_seed(0)
    channels = 2 if name == "MRI" else 1
    shape = (channels, 8, 8)
    operators = {
        "SinglePixelCamera": lambda: dinv.physics.SinglePixelCamera(32, shape, noise_model=noise),
        "MRI": lambda: dinv.physics.MRI((torch.rand(8, 8, generator=random) < 0.5).float(), shape, noise_model=noise),
        "Downsampling": lambda: dinv.physics.Downsampling(shape, factor=2, filter="bilinear", noise_model=noise),
        "CompressedSensing": lambda: dinv.physics.CompressedSensing(20, shape, rng=random, noise_model=noise),
        "Blur": lambda: dinv.physics.Blur(torch.ones(1, 1, 3, 3) / 9, padding="circular", noise_model=noise),
    }
    operator = operators[name]()
    prior = GaussianPrior(torch.full(shape, 0.5).double(), torch.full(shape, 0.04).double())
    y = operator.A(prior.sample(2, seed=0).float()).double()
    y = y + 0.05 * torch.randn(y.shape, generator=random, dtype=torch.float64)
    result = emprior.solve(operator, y, prior)
    assert result.status.ok
    assert (result.estimate - prior.posterior(operator, y, 0.05).mean).abs().max() < 1e-4


def test_map_descends_from_x0(denoising, y, rgb):
    result = emprior.solve(denoising, y, rgb, x0=torch.ones_like(y), samples=2, steps=1)
    assert (result.samples - 1).abs().mean(dim=(1, 2, 3, 4))[0] < 0.06 < (result.samples[1] - 1).abs().mean()
    exact = emprior.solve(denoising, y, rgb, steps=200).estimate
    assert (emprior.solve(denoising, y, rgb, x0=torch.ones_like(y), steps=200).estimate - exact).abs().max() < 1e-4


def test_images_too_small_for_the_network_are_refused():
    import deepinv as dinv

    operator = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    with pytest.raises(ValueError, match="matching size"):
        emprior.solve(operator, torch.rand(1, 3, 4, 4), x0=None)
    assert emprior.solve(operator, torch.rand(1, 3, 5, 7), steps=2).estimate.shape == (1, 3, 5, 7)


def test_steps_are_all_there_are(denoising, y, rgb):
    for steps in (1, 2, 5, 30):
        count = []
        emprior.solve(denoising, y, rgb, steps=steps, callback=lambda index, rows, count=count: count.append(index))
        assert len(count) <= steps


def test_one_sample_has_no_deviation(denoising, y, rgb):
    result = emprior.solve(denoising, y, rgb, method="mala", steps=1)
    assert result.std is None
    assert result.estimate.isfinite().all()


def test_a_matrix_takes_its_shape_from_x0():
    prior = load_prior("cifar10")
    operator = torch.eye(432)[:20]
    result = emprior.solve(operator, torch.rand(1, 20), prior, sigma=0.1, x0=torch.rand(1, 3, 12, 12), steps=2)
    assert result.estimate.shape == (1, 3, 12, 12)


def test_nonlinear_ula_is_refused_before_any_work(y, rgb):
    import deepinv as dinv

    operator = dinv.physics.Physics(A=lambda x, **_: x**2, noise_model=dinv.physics.GaussianNoise(0.1))
    with pytest.raises(ValueError, match="Use method='mala'"):
        emprior.solve(operator, y, rgb, method="ula", callback=lambda *_: pytest.fail("worked"))


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ({"mapp": {}}, "unknown method 'mapp'.*Did you mean 'map'"),
        ({"map": 5}, "solver.map is 5"),
        ({"map": {"step": 5}}, "unknown setting 'step'.*Did you mean 'steps'"),
        ({"map": {"steps": "37"}}, "solver.map.steps is '37', expected a positive whole number"),
        ({"flow": {"fresh": False}}, "unknown setting 'fresh'"),
        ({"tempering": {"last": 2.0}}, r"solver\.tempering\.last is 2\.0, expected an inverse temperature below 1"),
    ],
)
def test_settings_of_a_card_are_checked(denoising, y, solver, message):
    prior = GaussianPrior(torch.full((3, 8, 8), 0.5), torch.full((3, 8, 8), 0.05))
    prior.settings = solver
    with pytest.raises(ValueError, match=message):
        emprior.solve(denoising, y, prior)


def test_gradients_do_not_pass_through(denoising, y, rgb):
    result = emprior.solve(denoising, y.clone().requires_grad_(), rgb, method="flow", steps=30)
    assert not result.estimate.requires_grad
    assert not result.measurement.requires_grad


BAD = {
    "channels": (lambda y: y[:, :1], {}, r"y has shape \(2, 1, 8, 8\).*RGB.*emprior priors list"),
    "size": (lambda y: y[..., :6], {}, r"shape \(3, 8, 8\)"),
    "no batch": (lambda y: y[0, 0, 0], {}, r"y\[None\]"),
    "dtype": (lambda y: (255 * y).byte(), {}, r"y\.float\(\) / 255"),
    "half": (lambda y: y.half(), {}, r"y\.float\(\)"),
    "array": (lambda y: y.numpy(), {}, r"torch\.as_tensor"),
    "range": (lambda y: 255 * y, {}, r"divide it by 255"),
    "nan": (lambda y: y.where(y > 0.1, torch.nan), {}, r"of image 0 that are NaN.*nan_to_num"),
    "method": (lambda y: y, {"method": "malla"}, r"Did you mean 'mala'"),
    "prior": (lambda y: y, {"prior": "cifar"}, r"unknown prior 'cifar'.*emprior priors list"),
    "prior kind": (lambda y: y, {"prior": nn.Identity()}, r"expected a name"),
    "sigma": (lambda y: y, {"sigma": 0.2}, r"sigma is 0.2, but the operator's noise model says 0.1"),
    "sigma sign": (lambda y: y, {"sigma": -1.0}, r"must be positive"),
    "samples": (lambda y: y, {"samples": 0}, r"samples is 0, expected a positive whole number"),
    "steps": (lambda y: y, {"steps": 2.5}, r"steps is 2.5"),
    "weight": (lambda y: y, {"weight": -1.0}, r"weight is -1.0"),
    "interaction": (lambda y: y, {"interaction": emprior.Repulsion(1.0)}, r"samples=2 or more"),
    "interaction of modes": (
        lambda y: y,
        {"interaction": emprior.Repulsion(1.0), "samples": 2},
        r"'map' does not sample. Use one of: ula, mala, hmc, gibbs, skrock, tempering, posterior, flow",
    ),
    "interaction kind": (lambda y: y, {"interaction": 1.0, "samples": 2, "method": "mala"}, r"emprior\.Repulsion"),
    "x0": (lambda y: y, {"x0": torch.zeros(1, 3, 8, 8)}, r"x0 holds 1 images, but y holds 2"),
    "x0 shape": (lambda y: y, {"x0": torch.zeros(2, 3, 6, 6)}, r"x0 holds images of shape \(3, 6, 6\).*leave out x0"),
    "x0 of a continuation": (lambda y: y, {"x0": torch.zeros(2, 3, 8, 8), "method": "continuation"}, r"forget x0"),
    "x0 kind": (lambda y: y, {"x0": [0.0]}, r"x0 is list"),
    "x0 value": (lambda y: y, {"x0": torch.full((2, 3, 8, 8), torch.nan)}, r"x0 holds values that are NaN"),
    "complex": (lambda y: y + 0j, {}, r"y is complex"),
    "sigma count": (lambda y: y, {"sigma": torch.tensor([0.1, 0.1, 0.1])}, r"sigma holds 3 levels, but y holds 2"),
    "flow": (lambda y: y, {"method": "flow", "steps": 5}, r"at least 20 steps"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(denoising, y, rgb, name):
    change, options, message = BAD[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        emprior.solve(denoising, change(y), **{"prior": rgb, **options})
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_sigma(y, rgb):
    import deepinv as dinv

    with pytest.raises(ValueError, match=r"noise level is unknown.*Pass sigma"):
        emprior.solve(dinv.physics.LinearPhysics(), y, rgb)
    with pytest.raises(ValueError, match=r"noise is PoissonNoise"):
        emprior.solve(dinv.physics.Denoising(dinv.physics.PoissonNoise()), y, rgb)


def facts() -> dict:
    return {
        "name": "tiny",
        "architecture": "inner_product",
        "arguments": TINY,
        "shape": [3, 8, 8],
        "density": {"objective": "energy_matching", "arguments": {}, "epsilon": 0.01},
    }


def test_priors_are_saved_loaded_and_verified(tmp_path, denoising, y):
    potential = tiny()
    save_prior(tmp_path / "tiny", potential, **facts())
    prior = load_prior(tmp_path / "tiny")
    assert isinstance(prior, Prior)
    for name, value in potential.state_dict().items():
        assert torch.equal(prior.potential.state_dict()[name], value)
    torch.testing.assert_close(prior(y), potential(2 * y - 1) / 0.01, rtol=1e-5, atol=1e-4)
    assert verify_prior(tmp_path / "tiny").name == "tiny"
    result = emprior.solve(denoising, y, tmp_path / "tiny", method="continuation", steps=2)
    assert result.config["prior"] == "tiny"


def test_damaged_priors(tmp_path):
    folder = tmp_path / "tiny"
    save_prior(folder, tiny(), **facts())
    card, weights = (folder / "card.yaml").read_text(), (folder / "weights.safetensors").read_bytes()

    (folder / "weights.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"corrupted.*Restore"):
        load_prior(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot read"):
        load_prior(folder)
    (folder / "weights.safetensors").write_bytes(weights)
    for text, message in (
        (card.replace("density:", "dencity:"), r"unknown key 'dencity'.*Did you mean 'density'"),
        (card.replace("sha256:", "description:"), r"incomplete.*sha256"),
        (card.replace("inner_product", "inner_produkt"), r"unknown architecture.*Did you mean 'inner_product'"),
        ("[1", "not valid YAML"),
        ("hello", "not a prior card"),
    ):
        (folder / "card.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_prior(folder)


def test_operator_of_the_users_is_not_changed(y, field):
    operator = make_operator("blur").to(torch.float32)
    before = {name: value.clone() for name, value in operator.state_dict().items()}
    emprior.solve(operator, torch.rand(1, *SHAPE, dtype=torch.float64), field, steps=5)
    assert all(torch.equal(value, before[name]) for name, value in operator.state_dict().items())


def test_import_is_light():
    import subprocess
    import sys

    heavy = ("deepinv", "matplotlib", "skimage", "torchmetrics")
    code = f"import sys, emprior; emprior.solve; emprior.Result; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_each_image_may_have_a_seed_of_its_own(field):
    operator = make_operator("blur")
    y = operator(field.sample(3, seed=1))
    options = {"prior": field, "method": "mala", "steps": 20}
    own = emprior.solve(operator, y, seed=[4, 5, 4], **options)
    assert own.config["seed"] == [4, 5, 4]
    for image, seed in enumerate([4, 5, 4]):
        alone = emprior.solve(operator, y[image : image + 1], seed=seed, **options)
        assert torch.allclose(own.samples[:, image], alone.samples[:, 0], rtol=0, atol=1e-5)
    assert not torch.equal(own.samples[:, 1], emprior.solve(operator, y, seed=4, **options).samples[:, 1])
    with pytest.raises(ValueError, match="there are 2 seeds for 3 images"):
        emprior.solve(operator, y, seed=[1, 2], **options)
    with pytest.raises(TypeError, match="expected an integer, or one for each image"):
        emprior.solve(operator, y, seed="abc", **options)


def test_samples_go_on_from_where_they_were(denoising, y, rgb):
    seen = []
    first = emprior.solve(denoising, y, rgb, method="ula", samples=3, steps=40)
    options = {"samples": 3, "steps": 2, "x0": first.samples, "callback": lambda _, rows: seen.append(rows.clone())}
    emprior.solve(denoising, y, rgb, method="gibbs", **options)
    assert seen[0].shape == first.samples.shape
    fidelity = GaussianFidelity(denoising, y, 0.1)
    noise = Noise([(s, b) for s in range(3) for b in range(2)])
    rows = _starts(fidelity, noise, SHAPE, first.samples, scatter=True)
    assert torch.equal(rows.unflatten(0, (3, 2)), first.samples)
    with pytest.raises(ValueError, match="starts of 3 samples, but samples is 2"):
        emprior.solve(denoising, y, rgb, method="mala", samples=2, x0=first.samples)


def test_seeds_of_numpy_are_saved(denoising, y, rgb, tmp_path):
    for seed in (np.int64(3), [np.int64(3), 4]):
        emprior.solve(denoising, y, rgb, steps=2, seed=seed).save(tmp_path / "out")
    assert emprior.Result.load(tmp_path / "out").config["seed"] == [3, 4]


def test_quantiles_of_any_number(denoising, y, rgb):
    result = emprior.solve(denoising, y, rgb, method="mala", samples=2, steps=40)
    for q in (0.5, np.float32(0.5), torch.tensor(0.5)):
        assert torch.equal(result.quantile(q), result.quantile([0.5])[0])


def test_energies_are_typical_of_one_size(denoising):
    r"""Those of training images say nothing of larger ones."""
    prior = NetworkPrior(tiny(), (3, 8, 8), EnergyMatching(), 10.0)
    prior.typical = (1e6, 1.0)
    for side, judged in ((8, True), (16, False)):
        result = emprior.solve(denoising, torch.full((1, 3, side, side), 0.5), prior, method="hmc", steps=40)
        assert ("the prior energy is" in result.diagnostics.verdict[0]) == judged


def test_samples_without_a_test_of_their_own_say_so(denoising, y, rgb):
    for method, biased in (("ula", True), ("mala", False)):
        lines = emprior.solve(denoising, y, rgb, method=method, samples=2, steps=40).diagnostics.verdict
        assert all(("without a Metropolis test" in line) == biased for line in lines)


class Stopping(GaussianPrior):
    r"""A prior that is interrupted when it has been asked so often."""

    left = 30

    def value_and_grad(self, x):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().value_and_grad(x)


@pytest.mark.parametrize("asked", ["sigma", "weight"])
def test_an_interrupted_estimate_is_no_estimate(denoising, y, asked):
    prior = Stopping(torch.full((3, 8, 8), 0.5), torch.full((3, 8, 8), 0.05))
    with pytest.raises(KeyboardInterrupt):
        emprior.solve(denoising, y, prior, **{asked: "estimate"})


def test_a_minimum_tells_what_its_estimate_is_worth(denoising, y, rgb, caplog):
    result = emprior.solve(denoising, y, rgb, sigma="estimate")
    told = result.diagnostics.verdict
    assert len(told) == len(result.diagnostics.ess) == 2
    warned = [record.getMessage() for record in caplog.records if "made the estimate" in record.getMessage()]
    assert len(warned) == sum(line.startswith("not ") for line in told)


def test_a_matrix_of_as_many_rows_as_images_is_shared():
    matrix = torch.randn(2, 192, generator=torch.Generator().manual_seed(0))
    operator = emprior.as_operator(matrix, shape=(3, 8, 8))
    for images in (2, 3):
        fidelity = GaussianFidelity(operator, torch.zeros(images, 2), 0.1)
        assert not fidelity.per_image
        assert fidelity.hessian(torch.zeros(images, 3, 8, 8)) is not None
