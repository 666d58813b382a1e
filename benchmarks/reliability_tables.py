"""What was killed, stopped, damaged and left running: the tables of docs/reliability.md."""

from __future__ import annotations

import statistics

from tables import read, source, table

# What the fuzzers' formats are called on the page.
FORMATS = {
    "pth": "pth, new and old",
    "safetensors": "safetensors",
    "state": "state of a run",
    "cifar": "CIFAR",
    "settings": "`--config`",
    "run_folder": "`config.yaml`",
    "ledger": "JSON",
}


def promises(machine: str) -> str:
    """Every promise with what was found."""
    kills, stops = read(machine, "kills"), read(machine, "stops")
    formats, long = read(machine, "mutations")["formats"], read(machine, "endurance")["long"]
    equal, killed = (sum(of[key] for of in kills["methods"].values()) for key in ("equal", "kills"))
    writing = sum(count for where, count in kills["where"].items() if where.startswith("in a write"))
    times, files = stops["seconds"], sum(of["loaded"] + of["refused"] for of in formats)
    opened = " or ".join(map(str, sorted(set(long["open_files"]))))
    tests = "tests/integration/test_"
    rows = [
        [
            "a run killed at any moment and resumed ends with the same bits",
            f"{equal} of {killed} kills, {writing} of them inside writes",
            "`benchmarks/kill.py`",
        ],
        [
            "SIGTERM and SIGINT save and leave within 5 s",
            f"{stops['good']} of {len(times)}, median {statistics.median(times):.1f} s, longest {max(times):.1f} s",
            "`benchmarks/stop.py`",
        ],
        [
            "of two good checkpoints no failing file operation spoils both",
            "every operation of a save, two kinds of failure",
            f"`{tests}storage.py`",
        ],
        [
            "a step with a number that is not finite is not learned from",
            "CPU and GPU ways, same bits",
            f"`{tests}nonfinite.py`",
        ],
        [
            "mutated files load or are refused in one line",
            f"{files:,} files, {len(formats)} formats",
            "`benchmarks/mutations.py`",
        ],
        [
            "malicious files do nothing",
            "each is refused in one line",
            "`tests/unit/test_hostile_files.py`, `test_hostile_checkpoints.py`",
        ],
        [
            "memory grows little, open files not at all",
            f"{long['memory_bytes_per_epoch'] / 1000:.1f} kB an epoch, {opened} files",
            "`benchmarks/endurance.py`",
        ],
    ]
    return table(["promise", "measured", "by"], rows, numbers=False)


def stops(machine: str) -> str:
    """How long runs took to save and leave."""
    found = read(machine, "stops")
    times = found["seconds"]
    row = [f"{found['good']} of {len(times)}", f"{statistics.median(times):.1f} s", f"{max(times):.1f} s"]
    heads = ["", "within 5 s, right status", "median", "longest"]
    latest = found["settings"]["latest"]
    about = f"Signals at random moments, up to {latest:.0f} s after the start."
    return table(heads, [["SIGTERM and SIGINT", *row]]) + f"\n\n{about} {source(found)}"


def kills(machine: str) -> str:
    """Kills of each method, and where they fell."""
    found = read(machine, "kills")
    rows = [
        [name, *(str(of[key]) for key in ("kills", "equal", "runs"))] for name, of in found["methods"].items()
    ]
    where = [[place, str(count)] for place, count in found["where"].items()]
    minutes = f"All of it took {found['seconds'] / 60:.0f} minutes. {source(found)}"
    return "\n\n".join(
        [
            table(["", "kills", "of which the run ended with the same bits", "runs compared"], rows),
            table(["where the kills fell", ""], where),
            minutes,
        ]
    )


def mutations(machine: str) -> str:
    """What became of changed files."""
    found = read(machine, "mutations")
    rows = [
        [
            FORMATS[of["format"]],
            f"{of['loaded'] + of['refused']:,}",
            f"{of['loaded']:,}",
            f"{of['refused']:,}",
            f"{of['slowest_ms']:.0f} ms",
            f"{of['grown_mb']:.0f} MB",
        ]
        for of in found["formats"]
    ]
    heads = ["format", "files", "loaded", "refused", "slowest", "memory grew by"]
    return table(heads, rows) + f"\n\n{source(found)}"


def endurance(machine: str) -> str:
    """What grows in a long run, and what one writes."""
    found = read(machine, "endurance")
    long, disk = found["long"], found["disk"]
    memory = [
        ["memory after a fifth", f"{long['memory_mb_at_a_fifth']:.1f} MB"],
        ["memory at the end", f"{long['memory_mb_at_the_end']:.1f} MB"],
        ["growth, fitted after the first fifth", f"{long['memory_bytes_per_epoch'] / 1000:.1f} kB an epoch"],
        ["open files, fewest and most", " and ".join(map(str, long["open_files"]))],
        ["`metrics.jsonl`", f"{long['metrics_bytes_per_epoch']} bytes an epoch"],
        ["TensorBoard's file", f"{long['event_bytes_per_epoch']} bytes an epoch"],
    ]
    written = [
        ["state, every epoch", f"{disk['checkpoint_mb']:.1f} MB"],
        ["weights, where an epoch is the best so far", f"{disk['weights_mb']:.1f} MB"],
        ["both in 240 epochs, at most", f"{disk['written_in_240_epochs_gb']:.1f} GB"],
        ["kept: two states, two files of weights, the logs", f"{disk['kept_mb']:.0f} MB"],
    ]
    head = [f"{long['steps']:,} steps of a tiny network, {long['epochs']} epochs", ""]
    return "\n\n".join([table(head, memory), table([f"{disk['model']} writes", ""], written), source(found)])
