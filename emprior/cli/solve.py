r"""`emprior solve`: one inverse problem, from file to folder."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emprior.cli import _input
from emprior.cli._common import (
    ESTIMATE,
    UsageError,
    add_command,
    add_device,
    as_json,
    as_usage,
    check_device,
    check_estimates,
    check_prior,
    check_problem,
    check_target,
    check_writable,
    complain,
    is_terminal,
    positive_int,
    positive_or_estimate,
)

if TYPE_CHECKING:
    from torch import Tensor

    from emprior.problem import Problem
    from emprior.result import Result

EXAMPLES = """
emprior solve --problem cifar10/inpainting --input skimage:astronaut --degrade --out astronaut
emprior solve --problem cifar10/denoising --input noisy.png --method mala --samples 8 --out posterior
emprior solve --problem cifar10/deblurring --input blurred.png --method posterior --report deblurred.html
emprior solve --problem cifar10/denoising --input noisy.png --method mala --sigma estimate --out posterior
emprior solve --problem my_scanner.yaml --input y.npy --prior runs/mine/prior --json
"""

FIGURES = ("residual", "acceptance", "step_size", "rhat", "ess", "sigma", "sigma_std", "weight", "weight_std")
"""What is told of a run where it is known; an estimate takes the place of what was asked for."""


def add(commands: Any) -> None:
    parser = add_command(commands, "solve", run, "solve an inverse problem with a prior", EXAMPLES)
    parser.add_argument("--problem", required=True, metavar="NAME|YAML", help="see: emprior problems list")
    parser.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help="measurements, an image or .npy; with --degrade a clean image, which may be skimage:NAME",
    )
    parser.add_argument(
        "--degrade", action="store_true", help="measure the clean input by the problem first; it is then the truth"
    )
    parser.add_argument("--prior", default="cifar10", metavar="NAME|DIR", help="see: emprior priors list (cifar10)")
    parser.add_argument(
        "--method",
        default="map",
        help="map (default), continuation or descent; or what samples: posterior, hmc, mala, gibbs, tempering, ula, "
        "skrock, flow",
    )
    parser.add_argument(
        "--samples", type=positive_int, metavar="S", help="chains, or starts of map (1, or 4 of posterior)"
    )
    parser.add_argument("--steps", type=positive_int, metavar="N", help="iterations; by default the method's own")
    parser.add_argument(
        "--weight", type=positive_or_estimate, default=1.0, metavar="W", help="factor of the prior (1), or estimate"
    )
    parser.add_argument(
        "--sigma", type=positive_or_estimate, metavar="S", help="noise level, instead of the problem's, or estimate"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness (0)")
    add_device(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="save the result, figure.png and figures.json there")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what was found as one HTML file to look at")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def run(options: argparse.Namespace) -> int:
    _check(options)
    device = check_device(options.device)
    problem = _problem(options)
    truth = _input.read_clean(options.input, problem.shape) if options.degrade else None
    y = _input.read_measured(options.input, problem) if truth is None else problem.measure(truth, seed=options.seed)

    from emprior import solve

    result = solve(
        problem.operator,
        y.to(device),
        options.prior,
        method=options.method,
        weight=options.weight,
        samples=options.samples,
        sigma=ESTIMATE if options.sigma == ESTIMATE else None,
        steps=options.steps,
        seed=options.seed,
        progress=is_terminal(),
    ).to("cpu")
    asked = {"problem": problem.name, "input": options.input, "degrade": options.degrade}
    result = replace(result, config={**result.config, **asked})
    figures = measure(result, truth)
    if options.out is not None:
        _save(result, figures, truth, options.out)
    if options.report is not None:
        result.report(options.report, truth=truth, operator=problem.operator)
    print(as_json(figures) if options.json else _line(figures))
    return _code(result, options.out)


def measure(result: Result, truth: Tensor | None) -> dict[str, Any]:
    r"""Returns the figures of a result of one image."""
    from emprior.metrics import psnr, ssim

    figures: dict[str, Any] = dict(result.config)
    if truth is not None:
        figures["psnr"] = psnr(result.estimate, truth).item()
        if min(truth.shape[-2:]) >= 7:
            figures["ssim"] = ssim(result.estimate, truth).item()
    summary = result.diagnostics.summary()
    terms = [name for name in result.diagnostics.trace if name in summary]
    figures["energies"] = {name: summary[name] for name in terms}
    figures |= {name: summary[name] for name in FIGURES if name in summary}
    figures["gradient_evaluations"] = result.diagnostics.gradient_evaluations
    figures["seconds"] = result.diagnostics.seconds
    if result.diagnostics.verdict:
        figures["verdict"] = result.diagnostics.verdict[0]
    return figures | {"status": result.status.name.lower(), "message": result.status.value}


def _check(options: argparse.Namespace) -> None:
    r"""Finds what is wrong with the options before anything is computed."""
    from emprior._check import nearest
    from emprior._saved import check_replaceable
    from emprior.solvers import METHODS

    if options.method not in METHODS:
        raise UsageError(f"unknown method {options.method!r}. {nearest(options.method, METHODS)}")
    method = METHODS[options.method]
    if options.steps is not None:
        with as_usage(f"--steps {options.steps}"):
            method.stages(replace(method.settings, steps=options.steps))
    check_estimates(options)
    check_problem(options.problem)
    _input.check_input(options.input, options.degrade)
    check_prior(options.prior)
    if options.out is not None:
        check_writable("--out", options.out, options.out.resolve().parent)
        with as_usage("--out"):
            check_replaceable(options.out)
    if options.report is not None:
        check_target("--report", options.report, (".html",), "a report is written")


def _problem(options: argparse.Namespace) -> Problem:
    from emprior.problem import load_problem

    problem = load_problem(options.problem)
    if options.sigma in (None, ESTIMATE):
        return problem

    from deepinv.physics import GaussianNoise

    problem.operator.set_noise_model(GaussianNoise(options.sigma))
    return replace(problem, sigma=options.sigma)


def _save(result: Result, figures: dict[str, Any], truth: Tensor | None, out: Path) -> None:
    from emprior._files import atomic
    from emprior.plot import save_figure

    result.save(out)
    save_figure(result.plot(truth=truth), out / "figure.png")
    with atomic(out / "figures.json") as path:
        path.write_text(as_json(figures) + "\n")


def _line(figures: dict[str, Any]) -> str:
    energies = figures["energies"]
    parts = [f"{name} {value:.4g}" for name, value in energies.items() if name != "energy"]
    entries = [
        f"PSNR {figures['psnr']:.2f} dB" if "psnr" in figures else "",
        f"SSIM {figures['ssim']:.3f}" if "ssim" in figures else "",
        f"residual {figures['residual']:.3f} sigma",
        *(_estimated(figures, name) for name in ("sigma", "weight")),
        f"energy {energies['energy']:.4g} ({', '.join(parts)})" if "energy" in energies else "",
        f"acceptance {figures['acceptance']:.2f}" if "acceptance" in figures else "",
        f"{figures['gradient_evaluations']} gradients",
        f"{figures['seconds']:.1f} s",
        figures["message"],
        figures.get("verdict", ""),
    ]
    title = f"{figures['problem']}, {figures['prior']}, {figures['method']}"
    return f"{title}: {'; '.join(entry for entry in entries if entry)}"


def _estimated(figures: dict[str, Any], name: str) -> str:
    r"""Returns an estimate with its standard deviation in brackets, or nothing of what was known."""
    std = figures.get(f"{name}_std")
    return "" if std is None else f"{name} {figures[name]:.4g} ({std:.2g})"


def _code(result: Result, out: Path | None) -> int:
    from emprior.result import Status

    if result.status.ok:
        return 0
    if result.status in (Status.EXHAUSTED, Status.UNMIXED):
        logging.getLogger("emprior").warning("%s", result.status.value)
        return 0
    kept = f" The result is saved in {out} all the same." if out is not None else ""
    complain(f"{result.status.value}.{kept}")
    return 130 if result.status is Status.INTERRUPTED else 1
