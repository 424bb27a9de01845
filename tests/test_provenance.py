from __future__ import annotations

import datetime

import torch

from emprior.train.provenance import circumstances, origin


def test_a_card_says_where_how_long_with_what_and_when():
    start = origin(torch.device("cpu"), processes=2) | {"images": 64}
    before = datetime.datetime.now(datetime.UTC).date()
    entries = circumstances(start, {"seconds": 12.3456})
    after = datetime.datetime.now(datetime.UTC).date()
    assert list(entries) == ["hardware", "seconds", "revision", "torch", "date"]
    assert entries["hardware"].startswith("2 x ")
    assert entries["hardware"].endswith(("thread", "threads"))
    assert entries["seconds"] == 12.3
    assert entries["torch"] == torch.__version__
    assert type(entries["torch"]) is str  # YAML cannot write a version
    assert before <= datetime.date.fromisoformat(entries["date"]) <= after


def test_what_the_start_said_is_kept():
    start = {"hardware": "a cluster", "revision": "abc", "torch": "2.0"}
    entries = circumstances(start, {"cpu_seconds": 1.0})
    assert {name: entries[name] for name in start} == start
    assert entries["cpu_seconds"] == 1.0
