"""Installs this suite into the environment of the Python that runs it: `python install.py [EXTRA]`.

With uv, which takes a tenth of pip's time, where uv does as pip was told; else with pip.
"""

import ast
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

# Options of pip that change nothing of what is installed, or from where.
_HARMLESS = (
    *("cache-dir", "default-timeout", "disable-pip-version-check", "no-color", "no-input"),
    *("progress-bar", "quiet", "require-virtualenv", "retries", "root-user-action", "timeout"),
)
_UNFINISHED = Path(sys.prefix) / "install-unfinished"  # there while packages are installed


def for_uv(configured: Mapping[str, str]) -> dict[str, str] | None:
    """Variables by which uv does as pip was told; None: there are none.

    Args:
      configured: option of pip -> its value, as `pip config list` has them.
    """
    variables = {}
    for option, value in configured.items():
        words = value.split()
        if option == "cert":
            variables["SSL_CERT_FILE"] = value
        elif option == "constraint":
            variables["UV_CONSTRAINT"] = " ".join(words)
        elif option == "find-links" and all(Path(word).is_dir() for word in words):
            variables["UV_FIND_LINKS"] = ",".join(words)
        elif option == "extra-index-url" and all(urlsplit(x).scheme == "file" for x in words):
            pass  # copies on this disk: what they alone have uv does not find, and pip comes next
        elif option not in _HARMLESS:
            return None
    return variables


def _configured(pip: list[str]) -> dict[str, str]:
    """What pip was told, by files and variables; those come last, as they count for more."""
    listed = subprocess.run(
        [*pip, "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    pairs = (line.partition("=")[::2] for line in listed.splitlines())
    return {
        key.rpartition(".")[2]: str(ast.literal_eval(value))
        for key, value in sorted(pairs, key=lambda pair: pair[0].startswith(":env:"))
    }


def main() -> int:
    """Installs; returns the exit status."""
    root = Path(__file__).parent
    what = ["-e", f"{root}[{sys.argv[1]}]" if sys.argv[1:] else str(root)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    # uv and pip both take a package that an interrupted one left in part for a whole one.
    was_cut_off = _UNFINISHED.exists()
    _UNFINISHED.touch()
    variables = for_uv(_configured(pip))
    get_uv = [*pip, "install", "--quiet", "--only-binary", "uv", "uv"]
    status = 1
    if variables is not None and subprocess.run(get_uv, check=False).returncode == 0:
        again = ["--reinstall"] if was_cut_off else []
        uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable]
        if os.environ.get("PYTHONDONTWRITEBYTECODE"):  # each start would compile what it imports
            uv.append("--compile-bytecode")  # as pip does
        environment = {**os.environ, **variables}
        status = subprocess.run([*uv, *again, *what], check=False, env=environment).returncode
        was_cut_off = True  # by uv itself
    if status:
        again = ["--force-reinstall"] if was_cut_off else []
        status = subprocess.run([*pip, "install", "--quiet", *again, *what], check=False).returncode
    if not status:
        _UNFINISHED.unlink()
        # A program that begins within a second of a change to its files keeps nothing it compiles.
        time.sleep(1.5)
    return status


if __name__ == "__main__":
    sys.exit(main())
