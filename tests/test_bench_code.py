"""Which code a record depends on."""

from __future__ import annotations

import importlib
import sys

import pytest

from emprior.bench import code
from emprior.bench.code import code_digest

METHOD = "from toy.inner import tool\nfrom toy import other\n\ndef run():\n    import toy.late\n"


@pytest.fixture
def digest(tmp_path, monkeypatch):
    r"""A package in files, and a function that writes some anew and returns the digest of its method."""
    (tmp_path / "toy/inner").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(code, "PACKAGE", "toy")
    monkeypatch.setattr(code, "SHOWN", ("toy.pages",))

    def write(**files):
        for name, text in files.items():
            (tmp_path / "toy" / f"{name.replace('_in_', '/')}.py").write_text(text)
        importlib.invalidate_caches()
        for cached in (code_digest, code._tree, code._file):
            cached.cache_clear()
        return code_digest("toy.method")

    write(__init__="x = 1\n", inner_in___init__="from toy.inner import deep\n", inner_in_tool="import toy.pages\n")
    write(other="y = 1\n", late="z = 1\n", inner_in_deep="", pages="", apart="", method=METHOD)
    return write


@pytest.mark.parametrize("name", ["inner_in_tool", "other", "late", "method"])
def test_what_is_imported_counts(digest, name):
    assert digest() == digest()
    assert digest() != digest(**{name: METHOD + "w = 2\n"})


@pytest.mark.parametrize("name", ["__init__", "inner_in_deep", "pages", "apart"])
def test_what_is_not_imported_or_only_shows_does_not(digest, name):
    assert digest() == digest(**{name: "w = 2\n"})


def test_a_name_of_a_package_brings_the_package(digest):
    before = digest(other="from toy.inner import something\n")
    assert before != digest(inner_in_deep="w = 2\n")


def test_words_do_not_count(digest):
    before = digest(other='def f():\n    """Before."""\n    return 1\n')
    assert before == digest(other='"""A module."""\ndef f():\n    return 1  # after\n')
    assert before != digest(other="def f():\n    return 2\n")


def test_methods_depend_on_what_they_are_made_of():
    own, peer = (code_digest(f"emprior.bench.methods.{name}") for name in ("own", "classical"))
    assert own != peer
    assert code_digest("__main__") == code_digest("__main__") != code_digest("nowhere")
