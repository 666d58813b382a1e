"""Statistics, page data and Markdown: what the ledger says, and nothing a record could smuggle in."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
from scipy import stats as reference

import synthetic_ledger as synthetic
from itrd.bench.cells import Cell, cells_of
from itrd.bench.choices import choice_table
from itrd.bench.ledger import Ledger
from itrd.bench.pagedata import packed, page_data
from itrd.bench.report import embedded, write_report
from itrd.bench.summary import TrackSummary, summaries, title_of
from itrd.bench.tables import difference, escape, hundredths, measured_table, published_table, track_tables
from itrd.bench.tracks import list_tracks, load_track
from itrd.catalogue.overhead import cost_in_words, measurements
from itrd.cli import main
from itrd.methods import METHODS
from itrd.recipes import Pair
from itrd.stats import compare

PAIR = Pair("resnet56", "resnet20")
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(1)">|`*\u2028&amp;'


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def ledger_with(root: Path, *cells: Cell) -> Ledger:
    for cell in cells:
        synthetic.write(root, cell, synthetic.record(cell, 240))
    return Ledger(root)


def put(root: Path, method: str, seed: int, last: float, best: float) -> None:
    """A record with the accuracies that a test needs."""
    teacher = None if method in ("none", "teacher") else PAIR.teacher
    cell = Cell("protocol", teacher, PAIR.teacher if method == "teacher" else PAIR.student, method, seed)
    record = synthetic.record(cell, 240)
    top1 = [50.0] * 238 + [best, last]
    record["curve"]["test"]["top1"] = top1
    record["last"]["test"]["top1"], record["best"]["test"]["top1"] = last, best
    record["best"]["epoch"] = 239
    synthetic.write(root, cell, record)


def test_differences_are_those_of_t_tests() -> None:
    a, b = {0: 70.1, 1: 70.4, 2: 70.2}, {0: 69.0, 1: 69.6, 2: 69.2, 7: 10.0}
    paired = compare(a, b)
    assert paired is not None
    expected = reference.ttest_rel([70.1, 70.4, 70.2], [69.0, 69.6, 69.2])
    interval = expected.confidence_interval()
    assert (paired.n, paired.paired) == (3, True)
    assert (paired.p, paired.low, paired.high) == pytest.approx((expected.pvalue, *interval))
    apart = compare({0: 70.1, 1: 70.4, 2: 70.2}, {3: 69.0, 4: 69.6})
    assert apart is not None
    welch = reference.ttest_ind([70.1, 70.4, 70.2], [69.0, 69.6], equal_var=False)
    assert not apart.paired
    assert (apart.p, apart.low, apart.high) == pytest.approx((welch.pvalue, *welch.confidence_interval()))


def test_pairing_throws_no_runs_of_both_groups_away() -> None:
    """Two shared seeds of ten: the eighteen other runs tell more than two pairs."""
    a = {seed: 71.3 + 0.1 * (seed % 4) for seed in range(10)}
    b = {seed: 70.0 + 0.1 * (seed % 3) for seed in range(8, 18)}
    found = compare(a, b)
    assert found is not None
    welch = reference.ttest_ind([*a.values()], [*b.values()], equal_var=False)
    assert not found.paired
    assert (found.p, found.low, found.high) == pytest.approx((welch.pvalue, *welch.confidence_interval()))


@pytest.mark.parametrize(
    ("values", "baseline", "said"),
    [
        ({0: 72.0, 1: 73.0}, {0: 70.0, 1: 70.0}, r"\+2.50 \(.* to .*, p \S+\)"),
        ({0: 71.0, 1: 71.5, 2: 73.5}, {0: 69.5, 1: 70.0, 2: 72.0, 3: 66.5}, r"\+1.50 \(3 pairs\)"),
        ({0: 71.0, 1: 72.0}, {0: 69.0, 1: 69.0, 2: 69.0}, r"\+2.50 \(.* to .*, p \S+, 2 pairs\)"),
        ({0: 70.5}, {0: 70.0, 1: 69.0}, r"\+0.50 \(1 pair\)"),
        ({0: 70.5}, {0: 70.0}, r"\+0.50"),
        ({0: 70.5, 1: 71.0}, {1: 70.0, 2: 69.0}, r"\+1.25 \(.* to .*, p \S+, unpaired\)"),
    ],
)
def test_a_difference_says_its_pairs_where_it_is_not_that_of_the_means(
    values: dict[int, float], baseline: dict[int, float], said: str, tmp_path: Path
) -> None:
    for method, results in (("kd", values), ("none", baseline)):
        for seed, last in results.items():
            put(tmp_path, method, seed, last, last)
    summary = TrackSummary("protocol", Ledger(tmp_path).runs("protocol"))
    assert re.fullmatch(said, difference(summary.against(PAIR, "kd", "none")))
    track = page_data([summary])["tracks"][0]
    number = track["pairs"].index(PAIR) * len(track["methods"]) + summary.methods.index("kd")
    pairs = re.search(r"(\d) pair", said)
    assert track["cells"][number]["gain"][4] == (int(pairs[1]) if pairs else None)


def test_what_was_run_stands_alone(tmp_path: Path) -> None:
    """A network that belongs to several pairs has one row; what was not run has none."""
    empty = TrackSummary("protocol", [])
    assert measured_table(empty) == "No runs yet."
    put(tmp_path, "none", 0, 69.5, 69.75)
    for seed, last in ((0, 71.5), (1, 72.5)):
        put(tmp_path, "itrd", seed, last, last)
    put(tmp_path, "reviewkd", 0, 71.0, 71.5)
    put(tmp_path, "teacher", 0, 72.5, 72.5)
    rows = measured_table(TrackSummary("protocol", Ledger(tmp_path).runs("protocol"))).splitlines()
    assert rows[2:8] == [
        "| resnet56, a teacher | 72.34 | **72.50** | 1 |  | +0.16 | 72.50 |",
        "| resnet20 alone | 69.06 | **69.50** | 1 |  | +0.44 | 69.75 |",
        "| resnet56 → resnet20, ReviewKD | 71.89† | **71.00** | 1 |  | -0.89 | 71.50 |",
        "| resnet56 → resnet20, ITRD | 71.47 | **72.00** | 2 | 0.71 | +0.53 | 72.00 |",
        "",
        "† The source does not say which epoch.",
    ]
    assert rows[9].startswith("Track `protocol`, 5 runs")


def test_too_few_runs_give_no_certainty() -> None:
    one = compare({0: 70.5}, {0: 70.0})
    assert one is not None
    assert one.difference == pytest.approx(0.5)
    assert math.isnan(one.p)
    agreeing = compare(
        {0: 71.0, 1: 72.0}, {0: 70.0, 1: 71.0}
    )  # the same difference twice: no measure of scatter
    assert agreeing is not None
    assert (agreeing.n, agreeing.difference) == (2, 1.0)
    assert math.isnan(agreeing.p)
    same = compare({0: 70.0, 1: 70.0}, {2: 69.0, 3: 69.0})
    assert same is not None
    assert math.isnan(same.p)
    lone = compare({0: 70.0}, {1: 69.0, 2: 69.5})
    assert lone is not None
    assert not lone.paired
    assert compare({}, {0: 1.0}) is None


def test_an_entry_of_the_published_table(tmp_path: Path) -> None:
    for seed, (kd, alone) in enumerate([(71.0, 69.0), (71.4, 69.6), (70.9, 68.9)]):
        put(tmp_path, "kd", seed, kd, kd + 0.3)
        put(tmp_path, "none", seed, alone, alone + 0.2)
    put(tmp_path, "teacher", 0, 72.0, 72.5)
    summary = TrackSummary("protocol", Ledger(tmp_path).runs("protocol"))
    entry = summary.entry(PAIR, "kd")
    assert entry.last is not None
    assert entry.best is not None
    assert entry.last.n == 3
    assert entry.last.mean == pytest.approx(71.1)
    assert entry.best.mean == pytest.approx(71.4)
    assert entry.published is not None
    assert entry.from_published == pytest.approx(71.1 - 70.66)
    gain = summary.against(PAIR, "kd", "none")
    assert gain is not None
    assert gain.paired
    # Teachers, and students alone, belong to every pair with them.
    assert summary.entry(Pair("resnet110", "resnet20"), "none").runs == summary.entry(PAIR, "none").runs
    assert not summary.entry(Pair("resnet110", "resnet20"), "kd").runs
    table = published_table(summary, [PAIR])
    assert re.search(r"\| KD \| 70.66<br>\*\*71.10\*\* ±0.66 \(n 3, best 71.40\) \|", table)
    assert "| FitNet | 69.21 |" in table
    data = page_data([summary])
    track = data["tracks"][0]
    where = track["pairs"].index(PAIR) * len(track["methods"]) + [m["name"] for m in track["methods"]].index(
        "kd"
    )
    assert track["cells"][where]["gap"] == pytest.approx(0.44)
    assert [data["runs"]["last"][run] for run in track["cells"][where]["runs"]] == [71.0, 71.4, 70.9]


def test_halves_go_up() -> None:
    assert [hundredths((a + b) / 2) for a, b in ((50.31, 50.18), (50.32, 50.41), (0.0, 0.25))] == [
        *("50.25", "50.37", "0.13")
    ]
    assert (hundredths(-0.125, "+"), hundredths(0.125, "+"), hundredths(0.0, "+")) == (
        "-0.13",
        "+0.13",
        "+0.00",
    )


def test_an_empty_ledger_has_empty_cells(tmp_path: Path) -> None:
    out, markdown = write_report(Ledger(tmp_path / "none"), tmp_path / "r.html", tmp_path / "zoo")
    data = data_of(out.read_text())
    assert data["runs"]["name"] == []
    assert {t["name"]: t["runCount"] for t in data["tracks"]} == dict.fromkeys(list_tracks(), 0)
    assert data["tracks"][0]["name"] == "protocol"
    assert all(cell["n"] == 0 for t in data["tracks"] for cell in t["cells"].values())
    assert all(t["cells"] == {} for t in data["tracks"] if not load_track(t["name"]).published)
    assert "**" not in published_table(TrackSummary("protocol", []), [PAIR])
    assert "No runs yet." in markdown.read_text()


def test_students_of_a_rounded_teacher_are_told_from_those_of_the_trained_one(tmp_path: Path) -> None:
    cells = [Cell("smoke", "resnet20", "resnet8", "kd", seed) for seed in range(3)]
    runs = list(ledger_with(tmp_path, *cells).runs("smoke"))
    assert "taught from" not in track_tables(TrackSummary("smoke", runs))
    runs[0] = dataclasses.replace(runs[0], teacher_sha256="f" * 64)
    text = track_tables(TrackSummary("smoke", runs))
    assert "resnet20 taught from 2 files" in text
    assert "00000000 (2), ffffffff (1)." in text


def test_tracks_stay_apart(tmp_path: Path) -> None:
    synthetic.fill(tmp_path, "smoke", epochs=12)
    data = page_data(summaries(Ledger(tmp_path)))
    by_name = {track["name"]: track for track in data["tracks"]}
    assert by_name["protocol"]["runCount"] == 0
    assert by_name["smoke"]["runCount"] == len(data["runs"]["name"])
    assert all("pub" not in cell for cell in by_name["smoke"]["cells"].values())


def test_records_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    assert "<" not in embedded(HOSTILE)
    assert json.loads(embedded(HOSTILE)) == HOSTILE
    cell = Cell("protocol", None, "resnet20", "none", 0)
    record = synthetic.record(cell, 3, hardware=HOSTILE)
    record["objective"] = record["command"] = HOSTILE
    record["settings"][HOSTILE] = HOSTILE
    record["finished"] = "x" * 100_000
    synthetic.write(tmp_path, cell, record)
    other = Cell("other", HOSTILE, HOSTILE, HOSTILE, 0)
    record = synthetic.record(other, 3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.json").write_text(json.dumps(record))
    out, markdown = write_report(Ledger(tmp_path), tmp_path / "r.html", tmp_path)
    text = out.read_text()
    assert text.count("</script>") == 3
    assert "<img" not in text
    assert len(text) < 400_000
    data = data_of(text)
    assert HOSTILE in data["hardware"]
    plain = markdown.read_text()
    assert "<img" not in plain
    assert "<script" not in plain
    assert escape("a|b <i>\n`c`") == "a\\|b &lt;i&gt; \\`c\\`"


def test_records_that_lie_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = Cell("protocol", None, "resnet20", "none", 0)
    good = synthetic.record(cell, 3)
    for number, change in enumerate(
        (
            {"last": None},
            {"curve": {}},
            {"cell": 3},
            {"seconds": "long"},
            {"best": {"epoch": "x"}},
            {"settings": None},
            {"last": {"test": {"top1": 10**400}}},
            {"cell": {**good["cell"], "track": "smoke"}},
        )
    ):
        synthetic.write(tmp_path, Cell("protocol", None, "resnet20", "none", number), {**good, **change})
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 0
    assert capsys.readouterr().err.count("left out") == 8


def test_groups_that_are_mixed_or_of_another_track_are_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [Cell("mine", "resnet20", "resnet8", "kd", seed) for seed in (0, 1)]
    for cell, epochs in zip(cells, (2, 3), strict=True):
        synthetic.write(tmp_path, cell, synthetic.record(cell, epochs))
    short = Cell("smoke", None, "resnet8", "none", 0)
    synthetic.write(tmp_path, short, synthetic.record(short, 1))
    out = tmp_path / "r.html"
    assert main(["report", "--results", str(tmp_path), "--out", str(out)]) == 0
    error = capsys.readouterr().err
    said = [
        "resnet20 → resnet8, kd: runs that differ in epochs (2, 3)",
        "resnet8, none: 1 of 1 are not of this track (epochs 1, not 12)",
    ]
    notes = " ".join(track["note"] for track in data_of(out.read_text())["tracks"])
    for text in (error, notes, (tmp_path / "r.md").read_text()):
        assert all(warning in text for warning in said)
    assert "kd: runs that differ" in choice_table(TrackSummary("mine", Ledger(tmp_path).runs("mine")))


def test_curves_are_thinned_evenly() -> None:
    values = [float(i) for i in range(1, 241)]
    everything = packed(values, 240)
    assert everything == [100] + [100] * 239
    few = packed(values, 24)
    assert len(few) == 24
    assert few[0] == 100
    assert sum(few) == 24000  # the last epoch is among them
    assert packed([], 24) == []


def test_titles() -> None:
    assert [title_of(m) for m in ("teacher", "none", "attention", "dkd", "unheard")] == [
        *("Teacher", "Student alone", "AT", "DKD", "unheard"),
    ]
    assert title_of("itrd@code-default") == "ITRD (code-default)"


def test_the_table_that_a_method_is_chosen_by(tmp_path: Path) -> None:
    for method, seed, last in (("none", 0, 69.0), ("none", 1, 70.0), ("kd", 0, 71.0), ("kd", 1, 71.5)):
        put(tmp_path, method, seed, last, last)
    pair_only = TrackSummary("protocol", Ledger(tmp_path).runs("protocol"))
    pair_only.pairs = [PAIR]
    lines = choice_table(pair_only).splitlines()
    rows = {line.split("|")[1].strip(" `"): line for line in lines if line.startswith("| `")}
    assert set(rows) == set(METHODS)
    conditions = len(measurements())
    assert lines[0] == "| method | reads | " + "".join(f"cost {n} | " for n in range(1, conditions + 1)) + (
        "resnet56 → resnet20, last epoch, % | against student alone |"
    )
    costs = " | ".join(cost_in_words(measured, "kd") for measured in measurements())
    assert rows["kd"].startswith(f"| `kd` | logits | {costs} | **71.25** (n 2) | +1.75 (")
    assert rows["none"].endswith("| **69.50** (n 2) |  |")
    assert rows["itrd"].endswith(" |  |  |")  # not run: an empty cell is empty
    order = list(rows)
    assert order[0] == "none"
    assert order.index("kd") < order.index("itrd") < order.index("hint") < order.index("fsp")
    assert "Accuracies: CIFAR-100, published schedule." in lines[-1]


def test_page_needs_nothing_else(tmp_path: Path) -> None:
    out, _ = write_report(Ledger(tmp_path), tmp_path / "r.html", tmp_path)
    text = out.read_text()
    assert "default-src 'none'" in text
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](?!data:)", text)
    assert "sourceMappingURL" not in text
    assert "@DATA@" not in text


def test_the_report_is_refused_where_it_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--out", "/proc/x/report.html"]) == 2
    assert "choose another file with --out" in capsys.readouterr().err


def test_the_report_is_refused_where_its_folders_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 0  # before the first record
    Path("empty").mkdir()
    assert main(["report", "--results", "empty"]) == 0
    cell = Cell("smoke", None, "resnet8", "none", 0)
    synthetic.write(Path("mine"), cell, synthetic.record(cell, 12))
    for words, complaint in (
        (["--out", "same.md"], "give it another ending"),
        (["--results", "nothing"], "there is no ledger nothing"),
        (["--results", "mine/smoke"], "name the ledger around it"),
    ):
        capsys.readouterr()
        assert main(["report", *words]) == 2
        error = capsys.readouterr().err
        assert complaint in error
        assert error.count("\n") == 1
    assert not Path("same.md").exists()


@pytest.mark.slow
def test_twenty_thousand_records(tmp_path: Path) -> None:
    """Full curves of 240 epochs: the report in under 20 seconds, and a page that a browser can hold."""
    assert synthetic.fill(tmp_path / "results", count=20_000) == 20_000
    started = time.perf_counter()
    write_report(Ledger(tmp_path / "results"), tmp_path / "r.html", tmp_path)
    assert time.perf_counter() - started < 20
    assert (tmp_path / "r.html").stat().st_size < 12e6


def test_a_full_protocol_ledger_is_in_order(tmp_path: Path) -> None:
    from itrd.bench.check import check_ledger

    cells = list(cells_of(load_track("protocol")))[::40]
    assert check_ledger(ledger_with(tmp_path, *cells)) == []
