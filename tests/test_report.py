r"""Reports: what they show is right, what they cannot show they say, and they stand alone."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from batching import QUICK, measured, read_all, write_items
from conftest import SHAPE, make_operator

import emprior
from emprior.batch import reconstruct_many
from emprior.cli import main
from emprior.monitor import RECORDS, Monitor
from emprior.report import batch as index
from emprior.report import page, snippet
from emprior.report.batch import Survey, write_index
from emprior.report.figures import MINUS, SIGMA
from emprior.report.graph import Curve, graph
from emprior.report.pictures import _shrunk, strip
from emprior.report.reproduce import command
from emprior.report.residual import residuals
from emprior.report.stored import Stored
from emprior.report.view import LEVELS, View, views
from emprior.result import Diagnostics, Result, Status
from emprior.sketch import Sketch

VERDICT = "not trustworthy: R-hat of energy is 1.20, above 1.05: the chains disagree; take more steps"


def make(images=2, shape=(3, 8, 8), sampler=True, verdict=VERDICT, config=None, chains=4, draws=40):
    rng = torch.Generator().manual_seed(0)
    samples = torch.rand(chains, images, *shape, generator=rng)
    trace = {name: torch.randn(12, chains, images, generator=rng) for name in ("energy", "fidelity", "prior")}
    ran = {"draw": torch.arange(1, draws + 1), "energy": torch.randn(draws, chains, generator=rng)}
    run = Diagnostics(
        (Status.SAMPLED,) * images,
        {"step": torch.arange(12), **trace},
        torch.full((images,), 1.02),
        rhat=torch.full((images,), 1.2) if sampler else None,
        ess=torch.full((images,), 30.0) if sampler else None,
        verdict=(verdict,) * images if sampler else (),
        chains=(ran,) * images if sampler else (),
        gradient_evaluations=1234,
        seconds=1.5,
    )
    mean = samples.mean(0)
    sketches = tuple(Sketch() for _ in range(images)) if sampler else ()
    for image, sketch in enumerate(sketches):
        sketch.add(samples[:, image : image + 1])
    config = {"method": "mala", "prior": "field"} if config is None else config
    return Result(mean, samples, mean, samples.std(0) if sampler else None, run, Status.SAMPLED, config, mean, sketches)


class Parts(HTMLParser):
    r"""The tags of a page, the addresses it asks for, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.sources, self.words = [], [], [], []
        self.unseen = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given, self.unseen = dict(attributes), tag in ("style", "script")
        self.tags.append(tag)
        self.sources += [given["src"]] if "src" in given else []
        self.links += [given["href"]] if "href" in given else []

    def handle_endtag(self, tag):
        self.unseen = self.unseen and tag not in ("style", "script")

    def handle_data(self, data):
        if not self.unseen:
            self.words.append(data.strip())

    @property
    def text(self):
        return " ".join(filter(None, self.words))


def read(path):
    return Parts(path.read_text(encoding="utf-8"))


def alone(parts):
    r"""Whether a page asks for nothing but what it holds and places in itself."""
    return all(source.startswith("data:image/png;base64,") for source in parts.sources) and all(
        link.startswith(("data:", "#")) for link in parts.links
    )


# what is shown is right


@pytest.mark.parametrize("narrow", [1.0, 0.5])
def test_calibration_is_that_of_the_law(narrow):
    r"""Of N(0, s²) samples and N(0, 1) truths, a share 2 Φ(s z) - 1 lies in the interval of level 2 Φ(z) - 1."""
    rng = torch.Generator().manual_seed(1)
    samples = narrow * torch.randn(600, 1, 1, 64, 64, generator=rng, dtype=torch.float64)
    truth = torch.randn(1, 1, 64, 64, generator=rng, dtype=torch.float64)
    sketch = Sketch(600)
    sketch.add(samples)
    run = Diagnostics((Status.SAMPLED,), {}, torch.ones(1))
    result = Result(
        samples.mean(0), samples, samples.mean(0), samples.std(0), run, Status.SAMPLED, {}, sketches=(sketch,)
    )
    (view,) = views(result, truth)
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = 2 * normal.cdf(narrow * normal.icdf((1 + LEVELS) / 2)) - 1
    error = (expected * (1 - expected) / truth.numel()).sqrt()
    assert ((view.shares - expected).abs() / error).max() < 4
    assert view.figures["coverage"] == pytest.approx(float(view.shares[17]))
    assert float(LEVELS[17]) == pytest.approx(0.9)


@pytest.mark.parametrize("sigma", [0.05, [0.05, 0.1]])
def test_residuals_are_the_noise_at_the_truth(field, sigma):
    operator = make_operator("inpainting")
    x, white = field.sample(2, seed=0), torch.randn(2, *SHAPE, dtype=torch.float64)
    level = torch.as_tensor(sigma, dtype=torch.float64).expand(2)
    seen = operator.A(torch.ones_like(x)) != 0
    y = operator.A(x) + level[:, None, None, None] * white * seen
    noise = [row[mask] for row, mask in zip(white, seen, strict=True)]
    rms = torch.stack([row.square().mean().sqrt() for row in noise])
    result = Result(x, x[None], x, None, Diagnostics((Status.CONVERGED,) * 2, {}, rms), Status.CONVERGED, {}, y)
    result.config["sigma"] = sigma
    for found, row in zip(residuals(result, operator), noise, strict=True):
        torch.testing.assert_close(found, row)
    with pytest.raises(ValueError, match="operator gives other residuals than the run reported"):
        residuals(result, make_operator("blur"))


def test_residuals_in_units_of_the_noise_that_was_found(field):
    operator, x = make_operator("denoising"), field.sample(1, seed=0)
    y = x + 0.1
    run = Diagnostics((Status.MIXED,), {}, torch.tensor([0.5]), sigma=torch.tensor([0.2]))
    result = Result(x, x[None], x, None, run, Status.MIXED, {"sigma": 0.1}, y)
    torch.testing.assert_close(residuals(result, operator)[0], torch.full((64,), 0.5, dtype=torch.float64))


def test_why_there_are_no_residuals(field):
    result = make()
    assert "names no problem" in residuals(result)
    result.config["problem"] = "cifar10/nonsense"
    assert "cifar10/nonsense is not at hand" in residuals(result)
    bare = Result(result.mean, result.samples, result.mean, None, result.diagnostics, Status.SAMPLED, {})
    assert "not kept" in residuals(bare)


def test_the_problem_by_name():
    r"""It is taken if it gives the residuals that the run reported, and not otherwise."""
    problem = emprior.load_problem("cifar10/denoising")
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = problem.measure(x)
    rms = ((y - x) / problem.sigma).square().mean().sqrt()
    config = {"problem": problem.name, "sigma": problem.sigma}
    for reported, known in ((rms, True), (1.1 * rms, False)):
        run = Diagnostics((Status.CONVERGED,), {}, reported[None])
        found = residuals(Result(x, x[None], x, None, run, Status.CONVERGED, config, y))
        assert isinstance(found, list) == known
        assert known or "is not the one of the run" in found


def test_error_and_deviation_are_on_one_scale():
    result, truth = make(1), torch.zeros(1, 3, 8, 8)
    shown = strip(views(result, truth)[0], 64)
    assert [picture.title for picture in shown.pictures if picture.spread] == [
        "standard deviation",
        f"|mean {MINUS} truth|",
    ]
    assert shown.peak == pytest.approx(np.quantile(result.mean[0].double().mean(0), 0.995))
    assert [picture.title for picture in shown.samples] == [f"sample {number}" for number in range(1, 5)]


def test_large_images_are_averaged_down():
    x = torch.zeros(1, 64, 96)
    x[..., 48:] = 1
    small = _shrunk(x, 24)
    assert small.shape == (1, 16, 24)
    np.testing.assert_allclose(small[0, :, [0, 23]].mean(1), [0, 1])
    assert small.mean() == pytest.approx(0.5)


def test_a_curve_is_drawn_to_scale_and_broken_where_it_is_not_finite():
    values = np.array([0.0, 5.0, np.nan, 10.0])
    text = graph([Curve(np.arange(4.0), values, "#000")], ("a", "b"), (0, 3), (0, 10), "title")
    path = re.search(r'<path d="([^"]+)" opacity', text).group(1)
    assert path == "M0.0 172.0L84.7 86.0M254.0 0.0"
    assert re.findall(r'text-anchor="end">([^<]+)<', text) == ["0", "2", "4", "6", "8", "10"]


# the page


def test_every_part_of_a_sampler(tmp_path):
    result = make()
    result.report(tmp_path / "x.html", truth=torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3)))
    parts = read(tmp_path / "x.html")
    assert alone(parts)
    for words in ("measurement", "truth", "estimate (mean)", "standard deviation", f"|mean {MINUS} truth|", "sample 4",
                  "Not trustworthy.", "R-hat of energy is 1.20", "PSNR, dB", "draw after the burn-in", "share inside",
                  "emprior.solve(operator, y, prior='field', method='mala')", "0 of 2 images can be used as they are",
                  "An effective sample size of 30 makes them too short", "no histogram of residuals"):  # fmt: skip
        assert words in parts.text, words
    assert parts.tags.count("details") == 2
    assert {"#image-1", "#image-2"} <= set(parts.links)


def test_a_mode_says_what_it_lacks(tmp_path):
    make(1, sampler=False, chains=1).report(tmp_path / "x.html")
    parts = read(tmp_path / "x.html")
    assert alone(parts)
    for words in ("the method finds a mode, not its width", "The truth is not known", "Posterior energy, in nats"):
        assert words in parts.text
    for words in ("sample 1", "standard deviation and error", "share inside", "details"):
        assert words not in parts.text
    assert "details" not in parts.tags


@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 8), (30,), (5, 2)])
def test_images_signals_and_what_is_neither(tmp_path, shape):
    make(2, shape).report(tmp_path / "x.html", truth=torch.rand(2, *shape))
    parts = read(tmp_path / "x.html")
    assert alone(parts)
    assert parts.tags.count("svg") > 4
    drawn = [source for source in parts.sources if len(source) > 30]
    assert bool(drawn) == (len(shape) > 1)


def test_values_that_are_not_finite(tmp_path):
    result = make()
    for entry in (
        result.estimate,
        result.std,
        result.diagnostics.trace["energy"],
        result.diagnostics.chains[0]["energy"],
    ):
        entry[:] = torch.nan
    result.report(tmp_path / "x.html", truth=torch.rand(2, 3, 8, 8))
    assert alone(read(tmp_path / "x.html"))


def test_what_was_typed_is_not_run():
    view = View("<script>alert(1)</script>", verdict="not trustworthy: <b>", status="&")
    text = page([view], "<img>", {"prior": "<i>"}, {"<u>": "<s>"}, "<tt>")
    assert not {"img", "i", "u", "s", "tt"} & set(Parts(text).tags)
    assert "<script>alert" not in text


def test_sixty_four_images_stay_small(tmp_path):
    result = make(64, (3, 128, 128), chains=2)
    result.report(tmp_path / "x.html")
    assert (tmp_path / "x.html").stat().st_size < 25e6
    assert read(tmp_path / "x.html").tags.count("details") == 64


def test_a_truth_that_does_not_fit():
    with pytest.raises(ValueError, match=r"truth has shape \(3, 8\), but the estimate has shape \(2, 3, 8, 8\)"):
        views(make(), torch.rand(3, 8))


def test_in_a_notebook():
    text = snippet(make(10))
    parts = Parts(text)
    assert alone(parts)
    assert not {"style", "script", "html"} & set(parts.tags)
    assert "R-hat of energy is 1.20" in parts.text
    assert "2 more images" in parts.text
    assert make(1)._repr_html_().count("<img") == 6


def test_commands_say_what_was_run():
    config = {"method": "hmc", "prior": "cifar10", "weight": 1.0, "samples": 4, "sigma": 0.02, "steps": 40, "seed": 3,
              "problem": "cifar10/inpainting", "input": "a b.png", "degrade": True}  # fmt: skip
    words = command(config)
    assert words.startswith("emprior solve --problem cifar10/inpainting --input 'a b.png' --degrade --prior cifar10")
    for part in ("--method hmc", "--sigma 0.02", "--steps 40", "--seed 3"):
        assert part in words


# chains


def test_chains_are_kept_thin_and_saved(tmp_path):
    monitor, values = Monitor(2, target_ess=float("inf")), torch.randn(603, 3, 2)
    for value in values:
        monitor.see(torch.rand(3, 2, 1, 2, 2), {"energy": value, "fidelity": 2 * value, "acceptance": value}, True)
    trace = monitor.close()[1].trace
    assert list(trace) == ["draw", "energy", "fidelity"]
    assert len(trace["draw"]) <= RECORDS
    assert trace["draw"].tolist() == list(range(1, 604, 2))
    torch.testing.assert_close(trace["energy"], values[::2, :, 1])
    result = make()
    result.save(tmp_path / "x")
    for one, other in zip(Result.load(tmp_path / "x").diagnostics.chains, result.diagnostics.chains, strict=True):
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_results_of_before_chains_were_kept(tmp_path):
    make(sampler=False).save(tmp_path / "x")
    header = json.loads((tmp_path / "x/result.json").read_text())
    assert header.pop("chains") == 0
    (tmp_path / "x/result.json").write_text(json.dumps(header))
    assert Result.load(tmp_path / "x").diagnostics.chains == ()


def test_a_run_keeps_its_chains(field):
    operator = make_operator("denoising")
    y = field.sample(2, seed=0)
    result = emprior.solve(operator, y, field, method="mala", samples=3, steps=40, progress=False)
    (first, second) = result.diagnostics.chains
    assert first["energy"].shape == first["fidelity"].shape == (len(first["draw"]), 3)
    assert int(result.diagnostics.draws[0]) == int(first["draw"][-1])
    assert not torch.equal(first["energy"], second["energy"])
    single = emprior.solve(operator, y[1:], field, method="mala", samples=3, steps=40, progress=False)
    torch.testing.assert_close(single.diagnostics.chains[0]["energy"], second["energy"])


def test_another_result_takes_the_report_away(tmp_path):
    make().save(tmp_path / "x")
    for name in ("report.html", "notes.txt"):
        (tmp_path / "x" / name).write_text("of the first")
    make().save(tmp_path / "x")
    assert not (tmp_path / "x/report.html").exists()
    assert (tmp_path / "x/notes.txt").exists()


# the command


def test_solve_and_report(tmp_path, capsys):
    out, file = tmp_path / "x", tmp_path / "solve.html"
    words = ["solve", "--problem", "cifar10/denoising", "--input", "skimage:chelsea", "--degrade", "--steps", "3"]
    assert main([*words, "--out", str(out), "--report", str(file)]) == 0
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "report.html")
    one, other = read(file), read(out / "report.html")
    assert alone(one)
    assert one.text == other.text
    for words in ("truth", "PSNR, dB", "root mean square", "--input skimage:chelsea --degrade"):
        assert words in one.text


def test_what_cannot_be_reported(tmp_path, capsys):
    make(1).save(tmp_path / "x")
    cases = {
        (str(tmp_path / "nothing"),): "there is no folder",
        (str(tmp_path),): "holds neither a result nor a batch",
        (str(tmp_path / "x"), "--items", "3"): "--items is for a batch",
        (str(tmp_path / "x"), "--out", str(tmp_path / "x.pdf")): "a report is written as .html",
        (str(tmp_path / "x"), "--truth", "nothing.npy"): "there is no truth nothing.npy",
    }
    for words, message in cases.items():
        assert main(["report", *words]) == 2
        assert message in capsys.readouterr().err


# batches


@pytest.fixture(scope="module")
def batches(field, tmp_path_factory):
    r"""A batch of seven items, one of them unreadable, in each format."""
    folder = tmp_path_factory.mktemp("batches")
    x, y = measured(field, 7)
    write_items(folder / "y", y)
    write_items(folder / "x", x)
    (folder / "y/i03.npy").write_bytes(b"nothing")
    out = {}
    for name in ("files", "zarr", "hdf5"):
        pytest.importorskip({"files": "numpy", "hdf5": "h5py"}.get(name, name))
        out[name] = folder / name
        reconstruct_many(
            make_operator("blur"), folder / "y", out[name], copy.deepcopy(field).float(), format=name,
            truth=folder / "x", chunk=3, batch=3, save=("estimate", "traces"), **QUICK,
        )  # fmt: skip
    return out


@pytest.mark.parametrize("name", ["files", "zarr", "hdf5"])
def test_items_are_read_as_they_were_written(batches, name):
    stored = Stored.open(batches[name])
    known = read_all(batches["files"])
    rows = list(stored.items())
    assert [place for place, _, _ in rows] == list(range(7))
    for place, item, record in rows:
        view = stored.view(place, item, record)
        assert view.name == item.id == f"i{place:02d}"
        if place == 3:
            assert (view.estimate, view.good) == (None, False)
            assert view.status.startswith("failed: ")
            continue
        np.testing.assert_array_equal(view.estimate, known[item.id])
        assert view.measurement.shape == SHAPE
        assert view.figures["psnr"] == pytest.approx(record["psnr"], abs=1e-3)
        assert view.trace["energy"].shape == (len(view.trace["step"]), 1)
        assert (view.trace["fidelity"] < view.trace["energy"]).all()
        assert view.clock == "step"


def test_the_index_of_a_batch(batches, capsys):
    assert main(["report", str(batches["files"]), "--items", "2"]) == 0
    home = batches["files"] / "report"
    assert capsys.readouterr().out.strip() == str(home / "index.html")
    parts = read(home / "index.html")
    for words in ("of 7 items can be used", "1 failed", "by PSNR, dB", f"by residual, {SIGMA}", "All items"):
        assert words in parts.text
    links = {link for link in parts.links if not link.startswith("data:")}
    assert len(links) == 7
    for link in links:
        inner = read(home / link)
        assert set(inner.links) - {"../index.html"} == {"data:,"}
        assert "← all items" in inner.text
    assert "the plan" not in parts.text


def test_pages_of_a_large_batch(batches, tmp_path, monkeypatch):
    r"""With three items a page, each item stands on one page, and the pages lead to one another."""
    monkeypatch.setattr(index, "ROWS", 3)
    monkeypatch.setattr(index, "WORST", 1)
    write_index(batches["files"], tmp_path / "pages", items=1)
    pages = sorted((tmp_path / "pages").glob("page-*.html"))
    assert len(pages) == 3
    names = [list(dict.fromkeys(re.findall(r"\bi0\d\b", read(page).text))) for page in pages]
    assert names == [["i00", "i01", "i02"], ["i03", "i04", "i05"], ["i06"]]
    assert {"page-0001.html", "page-0003.html"} <= set(read(pages[1]).links)
    links = set(read(tmp_path / "pages/index.html").links)
    assert {page.name for page in pages} <= links
    assert "items/0000003.html" in links


def test_a_batch_that_is_not_finished(batches, tmp_path):
    r"""Records of some chunks alone are matched to their items."""
    out = tmp_path / "part"
    shutil.copytree(batches["files"], out)
    lines = (out / "records.jsonl").read_text().splitlines(True)
    (out / "records.jsonl").write_text("".join(lines[3:]))
    assert [place for place, _, _ in Stored.open(out).items()] == [3, 4, 5, 6]
    assert "3 are not done" in read(write_index(out)).text
    (out / "records.jsonl").write_text(lines[4] + lines[1])
    with pytest.raises(ValueError, match="names 'i01', which is none of the items or out of their order"):
        list(Stored.open(out).items())
    (out / "records.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"no item in .* is finished"):
        write_index(out)


def test_a_survey_by_hand(monkeypatch):
    monkeypatch.setattr(index, "WORST", 2)
    survey = Survey()
    records = [
        {"status": "mixed", "residual": 1.0, "psnr": 30.0},
        {"status": "failed", "reason": "no"},
        {"status": "mixed", "residual": 3.0, "verdict": "not trustworthy: no"},
        {"status": "mixed", "residual": 2.0, "psnr": 20.0},
    ]
    for record in records:
        survey.add(record)
    assert (survey.usable, dict(survey.statuses)) == (2, {"mixed": 3, "failed": 1})
    assert survey.worst() == {"failed": [1], "psnr": [3, 0], "residual": [2, 3]}
    assert survey.quantiles() == [("psnr", [20.5, 25.0, 29.5, 25.0]), ("residual", pytest.approx([1.1, 2.0, 2.9, 2.0]))]


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_in_a_browser(batches, tmp_path, width):
    r"""Nothing is logged to the console, each image has a size, nothing overflows, and a click sorts."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no Chromium on this machine")
    check = (
        "<script>addEventListener('load', () => { const bad = [...document.images].filter(i => !i.naturalWidth).length;"
        "const wide = document.documentElement.scrollWidth - innerWidth;"
        "const table = document.querySelector('table.sortable'); let sorted = ''; if (table) {"
        "table.tHead.rows[0].cells[2].click();"
        "sorted = [...table.tBodies[0].rows].map(row => row.cells[0].textContent.trim()).join() }"
        "document.title = JSON.stringify([bad, document.images.length, wide, sorted]) })"
        "</script></body>"
    )
    make(3).report(tmp_path / "result.html", truth=torch.rand(3, 3, 8, 8))
    write_index(batches["files"], tmp_path / "index")
    scores = [json.loads(line) for line in (batches["files"] / "records.jsonl").read_text().splitlines()]
    ranked = sorted((r for r in scores if "psnr" in r), key=lambda r: r["psnr"])
    files = {tmp_path / "result.html": None, tmp_path / "index/items/0000000.html": ""}
    files[tmp_path / "index/index.html"] = ",".join(r["id"] for r in ranked) + ",i03"
    for file, expected in files.items():
        (tmp_path / "page.html").write_text(file.read_text().replace("</body>", check))
        done = subprocess.run(
            [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
             f"--window-size={width},900", "--dump-dom", f"file://{tmp_path / 'page.html'}"],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        title = re.search(r"<title>(.*?)</title>", done.stdout).group(1).replace("&quot;", '"')
        bad, images, wide, order = json.loads(title)
        assert (bad, images > 2, wide <= 0) == (0, True, True), file
        assert expected is None or order == expected
        assert "CONSOLE" not in done.stderr
