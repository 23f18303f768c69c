"""Saves a trained policy for use elsewhere: `python -m experiments.export --help`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from experiments.cli import flags, frame
from experiments.cli.exits import EXIT_NOT_KEPT
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupts
from experiments.record.files import read_plain
from experiments.record.run_folder import POLICY, choose_file
from experiments.training import compiling
from rgpo_jax import policy_file
from rgpo_jax.config import Checked, is_own_network
from rgpo_jax.policy_file import PolicyError
from rgpo_jax.ranges import CountOrZero

if TYPE_CHECKING:
    from rgpo_jax.networks import Network

PROG = "python -m experiments.export"
_SUFFIXES = (".onnx", ".stablehlo", ".npz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Save the policy of a run as a file that other programs read."""

    run: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Folder of a run."""
    out: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """A .onnx or .stablehlo (of jax.export): the policy's mode, in the environment's units, for a
    batch of any size; or an .npz, all seeds for rgpo_jax.load."""
    seed: CountOrZero | None = None
    """Which of the seeds that the run trained; None: its first, and in an .npz all."""
    which: Literal["newest", "best"] = "newest"
    """The newest policy, or that of the best evaluation, which --keep-best has kept."""
    overwrite: bool = False
    """Replace FILE."""
    trust_code: bool = False
    """Import code that is not of the suite where the run's settings name it: a gate, an agent."""


def main(args: Sequence[str] | None = None) -> int:
    """Saves; returns the exit status."""
    return frame.run(_save, args)


def _save(args: Sequence[str], _: Interrupts) -> int:
    options = flags.read(Options, Options(run=tyro.MISSING, out=tyro.MISSING), args, PROG)
    path = _choose_file(options)
    content, network = _find(options)
    from rgpo_jax import policy

    try:
        chosen = policy.Policy.of_content(content, options.seed, network)
        if path.suffix == ".npz":
            what = f"the policies for {chosen.about.env}"
            policy_file.write(path, content)
        else:
            what = f"the policy for {chosen.about.env}, seed {chosen.seed}"
            chosen.export(path)
    except PolicyError as error:
        raise BadInput(f"--run {options.run}: {error}") from None
    except ImportError as error:
        raise BadInput(f"--out {options.out}: {error}") from None
    except OSError as error:
        print(f"error: {path}: {error.strerror or error}", file=sys.stderr)
        return EXIT_NOT_KEPT
    print(f"{what}, after {chosen.about.updates:,} updates -> {path}")
    return 0


def _choose_file(options: Options) -> Path:
    """Where it goes; raises BadInput where it cannot."""
    path = choose_file(options.out, _SUFFIXES, options.overwrite)
    if path.suffix == ".npz" and options.seed is not None:
        raise BadInput(f"--seed {options.seed}: an .npz has all seeds; expected None")
    return path


def _find(options: Options) -> "tuple[bytes, Network | None]":
    """The run's policies, and their network where the file cannot say what it is.

    Raises:
      BadInput: there is no run, or it has none that can be read.
    """
    file = Path(options.run).expanduser() / POLICY
    content = None
    if file.exists() and options.which == "newest":
        try:
            content = read_plain(file)
            config = policy_file.unpack(content)[0].config
            if config is not None and not is_own_network(config.network):
                return content, None
        except (OSError, PolicyError) as error:
            raise BadInput(f"--run {options.run}: {POLICY}: {error}") from None
    # The best, or of an earlier version, or with a network that the agent's own code makes.
    from experiments.training import trained
    from rgpo_jax import policy

    loaded = trained.load(options.run, "--run", options.trust_code, which=options.which)
    if content is None:
        updates = max(loaded.env_steps) // loaded.plan.batch_size
        about = policy.describe(loaded.agent, loaded.plan.seeds, updates)
        content = policy.pack(about, loaded.learners)
    return content, loaded.agent.learner.network


if __name__ == "__main__":
    compiling.leave(main)
