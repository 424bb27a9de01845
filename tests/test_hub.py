r"""What is said of folders that are broken, and by whom they are to be mended."""

from __future__ import annotations

import pytest
import torch
import yaml

from emprior.hub import Card, load_prior, save_prior, verify_prior
from emprior.nets import make_potential

SIZES = {"channels": 1, "widths": [8, 8], "blocks": 1}


@pytest.fixture
def folder(tmp_path):
    with torch.random.fork_rng():
        potential = make_potential("local", **SIZES)
    density = {"objective": "energy_matching", "arguments": {"sigma_star": 0.06}, "epsilon": 0.01}
    facts = {"name": "tiny", "architecture": "local", "arguments": SIZES, "shape": [1, 8, 8], "density": density}
    save_prior(tmp_path / "tiny", potential, **facts)
    return tmp_path / "tiny"


def change(folder, section, values):
    tree = yaml.safe_load((folder / "card.yaml").read_text())
    tree[section] = {**tree[section], **values} if isinstance(values, dict) else values
    (folder / "card.yaml").write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("density", {"epsilon": -1.0}, r"density\.epsilon is -1\.0, expected a positive number"),
        ("density", {"epsilon": 0}, r"density\.epsilon is 0, expected a positive number"),
        ("density", {"epsilon": "1e-2"}, r"density\.epsilon is '1e-2', expected a positive number"),
        ("density", {"epsilon": float("nan")}, r"density\.epsilon is nan, expected a positive number"),
        ("density", {"arguments": None}, r"'density\.arguments' should be a section of keys, got None.*write \{\}"),
        ("density", {"arguments": {1: 2}}, r"'density\.arguments' should be a section of keys, got \{1: 2\}"),
        ("density", {"arguments": {"sigma": 1}}, r"unexpected keyword argument 'sigma'. Did you mean 'sigma_star'"),
        ("density", {"arguments": {"sigma_star": "x"}}, r"objective 'energy_matching': .* are: blend, sigma_star"),
        ("density", {"arguments": {"sigma_star": 2}}, "sigma_star is 2"),
        ("density", {"objective": "matching"}, "unknown objective 'matching'. Did you mean 'energy_matching'"),
        ("density", {"objective": ["denoising"]}, r"unknown objective \['denoising'\]"),
        ("arguments", {"depth": 3}, "argument 'depth'. .*The choices are: blocks, channels"),
        ("arguments", {"architecture": "x"}, "'local': unexpected keyword argument 'architecture'"),
        ("arguments", {"widths": 3}, "architecture 'local': .*Its arguments are: blocks, channels, patch, widths"),
        ("architecture", ["local"], r"'architecture' should be a text, got \['local'\]"),
        ("sha256", None, "'sha256' should be a text, got None"),
        ("density", None, "'density' should be a section of keys, got None"),
        ("shape", [1, 8, 0], r"shape\[2\] is 0, expected a positive whole number"),
    ],
)
def test_values_of_a_card_are_checked(folder, section, values, message):
    change(folder, section, values)
    with pytest.raises(ValueError, match=rf"{folder}/card\.yaml: .*{message}"):
        load_prior(folder)


def breakages(folder):
    card, weights = folder / "card.yaml", folder / "weights.safetensors"
    yield "is not valid YAML", lambda: card.write_text("name: [")
    yield "is not valid YAML", lambda: card.write_bytes(b"name: \xff")
    yield "is incomplete: it lacks architecture", lambda: card.write_text("name: tiny")
    yield "is corrupted", lambda: weights.write_bytes(b"")
    yield "cannot read", weights.unlink


@pytest.mark.parametrize("case", range(5))
@pytest.mark.parametrize("bundled", [False, True])
def test_who_restores_a_broken_file(folder, monkeypatch, case, bundled):
    if bundled:
        monkeypatch.setattr("emprior.card.pretrained_dir", lambda: folder.parent)
    message, spoil = list(breakages(folder))[case]
    spoil()
    with pytest.raises(ValueError, match=message) as caught:
        load_prior(folder)
    assert ("install the package again" in str(caught.value)) == bundled
    assert ("emprior train" in str(caught.value)) != bundled


def test_cards_are_utf8(folder):
    change(folder, "description", "ε = 0.01 …")
    card = Card.read(folder)
    assert card.description == "ε = 0.01 …"
    assert verify_prior(folder) == card


def test_the_identity_of_a_card_is_of_what_results_depend_on(folder):
    first = Card.read(folder).identity
    change(folder, "metrics", {"drift": 0.1})
    change(folder, "description", "other words")
    assert Card.read(folder).identity == first
    seen = {first}
    for section, values in (
        ("density", {"epsilon": 0.02}),
        ("solver", {"map": {"steps": 3}}),
        ("metrics", {"energy": {"mean": 1.0, "spread": 2.0}}),
        ("sha256", "0" * 64),
    ):
        change(folder, section, values)
        seen.add(Card.read(folder).identity)
    assert len(seen) == 5


@pytest.mark.parametrize(("spread", "known"), [(2.0, True), (float("nan"), False), (0.0, False)])
def test_energies_that_do_not_differ_are_not_typical(folder, spread, known):
    change(folder, "metrics", {"energy": {"mean": 1.0, "spread": spread}})
    assert Card.read(folder).typical == ((1.0, spread) if known else None)
    assert load_prior(folder).typical == ((1.0, spread) if known else None)
