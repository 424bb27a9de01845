from __future__ import annotations

import pytest
import torch

import emprior
from emprior.monitor import Monitor
from emprior.result import Status


def white(draws, chains, images, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(draws, chains, images, 1, 4, 4, generator=random, dtype=torch.float64)


def follow(monitor, draws, burn_in=20):
    for index, x in enumerate(draws):
        monitor.see(x, {"energy": x.square().flatten(2).sum(2) / 2}, kept=index >= burn_in)
        if monitor.satisfied:
            break
    return monitor


def test_independent_draws_are_enough_once_there_are_as_many_as_asked_for():
    monitor = follow(Monitor(1, target_ess=300, first=50), white(400, 4, 1))
    assert monitor.satisfied
    (account,) = monitor.close()
    assert account.met
    assert 60 <= account.draws <= 140
    assert account.ess >= 300
    assert account.rhat < 1.05
    assert abs(account.numbers["energy"] - 8) < 4 * (8 / (4 * account.draws)) ** 0.5


def test_neither_start_nor_burn_in_counts():
    draws = white(60, 2, 1)
    draws[:20] += 1e6
    (account,) = follow(Monitor(1, first=30), draws).close()
    assert account.draws == 40
    torch.testing.assert_close(account.mean, draws[20:].mean((0, 1))[0])
    torch.testing.assert_close(account.std, draws[20:].flatten(0, 1).std(0)[0])
    torch.testing.assert_close(
        account.sketch.quantile(0.5)[0], draws[20:].flatten(0, 1)[:, 0].quantile(0.5, dim=0), atol=0.1, rtol=0
    )


def test_chains_that_disagree_are_not_enough():
    draws = white(300, 2, 1)
    draws[:, 1] += 3
    (account,) = follow(Monitor(1, target_ess=10), draws).close()
    assert not account.met
    assert account.rhat > 1.5


def test_what_is_learnt_does_not_mix():
    monitor = Monitor(1)
    for x in white(300, 2, 1):
        energy = x.square().flatten(2).sum(2) / 2
        monitor.see(x, {"energy": energy, "weight_std": torch.full_like(energy, torch.inf)}, kept=True)
    (account,) = monitor.close()
    assert account.rhat < 1.05
    assert account.numbers["weight_std"] == torch.inf


def test_an_interrupt_between_numbers_loses_no_run():
    monitor, draws = Monitor(1), white(60, 2, 1)
    follow(monitor, draws[:50])
    monitor.projections = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        monitor.see(draws[50], {"energy": draws[50].square().flatten(2).sum(2)}, kept=True)
    (account,) = monitor.close()
    assert account.draws == 30


class Interrupted:
    def project(self, x):
        raise KeyboardInterrupt


def test_an_image_is_accounted_for_when_it_is_done_and_then_left_alone():
    r"""The second image mixes ten times slower: the first one's account is the one that it has alone."""
    quick, slow = white(2000, 4, 1), white(2000, 4, 1, seed=1)
    for index in range(1, len(slow)):
        slow[index] = 0.8 * slow[index - 1] + 0.6 * slow[index]
    (alone,) = follow(Monitor(1, target_ess=200), quick).close()
    together = follow(Monitor(2, target_ess=200), torch.cat([quick, slow], dim=2)).close()
    assert together[1].draws > 3 * together[0].draws
    assert together[0].draws == alone.draws
    torch.testing.assert_close(together[0].mean, alone.mean)
    torch.testing.assert_close(together[0].std, alone.std)
    torch.testing.assert_close(together[0].sketch.quantile([0.1, 0.7]), alone.sketch.quantile([0.1, 0.7]))
    assert together[0].rhat == pytest.approx(alone.rhat)


def test_a_run_without_draws_has_no_account():
    monitor = follow(Monitor(1), white(10, 2, 1))
    with pytest.raises(ValueError, match=r"ended in its burn-in.*Raise steps"):
        monitor.close()


def test_the_posterior_is_right_without_settings(case, field):
    r"""The bar of the truth suite: mean within 0.05 posterior deviations, mean deviation within 3 %."""
    operator, y, posterior = case
    result = emprior.solve(operator, y, field, method="posterior")
    assert result.status is Status.MIXED
    assert result.samples.shape == (4, *y.shape[:1], *field.shape)
    error = (result.mean - posterior.mean) / posterior.std
    assert float(error.square().mean().sqrt()) <= 0.05
    assert 0.97 <= float((result.std / posterior.std).mean()) <= 1.03
    assert (result.diagnostics.ess >= 400).all()
    assert (result.diagnostics.rhat <= 1.05).all()
    assert all(line.startswith("trustworthy") for line in result.diagnostics.verdict)
    low, high = result.interval(0.9)
    exact = posterior.std * 1.6448536
    assert float(((high - low) / (2 * exact)).mean()) == pytest.approx(1, abs=0.03)


def test_an_image_of_a_batch_is_that_image_alone(case, field):
    operator, y, _ = case
    one = emprior.solve(operator, y[:1], field, method="posterior", steps=120)
    two = emprior.solve(operator, y, field, method="posterior", steps=120)
    torch.testing.assert_close(two.mean[:1], one.mean, atol=1e-8, rtol=0)
    torch.testing.assert_close(two.samples[:, :1], one.samples, atol=1e-8, rtol=0)
    assert two.diagnostics.draws[0] == one.diagnostics.draws[0]


def test_chains_that_are_too_short_say_so(case, field):
    operator, y, _ = case
    result = emprior.solve(operator, y, field, method="posterior", steps=40)
    assert result.status is Status.UNMIXED
    assert not result.status.ok
    assert "effective sample size" in result.diagnostics.verdict[0]
    assert "more draws of each chain" in result.diagnostics.verdict[0]


def test_a_verdict_asks_for_as_much_as_the_run_was_to_reach(case, field):
    operator, y, _ = case
    result = emprior.solve(operator, y[:1], field, method="posterior", steps=160)
    ess, (line,) = float(result.diagnostics.ess), result.diagnostics.verdict
    assert 100 < ess < 400
    assert result.status is Status.UNMIXED
    assert line.startswith("not trustworthy: ")
    assert "below 400" in line
    assert (
        not emprior.solve(operator, y[:1], field, method="hmc", samples=4, steps=160)
        .diagnostics.verdict[0]
        .startswith("not")
    )


def test_results_keep_their_quantiles(case, field, tmp_path):
    operator, y, _ = case
    result = emprior.solve(operator, y, field, method="mala", samples=2, steps=100)
    result.save(tmp_path / "result")
    loaded = emprior.Result.load(tmp_path / "result")
    torch.testing.assert_close(loaded.quantile([0.05, 0.5]), result.quantile([0.05, 0.5]), rtol=0, atol=0)
    assert loaded.diagnostics.verdict == result.diagnostics.verdict
    torch.testing.assert_close(loaded.diagnostics.ess, result.diagnostics.ess)
    assert result.to("cpu").quantile(0.5).shape == y.shape[:1] + field.shape
    with pytest.raises(ValueError, match="a MAP has no quantiles"):
        emprior.solve(operator, y, field, steps=3).quantile(0.5)
