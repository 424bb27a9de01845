r"""Where and with what a training ran, for its card."""

from __future__ import annotations

import datetime
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def origin(device: torch.device, processes: int = 1) -> dict[str, Any]:
    r"""Returns what is known when a training starts: `hardware`, the `revision` of the source and that of `torch`."""
    return {
        "hardware": hardware(device, processes),
        "revision": revision(),
        "torch": str(torch.__version__),
    }


def circumstances(origin: Mapping[str, Any], spent: Mapping[str, float]) -> dict[str, Any]:
    r"""Returns the entries of a card that say where, how long, with what and when something was made.

    Arguments:
        origin: What :func:`origin` said at the start; other entries are left out.
        spent: Seconds under the names that they have on the card, such as `seconds` or `cpu_seconds`.
    """
    return {
        "hardware": origin["hardware"],
        **{name: round(seconds, 1) for name, seconds in spent.items()},
        "revision": origin["revision"],
        "torch": origin["torch"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def hardware(device: torch.device, processes: int = 1) -> str:
    r"""Names the processors: `"AMD EPYC 7B13, 1 thread"` or `"4 x NVIDIA A100"`."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"
    return name if processes == 1 else f"{processes} x {name}"


def revision() -> str | None:
    r"""Returns the git commit of this package's source, with `-dirty` if it was changed; None outside git."""
    here = Path(__file__).resolve().parents[1]
    if _git(here, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(here, "rev-parse", "HEAD")
    clean = _git(here, "diff", "--quiet", "HEAD", "--", ".") is not None
    return commit if clean or commit is None else f"{commit}-dirty"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
