"""The parser: one subcommand per verb, with flags, types, YAML and help derived from signatures."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import docstring_parser
import yaml
from jsonargparse import (
    ActionConfigFile,
    ArgumentParser,
    Namespace,
    get_loader,
    set_loader,
    set_parsing_settings,
)

from itrd import __version__
from itrd.cli import bench, commands
from itrd.engine.config import DistillConfig, RunConfig, TrainConfig
from itrd.engine.files import read_limited
from itrd.engine.yaml_text import MAX_BYTES, check_yaml
from itrd.errors import UserError, closest
from itrd.recipes.imagenet import NAMED, settings_file

_LONGEST = 1000  # characters of an error: a hostile file must not fill the screen
_jsonargparse_load = get_loader("yaml")

_DESCRIPTION = "Knowledge distillation, run, checked and compared. Start with: itrd quickstart"
_CONFIG_HELP = f"YAML file with any of these settings, or a recipe's name: {', '.join(NAMED)}"

RUNS: dict[str, type[RunConfig]] = {"train": TrainConfig, "distill": DistillConfig}
# Verb -> what describes it: a settings class for runs, otherwise the function it calls.
VERBS: dict[str, Any] = {
    "quickstart": commands.quickstart,
    **RUNS,
    "eval": commands.measure,  # not named like itrd.evaluate: the parser would import that
    "export": commands.write_export,  # likewise
    "models": commands.models,
    "methods": commands.methods,
    "recipes": commands.recipes,
    "datasets": commands.datasets,
    "report": bench.report,
}
# Verb -> the argument that needs no flag.
POSITIONAL = {"datasets": "data", "methods": "name"}
# Verbs that have verbs of their own.
GROUPS: dict[str, tuple[str, dict[str, Any]]] = {
    "bench": (
        "The benchmark: list its cells, train them, verify the ledger.",
        {"plan": bench.plan, "run": bench.run, "check": bench.check},
    ),
}


class SettingsFile(ActionConfigFile):
    """A file with settings, or the name of one that comes with the package."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Apply the file."""
        super().__call__(parser, cfg, settings_file(values), option_string)


class Parser(ArgumentParser):
    """An argument parser whose errors are one line, and whose switches need no value (``--resume``)."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line that says what to do, and exit with status 2."""
        cause: BaseException | None = ex
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        text = str(cause) if cause is not None else " ".join(message.split())
        parser = getattr(ex, "subcommand_parser", None) or self
        prog = parser.prog.replace(" COMMAND", "").replace(" [options]", "")
        text = re.sub(rf"\b(?:{'|'.join(VERBS)})\.(?=\w)", "--", text)  # distill.teacher -> --teacher
        text = re.sub(
            r'expected "\S*command" to be one of {(.*?)}, but .*', r"which command? One of \1", text
        )
        text += _meant(parser, text)
        if len(text) > _LONGEST:
            text = f"{text[:_LONGEST]}..."
        print(f"itrd: error: {text} (see `{prog} --help`)", file=sys.stderr)
        sys.exit(2)

    def parse_path(self, path: Any, *arguments: Any, **named: Any) -> Namespace:
        """Parse a settings file, if it is a plain file of a sensible size."""
        try:
            read_limited(Path(path), MAX_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise TypeError(f"cannot read {path}: {reason}") from None
        return super().parse_path(path, *arguments, **named)


def _meant(parser: Parser, text: str) -> str:
    """Return a guess at the option that was meant, where an error is about an unknown one."""
    found = re.match(r"unrecognized arguments: --([\w-]+)", text)
    known = [name[2:] for name in parser._option_string_actions if name.startswith("--")]
    close = closest(found[1], known, 0.6) if found else None
    return f"; did you mean --{close}?" if close else ""


def _load(text: str) -> Any:
    """Load YAML as jsonargparse does, after :func:`itrd.engine.yaml_text.check_yaml`."""
    check_yaml(text)
    try:
        return _jsonargparse_load(text)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise yaml.YAMLError(str(error)) from None


def build_parser() -> Parser:
    """Build the whole command line."""
    set_parsing_settings(add_print_completion_argument=True)
    set_loader("yaml", _load, (yaml.YAMLError,))
    # Abbreviations would make --lr_decay of --lr.
    parser = Parser(prog="itrd", description=_DESCRIPTION, usage="itrd COMMAND [options]", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"itrd {__version__}")
    verbs = parser.add_subcommands(required=True, dest="command", title="commands", metavar="COMMAND")
    for name, target in VERBS.items():
        about = (target.__doc__ or "").split("\n")[0]
        verbs.add_subcommand(name, _child(name, target, about), help=about)
    for name, (about, members) in GROUPS.items():
        group = Parser(description=about, usage=f"itrd {name} COMMAND [options]")
        verbs.add_subcommand(name, group, help=about)
        inner = group.add_subcommands(required=True, dest="command", title="commands", metavar="COMMAND")
        for member, target in members.items():
            line = (target.__doc__ or "").split("\n")[0]
            inner.add_subcommand(member, _child(f"{name} {member}", target, line), help=line)
    return parser


def _child(name: str, target: Any, about: str) -> Parser:
    own = POSITIONAL.get(name)
    child = Parser(description=about, usage=f"itrd {name} [options]{f' [{own}]' if own else ''}")
    if name in RUNS:
        child.add_argument("--config", action=SettingsFile, help=_CONFIG_HELP)
        child.add_class_arguments(target, as_group=False)
        _own_first(child, target)
    else:
        child.add_function_arguments(target, as_group=False, skip={own} if own else None)
        if own:
            child.add_argument(own, nargs="?", type=str, help=_about_argument(target, own))
    _switches(child)
    return child


def _about_argument(function: Any, name: str) -> str | None:
    """Return what a function's docstring says of an argument."""
    about = docstring_parser.parse(function.__doc__ or "")
    return next((p.description for p in about.params if p.arg_name == name), None)


def _own_first(parser: Parser, config: type[RunConfig]) -> None:
    """Show what the verb is about before the settings that all runs share."""
    shared = {field.name for field in dataclasses.fields(RunConfig)}
    for group in parser._action_groups:
        group._group_actions.sort(key=lambda action: action.dest in shared)


def _switches(parser: Parser) -> None:
    """Let ``--resume`` stand for ``--resume true``."""
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool:
            action.nargs, action.const = "?", True
