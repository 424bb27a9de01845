r"""What was asked for, in words that can be typed again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

ARGUMENTS = ("method", "weight", "samples", "sigma", "steps", "seed")


def command(config: Mapping[str, Any]) -> str:
    r"""Returns the command, or where the result was made in Python the call, that a configuration comes from."""
    if config.get("input") and config.get("problem"):
        return _shell(config)
    given = {"prior": config.get("prior"), **{name: config.get(name) for name in ARGUMENTS}}
    words = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if push := config.get("interaction"):
        region = ", mask=mask" if push["mask"] else ""
        words.append(f"interaction=emprior.Repulsion({push['strength']!r}{region})")
    words += ["x0=x0"] if config.get("x0") else []
    return f"emprior.solve({', '.join(['operator', 'y', *words])})"


def batch_command(config: Mapping[str, Any], out: str) -> str:
    r"""Returns the command of a batch whose plan has this configuration."""
    words = ["emprior", "batch"]
    for name, option in (("operator", "problem"), ("input", "input"), ("prior", "prior")):
        if config.get(name):
            value = str(config[name])
            words += [f"--{option}", value if name == "input" else value.rpartition(" ")[0]]
    words += [word for name in ARGUMENTS if config.get(name) is not None for word in (f"--{name}", str(config[name]))]
    words += ["--truth", str(config["truth"])] if config.get("truth") else []
    words += ["--quantiles", *map(str, config["quantiles"])] if "quantiles" in config["save"] else []
    words += ["--chunk", str(config["chunk"]), "--batch", str(config["batch"])]
    words += ["--save", *config["save"], "--format", str(config["format"]).lower(), "--out", out]
    return shlex.join(words)


def settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    r"""Returns names and values of a configuration, long lists by their ends."""
    return [(name, _text(value)) for name, value in config.items() if value is not None]


def _shell(config: Mapping[str, Any]) -> str:
    words = ["emprior", "solve", "--problem", str(config["problem"]), "--input", str(config["input"])]
    words += ["--degrade"] if config.get("degrade") else []
    words += ["--prior", str(config["prior"])] if config.get("prior") else []
    plain = {name: config.get(name) for name in ARGUMENTS}
    words += [word for name, value in plain.items() if isinstance(value, str | int | float)
              for word in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    return shlex.join([*words, "--out", "again", "--report", "again.html"])


def _text(value: object) -> str:
    if isinstance(value, list | tuple) and len(value) > 8:
        return f"{len(value)} values, from {_text(value[0])} to {_text(value[-1])}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(entry)}" for name, entry in value.items() if entry is not None)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
