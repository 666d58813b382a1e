"""Claims: one owner a cell, alive or recognised as gone."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

from itrd.bench.cells import Cell
from itrd.bench.claims import Claims

CELL = Cell("t", None, "resnet8", "none", 0)


def claim_file(root: Path) -> Path:
    return root / "t" / ".claims" / f"{CELL.name}.json"


def test_one_owner(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    claim = claims.take(CELL)
    assert claim is not None
    assert claims.take(CELL) is None
    assert claims.is_taken(CELL)
    assert claim.touch()
    claim.release()
    assert not claims.is_taken(CELL)
    assert claims.take(CELL) is not None


def test_a_dead_process_loses_its_claim(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from itrd.bench.claims import Claims\n"
        "from itrd.bench.cells import Cell\n"
        f"assert Claims(Path({str(tmp_path)!r})).take(Cell('t', None, 'resnet8', 'none', 0))\n"
        "os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert claim_file(tmp_path).exists()
    claims = Claims(tmp_path)
    assert not claims.is_taken(CELL)
    assert claims.take(CELL) is not None


def test_a_reused_process_id_is_not_the_owner(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    assert claims.take(CELL) is not None
    owner = json.loads(claim_file(tmp_path).read_text())
    assert owner["pid"] == os.getpid()
    claim_file(tmp_path).write_text(json.dumps({**owner, "started": "1"}))
    assert claims.take(CELL) is not None


def test_another_machine_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    claims = Claims(tmp_path, stale_after=60)
    mine = claims.take(CELL)
    assert mine is not None
    path = claim_file(tmp_path)
    owner = json.loads(path.read_text())
    path.write_text(json.dumps({**owner, "host": "elsewhere", "token": "theirs"}))
    assert claims.take(CELL) is None
    long_ago = path.stat().st_mtime - 61
    os.utime(path, (long_ago, long_ago))
    taken = claims.take(CELL)
    assert taken is not None
    assert not mine.touch()  # the owner that was away learns that it lost the cell
    mine.release()  # and does not take it from the new owner
    assert claims.is_taken(CELL)


def test_a_torn_claim_is_not_taken_over_at_once(tmp_path: Path) -> None:
    claims = Claims(tmp_path, stale_after=60)
    path = claim_file(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text('{"host": "el')
    assert claims.take(CELL) is None
    os.utime(path, (0, 0))
    assert claims.take(CELL) is not None


def _race(root: Path, barrier: object, wins: object) -> None:
    claims = Claims(root)
    barrier.wait()  # type: ignore[attr-defined]
    if claims.take(CELL) is not None:
        wins.put(os.getpid())  # type: ignore[attr-defined]
    barrier.wait()  # type: ignore[attr-defined]  # nobody ends, and so looks dead, before all have tried


def test_of_many_that_see_a_stale_claim_one_gets_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    path = claim_file(tmp_path)
    path.parent.mkdir(parents=True)
    for _ in range(5):
        path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1", "token": "x"}))
        os.utime(path, (0, 0))
        barrier, wins = context.Barrier(6), context.Queue()
        racers = [context.Process(target=_race, args=(tmp_path, barrier, wins)) for _ in range(6)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join(60)
        assert wins.get(timeout=10)
        assert wins.empty()
