"""What a type checker sees of the agents: those without a file are `Any`, with all their parts."""

from types import ModuleType
from typing import Any

GATE_AGENTS: tuple[str, ...]
OTHER_AGENTS: tuple[str, ...]
NAMES: tuple[str, ...]

def load(name: str, among: tuple[str, ...] = ...) -> ModuleType: ...
def __getattr__(name: str) -> Any: ...
