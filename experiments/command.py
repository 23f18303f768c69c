"""The command `rgpo`: `rgpo run --env NAME` is `python -m experiments.run --env NAME`.

It also works in a folder that has packages of its own called agents, envs or experiments, which
`python -m` would take for these.
"""

import difflib
import runpy
import sys

from experiments.cli import flags

PROGRAMS = {
    "run": "train one agent on one environment over several seeds",
    "sweep": "train many agents on many environments with many settings",
    "tune": "search settings",
    "align": "train language models from rewards or preferences",
    "align.reward": "learn a reward from pairs of answers",
    "align.make_pairs": "make pairs of a model's own answers",
    "align.show": "set answers of several language models side by side",
    "align.at_equal_kl": "compare alignment methods at equal KL",
    "align.compare": "hold alignment methods against the exact frontier",
    "align.collect": "take runs of language models into one table",
    "align.export": "save a trained language model as Hugging Face lays one out",
    "report": "show runs: scores with intervals, curves",
    "evaluate": "score the policies of a run over many episodes",
    "play": "play episodes of a trained policy, and make a film of them",
    "export": "take a policy away, as NumPy, ONNX or StableHLO",
    "theory": "check the theory of the gates",
    "benchmark": "measure speed",
    "reproduction": "judge the paper's claims by stored runs",
}
_HELP = ("-h", "--help")


def main() -> None:
    """Runs the program that the first argument names, with the others."""
    given = sys.argv[1:]
    if not given or given[0] in _HELP:
        print(_usage())
        return
    name = given[0]
    if name not in PROGRAMS:
        nearest = difflib.get_close_matches(name, PROGRAMS, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        flags.refuse(f"rgpo {name}: {hint}expected one of {', '.join(PROGRAMS)}")
    sys.argv = [f"rgpo {name}", *given[1:]]
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)


def _usage() -> str:
    width = max(map(len, PROGRAMS))
    lines = [f"  rgpo {name:{width}}  {what}" for name, what in PROGRAMS.items()]
    return "\n".join(["usage: rgpo PROGRAM [--help] [OPTIONS]", "", *lines])


if __name__ == "__main__":
    main()
