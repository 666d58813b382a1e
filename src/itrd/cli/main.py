"""Parse, dispatch, and turn errors into one line and an exit status.

Exit status: 0 done; 1 training failed; 2 something the user can mend; 130 or 143 stopped by SIGINT or SIGTERM,
with the state saved (``--resume`` continues); a second signal ends the process at once, with the same status.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from itrd.cli.parser import GROUPS, RUNS, VERBS, build_parser
from itrd.engine.interrupt import Interrupted, stop_on_signals
from itrd.engine.launch import launched
from itrd.errors import ItrdError, PeerError, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    verb = arguments.command
    settings = dict(arguments[verb].as_dict())
    settings.pop("config", None)
    target = VERBS.get(verb)
    if verb in GROUPS:
        member = settings["command"]
        target, settings = GROUPS[verb][1][member], settings[member]
    try:
        with stop_on_signals():
            if verb in RUNS:
                config = RUNS[verb](**settings)
                from itrd.cli.runs import carry_out  # loads torch

                return carry_out(config)
            assert target is not None
            return target(**settings) or 0
    except Interrupted as stop:
        if launched().rank == 0:
            print(f"itrd: {stop}{'; continue with --resume' if stop.resumable else ''}", file=sys.stderr)
        return stop.status
    except UserError as error:
        return _fail(error, 2)
    except ItrdError as error:
        return _fail(error, 1)
    except BrokenPipeError:  # the reader of our output, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a file that nobody expected to fail; its name is all that helps
        if error.filename is None:
            raise
        return _fail(f"cannot use {error.filename}: {error.strerror}", 1)
    return 0


def _fail(error: Any, status: int) -> int:
    rank = launched().rank
    if not rank or not isinstance(error, PeerError):  # the first process says it for all
        who = f"process {rank}: " if rank else ""
        print(f"itrd: error: {who}{' '.join(str(error).split())}", file=sys.stderr)
    return status
