"""What a type checker sees of the agents: those without a file are `Any`, with all their parts."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

GATE_AGENTS: tuple[str, ...]
OTHER_AGENTS: tuple[str, ...]
NAMES: tuple[str, ...]

def module_name(name: str, among: Sequence[str]) -> str: ...
def load(name: str, among: tuple[str, ...] = ...) -> ModuleType: ...
def __getattr__(name: str) -> Any: ...
