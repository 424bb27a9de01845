"""Mixing of chains whose laws are known, projections of covariances that are known, and every line of the verdict."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from emprior.diagnostics import figures, mixing
from emprior.projections import Projections
from emprior.verdict import Verdict, verdict


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def autoregressive(rho, draws, chains, images, seed=0):
    """Stationary chains of unit variance and autocorrelation rho^k."""
    noise = normal(draws, chains, images, seed=seed)
    x = [noise[0]]
    for n in noise[1:]:
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * n)
    return torch.stack(x)


def rhat_of_scores(halves):
    """R-hat of the normal scores of the ranks of chains `(n, S)`."""
    ranks = torch.as_tensor(stats.rankdata(halves).reshape(halves.shape))
    z, n = torch.special.ndtri((ranks - 3 / 8) / (halves.numel() + 1 / 4)), len(halves)
    between, within = n * z.mean(0).var(), z.var(0).mean()
    return ((n - 1) / n + between / (n * within)).sqrt()


def by_hand(x):
    """The formula of Vehtari et al. (2021) for traces `(K, S, B)` of even K: the larger of bulk and folded."""
    out = []
    for image in x.unbind(2):
        halves = torch.cat(image.chunk(2), 1)
        out.append(max(rhat_of_scores(halves), rhat_of_scores((halves - np.median(halves)).abs())))
    return torch.stack(out)


def indicator_time(rho, q):
    """The autocorrelation time of 1(x <= quantile q) for Gaussian chains of autocorrelation rho^k."""
    z, total = stats.norm.ppf(q), 1.0
    for k in range(1, 60):
        both = stats.multivariate_normal([0, 0], [[1, rho**k], [rho**k, 1]]).cdf([z, z])
        total += 2 * (both - q * q) / (q * (1 - q))
    return total


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_autoregressive_chains_have_their_known_sizes(rho):
    draws, chains, images = 3_000, 4, 40
    found = figures(autoregressive(rho, draws, chains, images))
    time = (1 + rho) / (1 - rho)
    exact = {
        "ess": draws * chains / time,
        "ess_tail": draws * chains / indicator_time(rho, 0.05),
        "autocorrelation_time": time,
        "mcse": math.sqrt(time / (draws * chains)),
    }
    for name, value in exact.items():
        ratio = getattr(found, name) / value
        error = ratio.std().item() / math.sqrt(images)
        assert abs(ratio.mean().item() - 1) < 4 * error + 0.03, name
    assert found.ess_tail.shape == (images,)


def test_the_error_of_the_mean_is_that_of_the_means():
    trace = 3 + 2 * autoregressive(0.7, 500, 2, 400)
    z = (trace.mean((0, 1)) - 3) / figures(trace).mcse
    assert abs(z.square().mean().item() - 1) < 4 * math.sqrt(2 / 400) + 0.03
    assert abs(z.mean().item()) < 4 / math.sqrt(400)


def test_independent_draws_agree():
    rhat = figures(normal(1_000, 4, 60)).rhat
    assert (rhat - 1).abs().max() < 0.005


@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0])
def test_shifted_chains_have_the_r_hat_of_the_formula(shift):
    x = normal(200, 4, 3) + shift * torch.tensor([-1.0, 0.0, 0.0, 1.0], dtype=torch.float64)[:, None]
    rhat = figures(x).rhat
    torch.testing.assert_close(rhat, by_hand(x), rtol=1e-10, atol=0)
    assert shift == 0 or (rhat > 1 + shift**2 / 10).all()


def test_chains_of_different_spread_are_seen_by_folding():
    x = normal(400, 4, 3) * torch.tensor([1.0, 1.0, 1.0, 5.0], dtype=torch.float64)[:, None]
    rhat = figures(x).rhat
    torch.testing.assert_close(rhat, by_hand(x), rtol=1e-10, atol=0)
    assert (rhat > 1.2).all()
    assert (figures(normal(400, 4, 3)).rhat < 1.02).all()


def test_a_single_chain_is_compared_with_itself():
    x = normal(401, 1, 1)
    torch.testing.assert_close(figures(x).rhat, by_hand(torch.cat(x[1:].chunk(2), 1)), rtol=1e-10, atol=0)
    assert figures(x).rhat < 1.02
    assert figures(x + torch.linspace(0, 3, 401)[:, None, None]).rhat > 1.3


def test_a_stuck_chain_among_others():
    x = normal(300, 4, 1)
    x[:, 2] = 0.1
    torch.testing.assert_close(figures(x).rhat, by_hand(x), rtol=1e-10, atol=0)
    assert figures(x).rhat > 1.3


def test_chains_that_stand_still():
    x = torch.ones(100, 4, 3, dtype=torch.float64)
    x[:, :, 1], x[:, :, 2] = torch.arange(4.0), normal(100, 4)
    found = figures(x)
    assert found.rhat[0].isnan()
    assert found.ess[0].isnan()
    assert found.mcse[0].isnan()
    assert found.rhat[1] == math.inf
    assert found.ess[1] < 20
    torch.testing.assert_close(found.ess[2:], figures(x[:, :, 2:]).ess)


def test_values_that_are_not_finite_spoil_their_image_alone():
    x = normal(100, 2, 3)
    alone = figures(x[:, :, 2:])
    x[7, 1, 0], x[9, 0, 1] = math.nan, math.inf
    found = figures(x)
    assert found.rhat.tolist()[:2] == [math.inf] * 2
    assert found.ess.tolist()[:2] == found.ess_tail.tolist()[:2] == [0, 0]
    assert found.mcse.tolist()[:2] == found.autocorrelation_time.tolist()[:2] == [math.inf] * 2
    torch.testing.assert_close(found.rhat[2:], alone.rhat)


@pytest.mark.parametrize("chains", [1, 2])
@pytest.mark.parametrize("draws", range(6))
def test_few_draws_tell_nothing(draws, chains):
    found = figures(normal(draws, chains, 2).float())
    assert found.ess.isnan().all() == (draws < 4)
    assert found.rhat.isnan().all() == (draws < 4 or chains == 1)
    assert found.rhat.dtype == torch.float32


def test_mixing_takes_the_worst_of_traces():
    traces = {
        "good": normal(400, 4, 2),
        "slow": autoregressive(0.95, 400, 4, 2),
        "apart": normal(400, 4, 2) + torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 9.0]]),
        "known": torch.ones(400, 4, 2, dtype=torch.float64),
    }
    found, single = mixing(traces), {name: figures(trace) for name, trace in traces.items()}
    assert (found.draws, found.chains) == (400, 4)
    assert torch.equal(found.rhat, torch.stack([single["slow"].rhat[0], single["apart"].rhat[1]]))
    assert torch.equal(found.ess, torch.stack([single["slow"].ess[0], single["apart"].ess[1]]))
    assert found.ess_tail[0] == single["slow"].ess_tail[0]
    lines = found.table().splitlines()
    assert [line.split()[0] for line in lines] == ["R-hat", "good", "slow", "apart", "known"]
    assert lines[2].split()[1:3] == [f"{single['slow'].rhat.max():.3f}", f"{single['slow'].ess.min():.0f}"]
    assert lines[4].split()[1:] == ["nan"] * 4
    assert mixing({"known": traces["known"]}).rhat.isnan().all()


def test_traces_that_do_not_fit():
    with pytest.raises(ValueError, match=r"trace has shape \(4, 2\), expected draws, chains, images \(K, S, B\)"):
        figures(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"\{'a': \(4, 2, 1\), 'b': \(5, 2, 1\)\}, expected one shape"):
        mixing({"a": torch.zeros(4, 2, 1), "b": torch.zeros(5, 2, 1)})
    with pytest.raises(ValueError, match="at least one"):
        mixing({})


GOOD = {
    "mixing": None,
    "acceptance": torch.tensor([0.57]),
    "residual": torch.tensor([1.01]),
    "energy": torch.tensor([11.0]),
    "typical": (9.5, 5.9),
    "dimension": 1_000,
}


def line(**changes):
    known = GOOD | {"mixing": mixing({"energy": normal(200, 4, 1), "pc1": normal(200, 4, 1, seed=1)})} | changes
    (one,) = verdict(**known)
    assert one.trustworthy == str(one).startswith("trustworthy: ")
    return str(one)


def test_chains_that_mix_may_accept_everything():
    assert "; acceptance 1.00;" in line(acceptance=torch.tensor([0.995]))


def test_a_good_run_is_trustworthy():
    found = [figures(normal(200, 4, 1, seed=seed)) for seed in (0, 1)]
    size = min(min(one.ess.item(), one.ess_tail.item()) for one in found)
    assert line() == (
        f"trustworthy: R-hat 1.00, effective sample size {size:.0f}; acceptance 0.57; residual 1.01; "
        "prior energy at +0.3 standard deviations"
    )
    assert line(energy=None).endswith("residual 1.01; energy not checked")
    assert line(dimension=None).endswith("residual not checked")
    assert line(mixing=None).endswith("chains not checked")


def test_chains_that_disagree():
    apart = normal(200, 4, 1) + torch.tensor([0.0, 0.0, 0.0, 2.0])[:, None]
    text = line(mixing=mixing({"energy": normal(200, 4, 1), "pc1": apart}))
    assert text.startswith(f"not trustworthy: R-hat of pc1 is {figures(apart).rhat.item():.2f}, above 1.05: the chains")
    assert "take more steps" in text
    assert line(mixing=mixing({"pc1": apart}), target_rhat=9, target_ess=5).startswith("trustworthy")


def test_chains_that_are_too_short_say_how_much_is_missing():
    trace = autoregressive(0.9, 400, 2, 1)
    found = mixing({"energy": trace})
    size = min(found.ess.item(), found.ess_tail.item())
    text = line(mixing=found, target_rhat=2, target_ess=400)
    missing = float(text.split("about ")[1].split(" more draws")[0].replace(",", ""))
    assert f"the effective sample size is {size:.0f}, below 400" in text
    assert missing == pytest.approx(400 * (400 / size - 1), rel=0.05)
    longer = mixing({"energy": autoregressive(0.9, int(400 + 1.3 * missing), 2, 1, seed=3)})
    assert line(mixing=longer, target_rhat=2, target_ess=400).startswith("trustworthy")


@pytest.mark.parametrize("trace", [torch.ones(50, 2, 1), normal(3, 2, 1)], ids=["constant", "short"])
def test_chains_of_which_nothing_is_known(trace):
    assert "nothing is known of the chains" in line(mixing=mixing({"energy": trace}))


def test_chains_that_are_stuck_or_not_finite():
    apart = torch.tensor([1.0, 2.0])[:, None].expand(50, 2, 1)
    broken = normal(50, 2, 1) / torch.tensor([1.0, 0.0])[:, None]
    for trace in (apart, broken):
        assert "chains are stuck or not finite" in line(mixing=mixing({"energy": trace, "mean": normal(50, 2, 1)}))


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.03, "steps are too long; take more of them"),
        (0.995, "steps are too short; take more of them"),
        (math.nan, "acceptance is nan"),
    ],
)
def test_acceptance_that_is_of_no_use(share, text):
    assert text in line(acceptance=torch.tensor([share]), mixing=None)


@pytest.mark.parametrize(
    ("residual", "text"),
    [
        (1.3, "1.30 of the noise, 13 standard deviations above its law: sigma is too small, the operator wrong or"),
        (0.7, "0.70 of the noise, 14 standard deviations below its law: sigma is too large"),
        (math.nan, "the residual is nan: samples are not finite"),
    ],
)
def test_residuals_that_noise_does_not_have(residual, text):
    assert text in line(residual=torch.tensor([residual]))
    assert line(residual=torch.tensor([residual]), dimension=None).startswith("trustworthy")


def test_residuals_are_tested_by_the_law_of_chi_square():
    tail = stats.norm.cdf(4)
    for dimension in (50, 500):
        edges = (stats.chi2.ppf([1 - tail, tail], dimension) / dimension) ** 0.5
        for edge, outward in zip(edges, (0.97, 1.03), strict=True):
            inside, outside = (
                line(residual=torch.tensor([edge * f]), dimension=dimension) for f in (1 / outward, outward)
            )
            assert inside.startswith("trustworthy")
            assert "standard deviations" in outside.split("the residual is")[1]
    assert line(residual=torch.tensor([1.04]), dimension=10**6).startswith("trustworthy")
    assert "1.3e+02 standard deviations above" in line(residual=torch.tensor([1.09]), dimension=10**6)


def test_energies_that_typical_images_do_not_have():
    for factor, side in ((6.3, "above"), (-6.3, "below")):
        text = line(energy=torch.tensor([9.5 + 5.9 * factor]))
        assert f"6.3 standard deviations {side} that of typical images: out of distribution" in text
    assert line(energy=torch.tensor([9.5 + 5.9 * 3.9])).startswith("trustworthy")
    assert "prior energy is not finite" in line(energy=torch.tensor([math.inf]))
    with pytest.raises(ValueError, match=r"typical is \(1.0, 0.0\), expected the mean and the standard deviation"):
        line(typical=(1.0, 0.0))


def test_each_image_has_its_verdict_and_all_its_reasons():
    trace = torch.cat([normal(200, 4, 1), normal(200, 4, 1) + torch.arange(4.0)[:, None]], 2)
    known = GOOD | {"mixing": mixing({"energy": trace}), "energy": torch.tensor([9.0, 9.0])}
    known |= {"acceptance": torch.tensor([0.5, 0.01]), "residual": torch.tensor([1.0, 2.0])}
    good, bad = verdict(**known)
    assert good.trustworthy
    assert not bad.trustworthy
    assert [text.split()[0] for text in bad.reasons] == ["R-hat", "acceptance", "the"]
    assert str(bad) == f"not trustworthy: {'; '.join(bad.reasons)}"
    assert bad == Verdict(False, bad.reasons)


def test_verdicts_that_cannot_be_given():
    with pytest.raises(ValueError, match=r"\{'acceptance': 1, 'residual': 2\}, expected one number for all"):
        verdict(None, torch.ones(1), torch.ones(2), None, None, dimension=5)
    with pytest.raises(ValueError, match=r"the images of what is known are \{\}"):
        verdict(None, None, None, None, None, dimension=5)


def test_components_of_draws_of_a_known_covariance():
    draws, shape, spread = 40, (2, 4, 4), torch.tensor([5.0, 3.0, 2.0, 0.5], dtype=torch.float64)
    directions = torch.linalg.qr(normal(32, 4, seed=1)).Q.T
    raw = normal(draws, 4, seed=2)
    weights = torch.linalg.qr(raw - raw.mean(0)).Q * math.sqrt(draws - 1)
    x = 0.3 + torch.stack([(weights * spread) @ directions, (weights * spread.flip(0)) @ directions], 1)
    x = x.unflatten(2, shape)
    fitted = Projections.fit(x, components=3)
    torch.testing.assert_close(fitted.centre, torch.full((2, *shape), 0.3, dtype=torch.float64))
    for image, order in ((0, [0, 1, 2]), (1, [3, 2, 1])):
        cosines = fitted.components[image].flatten(1) @ directions[order].T
        torch.testing.assert_close(cosines.abs(), torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-10)
    traces = fitted.project(x)
    for component, scale in enumerate(spread[:3]):
        assert traces[f"pc{component + 1}"][:, 0].std().item() == pytest.approx(scale.item())
        assert abs(traces[f"pc{component + 1}"][:, 0].mean().item()) < 1e-12


def test_components_have_one_sign():
    rows = Projections.fit(normal(20, 16, 1, 4, 4)).components.flatten(2)
    torch.testing.assert_close(rows.norm(dim=2), torch.ones(16, 3, dtype=torch.float64))
    assert (rows.amax(2) > -rows.amin(2)).all()


def test_components_of_draws_at_random(field):
    draws = field.sample(600, seed=3)[:, None]
    fitted = Projections.fit(draws, components=2)
    exact = torch.linalg.eigvalsh(field.covariance_matrix())
    fresh = field.sample(4_000, seed=4)[:, None]
    variance = fitted.project(fresh)["pc1"].var().item()
    found = fitted.components[0, 0].flatten()
    theirs = (found @ field.covariance_matrix() @ found).item()
    assert abs(variance / theirs - 1) < 4 * math.sqrt(2 / 4_000)
    assert theirs > 0.8 * exact[-1].item()


def test_projections_are_the_mean_and_the_pixels():
    fitted = Projections.fit(normal(10, 2, 3, 8, 8), pixels=5)
    x = normal(4, 2, 3, 8, 8, seed=1)
    traces = fitted.project(x)
    assert list(traces) == ["mean", "pc1", "pc2", "pc3", *(f"pixel {pixel}" for pixel in fitted.pixels)]
    torch.testing.assert_close(traces["mean"], x.mean((2, 3, 4)))
    for pixel in fitted.pixels:
        assert torch.equal(traces[f"pixel {pixel}"], x.flatten(2)[:, :, pixel])
    assert all(trace.shape == (4, 2) for trace in traces.values())


def test_pixels_are_spread():
    draws = torch.zeros(1, 1, 3, 32, 32)
    pixels = Projections.fit(draws, pixels=64).pixels
    assert len(set(pixels)) == 64
    assert pixels[:8] == Projections.fit(draws).pixels
    place = torch.tensor([[p // 32 % 32, p % 32] for p in pixels], dtype=torch.float64)
    quarters = torch.bincount((place // 8 @ torch.tensor([4.0, 1.0], dtype=torch.float64)).long(), minlength=16)
    assert quarters.min() >= 3
    assert quarters.max() <= 6
    assert torch.bincount(torch.tensor(pixels) // 1024).tolist() == pytest.approx([64 / 3] * 3, abs=2)
    assert sorted(Projections.fit(torch.zeros(1, 1, 1, 2, 3), pixels=9).pixels) == list(range(6))


def test_projections_of_an_image_do_not_depend_on_the_others():
    draws = normal(70, 2, 1, 6, 6)
    together = Projections.fit(draws)
    for image in range(2):
        alone = Projections.fit(draws[:, image : image + 1])
        torch.testing.assert_close(together.components[image : image + 1], alone.components, rtol=0, atol=1e-12)
    draws[3, 1] = math.nan
    torch.testing.assert_close(Projections.fit(draws).components[0], together.components[0], rtol=0, atol=1e-12)


def test_projections_of_few_draws():
    assert list(Projections.fit(normal(1, 2, 1, 4, 4), pixels=1).project(normal(3, 2, 1, 4, 4))) == ["mean", "pixel 10"]
    assert Projections.fit(normal(3, 2, 1, 4, 4)).components.shape == (2, 2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"draws have shape \(0, 2, 4\), expected at least one draw"):
        Projections.fit(torch.zeros(0, 2, 4))
    with pytest.raises(ValueError, match=r"x has shape \(3, 2, 5\), expected samples \(S, \*\(2, 4\)\)"):
        Projections.fit(torch.zeros(2, 2, 4)).project(torch.zeros(3, 2, 5))
