"""The gates that are looked at, by the name that the page gives them: published defaults."""

from rgpo_jax import gates
from rgpo_jax.tunable import Tunable

SHARPNESSES = (1.0, 2.0, 4.0, 8.0, 16.0)


def rgpo_name(sharpness: float) -> str:
    """The name of RGPO's gate as the paper has it, which is not normalised."""
    return f"rgpo k={sharpness:g}"


# One of each constructor, with its defaults; those whose name says them.
_NAMES = {
    "rgpo": rgpo_name(4.0),
    "truncated_importance": "truncated c=1",
    "smooth": "smooth erf",
}
DEFAULTS: dict[str, Tunable] = {
    _NAMES.get(name, name): constructor() for name, constructor in gates.CONSTRUCTORS.items()
}
GATES: dict[str, Tunable] = {
    **{rgpo_name(k): gates.rgpo(k) for k in SHARPNESSES},
    **DEFAULTS,
    "rgpo k=16, normalised": gates.rgpo(16.0, normalize=True),
    "rgpo k=4, log form": gates.rgpo(4.0, form="log"),
    "ppo dual-clip": gates.ppo(dual_clip=3.0),
    "ppo clip-higher": gates.ppo(clip_high=0.28),
    "truncated c=2": gates.truncated_importance(2.0),
    "smooth arctan": gates.smooth("arctan"),
    "smooth softsign": gates.smooth("softsign"),
}
