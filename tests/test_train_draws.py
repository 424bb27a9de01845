"""Random rows are the same however their groups are dealt out."""

from __future__ import annotations

import pytest
import torch

from emprior._noise import generator
from emprior.train.draws import Draws

LIKE = torch.zeros(12, 2, 3, dtype=torch.float64)
DRAWN = {
    "normal": lambda random, share: random.normal(LIKE[: 12 // share]),
    "copies": lambda random, share: random.normal(LIKE[: 12 // share], 3).movedim(0, 1),
    "uniform": lambda random, share: random.uniform(12 // share),
}


def draws(*groups):
    return Draws.keyed((0, 5), groups)


@pytest.mark.parametrize("name", DRAWN)
def test_a_process_draws_the_rows_of_its_groups(name):
    whole = DRAWN[name](draws(0, 1, 2, 3), 1)
    for rank in range(2):
        assert torch.equal(DRAWN[name](draws(rank, rank + 2), 2), whole[rank::2])
    for rank in range(4):
        assert torch.equal(DRAWN[name](draws(rank), 4), whole[rank::4])
    assert len(whole.unique()) == whole.numel()


@pytest.mark.parametrize("name", ["subset", "choice"])
def test_groups_choose_among_their_own_rows(name):
    whole = getattr(draws(0, 1, 2, 3), name)(40, 12)
    assert torch.equal(whole % 4, torch.arange(12) % 4)
    for rank in range(2):
        assert torch.equal(2 * getattr(draws(rank, rank + 2), name)(20, 6) + rank, whole[rank::2])
    assert len(draws(0, 1).subset(10, 10).unique()) == 10
    assert draws(0, 1).choice(10, 200).unique().tolist() == list(range(10))


def test_one_group_draws_as_its_generator():
    random, plain = draws(0), generator(0, 5, 0)
    assert torch.equal(random.normal(LIKE), torch.randn(LIKE.shape, generator=plain, dtype=torch.float64))
    assert torch.equal(random.normal(LIKE, 3), torch.randn((3, *LIKE.shape), generator=plain, dtype=torch.float64))
    assert torch.equal(random.uniform(5), torch.rand(5, generator=plain))
    assert torch.equal(random.subset(9, 4), torch.randperm(9, generator=plain)[:4])
    assert torch.equal(random.choice(9, 4), torch.randint(9, (4,), generator=plain))
