r"""Ranks and their laws against enumeration, and the suite against right and wrong samplers."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import kstwo

from emprior.verify import fields, mixture, verify
from emprior.verify.calibration import (
    ALPHA,
    TESTS,
    bars,
    distance,
    figures,
    largest_distance,
    p_value,
    within,
)
from emprior.verify.row import Sampled

PAIRS, DRAWS = 200, 32
SHARE = ALPHA / 5 / (len(TESTS) + 1)


def every(truths, draws):
    r"""All sets of ranks, each as likely as any other."""
    return [torch.tensor(ranks) for ranks in itertools.product(range(draws + 1), repeat=truths)]


def failures(case, draws, seed=0):
    found = figures(case, draws, seed)
    return {name for name, (low, high) in bars(case, len(draws), SHARE).items() if not low <= found[name] <= high}


def posterior(case):
    return case.prior.posterior(case.operator, case.y, case.sigma)


def centre(case, draws):
    r"""The mean of the component that each draw is of."""
    exact = posterior(case)
    if case.suite == "gaussian":
        return exact.mean
    first, second = exact.means.unbind(1)
    nearer = (draws - first).flatten(2).norm(dim=2) < (draws - second).flatten(2).norm(dim=2)
    return torch.where(nearer[:, :, None, None, None], first, second)


@pytest.fixture(scope="module")
def cases():
    small = list(fields.cases(PAIRS, 0, sides=(8,)))
    return [*small, *mixture.cases(PAIRS, 0)]


@pytest.fixture(scope="module")
def draws(cases):
    return [posterior(case).sample(DRAWS, seed=5) for case in cases]


@pytest.mark.parametrize(("truths", "draws"), [(1, 4), (3, 3), (5, 2)])
def test_the_law_of_p_values_is_that_of_enumeration(truths, draws):
    found = torch.tensor([p_value(ranks[:, None], draws) for ranks in every(truths, draws)], dtype=torch.float64)
    for value in found.unique():
        assert float((found <= value + 1e-9).double().mean()) == pytest.approx(float(value), abs=1e-9)


@pytest.mark.parametrize(("truths", "draws"), [(1, 4), (3, 3), (5, 2)])
def test_the_law_of_distances_is_that_of_enumeration(truths, draws):
    found = torch.tensor([distance(ranks, draws) for ranks in every(truths, draws)], dtype=torch.float64)
    for alpha in (0.05, 0.3):
        bar = largest_distance(truths, draws, alpha)
        assert float((found > bar + 1e-6).double().mean()) <= alpha
        assert float((found > bar - 1e-4).double().mean()) > alpha


def test_the_band_is_that_of_one_count():
    r"""Of one rank of two, the number below is binomial."""
    low, high = torch.tensor([3]), torch.tensor([7])
    expected = sum(math.comb(10, k) for k in range(3, 8)) / 2**10
    assert within(low, high, 10) == pytest.approx(expected, rel=1e-12)


def test_distances_of_many_draws_follow_kolmogorovs_law():
    r"""The supremum over a grid is less than that over all levels, by at most a cell."""
    exact = float(kstwo.isf(0.01, 300))
    assert exact - 1 / 1000 < largest_distance(300, 1000, 0.01) < exact


def test_columns_are_counted():
    ranks = torch.randint(0, 11, (50, 3), generator=torch.Generator().manual_seed(0))
    least = min(p_value(ranks[:, i : i + 1], 10) for i in range(3))
    assert p_value(ranks, 10) == pytest.approx(min(1, 3 * least))


def test_states_are_thinned_evenly_and_alike_in_all_chains():
    states = torch.arange(12.0)[:, None, None, None] + torch.tensor([0.0, 100.0])[:, None, None]
    sampled = Sampled(states[0, 0], states[0, 0], states, torch.tensor([9.0]))
    assert sampled.thinned(64).flatten().tolist() == [3, 103, 9, 109]
    assert sampled.thinned(2).flatten().tolist() == [6, 106]


def test_exact_draws_are_within_the_bars(cases, draws):
    for case, own in zip(cases, draws, strict=True):
        assert failures(case, own) == set()


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_standard_deviation_off_by_a_tenth_is_out_of_them(cases, draws, factor):
    for case, own in zip(cases, draws, strict=True):
        mean = centre(case, own)
        assert "energy p" in failures(case, mean + factor * (own - mean))


def test_a_mean_off_by_half_a_deviation_is_out_of_them(cases, draws):
    for case, own in zip(cases[:4], draws[:4], strict=True):
        assert "pixels p" in failures(case, own + 0.5 * posterior(case).std)


def test_draws_that_ignore_the_measurements_are_found_out(cases):
    r"""Pixels of the prior are in order among draws of the prior; distances to what was measured are not."""
    for case in cases:
        free = case.prior.sample(DRAWS * PAIRS, seed=9).unflatten(0, (DRAWS, PAIRS))
        found = failures(case, free)
        assert "TARP" in found
        assert not found & {"mean p", "pixels p"}


def test_exact_draws_pass_as_often_as_the_bars_say():
    r"""At one half for each of four figures: p-values are uniform, but for the pixels', whose columns are counted."""
    (case,) = mixture.cases(60, 1)
    exact, runs = posterior(case), 60
    passed = {"energy p": 0, "mean p": 0, "pixels p": 0, "TARP": 0}
    x = exact.sample(runs, seed=1)
    for run in range(runs):
        found = figures(replace(case, x=x[run]), exact.sample(16, seed=100 + run), run)
        for name, (low, high) in bars(case, 16, 0.5).items():
            passed[name] += low <= found[name] <= high
    for name in ("energy p", "mean p", "TARP"):
        assert abs(passed[name] / runs - 0.5) < 4 * 0.5 / runs**0.5
    assert passed["pixels p"] / runs > 0.5


def test_the_suite_runs(monkeypatch):
    monkeypatch.setattr("emprior.verify.fields.PROBLEMS", {"denoising": 0.1})
    monkeypatch.setattr("emprior.verify.calibration.PAIRS", 20)
    rows = list(verify(["calibration"], "hmc", steps=80))
    assert [row.problem for row in rows] == ["denoising 8x8", "two modes, d = 16, m = 14"]
    assert rows[0].failures == ()
    assert rows[0].bars["energy p"] == (ALPHA / 2 / 4, 1.0)
    assert 0 < rows[0].figures["draws"] <= 64
