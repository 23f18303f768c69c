"""RGPO: a smooth acceptance gate in two ratios, to the policy that sampled and to the reference.

The paper (arXiv 2604.14895) anchors a language model by a dual-ratio gate whose form we could not
read; those here are ours (`rgpo_jax.gate_table`). A gate multiplied by the advantage is no
regulariser, so each goes with a KL to the reference; in the reward, where the policy settles at
pi_ref exp(R / beta) / Z whatever the gate, as it does not where the KL is in the loss.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import rgpo_jax
from agents.language.method import config, maker
from rgpo_jax.config import Checked, ConfigError
from rgpo_jax.ranges import Positive, UnitInterval

if TYPE_CHECKING:
    from rgpo_jax.gates import Tunable


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Gate(Checked):
    dual: Literal["product", "geometric", "two_sided", "min", "none"] = "geometric"
    """How the two ratios meet in the gate; none: that to the policy that sampled alone."""
    sharpness: Positive = 4.0
    """How fast the gate closes away from a ratio of 1 (k); it also scales the loss by k / 4."""
    mix: UnitInterval | None = None
    """Share of the ratio to the policy that sampled, with dual geometric; the rest is that to the
    reference. None: a half."""
    normalize: bool = False
    """Multiply the gate by 4 / sharpness, so that sharpness changes its shape alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mix is not None and self.dual != "geometric":
            raise ConfigError("mix", f"{self.mix}: goes with dual geometric, not {self.dual}")


Config = config(__name__, _Gate)


def gate(config: Any) -> "Tunable":
    """The gate that the Config describes."""
    settings: dict[str, Any] = {"sharpness": config.sharpness, "normalize": config.normalize}
    if config.dual == "none":
        return rgpo_jax.gates.rgpo(**settings)
    if config.mix is not None:
        settings["mix"] = config.mix
    return rgpo_jax.gates.make(f"dual_{config.dual}", **settings)


make = maker(Config, gate)
