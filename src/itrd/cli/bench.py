"""The verbs `itrd bench plan|run|check` and `itrd report`.

The parser evaluates what this module imports, for the sake of annotations: nothing here may load torch.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from itrd.errors import UserError


def plan(
    track: str = "protocol",
    pairs: str | None = None,
    methods: str | None = None,
    seeds: str | None = None,
    results: str = "results",
    out: str = "runs",
    zoo: str = "zoo",
    device: str = "auto",
    all: bool = False,
    rows: int = 40,
) -> None:
    """List the benchmark's cells in order of priority: what they cost, which are done.

    Args:
        track: protocol, protocol-bf16, smoke, binary, binary-short, or a YAML file.
        pairs: only these, as in resnet56:resnet20,vgg13:vgg8; one network's name stands for all its pairs.
        methods: only these, separated by commas; teacher for teachers, none for students alone.
        seeds: only these, as in 0-2,4.
        results: folder of the ledger.
        out: folder of the runs.
        zoo: folder of the teachers.
        device: what costs are for: auto, cpu, cuda or cuda:N.
        all: list finished cells, too.
        rows: list at most this many; 0 for all of them.
    """
    from itrd.bench.ledger import Ledger
    from itrd.bench.schedule import plan as make_plan
    from itrd.cli.benching import counted, duration, selected, warn_of_others
    from itrd.cli.commands import show_table, text_table

    if rows < 0:
        raise UserError(f"rows must be 0 (all of them) or more, got {rows}")
    chosen, cells = selected(track, pairs, methods, seeds)
    ledger = Ledger(Path(results))
    lines = make_plan(chosen, cells, ledger, runs=Path(out), zoo=Path(zoo), device=device)
    warn_of_others(chosen, cells, ledger)
    table = text_table("", "cell", "state", "cost", "basis", "top-1")
    listed = [(number, line) for number, line in enumerate(lines, 1) if all or line.state != "done"]
    for number, line in listed[: rows or None]:
        top1 = "" if line.top1 is None else f"{line.top1:.2f}%"
        cost = "" if line.cost.basis == "unknown" else duration(line.cost.seconds)
        table.add_row(str(number), line.cell.name, line.state, cost, line.cost.basis, top1)
    show_table(table)
    if 0 < rows < len(listed):
        print(f"and {len(listed) - rows:,} more; --rows 0 lists all, --pairs, --methods and --seeds choose")
    done = sum(line.state == "done" for line in lines)
    left = sum(line.cost.seconds for line in lines if line.state != "done")
    bases = {line.cost.basis for line in lines if line.state != "done"}
    if "unknown" in bases:
        told = "what the others cost is not known before their images are read"
    else:
        rough = ", partly estimated" if "estimate" in bases else ""
        told = f"the others cost about {duration(left)} on this machine, one at a time{rough}"
    print(f"{counted(len(lines), 'cell')} of track {chosen.name}, {done} done; {told}")


def run(
    track: str = "protocol",
    pairs: str | None = None,
    methods: str | None = None,
    seeds: str | None = None,
    budget: float | None = None,
    out: str = "runs",
    results: str = "results",
    zoo: str = "zoo",
    data_root: str = "data",
    device: str = "auto",
    jobs: int | None = None,
    together: int = 1,
    ray: str | None = None,
    teacher_table: str | None = None,
    progress: bool = False,
) -> int:
    """Train the benchmark's open cells in order of priority and write their records into the ledger.

    Any number of runners may work on the same ledger. One that is stopped or killed leaves cells that the next
    one continues, here or, with the run folder copied, elsewhere.

    Args:
        track: protocol, protocol-bf16, smoke, binary, binary-short, or a YAML file.
        pairs: only these, as in resnet56:resnet20,vgg13:vgg8; one network's name stands for all its pairs.
        methods: only these, separated by commas; teacher for teachers, none for students alone.
        seeds: only these, as in 0-2,4.
        budget: end within this many seconds, with everything saved.
        out: folder of the runs: checkpoints, weights, logs.
        results: folder of the ledger.
        zoo: folder of the teachers.
        data_root: folder that holds the datasets.
        device: auto, cpu, cuda or cuda:N.
        jobs: runners side by side on this machine, each a process
            (default: one; on Ray, one a GPU or, without any, one a CPU).
        together: students that a runner trains side by side in its process, for example on one GPU; each one's
            numbers are those of a run alone.
        ray: address of a Ray cluster that is to do the work instead (auto for the one that runs here); its
            machines must share this folder.
        teacher_table: folder for tables of teacher outputs, see `itrd distill --help`.
        progress: show a live progress display.
    """
    started = time.monotonic()
    from itrd.bench import fleet
    from itrd.bench.ledger import Ledger
    from itrd.bench.runner import Options
    from itrd.cli.benching import selected, told, warn_of_others

    chosen, cells = selected(track, pairs, methods, seeds)
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs must be at least 1, got {jobs}")
    if together < 1:
        raise UserError(f"together must be at least 1, got {together}")
    if together > 1 and progress:
        raise UserError("students that train together share one terminal; leave out --progress or --together")
    if not cells:
        raise UserError("no cell is meant by these pairs, methods and seeds together")
    warn_of_others(chosen, cells, Ledger(Path(results)))
    if budget is not None:  # loading libraries counts
        budget -= time.monotonic() - started
    options = Options(
        Path(results), Path(out), Path(zoo), data_root, device, budget, teacher_table, progress, together
    )
    if ray is not None:
        report = fleet.on_ray(ray, chosen, cells, options, jobs)
    elif jobs is not None and jobs > 1:
        report = fleet.side_by_side(chosen, cells, options, jobs)
    else:
        report = fleet.alone(chosen, cells, options)
    status = told(report)
    return 128 + report.signal if report.signal else status


def check(results: str = "results", zoo: str = "zoo", files: str = "README.md,docs") -> int:
    """Verify every record of the ledger, every teacher of the zoo, and every figure in README and docs.

    Args:
        results: folder of the ledger.
        zoo: folder of the teachers.
        files: files, and folders of Markdown files, whose figures must be the ledger's; separated by commas.
    """
    from itrd.bench.check import check_documents, check_ledger, check_zoo
    from itrd.bench.documents import markdown_files
    from itrd.bench.ledger import Ledger
    from itrd.cli.benching import counted

    ledger, documents = Ledger(Path(results)), markdown_files(files)
    faults = check_ledger(ledger, Path(zoo))
    faults += check_zoo(Path(zoo))
    faults += check_documents(documents, ledger, Path(zoo))
    for fault in faults:
        print(f"itrd: {fault}", file=sys.stderr)
    count = sum(len(ledger.runs(track)) for track in ledger.tracks())
    found = counted(len(faults), "fault") if faults else "all in order"
    print(f"{counted(count, 'record')}, {counted(len(documents), 'document')}: {found}")
    return 1 if faults else 0


def report(
    results: str = "results", out: str = "report.html", zoo: str = "zoo", update: str | None = None
) -> None:
    """Write what the ledger says: one HTML page that needs no network, and its tables as Markdown.

    Args:
        results: folder of the ledger.
        out: the page; the Markdown tables go beside it, with the ending .md.
        zoo: folder of the teachers.
        update: rewrite the ledger's figures in these files instead, and in the Markdown files of these
            folders; separated by commas, as in README.md,docs.
    """
    from itrd.bench.documents import markdown_files, update_documents
    from itrd.bench.ledger import RESULTS, Ledger

    if Path(out).suffix.lower() == ".md":
        raise UserError(
            f"{out} is the page, in HTML; give it another ending, the Markdown is written beside it as .md"
        )
    ledger = Ledger(Path(results))
    if results != str(RESULTS) and not ledger.root.is_dir():
        raise UserError(
            f"there is no ledger {results}; name the folder that holds TRACK/NAME.json with --results"
        )
    if ledger.root.is_dir() and not ledger.tracks() and any(ledger.root.glob("*.json")):
        raise UserError(
            f"{results} holds records itself: it is the folder of one track; name the ledger around it with --results"
        )
    if update is not None:
        for path in update_documents(markdown_files(update), ledger, Path(zoo)):
            print(f"updated {path}")
        return
    from itrd.bench.report import write_report
    from itrd.bench.summary import summaries

    for path in write_report(ledger, Path(out), Path(zoo)):
        print(f"written {path} ({path.stat().st_size:,} bytes)")
    for problem in ledger.unreadable.values():
        print(f"itrd: left out: {problem}", file=sys.stderr)
    for summary in summaries(ledger):
        for warning in summary.warnings:
            print(f"itrd: track {summary.name}: {warning}", file=sys.stderr)
