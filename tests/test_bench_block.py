r"""Results in a Markdown file, from closed records to the exact text."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_bench_report import made

from emprior.bench import report
from emprior.bench.block import block, complete, put, span
from emprior.bench.records import Shelf

RUN = {"date": "2026-11-22 07:05 UTC", "revision": "0123456789abcdef", "seconds": 2.0}
START, END = "<!-- bench: gaussian -->", "<!-- /bench -->"


def record(method, level, kind="posterior", problem="p", seconds=2.0, **changes):
    r"""A record of six images of one PSNR, so that its interval has no width."""
    made_of = made(method, [level] * 6, kind, problem)
    figures = made_of.figures if kind != "posterior" else {**made_of.figures, "crps": [0.01] * 6}
    run = {**RUN, "seconds": seconds}
    return replace(made_of, **{"figures": figures, "evaluations": 24.0, "run": run, **changes})


def records():
    out = []
    for problem, gain in (("p", 0.0), ("q", 2.0)):
        out += [record("emprior-posterior", 25 + gain, problem=problem)]
        out += [record("rival", 26 - gain, problem=problem, seconds=0.01)]
        out += [record(f"other-{n}", 10.0 + n, "classical", problem, seconds=400.0) for n in range(3)]
    return [*out, record("emprior-posterior", 99.0, problem="begun")]


TEXT = """\
Suite gaussian, 2026-11-22, revision 0123456789ab: 6 images, 2 samples of each. Means over 2 problems of 3 begun that \
all 5 methods were run on.

- prior: n, 1 parameters, 2 images seen in training

| method | PSNR | CRPS | best in PSNR | evaluations | seconds, emprior-posterior = 1 |
| --- | --- | --- | --- | --- | --- |
| *samplers of the posterior* |  |  |  |  |  |
| emprior-posterior | **26.00 ± 0.00** | **0.0100** | 1 of 2 | 24 | 1 |
| rival | 25.00 ± 0.00 | **0.0100** | 1 of 2 | 24 | 0.005 |
| *without a network* |  |  |  |  |  |
| other-2 | **12.00 ± 0.00** |  | 2 of 2 | 24 | 200 |
| other-1 | 11.00 ± 0.00 |  | 0 of 2 | 24 | 200 |
| other-0 | 10.00 ± 0.00 |  | 0 of 2 | 24 | 200 |

PSNR ± half of its 95 % bootstrap interval, in dB. Bold is the best of its kind, and what is no worse beyond chance; \
*best in PSNR* counts the problems where a method is among these. Evaluations are of a network, for an image.

| PSNR | emprior-posterior | rival | other-2 | other-1 |
| --- | --- | --- | --- | --- |
| p | 25.00 | **26.00** | **12.00** | 11.00 |
| q | **27.00** | 24.00 | **12.00** | 11.00 |

```console
$ emprior bench --suite gaussian
```
"""


def test_the_text_of_closed_records():
    r"""A problem that one method has only begun counts nowhere; what is best is so of its kind."""
    assert block(records(), "emprior bench --suite gaussian") == TEXT


def test_failures_are_in_the_text_and_lpips_where_it_is_measured():
    broken = record("broken", 30.0), record("broken", 0.0, problem="q", status="failed", reason="why", figures={})
    one = record("emprior-posterior", 20.0), record("emprior-posterior", 22.0, problem="q")
    one = [replace(part, figures={**part.figures, "lpips": [0.25] * 6}) for part in one]
    text = block([*one, *broken], "")
    assert "| emprior-posterior | **21.00 ± 0.00** | **0.250** | **0.0100** | 1 of 2 | 24 | 1 |" in text
    assert "| broken | finished 1 of 2 problems |  |  | 1 of 2 |  |  |" in text
    assert "| PSNR | emprior-posterior |\n" in text
    alone = block([replace(one[0], status="failed", reason="why", figures={})], "")
    assert "| method | PSNR | best in PSNR | evaluations | seconds |" in alone
    assert "| emprior-posterior | why | 0 of 1 |  |  |" in alone
    assert "| p | failed |" in alone


def test_of_few_images_none_is_marked():
    few = [made(method, [20.0, 21.0]) for method in ("a", "b")]
    text = block(few, "")
    assert "**" not in text
    assert "best in PSNR" not in text
    assert "Of fewer than 6 images nothing is marked best" in text


def test_no_problem_is_complete():
    with pytest.raises(ValueError, match=r"no problem has records of all 2 methods; 'p' lacks b. Run the same methods"):
        complete([made("a", [1.0]), made("b", [1.0], problem="q")])


@pytest.fixture
def finished(tmp_path):
    shelf = Shelf(tmp_path / "report")
    for entry in records():
        shelf.keep(entry)
    return shelf.folder


def test_a_file_is_changed_between_its_marks_alone_and_once(finished, tmp_path):
    file = tmp_path / "README.md"
    before, after = "# Title\r\n\r\nUmlaut: \u00e4\n", f"\n\n<!-- bench: mixture -->\nold{END}\nend"
    file.write_bytes(f"{before}{START}\nold{END}{after}".encode())
    paths = report(finished, file)
    first = file.read_bytes().decode()
    assert paths[-1] == file
    assert first.startswith(f"{before}{START}\n\nSuite gaussian, 2026-11-22, revision 0123456789ab: 6 images")
    assert first.endswith(
        f"--methods emprior-posterior other-0 other-1 other-2 rival --out report\n```\n\n{END}{after}"
    )
    assert first.count("| p | 25.00 | **26.00** |") == 1
    report(finished, file)
    assert file.read_bytes().decode() == first
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["README.md"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# Title\n", f"has no line {START}, expected one. Put these two lines where .*: {START} and {END}"),
        (f"{START}{END}{START}{END}", f"has 2 lines {START}, expected one"),
        (f"{END}\n{START}\n", f"has {START}, but no {END} belongs to it"),
        (f"{START}\n<!-- bench: mixture -->\n{END}\n", f"has {START}, but no {END} belongs to it"),
        (None, "there is no file .*README.md. Make it, a Markdown file"),
    ],
)
def test_a_file_without_a_place(tmp_path, content, message):
    file = tmp_path / "README.md"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        put(file, "text", "gaussian")
    assert content is None or file.read_text() == content


def test_the_place_in_bytes(tmp_path):
    file = tmp_path / "README.md"
    file.write_text(f"\u00e4{START}old{END}", encoding="utf-8")
    first, last = span(file, "gaussian")
    assert file.read_bytes()[first:last] == b"old"
