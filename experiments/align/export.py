"""Saves a trained model for use elsewhere: `python -m experiments.align.export --help`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.cli import flags, frame
from experiments.cli.exits import EXIT_NOT_KEPT
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupts
from experiments.training import compiling
from rgpo_jax.config import Checked

PROG = "python -m experiments.align.export"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Save the model of an alignment run as Hugging Face lays one out."""

    run: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Folder of a run of experiments.align, whose newest checkpoint is saved."""
    out: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """A new folder; `--model DIR` reads it again, and so does transformers."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the saved parameters."""


def main(args: Sequence[str] | None = None) -> int:
    """Saves; returns the exit status."""
    return frame.run(_save, args)


def _save(args: Sequence[str], _: Interrupts) -> int:
    options = flags.read(Options, Options(run=tyro.MISSING, out=tyro.MISSING), args, PROG)
    folder = Path(options.out).expanduser()
    if folder.exists():
        raise BadInput(f"--out {options.out}: exists already; expected a new folder")
    from experiments.align import trained
    from rgpo_jax.language import decoder_policy, weights

    loaded = trained.load(options.run, "--run")
    model, text = loaded.text.model, loaded.text
    params = decoder_policy.merge(text.training, loaded.params["actor"], model.params)
    try:
        weights.save(folder, model.architecture, params, model, dtype=options.dtype)
    except ImportError as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        print(f"error: {folder}: {error.strerror or error}", file=sys.stderr)
        return EXIT_NOT_KEPT
    print(f"{loaded.plan.title}, after {loaded.updates} updates -> {folder}")
    return 0


if __name__ == "__main__":
    compiling.leave(main)
