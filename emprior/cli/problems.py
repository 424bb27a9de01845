r"""`emprior problems`: which there are, and what they say."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from emprior.cli._common import UsageError, add_command

EXAMPLES = """
emprior problems list
emprior problems show cifar10/inpainting > mine.yaml
"""


def add(commands: Any) -> None:
    parser = add_command(commands, "problems", show_all, "list or show problems", EXAMPLES)
    actions = parser.add_subparsers(metavar="list|show", required=True)
    listing = "emprior problems list\nemprior problems list | grep blur"
    add_command(actions, "list", show_all, "list the problems that come with emprior", listing)
    file = "emprior problems show cifar10/inpainting\nemprior problems show cifar10/inpainting > mine.yaml"
    show = add_command(actions, "show", show_one, "print the file of a problem", file)
    show.add_argument("problem", metavar="NAME|YAML")


def show_all(options: argparse.Namespace) -> int:
    from emprior._paths import problems_dir
    from emprior._yaml import read_yaml
    from emprior.problem import list_problems

    names = list_problems()
    width = max(map(len, names), default=0)
    for name in names:
        print(f"{name:<{width}}  {read_yaml(problems_dir() / f'{name}.yaml').get('description', '')}")
    return 0


def show_one(options: argparse.Namespace) -> int:
    path = problem_file(options.problem)
    print(f"# {path}")
    print(path.read_text(encoding="utf-8").rstrip())
    return 0


def problem_file(name: str) -> Path:
    r"""Returns the file of a problem, by its name or path."""
    from emprior._check import nearest
    from emprior._paths import problems_dir
    from emprior.problem import list_problems

    if Path(name).suffix in (".yaml", ".yml") and Path(name).is_file():
        return Path(name)
    if name in list_problems():
        return problems_dir() / f"{name}.yaml"
    raise UsageError(
        f"there is no problem {name!r}. {nearest(name, list_problems())} Or pass the path of a .yaml file."
    )
