"""Files of settings to go through or to search, for sweeps and tunings. No JAX."""

from pathlib import Path
from typing import Any

import yaml

from experiments.cli import flags
from experiments.cli.flags import BadInput


def read(path: str) -> dict[str, Any]:
    """The content of a file, YAML or JSON.

    Raises:
      BadInput: it cannot be read, or is no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).expanduser().read_text())
    except OSError as error:
        raise BadInput(f"--file {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"--file {path}: not YAML: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise BadInput(f"--file {path}: expected a mapping of settings, such as `agents: [ppo]`")
    return flags.with_new_names(content)
