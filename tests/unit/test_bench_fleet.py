"""Several runners: one report of all."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

import synthetic_ledger as synthetic
from itrd.bench.cells import Cell
from itrd.bench.fleet import _merged, _outcome
from itrd.bench.runner import Options, Report
from itrd.bench.tracks import load_track
from itrd.errors import ItrdError

SMOKE = load_track("smoke")
ONE, TWO, THREE = (Cell("smoke", None, "resnet8", "none", seed) for seed in range(3))


def test_what_another_runner_finished_is_neither_failed_nor_left(tmp_path: Path) -> None:
    for cell in (ONE, TWO):
        synthetic.write(tmp_path, cell, synthetic.record(cell, 12, protocol="custom"))
    reports = [
        Report(done=[ONE], failed={TWO: "out of memory", THREE: "out of memory"}, left=40),
        Report(done=[TWO], skipped={ONE: "no teacher", THREE: "another runner has it"}, left=50),
    ]
    total = _merged(SMOKE, [ONE, TWO, THREE], Options(results=tmp_path), reports)
    assert total.done == [ONE, TWO]
    assert total.failed == {THREE: "out of memory"}
    assert total.skipped == {}
    assert total.left == 1


def test_a_runner_without_a_report_is_a_failure(tmp_path: Path) -> None:
    mine, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("spawn").Process(target=os._exit, args=(9,))
    child.start()
    theirs.close()
    died = _outcome(child, mine)
    with pytest.raises(
        ItrdError, match=r"1 of 2 runners failed: .*without a report.* \(0 cells done, 3 left\)"
    ):
        _merged(SMOKE, [ONE, TWO, THREE], Options(results=tmp_path), [died, Report()])
