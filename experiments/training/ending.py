"""How the programs that train begin in words, and with which exit status they end."""

import contextlib
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cli import flags
from experiments.cli.exits import EXIT_BROKEN, EXIT_NOT_KEPT
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupted
from experiments.cli.terminal import Terminal
from experiments.plan import own
from experiments.record.files import read_plain
from experiments.record.lengthening import lengthened
from experiments.record.run_folder import CONFIG, SWEEP, is_finished

if TYPE_CHECKING:
    from experiments.record.recorder import Recorder
    from experiments.training.subject import Planned


def announce(plan: "Planned", folder: Path, speaks: bool = True) -> bool:
    """Says what will run, and where; returns whether it has run already.

    Args:
      plan: of the run; where one that is in the folder is to go on and belongs to a sweep, it is
        refused.
      folder: of the run.
      speaks: whether to say it.
    """
    resume = plan.options.resume
    finished = resume and is_finished(folder) and not _is_to_be_longer(plan, folder)
    if resume and not finished and (folder.parent / SWEEP).exists():
        # Its checkpoints are those of all cells that are trained with it.
        flags.refuse(f"--resume: {folder} belongs to a sweep; go on with the sweep")
    if speaks:
        found = f": finished already, in {folder}" if finished else f" -> {folder}"
        Terminal(highlight=False, soft_wrap=True).print(f"{plan.title}{found}", markup=False)
    return finished


def _is_to_be_longer(plan: "Planned", folder: Path) -> bool:
    stored = flags.settings_from_file(str(folder / CONFIG), read_plain)
    return lengthened(stored, plan.settings()) is not None


def go_on_with(prog: str, folder: Path, settings: Mapping[str, Any]) -> str:
    """The command by which a run of these settings that stopped goes on, in words."""
    trust = f" {own.TRUST}" if any(own.is_own(*setting) for setting in settings.items()) else ""
    return f"go on with: {prog} --out {shlex.quote(str(folder))} --resume{trust}"


def status_of(
    train: Callable[[], None],
    recorder: "Recorder",
    prog: str,
    folder: Path,
    settings: Mapping[str, Any],
) -> int:
    """Trains; returns the exit status, and says why where it is not 0."""
    from experiments.training.calling_back import CallbackFailed, Stopped
    from experiments.training.loop import Broken
    from rgpo_jax import processes
    from rgpo_jax.checkpoint import CheckpointError, UnreadableCheckpoint
    from rgpo_jax.inspection import EnvironmentFailed

    go_on = go_on_with(prog, folder, settings)
    try:
        train()
    except (BadInput, processes.ProcessFailed) as error:
        flags.refuse(error)
    except Broken:
        return EXIT_BROKEN
    except EnvironmentFailed as error:
        recorder.say(f"error: {error}; {go_on}")
        return EXIT_BROKEN
    except Stopped:
        recorder.say(f"stopped by the callback; {go_on}")
    except CallbackFailed as error:
        recorder.say(f"error: {error}; {go_on}")
        return EXIT_BROKEN
    except Interrupted as interrupted:
        recorder.say(f"stopped; {go_on}")
        return interrupted.exit_status
    except UnreadableCheckpoint as error:
        hint = own.hint_at_optimizer(settings)
        flags.refuse(
            f"--resume: {error}{hint}; {'else ' if hint else ''}start in another folder, or here "
            "again with --overwrite"
        )
    except (CheckpointError, OSError) as error:
        with contextlib.suppress(OSError):
            recorder.say(f"error: {error}; what was kept before is whole; {go_on}")
        return EXIT_NOT_KEPT
    return 0
