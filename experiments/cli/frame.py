"""The frame that programs share: arguments, refusals in one line, and stops."""

import sys
from collections.abc import Callable, Sequence

from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupted, Interrupts
from rgpo_jax.config import ConfigError

Body = Callable[[Sequence[str], Interrupts], int]
"""(arguments, interrupts) -> exit status."""


def run(body: Body, args: Sequence[str] | None, stopped: str = "") -> int:
    """Runs a program, and returns its exit status.

    Args:
      body: what it does; a `BadInput` or `ConfigError` that it raises is printed, and ends the
        process with status 2.
      args: of its command line; None: those of this process.
      stopped: what is said when it is stopped by a signal.
    """
    with Interrupts() as interrupts:
        try:
            with interrupts.heard(is_handled=True):
                return body(flags.renamed(sys.argv[1:] if args is None else args), interrupts)
        except BadInput as error:
            flags.refuse(error)
        except ConfigError as error:
            flags.refuse(f"{flags.flag(error.field)} {error.message}")
        except Interrupted as interrupted:
            if stopped:
                print(stopped, file=sys.stderr)
            return interrupted.exit_status
