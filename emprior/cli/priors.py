r"""`emprior priors`: which there are, what is known of them, and whether they are intact."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from emprior.cli._common import add_command, check_prior, complain

EXAMPLES = """
emprior priors list
emprior priors show cifar10
emprior priors verify
"""


def add(commands: Any) -> None:
    parser = add_command(commands, "priors", show_all, "list, show or verify priors", EXAMPLES)
    actions = parser.add_subparsers(metavar="list|show|verify", required=True)
    listing = "emprior priors list\nEMPRIOR_CACHE=~/priors emprior priors list"
    add_command(actions, "list", show_all, "list the bundled and cached priors", listing)
    card = "emprior priors show cifar10\nemprior priors show runs/mine/prior"
    show = add_command(actions, "show", show_one, "print the card of a prior", card)
    show.add_argument("prior", metavar="NAME|DIR")
    verify = add_command(
        actions,
        "verify",
        verify_some,
        "check cards and weights against their digests, and evaluate each prior once",
        "emprior priors verify\nemprior priors verify cifar10 runs/mine/prior",
    )
    verify.add_argument("priors", nargs="*", metavar="NAME|DIR", help="by default all, denoisers and features too")


def show_all(options: argparse.Namespace) -> int:
    from emprior.hub import Card, find_prior, list_priors

    names = list_priors()
    width = max(map(len, names), default=0)
    for name in names:
        try:
            card = Card.read(find_prior(name))
            words = f"{' x '.join(map(str, card.shape))}  {card.description}"
        except ValueError as error:
            words = f"broken: {error}"
        print(f"{name:<{width}}  {words}".rstrip())
    if not names:
        print("emprior: there are no priors; make one with: emprior train CONFIG.yaml --out DIR", file=sys.stderr)
    return 0


def show_one(options: argparse.Namespace) -> int:
    from emprior.hub import CARD, KINDS, Card, find_prior

    folder = find_prior(check_prior(options.prior, KINDS), KINDS)
    Card.read(folder)
    print(f"# {folder / CARD}")
    print((folder / CARD).read_text(encoding="utf-8").rstrip())
    return 0


def verify_some(options: argparse.Namespace) -> int:
    from emprior.hub import KINDS, list_names, verify_prior

    names = [check_prior(name, KINDS) for name in options.priors] or list_names()
    if not names:
        raise ValueError("there are no priors to verify. Install the package again, or name the folder of one.")
    wrong = []
    for name in names:
        try:
            card = verify_prior(name)
            print(f"{name}: ok, sha256 {card.sha256}")
        except (ValueError, TypeError, KeyError, OSError) as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        complain(" ".join(wrong))
    return 1 if wrong else 0
