import copy
import dataclasses
from pathlib import Path

import deepinv
import pytest
import torch

from emprior import _paths
from emprior._paths import cache_dir, pretrained_dir, problems_dir
from emprior.operators import cast, noise_level
from emprior.problem import find_problem, list_problems, load_problem

NAMES = list_problems()

OTHERS = {
    "numberwise": "{type: inpainting, missing: 0.4, pixelwise: false, seed: 3}",
    "placed box": "{type: box_inpainting, side: 4, top: 0, left: 9}",
    "gaussian filter": "{type: downsampling, factor: 2, filter: gaussian}",
    "bilinear filter": "{type: downsampling, factor: 4, filter: bilinear}",
    "no downsampling": "{type: downsampling, factor: 1}",
    **{
        ordering: f"{{type: single_pixel, ratio: 0.25, ordering: {ordering}}}"
        for ordering in ("sequency", "cake_cutting", "zig_zag", "xy")
    },
}

GOOD = """\
description: A test.
shape: [2, 16, 16]
operator: {type: inpainting, missing: 0.7, seed: 0}
noise: {type: gaussian, sigma: 0.02}
"""


def write(tmp_path, text):
    path = tmp_path / "test.yaml"
    path.write_text(text)
    return path


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(params=[*NAMES, *OTHERS], scope="module")
def problem(request, tmp_path_factory):
    if request.param in NAMES:
        return load_problem(request.param)
    text = GOOD.replace("{type: inpainting, missing: 0.7, seed: 0}", OTHERS[request.param])
    return load_problem(write(tmp_path_factory.mktemp("problems"), text))


def test_the_promised_problems_are_there():
    kinds = ["box_inpainting", "compressed_sensing", "deblurring", "denoising", "inpainting", "motion_deblurring"]
    assert {f"cifar10/{kind}" for kind in [*kinds, "super_resolution_x2", "super_resolution_x4"]} <= set(NAMES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_adjoint_is_one(problem, dtype):
    x = normal(3, *problem.shape, dtype=dtype, seed=1)
    operator = cast(problem.operator, x)
    y = operator.A(x)
    v = normal(*y.shape, dtype=dtype, seed=2)
    gap = (y * v).sum() - (x * operator.A_adjoint(v)).sum()
    assert gap.abs() <= 30 * torch.finfo(dtype).eps * y.norm() * v.norm()
    assert y.dtype == operator.A_adjoint(v).dtype == dtype


@pytest.mark.parametrize("gamma", [0.01, 3.0, 25000.0, torch.tensor([3.0, 25000.0, 0.01], dtype=torch.float64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_proximal_step_solves_its_normal_equations(problem, dtype, gamma):
    z = normal(3, *problem.shape, dtype=dtype, seed=1)
    operator = cast(problem.operator, z)
    y = operator.A(normal(3, *problem.shape, dtype=dtype, seed=2))
    column = torch.as_tensor(gamma, dtype=dtype).reshape(-1, 1, 1, 1)
    x = operator.prox_l2(z, y, column if column.numel() > 1 else gamma)
    gap = column * operator.A_adjoint(operator.A(x) - y) + x - z
    size = (column * operator.A_adjoint(y)).flatten(1).norm(dim=1) + z.flatten(1).norm(dim=1)
    assert (gap.flatten(1).norm(dim=1) / size).max() < 200 * torch.finfo(dtype).eps


def test_images_do_not_see_their_neighbours(problem):
    x = normal(3, *problem.shape, dtype=torch.float32, seed=1)
    y = problem.operator.A(x)
    for function, rows in ((problem.operator.A, x), (problem.operator.A_adjoint, y)):
        singles = torch.cat([function(row[None]) for row in rows])
        torch.testing.assert_close(function(rows), singles, rtol=1e-5, atol=1e-5)


def test_an_operator_survives_a_change_of_type(problem):
    x = normal(2, *problem.shape, seed=1)
    moved = copy.deepcopy(problem).operator.to(torch.float64)
    torch.testing.assert_close(moved.A(x), cast(problem.operator, x).A(x), rtol=0, atol=0)
    torch.testing.assert_close(moved.A(x).float(), problem.operator.A(x.float()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_loading_is_deterministic_and_leaves_the_global_generator(name):
    state = torch.random.get_rng_state()
    first, second = load_problem(name), load_problem(problems_dir() / f"{name}.yaml")
    assert first.name == second.name == name
    x = normal(2, *first.shape, dtype=torch.float32)
    assert torch.equal(first.operator.A(x), second.operator.A(x))
    assert torch.equal(first.measure(x), second.measure(x))
    tensors = dict(first.operator.named_buffers())
    assert all(torch.equal(tensors[name], value) for name, value in second.operator.named_buffers())
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("name", NAMES)
def test_the_noise_is_what_the_file_says(name):
    problem = load_problem(name)
    assert isinstance(problem.operator.noise_model, deepinv.physics.GaussianNoise)
    assert problem.sigma == noise_level(problem.operator) == (0.1 if name.endswith("/denoising") else 0.02)
    assert problem.shape == (3, 32, 32)
    assert problem.description.endswith(".")
    x = normal(64, *problem.shape, dtype=torch.float32)
    clean, y = problem.operator.A(x), problem.measure(x, seed=1)
    noise = (y - clean)[clean != 0]
    assert abs(noise.std() / problem.sigma - 1) < 0.02
    assert abs(noise.mean()) < 4 * problem.sigma / len(noise) ** 0.5
    assert not y[clean == 0].any()


def test_measurements_depend_on_seed_and_index_alone():
    problem = load_problem("cifar10/super_resolution_x4")
    x = normal(3, *problem.shape, dtype=torch.float32)
    y = problem.measure(x, seed=5)
    assert torch.equal(y, problem.measure(x, seed=5))
    torch.testing.assert_close(problem.measure(x[:1], seed=5), y[:1])
    torch.testing.assert_close(problem.measure(x[1:], seed=5, first=1), y[1:])
    torch.testing.assert_close(problem.measure(x.double(), seed=5).float(), y)
    assert not torch.allclose(problem.measure(x, seed=6), y)
    assert (y[0] - y[1] - problem.operator.A(x[:1])[0] + problem.operator.A(x[1:2])[0]).abs().max() > 0.01
    assert not problem.measure(x.requires_grad_()).requires_grad


@pytest.mark.parametrize("x", [torch.zeros(2, 1, 32, 32), torch.zeros(3, 32, 32), torch.zeros(1, 3, 32, 32).byte()])
def test_images_of_another_shape_are_refused(x):
    with pytest.raises(ValueError, match=r"problem 'cifar10/denoising' measures floating-point images of shape"):
        load_problem("cifar10/denoising").measure(x)


def test_a_problem_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_problem("cifar10/denoising").sigma = 1.0


def test_masks_drop_what_the_file_says(tmp_path):
    mask = load_problem("cifar10/inpainting").operator.mask[0]
    assert (mask == mask[:1]).all()
    assert mask[0].sum() == 1024 - round(0.7 * 1024)
    box = load_problem("cifar10/box_inpainting").operator.mask[0]
    assert not box[:, 10:22, 10:22].any()
    assert box.sum() == 3 * (1024 - 144)
    other = load_problem(write(tmp_path, GOOD.replace("seed: 0", "seed: 1"))).operator.mask
    assert not torch.equal(other, load_problem(write(tmp_path, GOOD)).operator.mask)
    numbers = load_problem(write(tmp_path, GOOD.replace("seed: 0", "seed: 0, pixelwise: false"))).operator.mask[0]
    assert numbers.sum() == 512 - round(0.7 * 512)
    assert not torch.equal(numbers[0], numbers[1])


def test_filters_keep_the_mean_and_the_centre():
    ones = torch.ones(1, 3, 32, 32)
    for name in ("deblurring", "motion_deblurring", "super_resolution_x2", "super_resolution_x4"):
        torch.testing.assert_close(load_problem(f"cifar10/{name}").operator.A(ones).mean(), torch.tensor(1.0))
    point = torch.zeros(1, 3, 32, 32)
    point[:, :, 16, 16] = 1
    row = load_problem("cifar10/deblurring").operator.A(point)[0, 0].sum(0)
    assert row.argmax() == 16
    assert abs((row * (torch.arange(32) - 16) ** 2).sum().sqrt() - 1.0) < 0.01


ERRORS = [
    ("seed: 0}", "seed: 0, sed: 1}", 3, "unknown key 'sed' in 'operator'. Did you mean 'seed'?"),
    ("noise:", "nois:", 4, "unknown key 'nois' in the file. Did you mean 'noise'?"),
    ("description: A test.\n", "", 1, "the file lacks the key 'description'"),
    ("inpainting", "inpaintin", 3, "'type' is 'inpaintin', which is unknown. Did you mean 'inpainting'?"),
    ("gaussian", "poisson", 4, "'type' is 'poisson', which is unknown. The choices are: gaussian."),
    ("{type: inpainting, missing: 0.7, seed: 0}", "inpainting", 3, "'operator' must be a mapping"),
    ("type: inpainting, ", "", 3, "'operator' lacks the key 'type'. The choices are: blur"),
    (", seed: 0", "", 3, "'operator' lacks the key 'seed'. Its keys are: type, missing, seed"),
    ("inpainting, missing: 0.7, seed: 0", "denoising, seed: 0", 3, "unknown key 'seed' in 'operator'"),
    ("0.7", "1.7", 3, "'missing' must be a number between 0 and 1, not 1.7"),
    ("0.7", "2e-1", 3, "'missing' must be a number between 0 and 1, not '2e-1'. YAML reads 2e-1 as text; write 0.2."),
    ("seed: 0", "seed: -1", 3, "'seed' must be a whole number, 0 or more, not -1"),
    ("seed: 0", "seed: true", 3, "'seed' must be a whole number"),
    ("seed: 0", "seed: 0, pixelwise: 1", 3, "'pixelwise' must be true or false, not 1"),
    ("sigma: 0.02", "sigma: 0", 4, "'sigma' must be a positive number, not 0."),
    ("sigma: 0.02", "sigma: .inf", 4, "'sigma' must be a positive number, not inf"),
    ("sigma: 0.02", "sigma: 2e-2", 4, "YAML reads 2e-2 as text; write 0.02."),
    ("[2, 16, 16]", "[16, 16]", 2, "'shape' must be [channels, height, width]"),
    ("[2, 16, 16]", "[2, 16, 0]", 2, "'shape' must be [channels, height, width]"),
    ("A test.", "[1]", 1, "'description' must be one line of text"),
    ("shape: [2, 16, 16]", "shape: [2, 16, 16]\nshape: [1, 8, 8]", 3, "'shape' appears a second time"),
    ("shape:", "3:", 2, "the key '3' is not a name"),
    ("0.7, seed: 0}", "0.7, seed: 0", 4, "not YAML"),
    ("[2, 16, 16]", "!!python/name:os.system x", 2, "could not determine a constructor"),
    (GOOD, "", 1, "must hold a mapping"),
    (GOOD, "- 1", 1, "must hold a mapping"),
    ("inpainting, missing: 0.7, seed: 0", "box_inpainting, side: 17", 3, "does not fit into images of 16 x 16"),
    ("inpainting, missing: 0.7, seed: 0", "box_inpainting, side: 8, top: 9", 3, "it may be 8 at most"),
    ("inpainting, missing: 0.7, seed: 0", "blur, sigma: 5.0", 3, "kernel would be 41 pixels wide"),
    ("inpainting, missing: 0.7, seed: 0", "motion_blur, size: 17, seed: 0", 3, "kernel would be 17 pixels wide"),
    ("inpainting, missing: 0.7, seed: 0", "downsampling, factor: 3", 3, "does not divide the sides 16 x 16"),
    ("inpainting, missing: 0.7, seed: 0", "downsampling, factor: 8", 3, "kernel would be 32 pixels wide"),
    ("inpainting, missing: 0.7, seed: 0", "downsampling, factor: 2, filter: box", 3, "one of bicubic, bilinear"),
    (
        "[2, 16, 16]\noperator: {type: inpainting, missing: 0.7,",
        "[3, 512, 512]\noperator: {type: compressed_sensing, ratio: 0.5,",
        3,
        "too large; use type single_pixel",
    ),
    (
        "[2, 16, 16]\noperator: {type: inpainting, missing: 0.7, seed: 0}",
        "[2, 12, 16]\noperator: {type: single_pixel, ratio: 0.5}",
        3,
        "sides that are powers of 2, not 12 x 16",
    ),
    (
        "[2, 16, 16]\noperator: {type: inpainting, missing: 0.7, seed: 0}",
        "[2, 8, 16]\noperator: {type: single_pixel, ratio: 0.5, ordering: cake_cutting}",
        3,
        "needs square images, not 8 x 16",
    ),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), ERRORS)
def test_wrong_files_are_refused(tmp_path, old, new, line, message):
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ValueError, match=r".") as caught:
        load_problem(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert message in str(caught.value)


def test_block_style_names_the_line_of_the_key(tmp_path):
    text = GOOD.replace("{type: inpainting, missing: 0.7, seed: 0}", "\n  type: inpainting\n  missing: 2\n  seed: 0")
    with pytest.raises(ValueError, match="line 5: 'missing' must be"):
        load_problem(write(tmp_path, text))


def test_unknown_problems_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no problem 'cifar10/inpaint'. Did you mean 'cifar10/inpainting'"):
        load_problem("cifar10/inpaint")
    with pytest.raises(ValueError, match=r"no problem file .*denoising.yaml.*Did you mean 'cifar10/denoising'"):
        load_problem(tmp_path / "denoising.yaml")
    assert load_problem(write(tmp_path, GOOD)).name == "test"


def test_problems_are_found_even_if_their_files_are_wrong(tmp_path):
    assert find_problem("cifar10/denoising") == problems_dir() / "cifar10/denoising.yaml"
    broken = write(tmp_path, "nonsense")
    assert find_problem(str(broken)) == find_problem(broken) == broken
    for name in ("cifar10", "cifar10/denoising.yaml", str(tmp_path), str(tmp_path / "other.yml")):
        with pytest.raises(ValueError, match=r"there is no problem .*The choices are: cifar10/box_inpainting"):
            find_problem(name)


def test_folders_are_found_in_a_checkout_and_in_a_wheel(monkeypatch, tmp_path):
    assert (problems_dir() / "cifar10" / "denoising.yaml").is_file()
    assert pretrained_dir().name == "pretrained"
    package = tmp_path / "site-packages" / "emprior"
    (package / "_data" / "problems").mkdir(parents=True)
    (package.parent / "problems").mkdir()
    monkeypatch.setattr(_paths, "PACKAGE", package)
    assert problems_dir() == package / "_data" / "problems"
    with pytest.raises(FileNotFoundError, match="pip install --force-reinstall emprior"):
        pretrained_dir()


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("EMPRIOR_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == Path.home() / ".cache" / "emprior"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == Path.home() / ".cache" / "emprior"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "emprior"
    monkeypatch.setenv("EMPRIOR_CACHE", "~/own")
    assert cache_dir() == tmp_path / "own"
