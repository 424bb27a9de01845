"""That the pages of docs/ run, name what there is, and leave nothing out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from documents import blocks, commands, run_python

from emprior import Status, verdict
from emprior._catalog import OPERATORS
from emprior.cli import build_parser
from emprior.hub import Card
from emprior.problem import load_problem
from emprior.solvers import METHODS, validated
from emprior.train import Config

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def text(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def plain(page: str) -> str:
    r"""The words of a page, each after one space."""
    return " ".join(page.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python(monkeypatch, tmp_path, page):
    monkeypatch.chdir(tmp_path)
    run_python(monkeypatch, page.read_text(), page.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page):
    for words in commands(page.read_text()):
        assert build_parser().parse_args(words).run


def test_commands_are_found():
    assert {words[0] for page in PAGES for words in commands(page.read_text())} >= {"doctor", "train", "bench", "solve"}
    wrapped = "```bash\ntorchrun --nproc-per-node 2 -m emprior train x.yaml --out runs  # emprior priors\n```\n"
    assert commands(wrapped) == [["train", "x.yaml", "--out", "runs"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_short(page):
    assert page.read_text().count("\n") < 150


def test_every_end_of_a_run_is_explained():
    for status in Status:
        assert f"| `{status.name}` | {status.value} |" in text("diverged.md")


def spoken(path: Path) -> list[str]:
    r"""The texts of a module but its docstrings and those that are too short to be said to anybody."""
    tree = ast.parse(path.read_text())
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    raised = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    silent |= {id(inner) for node in raised for inner in ast.walk(node)}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node.value.strip() for node in texts if id(node) not in silent and node.value.count(" ") > 1]


def test_every_line_of_a_verdict_is_explained():
    said, page = spoken(Path(verdict.__file__)), plain(text("diverged.md"))
    assert len(said) > 12
    for line in said:
        assert line in page, line


def test_every_method_is_offered():
    for name in METHODS:
        assert f"`{name}`" in text("choosing.md") + text("how.md"), name


def test_every_operator_of_a_problem_file_is_named():
    for name in OPERATORS:
        assert f"`{name}`" in text("conventions.md"), name


def test_files_of_the_pages_can_be_read(tmp_path):
    (tmp_path / "train.yaml").write_text(*blocks(text("training.md"), "yaml"))
    assert validated("map", Config.load(tmp_path / "train.yaml").solver).trust == 4
    (tmp_path / "problem.yaml").write_text(*blocks(text("conventions.md"), "yaml"))
    assert load_problem(tmp_path / "problem.yaml").sigma == 0.02


def test_keys_of_the_log_and_settings_are_there():
    page, settings = text("training.md"), Config()
    for section, key in re.findall(r"`(data|net|density|train|transport|contrast)\.(\w+)", page):
        assert hasattr(getattr(settings, section), key), f"{section}.{key}"


def test_figures_are_those_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (\w[^|]+) \|[^|]+\| ([\d.]+) \| \**([\d.]+)\** \| \d+ \|$", readme, re.M)
    table = {name: figures for name, *figures in rows}
    assert len(table) == 8
    shown = re.findall(r"^\| ([a-z][^|]+) \| ([\d.]+) \| ([\d.]+) \|$", text("choosing.md"), re.M)
    assert len(shown) == 5
    for name, *figures in shown:
        assert table[name] == figures


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_costs_of_training_are_those_of_the_cards(name):
    training = Card.read(ROOT / "pretrained" / name).training
    row = next(line for line in text("training.md").splitlines() if line.startswith(f"| `{name}` | "))
    assert f"| {training['images_seen']:,} | {training['seconds']:,.0f} |" in row
