"""Publish an export on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from itrd.errors import RunFolderError, UserError, first_line
from itrd.extras import require
from itrd.files import read_json

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_repository(name: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        UserError: it is not ``ORG/NAME``; or huggingface_hub is not installed.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no repository of the Hugging Face Hub; write ORG/NAME")
    require("huggingface_hub", extra="hub")


def push_export(folder: str | Path, name: str, *, public: bool = False) -> str:
    """Upload the files of an export, its card and its config; a new repository is private unless ``public``.

    The address of the Hub is that of HF_ENDPOINT, the token that of HF_TOKEN or ``hf auth login``.

    Args:
        folder: that :func:`itrd.export.export_model` wrote.
        name: of the repository, ``ORG/NAME``; created if there is none.
        public: let everybody see a repository that is created.

    Returns:
        The address of the repository.

    Raises:
        RunFolderError: the folder holds no export.
        UserError: the Hub cannot be reached, or refuses.
    """
    check_repository(name)
    hub = require("huggingface_hub", extra="hub")
    folder = Path(folder)
    try:
        config = read_json(folder / "config.json")
        files = ["README.md", "config.json", *config["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise RunFolderError(f"{folder} holds no export; write one with `itrd export` first") from None
    try:
        api = hub.HfApi()
        address = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=files,
            commit_message=f"Export of {config['arch']}",
        )
    except Exception as error:  # of its HTTP library, which differs between its versions
        raise UserError(
            f"cannot push to {name}: {first_line(error)}; check HF_TOKEN (or `hf auth login`), HF_ENDPOINT and the "
            "name, then repeat the command"
        ) from error
    return str(address)
