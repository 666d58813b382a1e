"""The report: one HTML page that needs nothing but a browser, and its tables as Markdown.

Records are untrusted input. They enter the page as JSON in which ``<``, ``>`` and ``&`` are written as escapes, the
page's code sets them as text only, and a content security policy allows no script but the page's own and no network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

from itrd import __version__
from itrd.bench.ledger import Ledger
from itrd.bench.pagedata import page_data
from itrd.bench.summary import TrackSummary, summaries
from itrd.bench.tables import itrd_table, track_tables, zoo_table
from itrd.errors import UserError
from itrd.files import write_atomically

_SCRIPTS = ("core.js", "tables.js", "charts.js", "runs.js", "main.js")


def write_report(ledger: Ledger, out: Path, zoo: Path) -> list[Path]:
    """Write the page and, beside it, the Markdown tables; return both.

    Raises:
        UserError: the folder cannot be written into.
    """
    tracks = summaries(ledger)
    now = datetime.now(timezone.utc).isoformat(sep=" ", timespec="minutes")
    data = {"version": __version__, "generated": f"written {now}", **page_data(tracks)}
    markdown = out.with_suffix(".md")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, page(data).encode())
        write_atomically(markdown, document(tracks, zoo).encode())
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose another file with --out") from None
    return [out, markdown]


def page(data: dict[str, Any]) -> str:
    """Put data, code and style into one HTML page."""
    style = _read("style.css")
    # Without the remark that points browsers to a file that is not there.
    vendor = re.sub(r"\n//# sourceMappingURL=.*", "", _read("vendor/chart.umd.min.js"))
    script = "(() => {\n'use strict';\n" + "\n".join(map(_read, _SCRIPTS)) + "\n})();"
    policy = (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src {_digest(style)}; script-src {_digest(vendor)} {_digest(script)}"
    )
    parts = {
        "CSP": policy,
        "STYLE": style,
        "DATA": embedded(data),
        "VENDOR": vendor,
        "SCRIPT": script,
    }
    return re.sub(r"@([A-Z]+)@", lambda match: parts[match[1]], _read("page.html"))


def embedded(data: Any) -> str:
    """JSON that can stand inside of an HTML script element, whatever its strings contain."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII: line separators are escaped, too
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def document(tracks: list[TrackSummary], zoo: Path) -> str:
    """The report's tables as one Markdown document."""
    parts = ["# What was measured"]
    for summary in tracks:
        parts += [f"## Track {summary.name}", track_tables(summary)]
        if summary.published:
            parts += ["### ITRD against its published values", itrd_table(summary)]
    return "\n\n".join([*parts, "## Teachers", zoo_table(zoo)]) + "\n"


def _read(name: str) -> str:
    return files("itrd.bench").joinpath("page").joinpath(*name.split("/")).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
