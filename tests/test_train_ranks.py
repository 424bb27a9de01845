r"""The law of a training is that of its groups: how they are dealt out to processes and pieces changes rounding alone.

Compared are weights and chains, after 20 iterations of transport and 20 of contrast in float32.
"""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import pytest
import torch

from emprior.train.config import Config, Contrast, Data, Net, Train, Transport
from emprior.train.distributed import World
from emprior.train.trainer import Trainer

CONFIG = Config(
    data=Data(source="images"),
    net=Net(arguments={"widths": [8, 8], "blocks": 1}),
    train=Train(batch_size=16, groups=2, precision="fp32", compile=False, log_every=10, sample_every=0),
    transport=Transport(steps=20, lr=3e-4, warmup=2),
    contrast=Contrast(
        steps=20, lr=1e-4, warmup=2, chains=24, batch_size=8, langevin_steps=2, age=6, restart=0.3, views=0.5,
        holes=0.5, momentum=0.5, strength=0.1, trim=0.3, clamp=0.05,
    ),
)  # fmt: skip
STOPS = (13, 27)


def change(**train):
    return replace(CONFIG, train=replace(CONFIG.train, **train))


def fresh(config):
    return replace(config, contrast=replace(config.contrast, negatives="fresh", batch_size=12, langevin_steps=4))


KINDS = {"replay": lambda config: config, "fresh": fresh}


def make(out, config=CONFIG):
    images = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Trainer(config, images, out)


def go(trainer, step):
    while trainer.step < step:
        trainer.iterate()
    trainer.save()


def saved(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def weights(out):
    return torch.cat([value.flatten() for value in saved(out)["network"].values()]).double()


def apart(one, two):
    return float((weights(one) - weights(two)).norm() / weights(one).norm())


def assert_equal_but_for_rounding(one, two):
    assert (saved(one)["step"], saved(two)["step"]) == (40, 40)
    assert apart(one, two) < 1e-6
    chains = saved(one)["chains"], saved(two)["chains"]
    assert (chains[0] is None) == (chains[1] is None)
    if chains[0] is not None:
        assert torch.equal(chains[0].isnan(), chains[1].isnan())
        first, second = (c.nan_to_num(0) for c in chains)
        assert float((first - second).norm() / first.norm()) < 1e-6


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    r"""Returns the folder of a finished training by one process, trained when it is first asked for."""
    out = tmp_path_factory.mktemp("alone")

    def train(negatives="replay", groups=2, accumulate=1):
        path = out / f"{negatives}-{groups}-{accumulate}"
        if not path.exists():
            make(path, KINDS[negatives](change(groups=groups, accumulate=accumulate))).run()
        return path

    return train


@pytest.mark.parametrize(("negatives", "groups"), [("replay", 1), ("replay", 2), ("fresh", 2)])
def test_pieces_change_rounding_alone(alone, negatives, groups):
    assert_equal_but_for_rounding(alone(negatives, groups), alone(negatives, groups, accumulate=4))


def test_other_groups_are_another_training(alone):
    assert apart(alone(groups=1), alone(groups=2)) > 1e-2


def spawn(work, out):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(join, (port, work, out), nprocs=2)


def join(rank, port, work, out):
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    work(out)
    World.leave()


def together(out):
    make(out / "together").run()


def test_two_processes_change_rounding_alone(alone, tmp_path):
    spawn(together, tmp_path)
    assert_equal_but_for_rounding(alone(), tmp_path / "together")
    one, two = (make(path).log.read() for path in (alone(), tmp_path / "together"))
    assert [line["iteration"] for line in one] == [10, 20, 30, 40]
    for line, other in zip(one, two, strict=True):
        assert line.keys() == other.keys()
        for name in ("transport", "norm", "lr", "images", *(("contrast", "gap") if line["iteration"] > 20 else ())):
            assert line[name] == pytest.approx(other[name], rel=1e-4, abs=2e-6), name


def die(trainer, step):
    r"""Goes on after the checkpoint, and leaves what came of it."""
    go(trainer, step)
    trainer.iterate()


def taken_up(out, **train):
    trainer = make(out, change(groups=None, **train))
    assert trainer.resume()
    return trainer


def others(out):
    make(out / "fresh", fresh(CONFIG)).run()
    die(make(out / "pieces", change(groups=None)), 13)
    taken_up(out / "pieces", accumulate=2).run()
    for stop in STOPS:
        taken_up(out / f"widened-{stop}").run()
        die(make(out / f"narrowed-{stop}"), stop)


@pytest.mark.slow
def test_a_killed_training_goes_on_among_other_processes(alone, tmp_path):
    for stop in STOPS:
        die(make(tmp_path / f"widened-{stop}"), stop)
    spawn(others, tmp_path)
    for stop in STOPS:
        trainer = taken_up(tmp_path / f"narrowed-{stop}")
        assert trainer.step == stop
        trainer.run()
        for how in ("widened", "narrowed"):
            assert_equal_but_for_rounding(alone(), tmp_path / f"{how}-{stop}")
    assert_equal_but_for_rounding(alone(), tmp_path / "pieces")
    assert_equal_but_for_rounding(alone("fresh"), tmp_path / "fresh")
