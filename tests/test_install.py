"""What `make` installs with: uv where it does as pip was told, else pip."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("install", Path(__file__).parents[1] / "install.py")
install = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(install)


def test_uv_is_told_what_pip_was_told(tmp_path):
    assert install.for_uv({}) == {}
    assert install.for_uv({"timeout": "60", "disable-pip-version-check": "1"}) == {}
    told = {"cert": "/ca.crt", "constraint": "a.txt  b.txt", "find-links": str(tmp_path)}
    assert install.for_uv(told) == {
        "SSL_CERT_FILE": "/ca.crt",
        "UV_CONSTRAINT": "a.txt b.txt",
        "UV_FIND_LINKS": str(tmp_path),
    }
    assert install.for_uv({"extra-index-url": "file:///a/folder"}) == {}


@pytest.mark.parametrize(
    "told",
    [
        {"index-url": "https://example.org/simple"},
        {"extra-index-url": "file:///a/folder https://example.org/simple"},
        {"no-index": "1"},
        {"proxy": "http://localhost:1"},
        {"find-links": "https://example.org/wheels"},
        {"only-binary": ":all:"},
    ],
)
def test_what_uv_would_not_do_pip_does(told):
    assert install.for_uv(told) is None


def test_options_are_read_as_pip_lists_them(tmp_path):
    listed = ":env:.timeout='9'\nglobal.timeout='5'\nglobal.constraint='a b.txt'\n"
    pip = tmp_path / "pip"
    pip.write_text(f"#!/bin/sh\ncat <<'END'\n{listed}END\n")
    pip.chmod(0o755)
    assert install._configured([str(pip)]) == {"timeout": "9", "constraint": "a b.txt"}


@pytest.mark.parametrize("told", ["1", ""])
def test_where_python_may_keep_no_bytecode_it_is_made_as_pip_makes_it(told, tmp_path, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", told)
    monkeypatch.setattr(install.subprocess, "run", run)
    monkeypatch.setattr(install.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(install, "_UNFINISHED", tmp_path / "unfinished")
    assert install.main() == 0
    assert ("--compile-bytecode" in commands[-1]) == bool(told)
