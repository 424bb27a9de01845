r"""Methods that ask no network: what one has without a prior that is learned."""

from __future__ import annotations

import torch

from emprior.bench.methods.base import Answer, Method, Models, Settings, Task

INNER = 30
"""The iterations of the proximal step of total variation, each of which starts where the last one ended."""


def pseudo_inverse(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""The estimate :math:`A^\dagger y`."""
    with torch.no_grad():
        return Answer(task.physics().A_dagger(task.y).to(task.y))


def tikhonov(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""The posterior mean under pixels that are independent and normal about gray,

    .. math:: \arg\min_x \frac{1}{2 \sigma^2} \|y - A x\|^2 + \frac{1}{2 s^2} \|x - \tfrac{1}{2}\|^2,

    with a standard deviation `s`, the setting `"std"`.
    """
    gray = torch.full((len(task.y), *task.shape), 0.5, dtype=task.y.dtype, device=task.y.device)
    return Answer(task.fidelity().prox(gray, settings["std"] ** 2))


def total_variation(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""The minimiser of :math:`\frac{1}{2} \|y - A x\|^2 + w \|D x\|_{1, 2}`, by deepinv's ADMM.

    Its inner iterations are not stopped by a test, which deepinv makes of the whole batch at once.
    """
    import deepinv as dinv

    solver = dinv.optim.ADMM(
        data_fidelity=dinv.optim.L2(),
        prior=dinv.optim.TVPrior(def_crit=0, n_it_max=INNER),
        lambda_reg=settings["weight"],
        stepsize=10.0,
        max_iter=int(settings["steps"]),
    )
    with torch.no_grad():
        return Answer(solver(task.y, task.physics()))


METHODS = {
    "pseudo-inverse": Method(
        "classical", pseudo_inverse, "deepinv",
        "Penrose, A Generalized Inverse for Matrices, 1955, https://doi.org/10.1017/S0305004100030401",
    ),
    "tikhonov": Method(
        "classical", tikhonov, "emprior",
        "Tikhonov, Solution of Incorrectly Formulated Problems and the Regularization Method, 1963",
        settings={"std": 0.25}, ranges={"std": (0.02, 1.0)},
    ),
    "total-variation": Method(
        "classical", total_variation, "deepinv",
        "Rudin et al., Nonlinear Total Variation Based Noise Removal Algorithms, 1992, "
        "https://doi.org/10.1016/0167-2789(92)90242-F",
        settings={"steps": 80, "weight": 0.02}, ranges={"weight": (0.002, 0.2)},
    ),
}  # fmt: skip
