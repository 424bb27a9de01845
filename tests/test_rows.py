from __future__ import annotations

import pytest
import torch

from emprior._rows import column, dot
from emprior._schedule import heat


def test_columns_multiply_rows():
    x = torch.arange(12.0, dtype=torch.float64).reshape(2, 1, 2, 3)
    torch.testing.assert_close(column(torch.tensor([1.0, 3.0]).double(), x) * x, torch.stack([x[0], 3 * x[1]]))
    assert column(0.1, x).dtype == torch.float64
    assert float(column(0.1, x)) == 0.1
    assert column(torch.tensor(2.0), x).ndim == 0
    mask = column(torch.tensor([True, False]), x)
    assert mask.dtype == torch.bool
    assert torch.equal(torch.where(mask, x, -x), torch.stack([x[0], -x[1]]))


def test_inner_products_of_rows():
    a, b = torch.ones(2, 1, 2, 3), torch.arange(12.0).reshape(2, 1, 2, 3)
    assert dot(a, b).tolist() == [15.0, 51.0]


@pytest.mark.parametrize(
    ("t", "tau_star", "step_size", "expected"),
    [
        (0.0, 0.9, 0.01, 0.0),
        (0.9, 0.9, 0.01, 0.0),
        (0.95, 0.9, 0.01, 0.5),
        (1.0, 0.9, 0.01, 1.0),
        (3.0, 0.9, 0.01, 1.0),
        (1.0, 1.0, 0.01, 0.0),
        (1.005, 1.0, 0.01, 0.5),
        (1.01, 1.0, 0.01, 1.0),
    ],
)
def test_a_flow_warms_from_tau_star_to_one(t, tau_star, step_size, expected):
    assert heat(t, tau_star, step_size) == pytest.approx(expected, abs=1e-12)
