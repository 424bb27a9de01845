from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from emprior._bands import Bands, Spectrum
from emprior.interpolant import EnergyMatching
from emprior.train.config import Contrast
from emprior.train.derivative import gradient_of
from emprior.train.draws import Draws
from emprior.train.frame import Frame
from emprior.train.gradients import Pieces, WholeBatch, in_pieces
from emprior.train.negatives import ReplayBuffer, fresh_negatives, langevin
from emprior.train.objective import GradientMatchingLoss
from emprior.train.pairing import optimal_pairing
from emprior.train.views import punch, view_holes, view_noise


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(seed=0):
    return Draws([generator(seed)])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


class Quadratic(nn.Module):
    r"""V(x) = factor |x|^2 / 2."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.factor / 2 * x.square().flatten(1).sum(1)


class FirstPixel(nn.Module):
    def forward(self, x):
        return x[:, 0, 0, 0]


@pytest.mark.parametrize("balance", [None, 0.0, 1.2])
def test_transport_loss_of_a_quadratic(balance):
    path, factor = EnergyMatching(0.06, 0.1), 1.7
    x1, x0 = normal(5, 1, 2, 2), normal(5, 1, 2, 2, seed=1)
    s = torch.tensor([0.01, 0.06, 0.1, 0.4, 0.9], dtype=torch.float64)
    potential = Quadratic(factor)
    loss, terms = GradientMatchingLoss(potential, path, balance)(x1, x0, s)

    expected, slope = [], []
    for i, f in enumerate(s.tolist()):
        a, b = min(1.0, f / 0.06), min(1.0, max(0.0, (f - 0.06) / 0.1))
        k = 1 - f * b
        gain = f / (a * k + f * b)
        weight = 1.0 if balance is None else gain**2 / max(f, 0.02) ** balance
        x = k * x1[i] + f * x0[i]
        error = factor * x - (a * x0[i] - b * x1[i])
        expected.append(weight * error.square().mean())
        slope.append(weight * (2 * error * x).mean())
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(terms["transport"], loss.detach(), rtol=0, atol=0)
    loss.backward()
    torch.testing.assert_close(potential.factor.grad, torch.stack(slope).mean(), rtol=1e-12, atol=0)


def spent(slack, x1, x0, s, factor=1.7, path=None):
    path = path or EnergyMatching(0.3, 0.6)
    return GradientMatchingLoss(Quadratic(factor), path, balance=None, slack=slack)(x1, x0, s)[0]


@pytest.mark.parametrize(("s", "forgiven"), [(0.04, 0.0), (0.06, 0.2), (0.2, 1.0), (0.29, 1.0)])
def test_slack_forgives_a_residual_of_the_wrong_length(s, forgiven):
    """Of black images `a x0` is wanted and `c s x0` found: right in direction."""
    x0, at = normal(3, 1, 4, 4), torch.full((3,), s, dtype=torch.float64)
    full = spent(0.0, 0 * x0, x0, at)
    torch.testing.assert_close(full, ((1.7 * s - s / 0.3) * x0).square().mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(spent(0.9, 0 * x0, x0, at), full * (1 - 0.9 * forgiven), rtol=1e-6, atol=0)


def test_slack_forgives_no_wrong_direction():
    """The error of a clean estimate, split into the length of `r` and what is left at the best."""
    x1, x0, s = normal(1, 1, 4, 4), normal(1, 1, 4, 4, seed=1), torch.tensor([0.5], dtype=torch.float64)
    path = EnergyMatching(0.3, 0.6)
    k = path.coefficients(s)[2]
    x = k * x1 + s * x0
    noise, residual = s * x0 / k, x / k - path.endpoint(x, 1.7 * x, s)
    best = (residual * noise).sum() / residual.square().sum()
    errors = [(length * residual - noise).square().mean() / path.gain(s) ** 2 for length in (1.0, best)]
    for slack in (0.0, 0.4, 0.9):
        torch.testing.assert_close(
            spent(slack, x1, x0, s), ((1 - slack) * errors[0] + slack * errors[1])[0], rtol=1e-6, atol=0
        )


def test_slack_ends_where_images_end():
    x1, x0 = normal(4, 1, 4, 4), normal(4, 1, 4, 4, seed=1)
    s = torch.tensor([0.91, 0.95, 0.99, 1.0], dtype=torch.float64)
    torch.testing.assert_close(spent(0.9, x1, x0, s), spent(0.0, x1, x0, s), rtol=1e-12, atol=0)


def energies(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("trim", "clamp", "expected"),
    [
        (0.0, 1e9, 0.1 * (3 - 40 / 5)),
        (0.2, 1e9, 0.1 * (3 - 10 / 4)),
        (0.4, 1e9, 0.1 * (3 - 6 / 3)),
        (0.0, 0.02, -0.02),
        (1.0, 1e9, 0.1 * (3 - 1)),
    ],
)
def test_contrast_of_made_up_energies(trim, clamp, expected):
    loss = GradientMatchingLoss(FirstPixel(), EnergyMatching(), strength=0.1, trim=trim, clamp=clamp)
    contrast, gap = loss.contrast(energies(2.0, 4.0), energies(30.0, 1.0, 4.0, 2.0, 3.0))
    torch.testing.assert_close(float(contrast), expected)
    if clamp > 1:
        torch.testing.assert_close(float(gap), expected / 0.1)


def test_a_clamped_contrast_gives_no_gradient():
    potential = Quadratic()
    loss = GradientMatchingLoss(potential, EnergyMatching(), strength=1.0, trim=0.0, clamp=0.02)
    contrast, _ = loss.contrast(energies(0.0), energies(5.0))
    contrast.backward()
    assert potential.factor.grad == 0


def test_both_terms_add_up():
    loss = GradientMatchingLoss(Quadratic(), EnergyMatching(), strength=0.1, clamp=1e9)
    batch = normal(3, 1, 2, 2), normal(3, 1, 2, 2, seed=1), torch.full((3,), 0.5, dtype=torch.float64)
    total, terms = loss(*batch, normal(4, 1, 2, 2, seed=2), normal(4, 1, 2, 2, seed=3))
    torch.testing.assert_close(total.detach(), terms["transport"] + terms["contrast"])


@pytest.mark.parametrize(("trim", "clamp"), [(0.0, 1e9), (0.4, 1e9), (0.4, 0.3)])
def test_groups_are_contrasted_for_themselves(trim, clamp):
    above, below = normal(6, 1, 1, 1), normal(15, 1, 1, 1, seed=1)
    settings = {"strength": 0.5, "trim": trim, "clamp": clamp}
    whole = GradientMatchingLoss(FirstPixel(), EnergyMatching(), groups=3, **settings)
    alone = GradientMatchingLoss(FirstPixel(), EnergyMatching(), **settings)
    parts = [alone.contrast(above[group::3], below[group::3]) for group in range(3)]
    if clamp < 1:
        assert 1 <= sum(float(contrast) == -clamp for contrast, _ in parts) <= 2
    for found, expected in zip(whole.contrast(above, below), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(expected).mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("clamp", [1e9, 0.3])
def test_pieces_have_the_gradient_of_the_whole_batch(count, groups, clamp):
    x1, x0, s = normal(6, 1, 2, 2), normal(6, 1, 2, 2, seed=1), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    pair = normal(12, 1, 2, 2, seed=2), normal(12, 1, 2, 2, seed=3) * torch.linspace(0.75, 3, 12)[:, None, None, None]
    found = []
    for kind, *arguments in ((WholeBatch,), (Pieces, count)):
        for batch in ((x1, x0, s), (x1, x0, s, *pair)):
            potential = Quadratic(1.3)
            loss = GradientMatchingLoss(potential, EnergyMatching(), strength=0.3, trim=0.3, clamp=clamp, groups=groups)
            terms = kind(loss, False, contextlib.nullcontext, *arguments)(*batch)
            found.append({**terms, "slope": potential.factor.grad})
            if kind is Pieces:
                assert max(map(len, potential.seen)) == 24 // count if len(batch) > 3 else 6 // count
    for whole, pieces in zip(found[:2], found[2:], strict=True):
        assert whole.keys() == pieces.keys()
        for name in whole:
            torch.testing.assert_close(pieces[name], whole[name], rtol=1e-12, atol=1e-14)
    assert (found[0]["slope"] == found[1]["slope"]) == (clamp < 1 and groups == 1)


def test_a_gradient_in_pieces_is_the_gradient():
    x = normal(7, 1, 2, 2)
    torch.testing.assert_close(in_pieces(slope(2.0), 3)(x), 2 * x)


def test_pairing_is_optimal():
    for seed in range(5):
        x0, x1 = normal(5, 1, 2, 2, seed=seed), normal(5, 1, 2, 2, seed=seed + 100)
        best = min((x0[list(p)] - x1).square().sum() for p in itertools.permutations(range(5)))
        found = optimal_pairing(x0, x1)
        assert sorted(found.tolist()) == list(range(5))
        torch.testing.assert_close((x0[found] - x1).square().sum(), best)


def slope(factor=1.0):
    return gradient_of(Quadratic(factor), compiled=False)


def test_langevin_has_its_exact_biased_variance():
    r"""x <- (1 - h k) x + sqrt(2 h e) n has variance e / (k (1 - h k / 2)) (1 - (1 - h k)^(2 K)) after K steps."""
    k, h, epsilon, steps, count = 2.0, 0.3, 0.5, 12, 40_000
    x = torch.zeros(count, 1, 1, 1, dtype=torch.float64)
    temperature = torch.full((steps,), epsilon, dtype=torch.float64)
    x = langevin(slope(k), x, temperature, h, draws()).flatten()
    variance = epsilon / (k * (1 - h * k / 2)) * (1 - (1 - h * k) ** (2 * steps))
    error = variance * (2 / count) ** 0.5
    assert abs(float(x.square().mean()) - variance) < 4 * error
    assert abs(variance - epsilon / k) > 40 * error


def test_langevin_at_temperature_zero_is_descent():
    x = normal(3, 1, 2, 2)
    end = langevin(slope(2.0), x, torch.zeros(5, dtype=torch.float64), 0.1, draws())
    torch.testing.assert_close(end, 0.8**5 * x)
    assert not end.requires_grad


def replay(settings, chains, thermal=0.0):
    return ReplayBuffer(settings, 0.1, thermal, view_noise(settings).to(chains), view_holes(settings), chains)


def rows(x):
    return sorted(map(tuple, x.flatten(1).tolist()))


def test_replay_changes_only_the_rows_it_draws():
    settings = Contrast(chains=20, batch_size=6, langevin_steps=3, restart=0.0, views=0.5)
    before = normal(20, 4, 1, 2, 2)
    buffer = replay(settings, before.clone())
    origins, drawn = buffer.draw(slope(), normal(4, 1, 2, 2), draws())
    changed = (buffer.chains != before).flatten(1).any(1)
    assert int(changed.sum()) == 6
    assert rows(buffer.chains[changed, 1]) == rows(origins)
    assert torch.equal(buffer.chains[:, 1:3], before[:, 1:3])
    assert drawn.shape == (6, 1, 2, 2)


def test_replay_restarts_from_data_and_keeps_it_beside():
    settings = Contrast(chains=20, batch_size=6, langevin_steps=1, step_size=1e-12, restart=1.0)
    data = 100 + normal(4, 1, 2, 2)
    origins, drawn = replay(settings, normal(20, 4, 1, 2, 2)).draw(slope(), data, draws())
    torch.testing.assert_close(drawn, origins, rtol=0, atol=1e-5)
    assert torch.cdist(origins.flatten(1), data.flatten(1)).min(1).values.max() == 0


def test_replay_gives_its_origins_thermal_noise_and_keeps_them_clean():
    settings = Contrast(chains=4000, batch_size=4000, langevin_steps=1, restart=0.0)
    buffer = replay(settings, torch.ones(4000, 4, 1, 1, 1, dtype=torch.float64), thermal=0.3)
    origins, _ = buffer.draw(slope(), torch.zeros(4, 1, 1, 1), draws())
    assert abs(float(origins.mean()) - 1) < 4 * 0.3 / 4000**0.5
    assert abs(float(origins.std()) - 0.3) < 4 * 0.3 / 8000**0.5
    assert (buffer.chains[:, 1] == 1).all()


def test_chains_age_by_shares_before_their_first_use():
    r"""Of V = |x|^2 / 2 at temperature 0, a step from rest multiplies a chain by 1 - h / 2, others by 1 - h."""
    settings = Contrast(chains=6, batch_size=2, step_size=0.1, age=9)
    before = normal(6, 4, 1, 2, 2)
    before[:, 3] = 0
    buffer = ReplayBuffer(settings, 0.0, 0.0, view_noise(settings), view_holes(settings), before.clone())
    buffer.age(slope(), draws())
    steps = torch.tensor([3, 3, 6, 6, 9, 9], dtype=torch.float64)[:, None, None, None]
    torch.testing.assert_close(buffer.chains[:, 0], 0.95 * 0.9 ** (steps - 1) * before[:, 0])
    assert torch.equal(buffer.chains[:, 1:3], before[:, 1:3])


@pytest.mark.parametrize(("step_size", "momentum", "steps"), [(0.05, 0.0, 80), (0.5, 0.0, 8), (0.5, 0.9, 120)])
def test_replay_chains_have_the_variance_of_the_density_whatever_their_step(step_size, momentum, steps):
    r"""V = k |x|^2 / 2 at temperature e has variance e / k."""
    k, epsilon, count = 2.0, 0.1, 40_000
    settings = Contrast(chains=count, batch_size=count, langevin_steps=steps, step_size=step_size, momentum=momentum)
    buffer = replay(settings, torch.zeros(count, 4, 1, 1, 1, dtype=torch.float64))
    _, x = buffer.draw(slope(k), torch.zeros(1, 1, 1, 1, dtype=torch.float64), draws())
    assert abs(float(x.square().mean()) - epsilon / k) < 4 * epsilon / k * (2 / count) ** 0.5


def test_momentum_crosses_a_flat_density_sooner():
    r"""Of V = 0, K steps diffuse to 2 K h e, and with momentum to about (1 + c) / (1 - c) times that."""
    count, steps, h, c = 20_000, 200, 0.1, 0.9
    spread = []
    for momentum in (0.0, c):
        settings = Contrast(chains=count, batch_size=count, langevin_steps=steps, step_size=h, momentum=momentum)
        buffer = replay(settings, torch.zeros(count, 4, 1, 1, 1, dtype=torch.float64))
        _, x = buffer.draw(slope(0.0), torch.zeros(1, 1, 1, 1, dtype=torch.float64), draws())
        spread.append(float(x.var()) / (2 * steps * h * 0.1))
    assert abs(spread[0] - 1) < 0.05
    assert 0.85 * (1 + c) / (1 - c) < spread[1] < (1 + c) / (1 - c)


def test_replay_chains_follow_the_posterior_of_their_views():
    r"""Given y = x1 + s n, V = k |x|^2 / 2 at temperature e has precision k / e + 1 / s^2 and mean y / s^2 of that."""
    k, epsilon, count, sigma = 2.0, 0.1, 30_000, 0.4
    settings = Contrast(
        chains=count, batch_size=count, langevin_steps=40, step_size=0.2, restart=1.0, views=1.0, noise=(0.2, 0.2)
    )
    buffer = replay(settings, torch.zeros(count, 4, 1, 1, 1, dtype=torch.float64))
    buffer.draw(slope(k), torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64), draws())
    views = buffer.chains[:, 2].flatten()
    assert abs(float(views.mean()) - 0.7) < 4 * sigma / count**0.5
    assert abs(float(views.std()) - sigma) < 4 * sigma / (2 * count) ** 0.5

    settings = Contrast(
        chains=count, batch_size=count, langevin_steps=40, step_size=0.2, restart=0.0, views=1.0, noise=(0.2, 0.2)
    )
    buffer = replay(settings, buffer.chains)
    _, x = buffer.draw(slope(k), torch.zeros(1, 1, 1, 1, dtype=torch.float64), draws())
    precision = k / epsilon + sigma**-2
    total = sigma**2 * (1 / sigma**2 / precision) ** 2 + 1 / precision
    assert abs(float(x.mean()) - 0.7 / sigma**2 / precision) < 4 * (total / count) ** 0.5
    assert abs(float(x.var()) - total) < 5 * total * (2 / count) ** 0.5


def test_holes_are_boxes_in_a_share_of_the_views():
    chosen = view_holes(Contrast(chains=1000, holes=0.3))
    assert abs(int(chosen.sum()) / 1000 - 0.3) < 0.01
    view = punch(torch.zeros(1000, 3, 32, 32), chosen, draws())
    hole = view.isnan()
    assert torch.equal(hole.flatten(1).any(1), chosen)
    assert (hole == hole[:, :1]).all()
    sides = [hole[chosen, 0].any(axis).sum(1) for axis in (1, 2)]
    assert torch.equal(sides[0] * sides[1], hole[chosen, 0].sum((1, 2)))
    for side in sides:
        assert (int(side.min()), int(side.max())) in {(7, 16), (7, 17), (8, 16), (8, 17)}
        assert abs(float(side.float().mean()) - 12) < 0.5
    rows = hole[chosen, 0].any(2).float().mean(0)
    assert rows.min() > 0
    torch.testing.assert_close(rows, rows.flip(0), rtol=0, atol=0.15)


def test_chains_fill_the_holes_of_their_views_from_the_prior():
    r"""In a hole V = k |x|^2 / 2 at temperature e has mean 0 and variance e / k, beside it the posterior's."""
    k, epsilon, count, sigma = 2.0, 0.1, 4000, 0.4
    settings = Contrast(
        chains=count, batch_size=count, langevin_steps=40, step_size=0.2, restart=1.0, views=1.0, holes=1.0,
        noise=(0.2, 0.2),
    )  # fmt: skip
    buffer = replay(settings, torch.zeros(count, 4, 1, 8, 8, dtype=torch.float64))
    buffer.draw(slope(k), torch.full((1, 1, 8, 8), 0.7, dtype=torch.float64), draws())
    x, _, view, _ = buffer.chains.unbind(1)
    hole = view.isnan()
    precision = k / epsilon + sigma**-2
    for part, mean, variance in (
        (x[hole], 0.0, epsilon / k),
        ((x - view / sigma**2 / precision)[~hole], 0.0, 1 / precision),
    ):
        assert abs(float(part.mean()) - mean) < 4 * (variance / len(part)) ** 0.5
        assert abs(float(part.var()) - variance) < 5 * variance * (2 / len(part)) ** 0.5


def test_a_share_of_the_chains_is_given_views_of_all_noise_levels():
    settings = Contrast(chains=1000, views=0.3, noise=(0.05, 0.4))
    sigma = view_noise(settings)
    given = sigma[sigma.isfinite()]
    assert abs(len(given) / 1000 - 0.3) < 0.01
    assert 0.1 <= float(given.min()) < 0.11
    assert 0.75 < float(given.max()) <= 0.8
    assert abs(float(given.log().median()) - math.log(0.1 * 8**0.5)) < 0.1


def test_replay_is_deterministic():
    settings = Contrast(chains=20, batch_size=6, langevin_steps=3, restart=0.5, views=0.5)
    one, two = (
        replay(settings, normal(20, 4, 1, 2, 2), 0.2).draw(slope(), normal(4, 1, 2, 2, seed=9), draws(3))
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_fresh_chains_follow_the_schedule():
    r"""Of a flat energy only the noise moves: chains from noise stand still up to tau, those from data never."""
    steps, h, epsilon, tau, count = 12, 0.1, 0.5, 0.6, 8000
    settings = Contrast(batch_size=count, langevin_steps=steps, step_size=h, tau_star=tau)
    potential = Quadratic(0.0)
    data = torch.full((3, 1, 1, 1), 7.0)
    end = fresh_negatives(settings, epsilon, gradient_of(potential, compiled=False), data, draws()).flatten()
    path = torch.stack([*(x.flatten() for x in potential.seen), end]).double()
    assert torch.equal(path[0, count // 2 :], torch.full((count - count // 2,), 7.0, dtype=torch.float64))
    jumps = path.diff(dim=0)
    heat = torch.tensor([epsilon * min(1.0, max(0.0, (i * h - tau) / (1 - tau))) for i in range(steps)])
    close = {"rtol": 6 * (2 / (count / 2)) ** 0.5, "atol": 1e-6}
    torch.testing.assert_close(jumps[:, : count // 2].var(1).float(), 2 * h * heat, **close)
    expected = torch.full((steps,), 2 * h * epsilon)
    torch.testing.assert_close(jumps[:, count // 2 :].var(1).float(), expected, **close)


def bands_of_curvature(shape, curvature):
    r"""A quadratic energy with that curvature in each band of images, and its spectrum."""
    like = torch.zeros(1, *shape, dtype=torch.float64)
    bands = Bands.of(like)
    spectrum = Spectrum(tuple(bands.frequency.tolist()), (tuple(curvature(bands.frequency).tolist()),))
    values = bands.spread(spectrum.on(bands)[None], like)
    return spectrum, values, lambda x: bands.join(values * bands.split(x))


def test_a_frame_turns_images_and_gradients_into_coordinates_and_back():
    r"""The gradient of `V` after `join` is its own derivative there."""
    spectrum, _, slope = bands_of_curvature((1, 6, 5), lambda f: 3 + 900 * f**2)
    x = normal(4, 1, 6, 5)
    frame = Frame(spectrum, 0.02, torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64), x)
    z = frame.split(x).requires_grad_()
    torch.testing.assert_close(frame.join(z), x)
    energy = (frame.join(z) * slope(frame.join(z))).sum() / 2
    (found,) = torch.autograd.grad(energy, z)
    torch.testing.assert_close(frame.gradient(slope)(z.detach()), found)


@pytest.mark.parametrize("views", [0.0, 1.0])
def test_chains_in_a_frame_cross_a_stiff_density_sooner(views):
    r"""V = x' H x / 2 at temperature e, with a view y: precision H / e + 1 / s^2, curvatures of ratio 450."""
    epsilon, count, sigma = 0.1, 4000, 0.6
    spectrum, curvature, gradient = bands_of_curvature((1, 4, 4), lambda f: 10 + 4000 * f**2)
    curvature = epsilon / 4 * curvature
    settings = Contrast(
        chains=count, batch_size=count, langevin_steps=40, step_size=0.5, restart=1.0, views=views, noise=(0.3, 0.3)
    )
    sigmas = view_noise(settings).double()
    chains = torch.zeros(count, 4, 1, 4, 4, dtype=torch.float64)
    variance = epsilon / (curvature + (epsilon / sigma**2 if views else 0))
    ratios = []
    for frame in (spectrum, None):
        step = replace(settings, step_size=0.5 if frame else 0.5 / float(curvature.max()))
        buffer = ReplayBuffer(step, epsilon, 0.0, sigmas, view_holes(step), chains.clone(), frame)
        buffer.draw(lambda x: epsilon / 4 * gradient(x), torch.zeros(1, 1, 4, 4, dtype=torch.float64), draws())
        x, view = buffer.chains[:, 0], buffer.chains[:, 2]
        bands = Bands.of(x)
        centre = bands.split(view) * variance / sigma**2 if views else 0
        ratios.append(((bands.split(x) - centre).square().mean(0) / variance[0]).flatten())
    right, short = ratios
    assert (right - 1).abs().max() < 5 * (2 / count) ** 0.5
    assert views or short.min() < 0.1
