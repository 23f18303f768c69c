"""Where programs speak to people: a terminal, or a pipe, whose reader may leave first."""

import os
import sys
from typing import Any

from rich.console import Console


class Terminal(Console):
    """A console that falls silent when its reader has seen enough, as `head` has.

    The program goes on; its log has all lines. `:name:` stays as it is, and is no picture.
    """

    def __init__(self, **settings: Any):
        super().__init__(**{"emoji": False, **settings})

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # What is still buffered goes nowhere, also when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
