"""How fast, how faithful: the tables of docs/performance.md, binary.md and data.md."""

from __future__ import annotations

import statistics

from common import median_and_spread
from cpu_choices import BATCH, COLUMNS, REPEATS, rows
from fidelity import SHOWN_STEPS
from floors import floor
from scaling import Point, Series
from tables import named, read, source, table

from itrd.stats import paired_difference, summarize


def throughput(machine: str) -> str:
    """Images per second of every pair and column, and how many times the conventional loop's."""
    found = read(machine, "throughput")
    columns = list(next(iter(found["images_per_second"].values())))
    lines = []
    for pair, rates in found["images_per_second"].items():
        base = rates["conventional"][0]
        cells = [f"{rates[column][0]:,.0f} ({rates[column][0] / base:.1f}×)" for column in columns[1:]]
        lines.append([named(pair), f"{base:,.0f}", *cells])
    spread = max(spread for rates in found["images_per_second"].values() for _, spread in rates.values())
    ran = found["settings"]
    return table(["", *columns], lines) + (
        f"\n\nBatch {ran['batch_size']}, n = {ran['epochs']} epochs of {ran['steps']} steps, half range at most "
        f"{spread:.0f}%. {source(found)}"
    )


def floors(machine: str) -> str:
    """Floors of every pair, and how many times its floor a step takes."""
    found, measured = read(machine, "floors"), read(machine, "throughput")
    batch = found["settings"]["batch_size"]
    if batch != measured["settings"]["batch_size"]:
        raise SystemExit("floors.py and throughput.py were run with different batches")
    columns = ["student: arithmetic, bytes", "teacher: arithmetic, bytes", "live teacher", "table"]
    lines = []
    for pair, parts in found["milliseconds"].items():
        cells = [
            f"{parts[f'{role} arithmetic']:.0f}, {parts[f'{role} bytes']:.0f}"
            for role in ("student", "teacher")
        ]
        for column, roles in (
            (f"live {found['settings']['precision']}", ("student", "teacher")),
            ("table", ("student",)),
        ):
            taken = 1000 * batch / measured["images_per_second"][pair][column][0]
            cells.append(f"{taken:.0f} ({taken / floor(parts, roles):.1f}×)")
        lines.append([named(pair), *cells])
    rates = f"{found['flops'] / 1e9:,.0f} GFLOP/s, {found['bytes_per_second'] / 1e9:.0f} GB/s"
    return table(["milliseconds a step", *columns], lines) + (
        f"\n\nMeasured rates: {rates}. Floors: {source(found)} Steps: {source(measured)}"
    )


def scaling(machine: str) -> str:
    """Lines fitted to time and memory along each quantity."""
    found = read(machine, "scaling")
    lines = []
    for series in scaling_series(machine):
        cells = [f"{series.name}, {series.points[0].x:,} to {series.points[-1].x:,}"]
        for values in ([p.milliseconds for p in series.points], [p.mebibytes for p in series.points]):
            offset, slope, r2, exponent = series.line(values)
            cells += [f"{offset:.3g} + {slope:.3g} x", f"{r2:.3f}", f"{exponent:.2f}"]
        lines.append([*cells[:2], f"{max(p.spread for p in series.points):.0f}%", *cells[2:]])
    heads = ["x", "ms", "half range at most", "R²", "exponent", "MiB", "R²", "exponent"]
    return table(heads, lines) + f"\n\n{source(found)}"


def scaling_series(machine: str) -> list[Series]:
    """What scaling.py measured."""
    return [
        Series(given["name"], given["unit"], [Point(**point) for point in given["points"]])
        for given in read(machine, "scaling")["series"]
    ]


def choices(machine: str) -> str:
    """What each choice for CPUs is worth."""
    found = read(machine, "choices")
    ran = found["settings"]
    about = f"ITRD, bf16, batch {BATCH}; median of n = {ran['epochs']} epochs of {ran['steps']} steps, ± half range."
    return table([named(ran["pair"]), *COLUMNS], rows(found["choices"])) + f"\n\n{about} {source(found)}"


def depthwise(machine: str) -> str:
    """Gradients of depthwise convolutions with and without a stride."""
    found = read(machine, "choices")
    shown = [
        [name.replace("x", "×"), f"{slow:.2f}", f"{fast:.2f}", f"{slow / fast:.0f}"]
        for name, (slow, fast) in found["depthwise_ms"].items()
    ]
    heads = ["channels × side of the input", "stride 2, ms", "stride 1, ms", "stride 2 / stride 1"]
    return table(heads, shown) + f"\n\nbf16, batch {BATCH}, median of n = {REPEATS}; from the run above."


def fidelity(machine: str) -> str:
    """Augmentation, losses and accuracy of the fast path and the plain one."""
    found = read(machine, "fidelity")
    views, losses, top1, ran = found["views"], found["losses"], found["top1"], found["settings"]
    count = len(losses["plain"])
    lines = [
        [name, *(f"{values[step - 1]:.3f}" for step in SHOWN_STEPS), f"{statistics.fmean(values):.3f}"]
        for name, values in losses.items()
    ]
    scores = {name: summarize(values) for name, values in top1.items()}
    gap = paired_difference(top1["fast"], top1["plain"])
    said = (f"{name} {of.mean:.2f}% (std {of.std:.2f})" for name, of in scores.items())
    return "\n".join(
        [
            f"- {views['compared'] // 3} views of each of three images: {views['pixels_different']} pixels differ "
            "from the same pad, crop, scale, normalise done one by one; the hypothesis that all views are equally "
            f"likely has p = {views['p_uniform']:.2f}.",
            f"- Accuracy after the last of {ran['epochs']} epochs, n = {gap.n} seeds: {', '.join(said)}; difference "
            f"{gap.mean:+.2f} points, 95% interval {gap.low:+.2f} to {gap.high:+.2f}.",
            f"- {count} steps from the same weights on the same batches; loss at step",
            "",
            table(["", *map(str, SHOWN_STEPS), f"mean of {count}"], lines),
            "",
            f"{ran['student']} on {ran['data']}, {ran['method']}; fast is in {found['precision']}. {source(found)}",
        ]
    )


def packed(machine: str) -> str:
    """Size and speed of packed binary networks."""
    found = read(machine, "packed")
    sizes = list(next(iter(found["pairs"].values()))["milliseconds"])
    lines = []
    for pair, of in found["pairs"].items():
        full = pair.partition(":")[0]
        for number, name in enumerate(of["milliseconds"][sizes[0]]):
            cells = [name + {0: ", full precision", 1: ", training graph"}.get(number, "")]
            cells.append("" if number == 1 else f"{of['file_bytes'][number >= 2] / 1e3:,.0f}")
            cells.append("" if number == 0 else f"{of['binary_weight_bytes'][number >= 2] / 1e3:,.1f}")
            for size in sizes:
                times = of["milliseconds"][size]
                middle, spread = median_and_spread(times[name])
                against = "" if number == 0 else f", × {statistics.median(times[full]) / middle:.2f}"
                cells.append(f"{middle:,.1f} ±{spread:.0f}%{against}")
            lines.append(cells)
    heads = ["network", "file, kB", "binary weights, kB", *(f"batch {size}, ms" for size in sizes)]
    return (
        table(heads, lines) + f"\n\nMedian of n = {found['settings']['runs']}, ± half range. {source(found)}"
    )


def loading(machine: str) -> str:
    """Images per second of each way to read them."""
    found = read(machine, "loading")
    lines: dict[int, list[str]] = {}
    for of in found["measured"]:
        rates, side = of["images_per_second"], of["side"]
        row = lines.setdefault(side, [f"{side} pixels, epochs of {of['images']:,}"])
        row.append(f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})")
    ways = list(dict.fromkeys(of["way"] for of in found["measured"]))
    count = len(found["measured"][0]["images_per_second"])
    about = (
        f"Batch {found['settings']['batch']}, median of n = {count} epochs with the lowest and the highest."
    )
    return (
        table(["images", *ways], list(lines.values()))
        + f"\n\n{about} Pillow {found['pillow']}. {source(found)}"
    )
