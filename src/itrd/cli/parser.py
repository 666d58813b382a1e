"""The parser: one subcommand per verb, with flags, types, YAML and help derived from signatures."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

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
from itrd.engine.yaml_text import MAX_BYTES, check_yaml
from itrd.errors import UserError, closest
from itrd.files import read_limited
from itrd.recipes.imagenet import NAMED, settings_file
from itrd.typecheck import in_words

_LONGEST = 1000  # characters of an error: a hostile file must not fill the screen
_jsonargparse_load = get_loader("yaml")

_DESCRIPTION = "Knowledge distillation, run, checked and compared. Start with: itrd quickstart"
_CONFIG_HELP = {
    "train": "YAML file with any of these settings",
    "distill": f"YAML file with any of these settings, or a recipe's name: {', '.join(NAMED)}",
}

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
        parser = getattr(ex, "subcommand_parser", None) or self
        if cause is not None:
            text = str(cause)
        else:
            parser, text = _in_our_words(parser, " ".join(message.split()))
        prog = parser.prog.replace(" COMMAND", "").replace(" [options]", "")
        if len(text) > _LONGEST:
            text = f"{text[:_LONGEST]}..."
        print(f"itrd: error: {text} (see `{prog} --help`)", file=sys.stderr)
        sys.exit(2)

    def _get_values(self, action: Any, arg_strings: list[str]) -> Any:
        """Take ``3,4`` for the list ``[3,4]``."""
        if _list_of(action) is not None:
            arg_strings = [
                word if word.startswith("[") or word in ("", "null") else f"[{word}]" for word in arg_strings
            ]
        return super()._get_values(action, arg_strings)

    def parse_path(self, path: Any, *arguments: Any, **named: Any) -> Namespace:
        """Parse a settings file, if it is a plain file of a sensible size."""
        try:
            read_limited(Path(path), MAX_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise TypeError(f"cannot read {path}: {reason}") from None
        return super().parse_path(path, *arguments, **named)


def _in_our_words(parser: Parser, text: str) -> tuple[Parser, str]:
    """Return an error of jsonargparse in a sentence that says what to do, and the parser whose help to see."""
    if found := re.fullmatch(r"the following arguments are required: (.*)", text):
        keys = [_located(parser, key) for key in found[1].split(", ")]
        return keys[0][0], f"{' and '.join(f'--{key}' for _, key in keys)} must be given"
    if found := re.fullmatch(r'expected "(\S*)" to be one of {(.*?)}, but .*', text):
        return _located(parser, found[1])[0], f"which command? One of {found[2]}"
    if found := re.fullmatch(r'Parser key "(\S*)": (.*)', text):
        parser, key = _located(parser, found[1])
        value = re.match(r".*(?:Given|Got) value: ?(.*)", found[2])
        hint = next((_hint(action) for action in parser._actions if action.dest == key), None)
        if value is None or hint is None:
            return parser, f"{key}: {found[2]}"
        # A list tells of its item first, then of itself.
        return parser, f"{key} must be {in_words(hint)}{_example(hint)}, got {value[1]!r}"
    if found := re.fullmatch(r"Subcommand '(\w+)' does not accept option '(.*)'", text):
        verb, key = found.groups()
        owner = next((name for name, config in RUNS.items() if key in _settings_of(config)), None)
        close = closest(key, _settings_of(RUNS[verb])) if verb in RUNS else None
        meant = f"; it is one of `itrd {owner}`" if owner else f"; did you mean {close!r}?" if close else ""
        return parser, f"`itrd {verb}` has no setting {key!r}{meant}"
    if text.startswith("Unexpected config:"):
        return parser, "the settings file holds no settings; write one a line, as in `epochs: 3`"
    if found := re.match(r"unrecognized arguments: --([\w-]+)", text):
        known = [name[2:] for name in parser._option_string_actions if name.startswith("--")]
        close = closest(found[1], known, 0.6)
        return parser, text + (f"; did you mean --{close}?" if close else "")
    return parser, text


def _located(parser: Parser, key: str) -> tuple[Parser, str]:
    """Follow the verbs at the beginning of a key: distill.teacher is the distill parser's teacher."""
    verb, _, rest = key.partition(".")
    verbs = parser._subcommands_action
    if rest and verbs is not None and verb in verbs._name_parser_map:
        return _located(verbs._name_parser_map[verb], rest)
    return parser, key


def _hint(action: Any) -> Any:
    """Return the type of an option without the None that leaving it out stands for."""
    hint = getattr(action, "_typehint", None)
    given = [option for option in get_args(hint) if option is not type(None)]
    return given[0] if type(None) in get_args(hint) and len(given) == 1 else hint


def _list_of(action: Any) -> Any:
    """Return the type of the items of an option that is a list."""
    hint = _hint(action)
    return get_args(hint)[0] if get_origin(hint) is list else None


def _example(hint: Any) -> str:
    items = {int: "[3,4]", float: "[0.5,0.4,0.3]", str: "[layer3,layer4]"}
    return f", as in {items[get_args(hint)[0]]}" if get_origin(hint) is list else ""


def _settings_of(config: type[RunConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


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
        child.add_argument("--config", action=SettingsFile, help=_CONFIG_HELP[name])
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
