import subprocess
import sys

import deepinv
import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import emprior
from emprior.fidelity import GaussianFidelity
from emprior.operators import as_operator, cast, noise_level, observed, resolve_sigma

SHAPE = (3, 4, 5)
ROWS = 17


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


MATRIX = normal(ROWS, 60)

KINDS = {
    "torch": MATRIX,
    "numpy": MATRIX.numpy(),
    "sparse": scipy.sparse.csr_matrix(MATRIX.numpy()),
    "sparse array": scipy.sparse.coo_array(MATRIX.numpy()),
    "linear operator": aslinearoperator(MATRIX.numpy()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_matrices_become_operators(kind, dtype):
    operator = as_operator(KINDS[kind], shape=SHAPE)
    assert isinstance(operator, deepinv.physics.LinearPhysics)
    x, y = normal(3, *SHAPE, dtype=dtype, seed=1), normal(3, ROWS, dtype=dtype, seed=2)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    forward, back = operator.A(x), operator.A_adjoint(y)
    assert forward.dtype == back.dtype == dtype
    torch.testing.assert_close(forward, (x.double().flatten(1) @ MATRIX.T).to(dtype), **tolerance)
    torch.testing.assert_close((forward * y).sum(), (x * back).sum(), **tolerance)
    torch.testing.assert_close(operator.A(x[1:2]), forward[1:2], **tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_are_differentiable(kind):
    operator = as_operator(KINDS[kind], shape=SHAPE)
    x = normal(2, *SHAPE, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(operator.A, x)
    assert torch.autograd.gradgradcheck(lambda x: operator.A(x) ** 2, x)
    assert torch.autograd.gradcheck(operator.A_adjoint, normal(2, ROWS, seed=2).requires_grad_())


OWN = {
    "deepinv's blur": (lambda: deepinv.physics.BlurFFT((3, 8, 8), torch.ones(1, 1, 5, 5) / 25), (3, 8, 8)),
    "deepinv's downsampling": (
        lambda: deepinv.physics.Downsampling((3, 8, 8), filter="bicubic", factor=2, padding="circular"),
        (3, 8, 8),
    ),
    "no closed form": (lambda: as_operator(scipy.sparse.csr_matrix(MATRIX.numpy()), SHAPE), SHAPE),
    "computed tomography": (lambda: deepinv.physics.Tomography(16, 8, circle=False, normalize=True), (1, 8, 8)),
}
PROBLEMS = {
    name: (lambda name=name: emprior.load_problem(name).operator, (3, 32, 32)) for name in emprior.list_problems()
}


@pytest.mark.parametrize("name", OWN | PROBLEMS)
def test_the_proximal_step_keeps_single_precision(name):
    """However small the noise and large the step, in what the operator sees and in what it does not."""
    make, shape = (OWN | PROBLEMS)[name]
    operator, x = make(), normal(2, *shape, dtype=torch.float32, seed=1)
    clean = operator.A(normal(2, *shape, dtype=torch.float32, seed=2))
    operator.noise_model = deepinv.physics.GaussianNoise(1e-3)
    for y in (clean, clean + normal(*clean.shape, dtype=torch.float32, seed=3)):
        single = GaussianFidelity(operator, y).prox(x, 18.0)
        double = GaussianFidelity(operator, y.double()).prox(x.double(), 18.0)
        assert (single - double).abs().max() < 1e-5 * double.abs().max()


def integers(*shape, seed):
    return (4 * normal(*shape, seed=seed)).round()


SYSTEMS = {
    "tall": integers(240, 60, seed=3),
    "square": integers(60, 60, seed=3),
    "wide": integers(ROWS, 60, seed=3),
    "tall, of rank 20": integers(240, 20, seed=3) @ integers(20, 60, seed=4),
    "square, of rank 20": integers(60, 20, seed=3) @ integers(20, 60, seed=4),
    "wide, of rank 8": integers(ROWS, 8, seed=3) @ integers(8, 60, seed=4),
}
"""Matrices of integers over a power of 2, which single precision holds exactly."""
SYSTEMS = {name: matrix / 2 ** matrix.square().mean().sqrt().log2().round() for name, matrix in SYSTEMS.items()}


def exact_prox(matrix, z, y, gamma):
    """`z + V s / (1 / gamma + s^2) U' (y - M z)`, in double precision, without the null space."""
    U, s, V = torch.linalg.svd(matrix, full_matrices=False)
    s = s * (s > 1e-12 * s.max())
    residual = y.double() - z.double().flatten(1) @ matrix.mT
    return z + ((residual @ U * (s / (1 / gamma + s**2))) @ V).reshape(z.shape)


def outside(name, seed=2):
    """A matrix, single-precision images, and measurements of which most is not in its range."""
    matrix = SYSTEMS[name]
    return matrix, *(normal(2, *shape, dtype=torch.float32, seed=seed) for shape in (SHAPE, (len(matrix),)))


@pytest.mark.parametrize("sigma", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("make", [torch.Tensor.float, scipy.sparse.csr_matrix], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_single_precision_data_steps_are_exact_whatever_the_rank(name, make, sigma):
    matrix, z, y = outside(name)
    fidelity = GaussianFidelity(as_operator(make(matrix), SHAPE), y, sigma)
    for gamma in (18.0, torch.tensor([18.0, 0.02])):
        step = torch.as_tensor(gamma, dtype=torch.float64).reshape(-1, 1) / sigma**2
        for found, exact in (
            (fidelity.prox(z, gamma), exact_prox(matrix, z, y, step)),
            (fidelity.solve(z, gamma), exact_prox(matrix, z, 0 * y, step)),
        ):
            assert found.dtype == torch.float32
            assert (found - exact).abs().max() < 3e-6 * exact.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_proximal_step_of_a_dense_matrix_keeps_single_precision(name):
    matrix, z, y = outside(name)
    for gamma in (1e2, 1.8e7):
        exact = exact_prox(matrix, z, y, gamma)
        found = as_operator(matrix.float(), SHAPE).prox_l2(z, y, gamma)
        assert (found - exact).abs().max() < 1e-5 * exact.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", ["tall", "wide"])
@pytest.mark.parametrize("refuses", [True, False])
def test_an_operator_without_double_precision_gets_the_smaller_system(name, refuses):
    matrix, z, y = outside(name)
    M = matrix.float()

    def cast(v):
        return v if refuses else v.float()

    operator = deepinv.physics.LinearPhysics(
        A=lambda x, **_: (cast(x).flatten(1) @ M.mT).to(x),
        A_adjoint=lambda v, **_: (cast(v) @ M).reshape(z.shape).to(v),
    )
    fidelity = GaussianFidelity(operator, y, 1e-3)
    assert fidelity.double_precision is None
    assert (fidelity.prox(z, 18.0) - exact_prox(matrix, z, y, 1.8e7)).abs().max() < 1e-4


@pytest.mark.parametrize("rows", [ROWS, 90])
@pytest.mark.parametrize("gamma", [1e-2, 1.0, 1e4, torch.tensor([0.5, 300.0])])
def test_the_proximal_step_of_a_dense_matrix_is_exact(rows, gamma):
    operator = as_operator(normal(rows, 60), shape=SHAPE)
    z, y = normal(2, *SHAPE, seed=1), normal(2, rows, seed=2)
    x = operator.prox_l2(z, y, gamma)
    column = torch.as_tensor(gamma, dtype=z.dtype).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(x + column * operator.A_adjoint(operator.A(x) - y), z, rtol=0, atol=1e-7)
    torch.testing.assert_close(operator.prox_l2(0.0, y, 2.0), operator.prox_l2(torch.zeros_like(z), y, 2.0))


def test_a_changed_matrix_is_diagonalised_anew():
    operator = as_operator(normal(ROWS, 60), shape=SHAPE)
    z, y = normal(2, *SHAPE, seed=1), normal(2, ROWS, seed=2)
    operator.prox_l2(z, y, 1.0)
    operator.update_parameters(matrix=normal(ROWS, 60, seed=9))
    x = operator.prox_l2(z, y, 1.0)
    torch.testing.assert_close(x + operator.A_adjoint(operator.A(x) - y), z)
    torch.testing.assert_close(operator.clone().prox_l2(z, y, 1.0), x)


def test_integers_and_lists_of_numpy_types_become_floats():
    assert as_operator(np.eye(60, dtype=int), shape=SHAPE).matrix.dtype == torch.float32
    assert as_operator(torch.eye(60, dtype=torch.int64), shape=SHAPE).matrix.dtype == torch.float32
    matrix = np.eye(60)[:, ::-1]
    operator = as_operator(matrix, shape=SHAPE)
    assert operator.matrix.dtype == torch.float64
    operator.matrix.zero_()
    assert matrix.any()


def test_a_physics_passes_through():
    physics = deepinv.physics.Denoising()
    assert as_operator(physics) is physics


@pytest.mark.parametrize(
    ("operator", "shape", "error", "message"),
    [
        (MATRIX, None, ValueError, r"matrix with 60 columns.*as_operator\(matrix, shape=\(C, H, W\)\)"),
        (MATRIX, (3, 4, 4), ValueError, r"60 columns, but images of shape \(3, 4, 4\) have 48 numbers"),
        (MATRIX[0], SHAPE, ValueError, r"shape \(60,\); a matrix \(m, n\)"),
        (MATRIX.to_sparse(), SHAPE, ValueError, "to_dense"),
        (MATRIX * 1j, SHAPE, ValueError, "complex"),
        (MATRIX.numpy() * 1j, SHAPE, ValueError, "complex"),
        (LinearOperator((5, 60), matvec=lambda x: x[:5], dtype=float), SHAPE, ValueError, "rmatvec"),
        (lambda x: x, SHAPE, TypeError, r"deepinv.physics.LinearPhysics\(A=..., A_adjoint=.*Physics\(A="),
        ("blur", SHAPE, TypeError, "operator is a str; pass a deepinv"),
    ],
)
def test_wrong_operators_are_refused(operator, shape, error, message):
    with pytest.raises(error, match=message):
        as_operator(operator, shape)


def physics(noise=None):
    operator = deepinv.physics.Physics()
    del operator.noise_model
    operator.noise_model = noise
    return operator


def test_noise_levels_are_read():
    gaussian = deepinv.physics.GaussianNoise
    assert noise_level(physics(gaussian(0.02))) == 0.02
    assert noise_level(physics(gaussian(0.02)).double()) == 0.02
    assert noise_level(physics(gaussian(torch.tensor(0.1234567890123, dtype=torch.float64)))) == 0.1234567890123
    assert noise_level(deepinv.physics.Denoising()) == 0.1
    for silent in (physics(), deepinv.physics.Physics(), deepinv.physics.LinearPhysics(), physics(gaussian(0.0))):
        assert noise_level(silent) is None
    per_image = noise_level(physics(gaussian(torch.tensor([0.1, 0.2]))))
    torch.testing.assert_close(per_image, torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize(
    "noise", [deepinv.physics.PoissonNoise(), deepinv.physics.UniformNoise(), lambda x: x], ids=["poisson", "u", "f"]
)
def test_other_noise_is_refused(noise):
    with pytest.raises(ValueError, match=r"only white Gaussian noise.*set operator.noise_model = deepinv"):
        resolve_sigma(physics(noise), 0.1)


def test_sigma_is_resolved():
    known, silent = physics(deepinv.physics.GaussianNoise(0.02)), physics()
    assert resolve_sigma(known) == resolve_sigma(known, 0.02) == resolve_sigma(silent, 0.02) == 0.02
    assert resolve_sigma(known, 0.02 * (1 + 1e-7)) == 0.02 * (1 + 1e-7)
    assert resolve_sigma(silent, torch.tensor(0.02)) == 0.02
    assert resolve_sigma(silent, np.float32(0.02)) == 0.02
    torch.testing.assert_close(resolve_sigma(silent, torch.tensor([[[[0.1]]], [[[0.2]]]])), torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(resolve_sigma(silent, [0.1, 0.2]), torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(resolve_sigma(known, torch.tensor([0.02, 0.02])), torch.tensor([0.02, 0.02]))


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        (0.1, r"sigma is 0.1, but the operator's noise model says 0.02. Leave out sigma"),
        (0.02001, "sigma is 0.02001, but the operator"),
        (torch.tensor([0.02, 0.03]), "noise model says 0.02"),
        (0.0, "must be positive and finite"),
        (-0.02, "sigma is -0.02, but a noise level must be positive"),
        (float("nan"), "must be positive and finite"),
        (float("inf"), "must be positive and finite"),
        (torch.tensor([0.02, -1.0]), "must be positive and finite"),
        (torch.ones(2, 3), r"sigma has shape \(2, 3\); pass one number"),
        (torch.ones(0), r"sigma has shape \(0,\); pass one number"),
        ("0.02", r"sigma is '0.02'; pass a positive number such as 0.02"),
        (True, "sigma is True; pass a positive number"),
    ],
)
def test_wrong_noise_levels_are_refused(sigma, message):
    with pytest.raises(ValueError, match=message):
        resolve_sigma(physics(deepinv.physics.GaussianNoise(0.02)), sigma)


def test_levels_of_different_counts_conflict():
    with pytest.raises(ValueError, match="Leave out sigma"):
        resolve_sigma(physics(deepinv.physics.GaussianNoise(torch.full((3,), 0.02))), torch.full((2,), 0.02))


def test_an_unknown_noise_level_is_refused():
    with pytest.raises(ValueError, match=r"noise level is unknown.*Pass sigma="):
        resolve_sigma(physics())


KERNEL = normal(1, 1, 3, 3).abs()


def size(**options):
    return {"img_size": (3, 8, 8), **options}


OPERATORS = {
    "blur": lambda: deepinv.physics.BlurFFT(**size(filter=KERNEL.float())),
    "downsampling": lambda: deepinv.physics.Downsampling(**size(filter="bicubic", factor=2)),
    "sensing": lambda: deepinv.physics.CompressedSensing(**size(m=20, rng=torch.Generator().manual_seed(0))),
    "inpainting": lambda: deepinv.physics.Inpainting(**size(mask=(normal(3, 8, 8) > 0).float())),
    "matrix": lambda: as_operator(normal(20, 192).float(), (3, 8, 8)),
    "sparse": lambda: as_operator(scipy.sparse.eye(192).tocsr()[:20], (3, 8, 8)),
}


@pytest.mark.parametrize("kind", OPERATORS)
def test_a_cast_keeps_the_operator_and_its_twin_agree(kind):
    operator, x = OPERATORS[kind](), normal(2, 3, 8, 8, seed=1)
    assert cast(operator, x.float()) is operator
    before = {name: value.clone() for name, value in operator.state_dict().items()}
    twin = cast(operator, x)
    assert twin is not operator
    y = twin.A(x)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.float(), operator.A(x.float()), rtol=1e-4, atol=1e-5)
    v = normal(*y.shape, seed=2)
    torch.testing.assert_close((y * v).sum(), (x * twin.A_adjoint(v)).sum())
    if kind not in ("sensing", "sparse"):
        z = twin.prox_l2(x, v, 3.0)
        torch.testing.assert_close(z + 3.0 * twin.A_adjoint(twin.A(z) - v), x)
    after = operator.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        assert torch.equal(value, after[name])


def test_observed_finds_the_entries_that_carry_information():
    x = torch.zeros(2, 3, 8, 8)
    inpainting = OPERATORS["inpainting"]()
    assert torch.equal(observed(inpainting, x), inpainting.mask.expand(2, -1, -1, -1))
    assert observed(OPERATORS["blur"](), x).all()
    camera = deepinv.physics.SinglePixelCamera(m=16, img_size=(3, 8, 8))
    assert torch.equal(observed(camera, x), camera.mask.expand(2, -1, -1, -1))
    assert observed(deepinv.physics.Physics(A=torch.relu), x).all()


def test_the_global_generator_is_untouched():
    state = torch.random.get_rng_state()
    operator = as_operator(MATRIX, SHAPE)
    operator.prox_l2(normal(1, *SHAPE), normal(1, ROWS), 1.0)
    observed(operator, normal(1, *SHAPE))
    cast(operator, torch.zeros(1))
    assert torch.equal(state, torch.random.get_rng_state())


def test_deepinv_is_not_imported_before_it_is_needed():
    code = "import sys, emprior.operators, emprior.problem as p; p.list_problems(); assert 'deepinv' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
