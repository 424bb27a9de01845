from __future__ import annotations

import json
import os
import signal
import socket
from dataclasses import replace

import pytest
import torch

from emprior._noise import generator
from emprior.interpolant import OBJECTIVES
from emprior.train.checkpoint import CHECKPOINT
from emprior.train.config import Config, Contrast, Data, Density, Net, Train, Transport
from emprior.train.distributed import World
from emprior.train.trainer import Trainer

CONFIG = Config(
    data=Data(source="images"),
    net=Net(arguments={"widths": [8, 8], "blocks": 1}),
    train=Train(batch_size=8, precision="fp32", compile=False, log_every=2, sample_every=0),
    transport=Transport(steps=4, warmup=2),
    contrast=Contrast(
        steps=4,
        warmup=1,
        chains=12,
        batch_size=4,
        langevin_steps=2,
        age=3,
        restart=0.3,
        views=0.5,
        holes=0.5,
        momentum=0.5,
    ),
)


def images(count=20, channels=1):
    shape = (count, channels, 8, 8)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make(out, config=CONFIG, data=None):
    return Trainer(config, images() if data is None else data, out)


def stop_at(trainer, step):
    while trainer.step < step:
        trainer.iterate()
    trainer.save()


def states(trainer):
    yield from trainer.network.state_dict().items()
    yield from ((f"average.{key}", value) for key, value in trainer.average.state_dict().items())
    for part in trainer.optimizers.state_dict():
        for index, moments in part["state"].items():
            yield from ((f"{index}.{key}", value) for key, value in moments.items())
    if trainer.sampler.chains is not None:
        yield "chains", trainer.sampler.chains


def assert_same(one, two):
    assert (one.step, one.seen) == (two.step, two.seen)
    for (key, value), (other, twin) in zip(states(one), states(two), strict=True):
        assert key == other
        torch.testing.assert_close(value, twin, rtol=0, atol=0, equal_nan=True, msg=key)


@pytest.mark.parametrize("negatives", ["replay", "fresh"])
@pytest.mark.parametrize("stop", [1, 3, 4, 5, 7, 8])
def test_resuming_equals_not_stopping(tmp_path, stop, negatives):
    config = replace(
        CONFIG,
        transport=replace(CONFIG.transport, optimizer="muon"),
        contrast=replace(CONFIG.contrast, negatives=negatives),
    )
    through = make(tmp_path / "through", config)
    assert through.run() == "finished"
    assert through.step == 8

    stop_at(make(tmp_path / "halves", config), stop)
    resumed = make(tmp_path / "halves", config)
    assert resumed.resume()
    assert resumed.step == stop
    assert resumed.run() == "finished"
    assert_same(through, resumed)


def test_the_global_generator_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    make(tmp_path).run()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_average_has_no_history(tmp_path):
    trainer = make(tmp_path)
    trainer.iterate()
    assert all(p.is_leaf and not p.requires_grad and p.grad_fn is None for p in trainer.average.parameters())


@pytest.mark.parametrize("emas", [(0.999, 0.999), (0.05, 0.2)])
def test_the_average_is_exponential(tmp_path, emas):
    phases = (replace(phase, ema=ema) for phase, ema in zip((CONFIG.transport, CONFIG.contrast), emas, strict=True))
    trainer = make(tmp_path, replace(CONFIG, transport=next(phases), contrast=next(phases)))
    expected = next(trainer.average.parameters()).clone()
    for step in range(6):
        trainer.iterate()
        decay = min(emas[step >= CONFIG.transport.steps], (1 + step) / (10 + step))
        expected.lerp_(next(trainer.network.parameters()).detach(), 1 - decay)
    torch.testing.assert_close(next(trainer.average.parameters()).data, expected)


@pytest.mark.parametrize("count", [5, 8, 20, 33])
def test_batches_go_through_epochs(tmp_path, count):
    trainer = make(tmp_path, replace(CONFIG, data=Data(flip=False)), images(count))
    rows = []
    for step in range(6):
        for image in (trainer.stream.data(step).add(1).mul(127.5)).round().byte():
            rows.append(int((trainer.images == image).flatten(1).all(1).nonzero()[0]))
    expected = [
        int(torch.randperm(count, generator=generator(0, "epoch", p // count))[p % count]) for p in range(6 * 8)
    ]
    assert rows == expected


def test_half_of_the_images_are_mirrored(tmp_path):
    config = replace(CONFIG, train=replace(CONFIG.train, batch_size=200))
    data = images(200)
    plain = make(tmp_path, replace(config, data=Data(flip=False)), data).stream.data(0)
    mixed = make(tmp_path, config, data).stream.data(0)
    same = (mixed == plain).flatten(1).all(1)
    assert torch.equal(mixed[~same], plain[~same].flip(-1))
    assert 60 < int(same.sum()) < 140


def test_rate_rises_holds_and_falls_in_each_phase(tmp_path):
    config = replace(
        CONFIG,
        transport=Transport(steps=10, lr=1.0, warmup=2, decay=0.5),
        contrast=replace(CONFIG.contrast, steps=4, lr=0.1, warmup=0, decay=1.0),
    )
    trainer, rates = make(tmp_path, config), []
    for trainer.step in range(10):
        rates.append(trainer.rate())
    trainer.enter(config.contrast)
    for trainer.step in range(10, 14):
        rates.append(trainer.rate())
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.1, 0.075, 0.05, 0.025])


def test_log_is_complete_and_goes_on(tmp_path):
    trainer = make(tmp_path)
    trainer.run()
    lines = trainer.log.read()
    assert [line["iteration"] for line in lines] == [2, 4, 6, 8]
    assert [line["phase"] for line in lines] == ["transport"] * 2 + ["contrast"] * 2
    assert [line["images"] for line in lines] == [16, 32, 48, 64]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert lines[-1]["lr"] == pytest.approx(CONFIG.contrast.lr / 2)
    assert trainer.seconds > 0

    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["seconds"] == pytest.approx(trainer.seconds)
    stop_at(make(tmp_path), 3)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"iteration": 10, "pha')
    again = make(tmp_path)
    again.resume()
    again.run()
    text = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in text] == [2, 4, 6, 8]


def test_no_time_is_no_iteration_but_a_checkpoint(tmp_path):
    trainer = make(tmp_path)
    assert trainer.run(seconds=0) == "seconds"
    assert trainer.step == 0
    assert make(tmp_path).resume()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_between_iterations(tmp_path, number):
    trainer = make(tmp_path)
    iterate, usual = trainer.iterate, signal.getsignal(number)

    def interrupted():
        if trainer.step == 2:
            os.kill(os.getpid(), number)
        return iterate()

    trainer.iterate = interrupted
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt, match="stopped at iteration 3"):
            trainer.run()
    else:
        assert trainer.run() == "SIGTERM"
    assert signal.getsignal(number) is usual
    resumed, through = make(tmp_path), make(tmp_path / "through")
    resumed.resume()
    assert resumed.step == 3
    resumed.run()
    through.run()
    assert_same(resumed, through)


def test_a_loss_that_is_not_finite_leaves_the_checkpoint(tmp_path):
    stop_at(make(tmp_path), 2)
    trainer = make(tmp_path)
    trainer.resume()
    with torch.no_grad():
        next(trainer.network.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"iteration 4.*--set transport.lr"):
        trainer.run()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


def test_checkpoints_of_other_trainings_are_refused(tmp_path):
    assert not make(tmp_path).resume()
    stop_at(make(tmp_path), 5)
    other = {
        "another 'net'": replace(CONFIG, net=Net(arguments={"widths": [8, 8], "blocks": 2})),
        "another 'density'": replace(CONFIG, density=replace(CONFIG.density, epsilon=0.02)),
        "--set transport.steps=4": replace(CONFIG, transport=replace(CONFIG.transport, steps=6)),
    }
    for message, config in other.items():
        with pytest.raises(ValueError, match=message):
            make(tmp_path, config).resume()
    with pytest.raises(ValueError, match=r"images of shape \[1, 8, 8\], but the data are \[3, 8, 8\]"):
        make(tmp_path, data=images(channels=3)).resume()
    longer = make(tmp_path, replace(CONFIG, contrast=replace(CONFIG.contrast, steps=6)))
    assert longer.resume()


@pytest.mark.parametrize(("phase", "step"), [("transport", 2), ("contrast", 6)])
def test_another_optimizer_is_refused_within_its_phase(tmp_path, phase, step):
    stop_at(make(tmp_path), step)
    other = replace(CONFIG, **{phase: replace(getattr(CONFIG, phase), optimizer="muon")})
    with pytest.raises(ValueError, match=rf"--set {phase}\.optimizer=adamw"):
        make(tmp_path, other).resume()


@pytest.mark.parametrize("step", [2, 4])
def test_an_optimizer_may_change_between_phases(tmp_path, step):
    stop_at(make(tmp_path), step)
    other = replace(CONFIG, contrast=replace(CONFIG.contrast, optimizer="muon"))
    trainer = make(tmp_path, other)
    assert trainer.resume()
    assert trainer.run() == "finished"
    assert len(trainer.optimizers.parts) == 2


@pytest.mark.parametrize("step", [2, 6])
def test_checkpoints_from_before_there_were_optimizers_go_on(tmp_path, step):
    through = make(tmp_path / "through")
    through.run()
    stop_at(make(tmp_path / "old"), step)
    path = tmp_path / "old" / CHECKPOINT
    state = torch.load(path, weights_only=True)
    (state["optimizer"],) = state.pop("optimizers")
    for phase in ("transport", "contrast"):
        del state["config"][phase]["optimizer"]
    torch.save(state, path)
    old = make(tmp_path / "old")
    assert old.resume()
    old.run()
    assert_same(through, old)


def test_a_replay_buffer_of_another_size_is_refused(tmp_path):
    stop_at(make(tmp_path), 6)
    more = replace(CONFIG, contrast=replace(CONFIG.contrast, chains=64))
    with pytest.raises(ValueError, match=r"12 chains.*cannot become 64.*--set contrast\.chains=12,.*--fresh"):
        make(tmp_path, more).resume()
    for unused in ({"steps": 2}, {"negatives": "fresh"}):
        assert make(tmp_path, replace(more, contrast=replace(more.contrast, **unused))).resume()


def test_a_replay_buffer_without_origins_is_refused(tmp_path):
    stop_at(make(tmp_path), 6)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    state["chains"] = state["chains"][:, 0].clone()
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"\[12, 1, 8, 8\], expected \[12, 4, 1, 8, 8\].*--fresh"):
        make(tmp_path).resume()


def test_a_transport_can_be_ended_early_only_where_it_stands(tmp_path):
    stop_at(make(tmp_path), 3)
    with pytest.raises(ValueError, match=r"--set transport\.steps=3"):
        make(tmp_path, replace(CONFIG, transport=replace(CONFIG.transport, steps=2))).resume()
    trainer = make(tmp_path, replace(CONFIG, transport=replace(CONFIG.transport, steps=3)))
    assert trainer.resume()
    assert isinstance((trainer.iterate(), trainer.phase)[1], Contrast)


def test_broken_checkpoints_are_named(tmp_path):
    stop_at(make(tmp_path), 1)
    path = tmp_path / "checkpoint.pt"
    for content in (b"", b"no checkpoint", path.read_bytes()[:2000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint.pt cannot be read as a checkpoint.*--fresh"):
            make(tmp_path).resume()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_in_both_phases(tmp_path, objective):
    trainer = make(tmp_path, replace(CONFIG, density=Density(objective)))
    trainer.run()
    assert trainer.step == trainer.total
    assert trainer.stream.coupled is (objective == "energy_matching")
    assert trainer.sampler.chains[:, [0, 1, 3]].isfinite().all()


def test_bfloat16_trains(tmp_path):
    trainer = make(tmp_path, replace(CONFIG, train=replace(CONFIG.train, precision="bf16")))
    trainer.run()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trainer.average.parameters())


def test_groups_are_those_of_the_checkpoint(tmp_path):
    grouped = replace(CONFIG, train=replace(CONFIG.train, groups=2))
    through = make(tmp_path / "through", grouped)
    through.run()
    stop_at(make(tmp_path / "halves", grouped), 6)
    resumed, other = make(tmp_path / "halves"), make(tmp_path / "other")
    assert resumed.resume()
    resumed.run()
    assert_same(through, resumed)
    other.run()
    assert not torch.equal(other.sampler.chains, through.sampler.chains)
    saved = torch.load(tmp_path / "halves" / "checkpoint.pt", weights_only=True)["config"]
    assert saved == grouped.to_dict()

    again = make(tmp_path / "halves", replace(grouped, train=replace(grouped.train, groups=4)))
    again.resume()
    assert again.config.train.groups == 4


def test_checkpoints_from_before_there_were_groups_go_on(tmp_path):
    stop_at(make(tmp_path), 6)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for key in ("groups", "accumulate"):
        del state["config"]["train"][key]
    torch.save(state, tmp_path / "checkpoint.pt")
    resumed, through = make(tmp_path), make(tmp_path / "through")
    assert resumed.resume()
    resumed.run()
    through.run()
    assert_same(through, resumed)


def test_other_processes_refuse_groups_they_cannot_share(tmp_path, monkeypatch):
    stop_at(make(tmp_path), 1)
    monkeypatch.setattr(World, "current", lambda: World(1, 2))
    monkeypatch.setattr(World, "share", lambda *_: None)
    with pytest.raises(ValueError, match=r"drawn in 1 group, .* to 2 processes.*--set train.groups=2"):
        make(tmp_path).resume()
    assert make(tmp_path, replace(CONFIG, train=replace(CONFIG.train, groups=2))).resume()


def worker(rank, port, out):
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    through = make(out / "through")
    assert (through.world.rank, through.world.size) == (rank, 2)
    assert through.run() == "finished"
    stop_at(make(out / "halves"), 6)
    resumed = make(out / "halves")
    resumed.resume()
    resumed.run()
    assert_same(resumed, through)
    late = make(out / "late")
    assert late.run(seconds=0 if rank == 1 else None) == "seconds"
    assert late.step == 0
    torch.save((dict(states(through)), through.stream.data(through.step)), out / f"{rank}.pt")
    through.world.leave()


@pytest.mark.slow
def test_two_processes_keep_the_same_weights(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, tmp_path), nprocs=2)
    (one, batch), (two, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for key in one:
        assert torch.equal(one[key], two[key]) == (key != "chains"), key
    assert batch.shape == other.shape == (4, 1, 8, 8)
    assert not torch.equal(batch, other)
    assert torch.load(tmp_path / "through" / "checkpoint.pt")["chains"].shape == (12, 4, 1, 8, 8)
