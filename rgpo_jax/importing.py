"""Objects in modules of a user's own, by name: MODULE:NAME.

The current folder is searched too, and first, as by `python -m`.
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def install_hint(extra: str) -> str:
    """The command that brings an extra, with the suite's own folder where it is a checkout."""
    checkout = Path(__file__).resolve().parents[1]
    folder = checkout if (checkout / "pyproject.toml").exists() else "FOLDER_OF_RGPO_JAX"
    return f"pip install -e '{folder}[{extra}]'"


@contextlib.contextmanager
def current_folder() -> Iterator[None]:
    """Within it, modules of the current folder come first; after it, last: they import others."""
    is_there = "" in sys.path
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")
        if not is_there:
            sys.path.append("")


def exists(module: str) -> bool:
    """Whether there is a module of this name; it is not run, but the packages around it are."""
    with current_folder():
        try:
            return importlib.util.find_spec(module) is not None
        except (Exception, SystemExit):  # of a package around it; or it is no name at all
            return False


def load(name: str) -> Any:
    """Imports MODULE, or MODULE:NAME.

    Raises:
      ValueError: there is no such module, it does not run, or has nothing of this name.
    """
    module, _, attribute = name.partition(":")
    if not exists(module):
        raise ValueError(f"no module named {module!r}")
    with current_folder():
        try:
            found = importlib.import_module(module)
            return getattr(found, attribute) if attribute else found
        except (Exception, SystemExit) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
