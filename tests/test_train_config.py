from __future__ import annotations

import dataclasses

import pytest
import yaml

from emprior.train import check_config
from emprior.train.config import Config, Train
from emprior.train.parse import apply_override, build


def load(tmp_path, text, overrides=()):
    path = tmp_path / "train.yaml"
    path.write_text(text)
    return Config.load(path, list(overrides))


def test_defaults_and_values(tmp_path):
    config = load(tmp_path, "name: mine\ntrain: {batch_size: 8, clip: 1}\ntransport: {lr: 1e-3, balance: null}\n")
    assert config.name == "mine"
    assert config.train.batch_size == 8
    assert config.train.clip == 1.0
    assert isinstance(config.train.clip, float)
    assert config.transport.lr == 1e-3
    assert config.transport.balance is None
    assert config.contrast == Config().contrast


def test_round_trip(tmp_path):
    text = "net: {arguments: {widths: [8, 8], blocks: 1}}\ntrain: {betas: [0.8, 0.9]}\ndata: {validation: v.npy}\n"
    config = load(tmp_path, text)
    assert config.train.betas == (0.8, 0.9)
    assert load(tmp_path, yaml.safe_dump(config.to_dict())) == config


def test_overrides(tmp_path):
    settings = ["train.batch_size=64", "net.arguments.blocks=2", "name=other", "transport.balance=null", "name=last"]
    config = load(tmp_path, "train: {seed: 3}\nnet: {arguments: {patch: 1}}\n", settings)
    assert config.train == dataclasses.replace(Train(), batch_size=64, seed=3)
    assert config.net.arguments == {"patch": 1, "blocks": 2}
    assert config.transport.balance is None
    assert config.name == "last"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ntrian: {seed: 1}", r"line 2: unknown key 'trian'. Did you mean 'train'\?"),
        ("train:\n  batchsize: 8", r"line 2: unknown key 'batchsize'. Did you mean 'batch_size'\?"),
        ("train: {batch_size: 8.5}", r"line 1: batch_size should be int, got 8.5"),
        ("train: {batch_size: true}", r"batch_size should be int, got True"),
        ("train: {clip: false}", r"clip should be float, got False"),
        ("train: {clip: high}", r"clip should be float, got 'high'"),
        ("data: {flip: 1}", r"flip should be bool, got 1"),
        ("data: {validation: 3}", r"validation should be str or null, got 3"),
        ("train: {betas: [0.9]}", r"betas should be 2 numbers, got \[0.9\]"),
        ("train: {betas: [0.9, high]}", r"betas should be 2 numbers"),
        ("train: {betas: 0.9}", r"betas should be 2 numbers"),
        ("net: {arguments: [1]}", r"arguments should be dict"),
        ("train: 3", r"expected a section of keys, got 3"),
        ("[1, 2]", r"must hold a mapping"),
        ("train: {seed: 1", r"line 1: not YAML"),
        ("name: a\nname: b", r"line 2: the key 'name' appears a second time"),
    ],
)
def test_wrong_files_name_the_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.batch_size", "has no value"),
        ("train.batch=8", r"--set train.batch=8: train: unknown key 'batch'. Did you mean 'batch_size'\?"),
        ("train.batch_size=x", "batch_size should be int, got 'x'"),
        ("name.first=8", "'name' is a value, not a section"),
        ("name=[1", "is not a YAML value"),
    ],
)
def test_wrong_overrides(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, "name: x", [setting])


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Config.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.batch_size=0", "train.batch_size is 0, expected a number at least 1: --set train.batch_size="),
        ("train.log_every=0", "train.log_every is 0"),
        ("train.groups=0", "train.groups is 0, expected a number at least 1, or null: --set train.groups="),
        ("train.accumulate=0", "train.accumulate is 0, expected a number at least 1"),
        ("train.groups=3", r"train.batch_size is 128, .* among 3 groups \(train.groups\): --set train.batch_size=129"),
        ("train.accumulate=3", r"among 3 pieces \(processes times train.accumulate\): --set train.batch_size=129"),
        ("train.precision=fp16", r"train.precision is 'fp16', which is unknown. Did you mean 'bf16'\?"),
        ("contrast.negatives=repaly", r"contrast.negatives .* Did you mean 'replay'\?"),
        ("net.architecture=locl", r"net.architecture .* Did you mean 'local'\?"),
        ("transport.ema=1.0", "transport.ema is 1.0"),
        ("transport.lr=.nan", "transport.lr is nan"),
        ("contrast.trim=1.0", "contrast.trim is 1.0"),
        ("contrast.chains=16", "contrast.chains is 16, fewer than contrast.batch_size 128"),
        ("density.arguments={blend: 0}", "blend is 0, but the passage from score to transport must have a width"),
        ("density.arguments={blend: 0.95}", "must .* end by noise fraction 1"),
        ("density.arguments={bland: 0.1}", "unexpected keyword argument 'bland'"),
        ("density.objective=energy", r"density.objective .* Did you mean 'energy_matching'\?"),
        ("train.betas=[0.9, 1.0]", "train.betas are"),
        ("contrast.noise=[0.4, 0.04]", r"contrast.noise is .*two rising positive numbers"),
        ("data.source=''", "data.source is empty"),
        ("kind=denoisr", r"kind is 'denoisr', which is unknown. Did you mean 'denoiser'"),
    ],
)
def test_settings_that_cannot_be_trained_with(setting, message):
    tree = Config().to_dict()
    tree["data"]["source"] = "somewhere"
    check_config(build(Config, tree, "defaults"))
    apply_override(tree, setting)
    with pytest.raises(ValueError, match=message):
        check_config(build(Config, tree, "defaults"))


@pytest.mark.parametrize("key", ["train.batch_size", "contrast.batch_size", "contrast.chains"])
def test_shares_of_processes_are_whole(key):
    tree = Config().to_dict()
    apply_override(tree, "data.source=somewhere")
    check_config(build(Config, tree, "defaults"), processes=4)
    apply_override(tree, f"{key}=130")
    with pytest.raises(ValueError, match=rf"{key} is 130, which does not divide among 4 processes: --set {key}=128"):
        check_config(build(Config, tree, "defaults"), processes=4)


def test_groups_are_shared_by_processes_and_pieces():
    tree = Config().to_dict()
    for setting in ("data.source=somewhere", "train.groups=6", "contrast.chains=192", "train.accumulate=2"):
        apply_override(tree, setting)
    with pytest.raises(ValueError, match=r"in 6 groups, .* to 4 processes.* --set train.groups=12"):
        check_config(build(Config, tree, "defaults"), processes=4)
    with pytest.raises(ValueError, match=r"batch_size is 128, .* among 6 groups .*: --set train.batch_size=132"):
        check_config(build(Config, tree, "defaults"), processes=2)
    apply_override(tree, "train.batch_size=132")
    with pytest.raises(ValueError, match=r"contrast.batch_size is 128, .*: --set contrast.batch_size=132"):
        check_config(build(Config, tree, "defaults"), processes=2)
    apply_override(tree, "contrast.batch_size=132")
    check_config(build(Config, tree, "defaults"), processes=2)


def test_a_denoiser_has_no_contrast_and_no_potential():
    tree = Config().to_dict()
    for setting in ("data.source=somewhere", "kind=denoiser"):
        apply_override(tree, setting)
    with pytest.raises(ValueError, match=r"net.architecture .* The choices are: velocity"):
        check_config(build(Config, tree, "defaults"))
    apply_override(tree, "net.architecture=velocity")
    with pytest.raises(ValueError, match=r"a denoiser has no energies to contrast: --set contrast.steps=0"):
        check_config(build(Config, tree, "defaults"))
    apply_override(tree, "contrast.steps=0")
    check_config(build(Config, tree, "defaults"))
    apply_override(tree, "transport.slack=0.5")
    with pytest.raises(ValueError, match=r"no length is forgiven: --set transport.slack=0"):
        check_config(build(Config, tree, "defaults"))


@pytest.mark.parametrize(
    ("changes", "cure"),
    [
        (["density.epsilon=0.01"], r"--set density.epsilon=1"),
        (["density.objective=energy_matching", "density.arguments={}"], r"--set density.objective=log_density"),
        (["density.arguments={tau: 0.05}"], r"--set net.arguments.tau=0.05"),
        (["net.arguments={core: 1.0}"], r"--set net.arguments.core=0.5"),
    ],
)
def test_a_log_density_and_its_network_belong_together(changes, cure):
    tree = Config().to_dict()
    for override in (
        "data.source=x",
        "net.architecture=log_norm",
        "net.arguments={}",
        "density.objective=log_density",
        "density.epsilon=1",
    ):
        apply_override(tree, override)
    check_config(build(Config, tree, "defaults"))
    for override in changes:
        apply_override(tree, override)
    with pytest.raises(ValueError, match=cure):
        check_config(build(Config, tree, "defaults"))


def test_nothing_to_train():
    tree = Config().to_dict() | {"transport": {"steps": 0}, "contrast": {"steps": 0}, "data": {"source": "x"}}
    with pytest.raises(ValueError, match="nothing to train"):
        check_config(build(Config, tree, "defaults"))
