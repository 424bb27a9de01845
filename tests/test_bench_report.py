r"""The benchmark end to end: equal terms, records that repeat and resume, honest tables, a page that stands alone."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import yaml

from emprior.bench import METHODS, Plan, Record, Shelf, Sources, load_suite, report, run, tables
from emprior.bench import runner as bench_runner
from emprior.bench.charts import pareto
from emprior.bench.figures import FIGURES, figures, parts, summary
from emprior.bench.methods import Answer, Method, Task
from emprior.bench.page import command, page
from emprior.bench.records import digest_of
from emprior.bench.runner import Bout, cell_key
from emprior.bench.suites import _facts, problems_of
from emprior.bench.table import Entry, Line, table_of
from emprior.bench.text import csv_of, markdown, standings
from emprior.bench.tune import halton, trials, tuned
from emprior.hub import find_prior, load_prior
from emprior.metrics import crps, psnr
from emprior.verify import fields

PLAN = Plan(images=3, samples=4, budget=40, validation=2)
FEW = ["deepinv-ald", "ddnm", "pnp-pgd", "tikhonov", "pseudo-inverse"]


@pytest.fixture(scope="module")
def suite():
    return load_suite("gaussian", Sources())


@pytest.fixture(scope="module")
def done(suite, tmp_path_factory):
    r"""A finished folder: a few methods on two problems, one of them a failure."""
    shelf = Shelf(tmp_path_factory.mktemp("bench"))
    problems = ["denoising", "compressed sensing"]
    records = [record for record, _ in run(suite, problems, [*FEW, "deepinv-ddrm"], PLAN, shelf)]
    return shelf, records


def test_every_method_sees_the_same_measurements_bit_for_bit(suite, tmp_path, monkeypatch):
    r"""What each is given, image by image, is hashed on the way in and once more on the way out."""
    seen = {}

    def spying(name, method):
        def run(task, models, samples, seed, settings):
            before = task.y.numpy().tobytes()
            gray = torch.full((len(task.y), *task.shape), 0.5)
            seen.setdefault(name, []).append((before, task.sigma, task.operator.A(torch.ones_like(gray).double())))
            if method.kind == "posterior" and method.source == "emprior":
                return Answer(gray, gray[None])
            method.run(task, models, samples, seed, settings)
            assert task.y.numpy().tobytes() == before
            return Answer(gray)

        return replace(method, run=run)

    names = [name for name, method in METHODS.items() if method.source != "azula" or find_spec("azula")]
    for name in names:
        monkeypatch.setitem(METHODS, name, spying(name, METHODS[name]))
    records = [record for record, _ in run(suite, ["inpainting"], names, PLAN, Shelf(tmp_path))]
    assert {record.status for record in records} == {"done"}
    assert set(seen) == set(names)
    first = seen["pseudo-inverse"]
    assert len(first) == PLAN.images
    for name, given in seen.items():
        assert [entry[:2] for entry in given] == [entry[:2] for entry in first], name
        assert all(torch.equal(a[2], b[2]) for a, b in zip(given, first, strict=True))
    assert len({record.digest for record in records}) == 1
    assert records[0].digest == digest_of(b"".join(entry[0] for entry in first))


def test_two_runs_give_identical_records(suite, done, tmp_path):
    shelf, records = done
    again = [record for record, _ in run(suite, ["denoising"], FEW, PLAN, Shelf(tmp_path))]
    first = {record.method: record for record in records if record.problem == "denoising"}
    for record in again:
        assert record.repeatable() == first[record.method].repeatable()
        arrays = Shelf(tmp_path).arrays(record)
        assert all(np.array_equal(arrays[name], part) for name, part in shelf.arrays(first[record.method]).items())


def test_records_read_back_as_they_were_written(done):
    shelf, records = done
    stored = {(record.problem, record.method): record for record in shelf.all()}
    assert len(stored) == len(records)
    for record in records:
        assert asdict(stored[record.problem, record.method]) == json.loads(json.dumps(asdict(record)))


def test_finished_cells_are_kept_and_others_are_not(suite, done, tmp_path):
    shelf, _ = done
    shutil.copytree(shelf.folder, tmp_path / "copy")
    copy, problems = Shelf(tmp_path / "copy"), ["denoising", "compressed sensing"]
    assert all(known for _, known in run(suite, problems, [*FEW, "deepinv-ddrm"], PLAN, copy))
    (copy.folder / "records" / "denoising" / "tikhonov.json").unlink()
    known = {record.method: known for record, known in run(suite, ["denoising"], FEW, PLAN, copy)}
    assert [name for name, kept in known.items() if not kept] == ["tikhonov"]
    other = replace(PLAN, seed=1)
    assert not any(known for _, known in run(suite, ["denoising"], ["tikhonov"], other, copy))


def test_failures_are_records_that_say_why(done, suite, tmp_path, monkeypatch):
    _, records = done
    failed = {record.problem: record for record in records if record.method == "deepinv-ddrm"}
    assert failed["denoising"].status == "done"
    assert failed["compressed sensing"].status == "failed"
    assert failed["compressed sensing"].reason.startswith("TypeError: DDRM needs the singular values")

    def breaks(task, models, samples, seed, settings):
        x = torch.full((samples, len(task.y), *task.shape), 0.5)
        return Answer(x[0], x * (torch.nan if float(task.y.sum()) == float(worst.y.sum()) else 1.0))

    worst = Bout.of(suite, "denoising", suite.test(PLAN.images), PLAN)
    worst = replace(worst.task, y=worst.y[1:2])
    monkeypatch.setitem(METHODS, "breaks", Method("posterior", breaks, "paper", "none"))
    (record, _), *_ = run(suite, ["denoising"], ["breaks"], PLAN, Shelf(tmp_path))
    assert (record.status, record.failures) == ("done", 1)
    assert record.figures["crps"][1] is None
    assert record.figures["crps"][0] is not None
    line = table_of("denoising", [record]).lines[0]
    assert (line.entries, line.failures) == ({}, 1)
    assert "no finite answer for 1 images" in markdown([table_of("denoising", [record])])


def test_a_package_that_is_missing_is_a_reason(suite, tmp_path, monkeypatch):
    known = bench_runner._version
    monkeypatch.setattr(bench_runner, "_version", lambda name: "not installed" if name == "azula" else known(name))
    (record, _), *_ = run(suite, ["denoising"], ["azula-dps"], PLAN, Shelf(tmp_path))
    assert (record.status, record.reason) == ("failed", "azula is not installed: pip install 'emprior[bench]'")


def test_images_do_not_change_with_their_number(suite, done, tmp_path):
    r"""Images are given one by one, so that more of them change nothing of the first."""
    _, records = done
    first = {record.method: record for record in records if record.problem == "denoising"}
    few = replace(PLAN, images=2)
    for record, _ in run(suite, ["denoising"], FEW, few, Shelf(tmp_path)):
        for name, values in record.figures.items():
            assert values == first[record.method].figures[name][:2], (record.method, name)


def test_figures_of_exact_draws(suite):
    r"""Draws of the posterior itself: coverage, spread over error, residual and the rest are what they should be."""
    bout = Bout.of(suite, "denoising", suite.test(60), replace(PLAN, images=60))
    draws = bout.law.sample(24, seed=5).float()
    found = figures(Answer.drawn(draws.flatten(0, 1), 24), bout.x, bout.task, bout.law)

    def near(name, value):
        rows = found[name]
        assert abs(float(rows.mean()) - value) < 4 * float(rows.std() / len(rows) ** 0.5), name

    near("coverage_50", 0.5)
    near("coverage_90", 0.9)
    near("residual_sample", 1.0)
    found["excess"] = found["variance"] - found["square_error"]
    near("excess", 0.0)
    found["mean_error"], found["std_ratio"] = found["mean_error"].square(), found["std_ratio"].square()
    near("mean_error", 1 / 24)
    near("std_ratio", 1.0)
    near("distance", 1.0)
    assert float(found["psnr"].mean()) > float(found["psnr_sample"].mean()) + 2


def test_figures_by_hand():
    x = torch.zeros(1, 1, 1, 4)
    draws = torch.tensor([1.0, 2.0, 4.0])[:, None, None, None, None].expand(3, 1, 1, 1, 4) / 10
    task = Task(fields.make_operator("denoising", 8), x, 0.5, (1, 1, 4))
    found = figures(Answer.drawn(draws.flatten(0, 1), 3), x, task)
    torch.testing.assert_close(found["crps"], crps(draws, x).double())
    assert float(found["energy_score"]) == pytest.approx(0.7 / 3 - (0.1 + 0.3 + 0.2) / 6)
    assert float(found["diversity"]) == pytest.approx(((0.01 + 0.09 + 0.04) / 3) ** 0.5)
    assert float(found["residual"]) == pytest.approx(0.7 / 3 / 0.5)
    assert float(found["variance"]) == pytest.approx(0.07 / 3 * 4 / 3)
    assert float(summary("spread_skill", found)) == pytest.approx((0.07 / 3 * 4 / 3) ** 0.5 / (0.7 / 3), rel=1e-5)
    assert "ssim" not in found


def made(method, psnrs, kind="posterior", problem="p", **changes):
    r"""A record of given PSNRs, and of coverage that is right on average."""
    rows = {"psnr": list(psnrs), "variance": [1.0] * len(psnrs), "square_error": [4.0] * len(psnrs)}
    plan = {"images": len(psnrs), "samples": 2, "seed": 0, "budget": None, "tune": 0, "batch": 1, "validation": 2}
    facts = [{"role": "prior", "name": "n", "parameters": 1, "images_seen": 2, "sha256": ""}]
    record = Record("", "gaussian", problem, method, kind, "s", "r", {"a": 1.0}, plan, facts, "done", figures=rows)
    return replace(record, **changes)


def test_intervals_and_ties():
    r"""Better on every image is best, however wide the intervals; better by luck is a tie."""
    base = [20.0, 30.0, 25.0, 35.0, 22.0, 28.0]
    worse = [value - 0.1 for value in base]
    noisy = [value + shift for value, shift in zip(base, (1, -1, 1, -1, 1, -1.2), strict=True)]
    table = table_of("p", [made("a", base), made("b", worse), made("c", noisy), made("d", worse, "point")])
    entries = {line.method: line.entries["psnr"] for line in table.lines}
    assert {name: entry.best for name, entry in entries.items()} == {"a": True, "b": False, "c": True, "d": True}
    assert entries["a"].value == pytest.approx(160 / 6)
    normal = 1.96 * float(torch.tensor(base).std(correction=0)) / 6**0.5
    assert (entries["a"].high - entries["a"].low) / 2 == pytest.approx(normal, rel=0.1)
    assert table.lines[0].entries["spread_skill"].value == pytest.approx(0.5)
    assert [line.method for line in table.lines] == ["a", "c", "b", "d"]


@pytest.mark.parametrize(("count", "proves"), [(1, False), (5, False), (6, True)])
def test_few_images_prove_nothing(count, proves):
    table = table_of("p", [made("a", [20.0] * count), made("b", [10.0] * count)])
    assert [line.entries["psnr"].best for line in table.lines] == [proves, False]


def test_means_over_problems_are_of_methods_that_finished_all():
    one, two = made("a", [20.0, 30.0]), made("a", [10.0, 40.0], problem="q")
    short = made("b", [50.0, 50.0]), made("b", [], problem="q", status="failed", reason="why", figures={})
    every, *rest = tables([one, two, *short])
    assert [table.title for table in rest] == ["p", "q"]
    lines = {line.method: line for line in every.lines}
    assert lines["a"].entries["psnr"].value == pytest.approx(25.0)
    assert lines["b"].reason == "finished 1 of 2 problems"
    assert "failed: why" in markdown(rest)


def test_files_hold_what_the_records_do(done):
    _, records = done
    rows = list(csv.DictReader(io.StringIO(csv_of(tables(records)))))
    cell = next(r for r in rows if (r["problem"], r["method"], r["figure"]) == ("denoising", "tikhonov", "psnr"))
    record = next(r for r in records if (r.problem, r.method) == ("denoising", "tikhonov"))
    assert float(cell["value"]) == pytest.approx(sum(record.figures["psnr"]) / 3, rel=1e-4)
    text = markdown(tables(records))
    assert text.count("\n### ") + text.startswith("### ") == 3
    assert all(re.search(rf"^\| {name} ", text, re.M) for name in FEW)
    for table in text.split("###")[1:]:
        widths = {line.count(" | ") for line in table.splitlines() if line.startswith("|")}
        assert len(widths) == 1


def test_standings_count_the_best_of_each_problem():
    good, bad = [20.0] * 6, [10.0] * 6
    records = [made("a", good), made("b", bad), made("a", bad, problem="q"), made("b", good, problem="q")]
    records += [made("a", good, problem="r"), made("b", bad, problem="r"), made("c", bad, "point")]
    counts = {method: tally["psnr"] for method, tally in standings(tables(records))}
    assert counts == {"a": 2, "b": 1, "c": 1}
    assert standings(tables([made("a", [20.0])])) == []


def test_the_front_of_quality_and_cost():
    lines = [
        Line(name, "posterior", {"psnr": Entry(value, 0, 0)}, evaluations=cost)
        for name, cost, value in (("a", 10, 20.0), ("b", 10, 21.0), ("c", 30, 20.5), ("d", 50, 25.0), ("e", 60, 25.0))
    ]
    assert [line.method for line in pareto(lines)] == ["b", "d"]


def test_the_page_stands_alone(done):
    shelf, records = done
    text = page(shelf, records)
    assert not re.search(r"(src|href)=[\"'](?!data:)", text)
    assert "http" not in re.sub(r"https?://(arxiv|doi|openreview)\.org/\S+|http://www\.w3\.org", "", text)
    assert all(record.method in text for record in records)
    assert "DDRM needs the singular values" in text
    warned = [replace(record, reason=f"not good: {record.method}") for record in records]
    assert "tikhonov says of its worst image: not good: tikhonov" in page(shelf, warned)
    assert command(records).startswith("emprior bench --suite gaussian --images 3 --samples 4")


def test_the_command_names_what_is_not_usual():
    record = made("tikhonov", [1.0], problem="blur")
    facts = [{"role": role, "name": "mnist"} for role in ("prior", "denoiser")]
    record = replace(record, suite="cifar10", models=facts)
    assert " --data TEST_IMAGES --prior mnist --denoiser mnist --problems blur " in command([record])
    usual = [{"role": role, "name": name} for role, name in (("prior", "cifar10"), ("denoiser", "cifar10-denoiser"))]
    bundled = [replace(record, problem=name, models=usual) for name in problems_of("cifar10")]
    assert command(bundled).endswith(" --data TEST_IMAGES --methods tikhonov --out report")


def test_a_report_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="there are no records in"):
        report(tmp_path)


def test_a_damaged_record_says_what_to_do(tmp_path):
    file = tmp_path / "records" / "p" / "a.json"
    file.parent.mkdir(parents=True)
    file.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.json is no record: .* Remove it, and the cell is run again"):
        list(Shelf(tmp_path).all())


def test_as_many_trials_for_every_method():
    for name, method in METHODS.items():
        found = trials(method, 7)
        assert len(found) == (7 if method.ranges else 1), name
        assert found[0] == dict(method.settings)
        for settings in found:
            assert all(low <= settings[key] <= high for key, (low, high) in method.ranges.items())
            assert {key for key in settings if settings[key] != method.settings[key]} <= set(method.ranges)


def test_halton_by_hand():
    assert [halton(index, 2) for index in range(1, 5)] == [0.5, 0.25, 0.75, 0.125]
    assert halton(5, 3) == pytest.approx(2 / 3 + 1 / 9)


def test_tuning_takes_the_best_of_its_trials(suite, tmp_path):
    lines, plan = [], replace(PLAN, tune=5)
    choose = tuned(Shelf(tmp_path), lines.append)
    settings = choose(suite, "blur", "tikhonov", plan)
    bout = Bout.of(suite, "blur", suite.validation(2, 3), replace(plan, images=2), stage="validation")

    def score(std):
        answer = METHODS["tikhonov"].run(bout.task, None, 1, 0, {"std": std})
        return float(psnr(answer.estimate, bout.x).mean())

    scores = {trial["std"]: score(trial["std"]) for trial in trials(METHODS["tikhonov"], 5)}
    assert settings["std"] == max(scores, key=scores.get)
    assert lines == [f"  tuned tikhonov on blur: 5 trials, std {settings['std']:.4g}"]


def test_validation_images_are_none_of_the_tested(suite):
    test, validation = suite.test(8), suite.validation(8, 8)
    assert (test[:, None] - validation[None]).flatten(2).abs().amax(2).min() > 0


def test_suites_say_what_they_lack():
    with pytest.raises(ValueError, match=r"suite 'cifar10' needs test images, .* --data"):
        load_suite("cifar10", Sources())
    with pytest.raises(ValueError, match=r"unknown suite 'cifar'. Did you mean 'cifar10'"):
        load_suite("cifar", Sources())


def test_the_learned_suite(tmp_path):
    r"""Its networks are in the records, and its images those of the stack, validation from its end."""
    stack = (np.random.default_rng(0).random((5, 32, 32, 3)) * 255).astype(np.uint8)
    np.save(tmp_path / "x.npy", stack)
    suite = load_suite("cifar10", Sources(str(tmp_path / "x.npy")))
    assert [fact["role"] for fact in suite.facts] == ["prior", "denoiser"]
    assert all(fact["parameters"] > 1e6 and fact["images_seen"] > 0 for fact in suite.facts)
    images = torch.from_numpy(stack).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(suite.test(2), images[:2])
    torch.testing.assert_close(suite.validation(3, 2), images[2:])
    with pytest.raises(ValueError, match="holds 5 images, but 6 are asked for"):
        suite.validation(3, 3)
    plan = Plan(images=1, samples=1, budget=2)
    (record, _), *_ = run(suite, ["cifar10/inpainting"], ["pnp-pgd"], plan, Shelf(tmp_path / "out"))
    assert (record.status, record.evaluations, record.derivatives) == ("done", 2, 0)
    assert [fact["name"] for fact in record.models] == ["cifar10", "cifar10-denoiser"]


def test_a_prior_with_another_card_is_run_again(suite, tmp_path):
    r"""Cards tell temperature and settings, on which figures depend, apart from the weights."""
    facts = []
    for epsilon in (0.01, 0.02, 0.01):
        folder = shutil.copytree(find_prior("mnist"), tmp_path / "mnist", dirs_exist_ok=True)
        tree = yaml.safe_load((folder / "card.yaml").read_text())
        tree["density"]["epsilon"] = epsilon
        (folder / "card.yaml").write_text(yaml.safe_dump(tree))
        facts.append(_facts("prior", str(folder), load_prior(folder)))
    assert len({fact["sha256"] for fact in facts}) == 1
    bouts = [Bout.of(replace(suite, facts=[fact]), "denoising", suite.test(2), PLAN) for fact in facts]
    first, other, again = (cell_key(bout, "ddnm", {}) for bout in bouts)
    assert first == again != other


def test_figures_know_their_parts():
    assert parts("spread_skill") == ("variance", "square_error")
    assert parts("psnr") == ("psnr",)
    assert set(FIGURES) >= {"psnr", "crps", "coverage_90"}
    assert bench_runner.PACKAGES[0] == "emprior"


@pytest.mark.slow
def test_the_page_in_a_browser(done, tmp_path):
    r"""Nothing is logged to its console, and each image has a size."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no Chromium on this machine")
    shelf, records = done
    check = (
        "<script>window.addEventListener('load', () => { const bad = [...document.images].filter(i => "
        "{ i.loading = 'eager'; return !i.complete || !i.naturalWidth }); document.title = 'broken ' + bad.length + "
        "' of ' + document.images.length })</script></body>"
    )
    text = page(shelf, records).replace(' loading="lazy"', "").replace("</body>", check)
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom",
         f"file://{tmp_path / 'page.html'}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    broken, images = re.search(r"<title>broken (\d+) of (\d+)</title>", done.stdout).groups()
    assert (int(broken), int(images) > 20) == (0, True)
    assert "CONSOLE" not in done.stderr
