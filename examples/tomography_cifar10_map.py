r"""Restores a photograph from its mean values along rays, through a sparse matrix of one's own.

.. math:: \hat{x} = \arg\min_x \frac{1}{2 \sigma^2} \|y - M x\|^2 + E(x)

`M` is any matrix of NumPy, SciPy or PyTorch; here it is parallel-beam tomography of each colour. Beside the learned
prior, SciPy's own least squares with the white Gaussian prior :math:`\mathcal{N}(1/2, 1/16)` in place of `E`.

    python examples/tomography_cifar10_map.py --out out/tomography
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from deepinv.physics import GaussianNoise
from photographs import CAT, save_rows
from scipy.sparse.linalg import lsqr

import emprior
from emprior.io import read_image
from emprior.metrics import psnr


def rays(side: int, angles: int) -> scipy.sparse.csr_array:
    r"""Returns the matrix of a parallel beam, `(angles * bins, side * side)`.

    A pixel at `(u, v)` from the centre is seen at :math:`t = u \cos\theta + v \sin\theta`, and shared linearly by the
    two bins about `t`.
    """
    bins = math.ceil(side * 2**0.5) + 1
    theta = np.arange(angles)[:, None] * np.pi / angles
    v, u = np.mgrid[:side, :side].reshape(2, -1) - (side - 1) / 2
    t = u * np.cos(theta) + v * np.sin(theta) + (bins - 1) / 2
    below = np.floor(t).astype(int)
    row = np.arange(angles)[:, None] * bins + below
    entries = np.stack([1 - (t - below), t - below]).ravel() / side
    places = np.stack([row, row + 1]).ravel(), np.tile(np.arange(side**2), 2 * angles)
    return scipy.sparse.csr_array((entries, places), shape=(angles * bins, side**2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image", type=Path, default=CAT, help="a photograph, reduced to 32 x 32")
    parser.add_argument("--prior", default="cifar10")
    parser.add_argument("--angles", type=int, default=12)
    parser.add_argument("--sigma", type=float, default=0.005)
    parser.add_argument("--out", type=Path, default=Path("out/tomography"), help="the folder to write to")
    args = parser.parse_args()

    x = read_image(args.image, size=32)[None]
    matrix = scipy.sparse.block_diag([rays(32, args.angles)] * 3, format="csr")
    operator = emprior.as_operator(matrix, shape=(3, 32, 32))
    operator.set_noise_model(GaussianNoise(args.sigma))
    y = emprior.Problem("tomography", operator, args.sigma, (3, 32, 32)).measure(x, seed=0)

    result = emprior.solve(operator, y, args.prior)
    change = lsqr(matrix, y[0].numpy() - matrix @ np.full(x.numel(), 0.5), damp=args.sigma / 0.25)[0]
    squares = torch.from_numpy(0.5 + change).float().reshape(x.shape)
    result.save(args.out / "map")
    result.report(args.out / "map.html", truth=x, operator=operator)
    save_rows(args.out / "figure.png", {"truth, least squares, MAP": [x[0], squares[0], result.estimate[0]]})
    print(f"{matrix.shape[0]} measurements of {matrix.shape[1]} numbers, {matrix.nnz} entries of the matrix")
    print(f"least squares {float(psnr(squares, x)):.2f} dB")
    print(f"MAP {float(psnr(result.estimate, x)):.2f} dB, residual {float(result.diagnostics.residual):.3f}")
    print(result.status.value)


if __name__ == "__main__":
    main()
