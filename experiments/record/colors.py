"""Which colour and dash an agent has, in every chart, figure and page."""

from collections.abc import Sequence
from typing import NamedTuple

# Colour -> whose it is: an agent of control, a method of language models, or one of each, which no
# report shows together. The first seven are Okabe and Ito's, which people with colour blindness
# tell apart, without their yellow, which nobody sees on white; the others are less surely told
# apart, on white and on black.
_OWNERS: dict[str, tuple[str, ...]] = {
    "#0072B2": ("rgpo",),
    "#D55E00": ("ppo",),
    "#009E73": ("reinforce",),
    "#CC79A7": ("trpo", "rloo"),
    "#E69F00": ("awr", "grpo"),
    "#56B4E9": ("a2c", "dapo"),
    "#8A8A8A": ("importance", "dual_kl"),
    "#6A5ACD": ("sapo",),
    "#A83A6E": ("p3o", "dr_grpo"),
    "#999933": ("spo", "gspo"),
    "#44AA99": ("cispo",),
    "#CC6677": ("truncated_importance", "dpo"),
    "#8C510A": ("topr", "ipo"),
    "#17BECF": ("smooth", "kto"),
    "#4D9221": ("discovered", "rpo"),
    "#5B7C99": ("rollback", "rebel"),
    "#B8860B": ("reward_distillation",),
    "#7F7FFF": ("online_dpo",),
    "#E377C2": ("on_policy_dpo",),
    "#C0504D": ("zpg",),
    "#AA4499": ("zbcpg",),
}
COLORS = tuple(_OWNERS)
DASHES = ("solid", "dash", "dot", "dashdot")
_OF_SUITE = {name: color for color, names in _OWNERS.items() for name in names}
_SHADES = (0.0, -0.4, 0.45)  # of variants of an agent: below 0 nearer to black, above to white


class Look(NamedTuple):
    """How the lines and points of one thing are drawn.

    Attributes:
      color: as #rrggbb.
      dash: one of `DASHES`.
    """

    color: str
    dash: str = DASHES[0]


def of_agents(names: Sequence[str]) -> dict[str, str]:
    """Agent or method -> its colour, as #rrggbb.

    Those of the suite have the same always. Others, such as one with another's gate, get colours
    that none of these names has, in their order; the best known ones last.
    """
    known = {name: _OF_SUITE[n] for name in names if (n := name.replace("-", "_")) in _OF_SUITE}
    free = [color for color in reversed(COLORS) if color not in known.values()] or COLORS
    others = [name for name in dict.fromkeys(names) if name not in known]
    return known | {name: free[i % len(free)] for i, name in enumerate(others)}


def of_variants(agents: Sequence[str]) -> list[Look]:
    """The looks of variants, of each of which this is the agent.

    Variants of an agent have shades of its colour, and dashes.
    """
    colors, seen = of_agents(agents), dict.fromkeys(agents, 0)
    looks = []
    for agent in agents:
        place = seen[agent]
        seen[agent] += 1
        looks.append(
            Look(shade(colors[agent], _SHADES[place % len(_SHADES)]), DASHES[place % len(DASHES)])
        )
    return looks


def gradient(color: str, number: int) -> list[str]:
    """So many shades of a colour, from dark to light."""
    if number == 1:
        return [color]
    return [shade(color, -0.5 + i / (number - 1)) for i in range(number)]


def shade(color: str, amount: float) -> str:
    """A colour that is nearer to black, down to -1, or to white, up to 1."""
    end = 255 if amount > 0 else 0
    parts = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + abs(amount) * (end - part)):02X}" for part in parts)
