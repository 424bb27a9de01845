"""Quantiles of streams against those of all their samples, and against known laws."""

from __future__ import annotations

import io
import math

import pytest
import torch

from emprior.sketch import Sketch

LEVELS = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]
EXACT = {
    "normal": lambda v: torch.special.ndtr(v),
    "uniform": lambda v: v.clamp(0, 1),
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(law, count, images=3, pixels=40, seed=0):
    u = torch.rand(count, images, pixels, generator=rng(seed), dtype=torch.float64)
    return {"uniform": u, "normal": torch.special.ndtri(u), "two-point": (u < 0.3).double()}[law]


def sketched(x, size=64):
    sketch = Sketch(size)
    sketch.add(x)
    return sketch


def rank_gap(x, values, levels):
    """How far each level is from the ranks that a value takes among all samples, `(Q, B, P)`."""
    q = torch.tensor(levels, dtype=torch.float64).reshape(-1, 1, 1)
    below = torch.stack([(x < v).double().mean(0) for v in values])
    upto = torch.stack([(x <= v).double().mean(0) for v in values])
    return (below - q).clamp(min=0) + (q - upto).clamp(min=0)


@pytest.mark.parametrize("count", [1, 2, 7, 63, 64])
def test_exact_up_to_its_size(count):
    x = draw("normal", count)
    sketch = sketched(x)
    q = torch.linspace(0, 1, 23, dtype=torch.float64)
    torch.testing.assert_close(sketch.quantile(q.tolist()), torch.quantile(x, q, dim=0), rtol=0, atol=1e-14)
    assert torch.equal(sketch.probability(0.2), (x > 0.2).double().mean(0))
    assert sketch.rank_error == 0


@pytest.mark.parametrize("law", ["normal", "uniform", "two-point"])
@pytest.mark.parametrize("count", [65, 500, 4_097, 20_000])
def test_ranks_err_by_no_more_than_is_promised(law, count):
    x = draw(law, count)
    sketch = sketched(x)
    heaviest = 2 ** (len(sketch._levels) - 1)
    assert sketch.count == count
    assert 0 < sketch.rank_error <= (math.log2(count / 64) + 2) / (2 * 64)
    gap = rank_gap(x, sketch.quantile(LEVELS), LEVELS)
    assert gap.max() <= sketch.rank_error + (heaviest / 2 + 1) / count
    for threshold in (-1.0, 0.0, 0.5, 0.9):
        error = sketch.probability(threshold) - (x > threshold).double().mean(0)
        assert error.abs().max() <= sketch.rank_error + 1e-12


@pytest.mark.parametrize("size", [16, 64])
def test_errors_are_usually_small_and_of_either_sign(size):
    x = draw("normal", 20_000, images=1, pixels=300)
    sketch = sketched(x, size)
    errors = torch.stack([sketch.probability(t) - (x > t).double().mean(0) for t in torch.linspace(-1.5, 1.5, 7)])
    assert errors.square().mean().sqrt() < 0.7 / size
    assert errors.mean().abs() < 0.1 / size


@pytest.mark.parametrize("law", ["normal", "uniform"])
def test_quantiles_of_known_laws(law):
    count, pixels = 20_000, 300
    sketch = sketched(draw(law, count, images=1, pixels=pixels))
    for q, value in zip(LEVELS, sketch.quantile(LEVELS), strict=True):
        ranks = EXACT[law](value)
        error = math.hypot(math.sqrt(q * (1 - q) / count), 0.7 / 64)
        assert (ranks - q).abs().max() < 4.5 * error
        assert (ranks.mean() - q).abs() < 0.3 / 64


def test_samples_in_the_worst_of_orders():
    up = torch.arange(9_000, dtype=torch.float64)[:, None]
    zigzag = torch.where(up % 2 == 0, up, 9_000 - up)
    x = torch.stack([up, up.flip(0), zigzag], 2)
    sketch = sketched(x, 32)
    assert rank_gap(x, sketch.quantile(LEVELS), LEVELS).max() <= sketch.rank_error + 2**9 / 2 / 9_000
    assert sketch.rank_error < 0.16


def test_how_samples_are_split_among_calls_does_not_matter():
    x = draw("normal", 1_000)
    bulk, one_by_one, parts = sketched(x, 16), Sketch(16), Sketch(16)
    for sample in x:
        one_by_one.add(sample[None])
    for part in x.split(37):
        parts.add(part)
    for other in (one_by_one, parts):
        assert torch.equal(other.quantile(LEVELS), bulk.quantile(LEVELS))
        assert other.rank_error == bulk.rank_error


@pytest.mark.parametrize("counts", [(5_000, 3_000), (40, 20), (10, 7_000), (0, 900), (900, 0)])
def test_merge(counts):
    x = draw("normal", sum(counts))
    first, second = (sketched(part) if len(part) else Sketch() for part in x.split(list(counts)))
    before = {name: value.clone() for name, value in second.state_dict().items()}
    first.merge(second)
    assert first.count == sum(counts)
    heaviest = 2 ** (len(first._levels) - 1)
    gap = rank_gap(x, first.quantile(LEVELS), LEVELS)
    assert gap.max() <= first.rank_error + (heaviest / 2 + 1) / first.count
    assert (first.probability(0.3) - (x > 0.3).double().mean(0)).abs().max() <= first.rank_error + 1e-12
    assert all(torch.equal(second.state_dict()[name], value) for name, value in before.items())
    if sum(counts) <= 64:
        torch.testing.assert_close(first.quantile(0.3), torch.quantile(x, 0.3, dim=0))


def test_merging_many_keeps_the_error_of_one():
    parts = [draw("normal", 500, seed=seed) for seed in range(12)]
    total = Sketch()
    for part in parts:
        total.merge(sketched(part))
    x = torch.cat(parts)
    assert total.count == 6_000
    assert total.rank_error < 0.06
    assert (total.probability(0.0) - (x > 0).double().mean(0)).square().mean().sqrt() < 0.7 / 64


def test_a_saved_sketch_goes_on():
    x = draw("normal", 3_000)
    half = sketched(x[:1_777])
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    loaded = Sketch.from_state_dict(torch.load(file, weights_only=True))
    kept = loaded.state_dict()
    loaded.add(x[1_777:])
    assert torch.equal(loaded.quantile(LEVELS), sketched(x).quantile(LEVELS))
    assert loaded.rank_error == sketched(x).rank_error
    assert torch.equal(Sketch.from_state_dict(kept).quantile(LEVELS), half.quantile(LEVELS))
    assert Sketch.from_state_dict(Sketch(8).state_dict()).count == 0


def test_memory_grows_with_the_logarithm():
    sketch, peak = Sketch(16), 0
    for _ in range(40):
        sketch.add(draw("uniform", 100, 1, 1))
        peak = max(peak, sum(level.filled for level in sketch._levels))
        assert peak <= 16 * (1 + math.ceil(math.log2(sketch.count / 16)))
    assert sketch.count == 4_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_equals_its_images_and_nothing_is_changed(dtype):
    x = draw("normal", 700, 2, 6).to(dtype).reshape(700, 2, 1, 2, 3).requires_grad_()
    kept, together = x.detach().clone(), sketched(x, 16)
    assert torch.equal(x.detach(), kept)
    assert together.quantile(0.4).shape == (2, 1, 2, 3)
    assert together.quantile([0.1, 0.4, 0.9]).shape == (3, 2, 1, 2, 3)
    assert together.quantile(0.4).dtype == together.probability(0.0).dtype == dtype
    assert not together.quantile(0.4).requires_grad
    for image in range(2):
        alone = sketched(x[:, image : image + 1], 16)
        assert torch.equal(together.quantile(LEVELS)[:, image], alone.quantile(LEVELS)[:, 0])


def test_thresholds_of_each_pixel_and_values_that_are_not_numbers():
    x = torch.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, math.nan], [3.0, math.nan]])[:, None]
    sketch = sketched(x)
    assert sketch.probability(torch.tensor([[0.5, 1.5]])).tolist() == [[0.75, 0.75]]
    assert sketch.probability(1.0).tolist() == [[0.5, 0.75]]
    assert sketch.quantile(0.0).tolist() == [[0.0, 1.0]]
    assert sketch.quantile(1.0).isnan().tolist() == [[False, True]]


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match=r"size is 7, but full levels are halved: it must be even. Try size=8"):
        Sketch(7)
    with pytest.raises(ValueError, match="size is 0, expected a positive whole number"):
        Sketch(0)
    with pytest.raises(ValueError, match="has seen no samples"):
        Sketch().quantile(0.5)
    with pytest.raises(ValueError, match="has seen no samples"):
        Sketch().probability(0.5)
    sketch = sketched(torch.zeros(4, 2, 3))
    with pytest.raises(ValueError, match=r"q is 95, but it is a probability"):
        sketch.quantile(95)
    with pytest.raises(ValueError, match=r"x holds batches of shape \(2, 4\).*= \(2, 3\)"):
        sketch.add(torch.zeros(4, 2, 4))
    with pytest.raises(ValueError, match=r"torch.int64 of shape \(4, 2, 3\)"):
        sketch.add(torch.zeros(4, 2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"sizes 64 and 8. Make both of size 64"):
        sketch.merge(Sketch(8))
    with pytest.raises(ValueError, match="other holds batches of shape"):
        sketch.merge(sketched(torch.zeros(4, 3, 3)))
    with pytest.raises(ValueError, match="the state lacks 'level0'"):
        Sketch.from_state_dict({k: v for k, v in sketch.state_dict().items() if k != "level0"})
