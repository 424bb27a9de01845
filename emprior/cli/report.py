r"""`emprior report`: pages to look at, of a result or of a batch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emprior.cli import _input
from emprior.cli._common import UsageError, add_command, check_file, check_target, check_writable, positive_int

if TYPE_CHECKING:
    from torch import Tensor

    from emprior.result import Result

EXAMPLES = """
emprior report astronaut
emprior report posterior --truth clean.png --out posterior.html
emprior report restored --items 100
"""


def add(commands: Any) -> None:
    parser = add_command(commands, "report", run, "write what a result or a batch holds as HTML", EXAMPLES)
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="what emprior solve --out, Result.save or emprior batch wrote"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="the file, by default DIR/report.html; of a batch the folder, by default DIR/report",
    )
    parser.add_argument(
        "--truth", metavar="FILE", help="the true image of a result, or .npy (B, C, H, W) of all of them"
    )
    parser.add_argument(
        "--items", type=positive_int, metavar="N", help="pages for the first N items of a batch, beside the worst (24)"
    )


def run(options: argparse.Namespace) -> int:
    from emprior._saved import HEADER

    if (options.folder / HEADER).is_file():
        print(_result(options))
    elif (options.folder / ".batch").is_dir():
        print(_batch(options))
    else:
        check_file(str(options.folder), "folder")
        raise UsageError(
            f"{options.folder} holds neither a result nor a batch. Give a folder that emprior solve --out, "
            "Result.save or emprior batch wrote."
        )
    return 0


def _result(options: argparse.Namespace) -> Path:
    from emprior.result import REPORT, Result

    if options.items is not None:
        raise UsageError("--items is for a batch, and a result shows all its images. Leave it out.")
    out = options.out or options.folder / REPORT
    check_target("--out", out, (".html",), "a report is written")
    if options.truth is not None and not options.truth.startswith(_input.BUNDLED):
        check_file(options.truth, "truth")
    result = Result.load(options.folder)
    result.report(out, truth=_truth(options.truth, result))
    return out


def _batch(options: argparse.Namespace) -> Path:
    if options.truth is not None:
        raise UsageError("--truth is for a result. A batch is told of truths by emprior batch --truth.")
    out = options.out or options.folder / "report"
    check_writable("--out", out, out.absolute())

    from emprior.report.batch import write_index

    return write_index(options.folder, out, **({} if options.items is None else {"items": options.items}))


def _truth(given: str | None, result: Result) -> Tensor | None:
    r"""Returns the truth that was given, or the clean image that `emprior solve --degrade` measured if it is there."""
    from emprior.io import read_measurements

    config, shape = result.config, tuple(result.estimate.shape[1:])
    if given is not None and given.endswith(".npy"):
        return read_measurements(given)
    if given is not None:
        return _input.read_clean(given, shape)
    name = str(config.get("input", ""))
    if not config.get("degrade") or not (name.startswith(_input.BUNDLED) or Path(name).is_file()):
        return None
    return _input.read_clean(name, shape)
