r"""`emprior problems`: which there are, and what they say."""

from __future__ import annotations

import argparse
from typing import Any

from emprior.cli._common import add_command, check_problem

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
    from emprior._yaml import read_yaml
    from emprior.problem import find_problem, list_problems

    names = list_problems()
    width = max(map(len, names), default=0)
    for name in names:
        print(f"{name:<{width}}  {read_yaml(find_problem(name)).get('description', '')}")
    return 0


def show_one(options: argparse.Namespace) -> int:
    from emprior.problem import find_problem

    path = find_problem(check_problem(options.problem))
    print(f"# {path}")
    print(path.read_text(encoding="utf-8").rstrip())
    return 0
