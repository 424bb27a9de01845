"""What a training step is fed with."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from emprior.train.config import Config, Data, Train, Transport
from emprior.train.distributed import World
from emprior.train.stream import Stream

CONFIG = Config(data=Data(flip=False), train=Train(batch_size=6), transport=Transport(skew=1.0))
NEAR = 0.2


@pytest.fixture
def images():
    return torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def cost(x0, x1):
    return float((x0 - x1).square().sum())


@pytest.mark.parametrize("step", [0, 1, 4])
def test_noise_beyond_the_near_zone_is_paired_at_the_least_cost(images, step):
    drawn = Stream(CONFIG, images, coupled=False, near=NEAR).at(step)
    paired = Stream(CONFIG, images, coupled=True, near=NEAR).at(step)
    assert torch.equal(paired.x1, drawn.x1)
    assert torch.equal(paired.s, drawn.s)
    far = torch.nonzero(drawn.s > NEAR).flatten()
    assert 1 < len(far) < 6
    assert torch.equal(paired.x0[drawn.s <= NEAR], drawn.x0[drawn.s <= NEAR])
    orders = [drawn.x0[far[list(order)]] for order in itertools.permutations(range(len(far)))]
    assert cost(paired.x0[far], drawn.x1[far]) == pytest.approx(min(cost(x0, drawn.x1[far]) for x0 in orders))
    assert cost(paired.x0[far], drawn.x1[far]) < cost(drawn.x0[far], drawn.x1[far])


def test_a_batch_depends_on_its_iteration_alone(images):
    through, other = (Stream(CONFIG, images, coupled=True, near=NEAR) for _ in range(2))
    batches = [through.at(step) for step in range(3)]
    for step in (2, 0, 1):
        again = other.at(step)
        assert all(torch.equal(getattr(again, name), getattr(batches[step], name)) for name in ("x1", "x0", "s"))
        assert torch.equal(again.random.uniform(3), batches[step].random.uniform(3))
    reseeded = Stream(replace(CONFIG, train=replace(CONFIG.train, seed=1)), images, coupled=True, near=NEAR)
    assert not torch.equal(reseeded.at(0).x0, batches[0].x0)


def grouped(groups):
    return replace(CONFIG, data=Data(), train=replace(CONFIG.train, batch_size=12, groups=groups))


@pytest.mark.parametrize("step", [0, 1])
def test_each_group_is_paired_at_the_least_cost(images, step):
    drawn = Stream(grouped(2), images, coupled=False, near=NEAR).at(step)
    paired = Stream(grouped(2), images, coupled=True, near=NEAR).at(step)
    for group in range(2):
        far = torch.nonzero(drawn.s[group::2] > NEAR).flatten() * 2 + group
        orders = [drawn.x0[list(order)] for order in itertools.permutations(far.tolist())]
        assert cost(paired.x0[far], drawn.x1[far]) == pytest.approx(min(cost(x0, drawn.x1[far]) for x0 in orders))


@pytest.mark.parametrize("processes", [2, 4])
def test_a_process_takes_the_rows_of_its_groups(images, processes, monkeypatch):
    whole = [Stream(grouped(4), images, coupled=True, near=NEAR).at(step) for step in (0, 3)]
    for rank in range(processes):
        monkeypatch.setattr(World, "current", lambda rank=rank: World(rank, processes))
        stream = Stream(grouped(4), images, coupled=True, near=NEAR)
        for step, batch in zip((0, 3), whole, strict=True):
            part = stream.at(step)
            for name in ("x1", "x0", "s"):
                assert torch.equal(getattr(part, name), getattr(batch, name)[rank::processes]), name


def test_noise_fractions_follow_the_skew(images):
    config = replace(CONFIG, train=Train(batch_size=4000))
    levels = [
        Stream(replace(config, transport=Transport(skew=skew)), images, coupled=False, near=0.0).at(0).s
        for skew in (1.0, 2.0)
    ]
    torch.testing.assert_close(levels[1], levels[0].square())
    assert float(levels[0].mean()) == pytest.approx(0.5, abs=0.02)


def test_half_of_a_held_batch_is_drawn_where_it_is_held():
    images = torch.zeros(20, 1, 1, 1, dtype=torch.uint8)
    train = Train(batch_size=20000, start="any", hold=0.2)
    s = Stream(replace(CONFIG, train=train), images, coupled=False, near=0.0).at(0).s
    assert float((s < 0.2).float().mean()) == pytest.approx(0.5 + 0.5 * 0.2, abs=0.02)
    assert float((s < 0.05).float().mean()) == pytest.approx(0.5 * 0.5 + 0.5 * 0.05, abs=0.02)
    assert float((s > 0.6).float().mean()) == pytest.approx(0.5 * 0.4, abs=0.02)
