from __future__ import annotations

import logging
import shutil

import pytest
import torch

from emprior._compiled import Compiled, CompiledGradient
from emprior.interpolant import EnergyMatching
from emprior.nets import make_potential
from emprior.train.derivative import CompiledLoss
from emprior.train.objective import GradientMatchingLoss

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile takes a C++ compiler on a CPU"
)


@pytest.fixture
def loss():
    torch.manual_seed(0)
    potential = make_potential("inner_product", channels=1, widths=[8], blocks=1)
    return GradientMatchingLoss(potential, EnergyMatching(), strength=0.1, clamp=10.0)


def inputs(count=3):
    random = torch.Generator().manual_seed(0)
    x1, x0, positives, negatives = torch.randn(4, count, 1, 8, 8, generator=random)
    return x1, x0, torch.rand(count, generator=random).clamp(min=0.01), positives, negatives


def gradients(module, loss, batch):
    loss.zero_grad()
    value, terms = module(*batch)
    (2 * value).backward()
    return value.detach(), terms, [p.grad.clone() for p in loss.parameters()]


@needs_compiler
def test_a_compiled_loss_is_the_loss_and_its_gradient(loss):
    compiled = CompiledLoss(loss)
    value, terms, found = gradients(compiled, loss, inputs())
    expected, plain, reference = gradients(loss, loss, inputs())
    assert len(compiled.graph.graphs) == 1
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(terms, plain, rtol=1e-5, atol=0)
    for one, two in zip(found, reference, strict=True):
        assert (one - two).norm() <= 1e-5 * two.norm()


@needs_compiler
def test_a_compiled_gradient_follows_the_weights(loss):
    x, evaluate = inputs()[0], CompiledGradient(loss.potential)
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        expected = loss.potential(leaf)
        (slope,) = torch.autograd.grad(expected.sum(), leaf)
        value, gradient = evaluate(x)
        torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-5)
        assert not gradient.requires_grad
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.mul_(1.1)
    assert len(evaluate.graph.graphs) == 1


@needs_compiler
def test_autocast_is_kept_inside():
    product, x, weight = Compiled(torch.nn.functional.linear), torch.randn(2, 4), torch.randn(4, 4)
    assert product(x, weight).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert product(x, weight).dtype == torch.bfloat16
    assert len(product.graphs) == 2


def test_without_a_compiler_work_goes_on(loss, monkeypatch, caplog):
    def broken(graph):
        def run(*arguments):
            raise RuntimeError("No working C++ compiler found\nand so on")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    compiled = CompiledLoss(loss)
    with caplog.at_level(logging.WARNING, logger="emprior"):
        for _ in range(2):
            value, _, found = gradients(compiled, loss, inputs())
    expected, _, reference = gradients(loss, loss, inputs())
    assert [record.getMessage() for record in caplog.records] == [
        "nothing is compiled, and work goes on slower. On a CPU it takes g++ or clang: No working C++ compiler found"
    ]
    assert torch.equal(value, expected)
    assert all(torch.equal(one, two) for one, two in zip(found, reference, strict=True))
