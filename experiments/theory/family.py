"""The family: g and w of every gate, and what bounds them; computed from the gates themselves."""

import math
from typing import NamedTuple

import jax
import numpy as np
from scipy import optimize

from experiments.theory import catalogue, ratios
from experiments.theory.options import Options
from experiments.theory.study import Claim, Figure, Line, Panel, Progress, Study, Table, say
from rgpo_jax import gates
from rgpo_jax.tunable import Tunable

_LOG_RATIOS = np.linspace(-30.0, 19.0, 49_001)  # of the search for a supremum
_OFFSET = 0.2239  # GATES: sup w <= k/4 + this; max_x x sigmoid(x) sigmoid(-x) is 0.22386


def values(gate: Tunable, log_ratio: np.ndarray, advantage: float) -> np.ndarray:
    """g in float64."""
    with jax.enable_x64(True):
        return np.asarray(gate(np.float64(log_ratio), np.full_like(log_ratio, advantage)))


def supremum(gate: Tunable, advantage: float) -> tuple[float, float, float]:
    """sup |w| over all ratios, and the least and largest ratio at which it is reached.

    The ratios are (inf, inf) where w is unbounded, and (0, inf) where it is the same everywhere.
    """
    if ratios.growth(gate, advantage) > 1e-6:
        return math.inf, math.inf, math.inf

    def size(log_ratio: np.ndarray) -> np.ndarray:
        return np.abs(ratios.weights(gate, log_ratio, np.full_like(log_ratio, advantage)))

    on_grid = size(_LOG_RATIOS)
    i = int(np.argmax(on_grid))
    step = _LOG_RATIOS[1] - _LOG_RATIOS[0]
    found = optimize.minimize_scalar(
        lambda l: -float(size(np.array([l]))[0]),
        bounds=(_LOG_RATIOS[i] - step, _LOG_RATIOS[i] + step),
        method="bounded",
        options={"xatol": 1e-12},
    )
    best = max(-float(found.fun), float(on_grid[i]))
    (reached,) = np.nonzero(on_grid >= best * (1.0 - 1e-9))
    if len(reached) < 3:
        at = math.exp(found.x)
        return best, at, at
    low, high = _LOG_RATIOS[reached[[0, -1]]]
    return (
        best,
        0.0 if reached[0] == 0 else math.exp(low),
        math.inf if reached[-1] == len(_LOG_RATIOS) - 1 else math.exp(high),
    )


def where(low: float, high: float) -> str:
    """The ratios at which a supremum is reached, in words."""
    if math.isinf(low):
        return "as r grows"
    if low == 0.0 and math.isinf(high):
        return "every r"
    if math.isinf(high):
        return f"r ≥ {say(low)}"
    return say(low) if low == high else f"{say(low)} to {say(high)}"


class Facts(NamedTuple):
    """What is computed of a gate.

    Attributes:
      at_one: w(1).
      supremum, at: sup |w| where A > 0, and the ratios at which it is reached, in words.
      supremum_negative, at_negative: the same where A < 0.
      in_unit_interval: whether g maps into [0, 1].
      is_bounded: whether w is.
    """

    at_one: float
    supremum: float
    at: str
    supremum_negative: float
    at_negative: str
    in_unit_interval: bool
    is_bounded: bool


def facts(gate: Tunable) -> Facts:
    """Computes them in float64, over ratios from e^-30 to e^19 and by the growth beyond."""
    signs = (1.0, -1.0)
    positive, negative = (supremum(gate, sign) for sign in signs)
    g = np.concatenate([values(gate, _LOG_RATIOS, sign) for sign in signs])
    return Facts(
        float(ratios.weights(gate, np.zeros(1), np.ones(1))[0]),
        positive[0],
        where(*positive[1:]),
        negative[0],
        where(*negative[1:]),
        bool(g.min() >= 0.0 and g.max() <= 1.0),
        math.isfinite(positive[0]) and math.isfinite(negative[0]),
    )


def run(options: Options, progress: Progress) -> Study:
    """Tables and pictures of all gates of the catalogue."""
    found = {}
    for i, (name, gate) in enumerate(catalogue.GATES.items()):
        found[name] = facts(gate)
        progress((i + 1) / len(catalogue.GATES))
    return Study(
        "The family of gates",
        (
            "A policy gradient is E[w(r) A \N{NABLA}log \N{GREEK SMALL LETTER PI}] with "
            "w(r) = g\N{PRIME}(r) r = dg/d log r. All that follows is computed from the gates that "
            "agents train with, by differentiating them. That RGPO's gate is "
            "\N{GREEK SMALL LETTER SIGMA}(k (r - 1)) is not in the paper's abstract: a "
            "secondary summary of the paper reports it, but not the paper's k.",
            "RGPO's gate has relatives that came first and must be named with it: P3O's "
            "\N{LEFT DOUBLE QUOTATION MARK}Scopic\N{RIGHT DOUBLE QUOTATION MARK} loss (arXiv "
            "2205.10047) and SAPO (arXiv 2511.20347). Normalising by 4/k, and the log form, are "
            "ours.",
        ),
        _claims(found),
        _figures(),
        [_table(found)],
    )


def _claims(found: dict[str, Facts]) -> list[Claim]:
    sharp = {k: found[catalogue.rgpo_name(k)] for k in catalogue.SHARPNESSES}
    return [
        _rgpo_is_an_acceptance_gate(found, sharp),
        _older_gates_are_none(found),
        _rgpo_has_a_largest_weight(sharp),
        _rgpo_is_p3o_and_sapo(),
        _clip_does_not_bound(found),
    ]


def _rgpo_is_an_acceptance_gate(found: dict[str, Facts], sharp: dict[float, Facts]) -> Claim:
    acceptance = [name for name, row in found.items() if row.in_unit_interval]
    return Claim(
        "RGPO's gate is an acceptance gate: its values are in [0, 1].",
        "paper",
        all(row.in_unit_interval for row in sharp.values()),
        f"computed for k = {', '.join(f'{k:g}' for k in sharp)}; of all gates here "
        f"{len(acceptance)} map into [0, 1]: {', '.join(acceptance)}",
        ("family", "family_sharpness"),
    )


def _older_gates_are_none(found: dict[str, Facts]) -> Claim:
    return Claim(
        "The gates of TRPO (g = r), PPO and REINFORCE (g = log r) are no acceptance gates: "
        "the three belong to the family by their weight alone.",
        "ours",
        not any(found[name].in_unit_interval for name in ("importance", "ppo", "reinforce")),
        "none of the three maps into [0, 1]; the paper's abstract says no more of them than "
        "that their policy gradients are choices of w",
        ("family",),
    )


def _rgpo_has_a_largest_weight(sharp: dict[float, Facts]) -> Claim:
    off = max(abs(row.at_one - k / 4.0) for k, row in sharp.items())
    excess = {k: row.supremum - k / 4.0 for k, row in sharp.items()}
    return Claim(
        f"RGPO's weight is k/4 at r = 1 and never above k/4 + {_OFFSET}.",
        "ours",
        off < 1e-12 and max(excess.values()) <= _OFFSET,
        f"|w(1) - k/4| is at most {say(off)}; sup w - k/4 is "
        + ", ".join(f"{say(value)} (k = {k:g})" for k, value in excess.items()),
        ("family_sharpness",),
    )


def _rgpo_is_p3o_and_sapo() -> Claim:
    l = np.linspace(-6.0, 3.0, 2001)
    rgpo = ratios.weights(gates.rgpo(4.0), l, np.ones_like(l))
    distance = max(
        float(np.abs(ratios.weights(gate, l, np.full_like(l, sign)) - rgpo).max())
        for gate in (gates.p3o(4.0), gates.sapo(4.0, 4.0))
        for sign in (1.0, -1.0)
    )
    return Claim(
        "At k = 4 RGPO's weight is that of P3O (t = 4, without its KL penalty) and of SAPO "
        "(both temperatures 4).",
        "ours",
        distance < 1e-12,
        f"largest difference over r from e^-6 to e^3: {say(distance)}",
        ("family",),
    )


def _clip_does_not_bound(found: dict[str, Facts]) -> Claim:
    unbounded = [name for name, row in found.items() if not row.is_bounded]
    return Claim(
        "PPO's clip does not bound its weight: where A < 0, w = r for every r above the clip.",
        "ours",
        math.isfinite(found["ppo"].supremum) and not found["ppo"].is_bounded,
        f"sup w is {say(found['ppo'].supremum)} where A > 0 and {say(math.inf)} where A < 0; "
        f"dual-clip bounds it by {say(found['ppo dual-clip'].supremum_negative)}. Unbounded "
        f"here: {', '.join(unbounded)}",
        ("family",),
    )


def _panels(
    chosen: dict[str, Tunable], x: np.ndarray, log_ratio: np.ndarray, x_label: str
) -> list[Panel]:
    """A panel per gate: g and w, for both signs of A."""
    panels = []
    for name, gate in chosen.items():
        lines = []
        for sign, words, dash in ((1.0, "A > 0", "-"), (-1.0, "A < 0", "--")):
            w = ratios.weights(gate, log_ratio, np.full_like(log_ratio, sign))
            lines.append(Line(f"g, {words}", x, values(gate, log_ratio, sign), 0, dash))
            lines.append(Line(f"w, {words}", x, w, 1, dash))
        panels.append(Panel(name, x_label, "", lines, guides=(0.0, 1.0), limits=(-1.0, 3.0)))
    return panels


def _figures() -> list[Figure]:
    # With r = 0 itself, where the log-ratio is -inf, left out.
    r, l = np.linspace(1e-6, 4.0, 201), np.linspace(-3.0, 3.0, 201)
    sharp = {catalogue.rgpo_name(k): gates.rgpo(k) for k in catalogue.SHARPNESSES}
    # RGPO's other sharpnesses have a figure of their own.
    drawn = {
        name: gate
        for name, gate in catalogue.GATES.items()
        if name in catalogue.DEFAULTS or name not in sharp
    }
    return [
        Figure(
            "family",
            "Each gate g and its weight w = dg/d log r over the ratio, for both signs of A.",
            _panels(drawn, r, np.log(r), "ratio r"),
            columns=4,
        ),
        Figure(
            "family_log",
            "The same over the log-ratio.",
            _panels(drawn, l, l, "log-ratio"),
            columns=4,
        ),
        Figure(
            "family_sharpness",
            "RGPO's gate and weight for several sharpnesses k; the sign of A makes no difference.",
            [
                Panel(
                    what,
                    "ratio r",
                    what,
                    [
                        Line(name, r, function(gate, np.log(r)), style)
                        for style, (name, gate) in enumerate(sharp.items())
                    ],
                )
                for what, function in (
                    ("g", lambda gate, at: values(gate, at, 1.0)),
                    ("w", lambda gate, at: ratios.weights(gate, at, np.ones_like(at))),
                )
            ],
        ),
    ]


def _table(found: dict[str, Facts]) -> Table:
    return Table(
        "family",
        "Computed for each gate: w(1), sup |w| and the ratio at which it lies, for either sign of "
        "A; whether g maps into [0, 1]; whether w is bounded.",
        (
            *("gate", "w(1)", "sup |w|, A > 0", "at r, A > 0", "sup |w|, A < 0", "at r, A < 0"),
            *("g in [0, 1]", "w bounded"),
        ),
        [(name, *row) for name, row in found.items()],
    )
