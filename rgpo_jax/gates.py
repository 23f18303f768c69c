r"""Gates: what a policy gradient puts in the place of the importance ratio.

With the log-ratio $\ell = \log \pi_\theta(a|s) - \log \pi_{\text{old}}(a|s)$, the ratio
$r = e^\ell$ and the advantage $A$, every agent of this suite ascends

    J(theta) = E_old[ g(l, A) A ],   grad J = E_old[ w(l, A) A grad log pi ],   w = dg/dl = g'(r) r.

A gate is the function $g$, elementwise in (log_ratio, advantage); `weight(gate)` is $w$. The gate
is part of the graph and never detached. Methods that are published with a detached weight
(V-trace, CISPO, TOPR) stand here as the antiderivative of that weight: the gradient is the same,
and the objective is a function that a line search can evaluate.

A gate is a `Tunable`: its numbers are pytree leaves and may be traced arrays, so a sweep over, say,
the sharpness is one vmapped program. Value and gradient are finite for every float32 log-ratio in
[-1e4, 1e4]: beyond e^20 the ratio is continued linearly in l, with its slope frozen at e^20.
(Numbers of a gate from 1e-6 to 1e10 were tried.)

`gates.rgpo(sharpness=2.0)` builds a gate. Here are the formulas; what settings a gate has, their
ranges and defaults, and where it is from, its row in `rgpo_jax.gate_table` says.

Gates of two ratios, `DUAL_CONSTRUCTORS`, are functions (log_ratio, advantage, log_ratio_ref) of the
ratio to a fixed reference as well, rho = pi_theta / pi_ref. Both ratios move with theta, so the
weight is dg/dl + dg/dm with m = log rho. What the paper's dual gate is was not published in a form
that could be read: these are ours. None of them keeps a policy near the reference by itself; that
takes a KL term (see `docs/alignment.md`).

Only `rgpo` maps into [0, 1]; `reinforce`, `importance` and `ppo`, which the paper names as choices
of w, belong to the family through their weight and are not acceptance gates.
"""

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rgpo_jax import tunable
from rgpo_jax.gate_table import DUAL_GATES, GATES, Row
from rgpo_jax.tunable import Tunable, as_tunable, is_of_suite

Array = jax.Array
Gate = Tunable | Callable[[Array, Array], Array]
"""A function (log_ratio, advantage) -> g, elementwise, with or without numbers of its own."""

_LARGEST_RATIO = 485165195.4  # e^20; its square, and SPO's gate of it, stay finite in float32
_SMALLEST_RATIO = 1e-30


def weight(gate: Gate) -> Callable[[Array, Array], Array]:
    """Returns w = dg/dl, the weight that a gate gives to a sample's policy gradient.

    Args:
      gate: function (log_ratio, advantage) -> g, elementwise; or of two ratios, (log_ratio,
        advantage, log_ratio_ref) -> g.

    Returns:
      Function of the gate's arguments -> w, of the shape to which they broadcast; of two ratios
      w = dg/dl + dg/dm, since both move with the policy.
    """

    def weight_function(log_ratio: Array, advantage: Array, *log_ratio_ref: Array) -> Array:
        log_ratio = jnp.asarray(log_ratio, jnp.result_type(float, log_ratio))
        log_ratio, advantage, *reference = jnp.broadcast_arrays(
            log_ratio, jnp.asarray(advantage), *map(jnp.asarray, log_ratio_ref)
        )
        value, pullback = jax.vjp(lambda l, *m: gate(l, advantage, *m), log_ratio, *reference)
        return functools.reduce(jnp.add, pullback(jnp.ones_like(value)))

    return weight_function


CONSTRUCTORS: dict[str, Callable[..., Tunable]] = {}
"""Name -> constructor, of gates of one ratio."""
DUAL_CONSTRUCTORS: dict[str, Callable[..., Tunable]] = {}
"""Name -> constructor, of gates of two ratios."""


def _constructor(
    formula: Callable[..., Array],
    table: dict[str, Row] = GATES,
    constructors: dict[str, Callable[..., Tunable]] = CONSTRUCTORS,
) -> Callable[..., Tunable]:
    """Makes a gate's constructor of its formula, `_name`, and its row; enters it by its name."""
    name = formula.__name__.removeprefix("_")
    row = table[name]
    constructor = tunable.constructor(formula, row.settings)
    constructor.__name__ = constructor.__qualname__ = name
    constructor.__module__ = __name__
    settings = tunable.describe(row.settings)
    constructor.__doc__ = "\n\n".join(
        (
            inspect.cleandoc(formula.__doc__ or ""),
            f"Args:\n{settings}" if settings else "No settings.",
            f"Source: {', '.join(row.references)}.",
        )
    )
    constructors[name] = constructor
    return constructor


def _clipped_weight(log_ratio: Array, low: Any, high: Any) -> Array:
    """The antiderivative in l of clip(e^l, low, high) that equals e^l between the two bounds."""
    low, high = jnp.maximum(low, _SMALLEST_RATIO), jnp.maximum(high, _SMALLEST_RATIO)
    inside = jnp.clip(log_ratio, jnp.log(low), jnp.log(high))
    return jnp.exp(inside) * (1.0 + log_ratio - inside)


def _ratio(log_ratio: Array) -> Array:
    """e^l, continued linearly where it would leave float32."""
    return _clipped_weight(log_ratio, 0.0, _LARGEST_RATIO)


def _scale(sharpness: Any, normalize: bool) -> Any:
    return 4.0 / sharpness if normalize else 1.0


def _rgpo(
    log_ratio: Array,
    advantage: Array,
    sharpness: Any,
    form: str,
    normalize: bool,
    pull_back: bool,
) -> Array:
    r"""Rejection-Gated Policy Optimization: a smooth acceptance gate.

    .. math:: g = \sigma(k (r - 1)), \qquad w = k r \sigma(1 - \sigma), \qquad w(1) = k / 4

    The log form (ours) is g = sigmoid(k l), whose weight is at most k/4 for every ratio.
    `normalize` multiplies by 4/k, so that w(1) = 1 and the sharpness k changes the shape alone.
    `pull_back` (ours): where the advantage calls for a step that brings the ratio back to 1,
    w = (k/4) r in the place of a weight that fades (PPO's clip leaves w = r there). KL stays
    several times smaller, but w is no longer bounded where A < 0, and g leaves [0, 1].

    At k = 4 the weight is that of P3O (arXiv 2205.10047) and of SAPO (arXiv 2511.20347), which
    came before.
    """
    ratio = _ratio(log_ratio)
    distance = ratio - 1.0 if form == "linear" else log_ratio
    scale = _scale(sharpness, normalize)
    acceptance = scale * jax.nn.sigmoid(sharpness * distance)
    if not pull_back:
        return acceptance
    returning = jnp.sign(log_ratio) * jnp.sign(advantage) < 0
    return jnp.where(returning, scale * (0.5 + sharpness / 4.0 * (ratio - 1.0)), acceptance)


rgpo = _constructor(_rgpo)


def _ppo(log_ratio: Array, advantage: Array, clip: Any, clip_high: Any, dual_clip: Any) -> Array:
    r"""Proximal policy optimization: min(r A, clip(r) A) / A.

    .. math:: w = r \text{ where unclipped, else } 0; \quad A > 0: r \le 1 + \epsilon_{\text{high}};
              \quad A < 0: 1 - \epsilon \le r \le c

    `clip_high` is DAPO's clip-higher (arXiv 2503.14476), another range above 1. `dual_clip` is c
    (arXiv 1912.09729): it drops samples with A < 0 and r > c.
    """
    ratio = _ratio(log_ratio)
    ceiling = 1.0 + (clip if clip_high is None else clip_high)
    floor = 1.0 - clip
    # `where` and not `minimum`: at a tie the sample is unclipped, and its weight is r.
    rising = jnp.where(ratio <= ceiling, ratio, ceiling)
    falling = jnp.where(ratio >= floor, ratio, floor)
    if dual_clip is not None:
        falling = jnp.where(falling <= dual_clip, falling, dual_clip)
    return jnp.where(advantage >= 0, rising, falling)


ppo = _constructor(_ppo)


def _reinforce(log_ratio: Array, advantage: Array) -> Array:
    """REINFORCE: g = log r, w = 1."""
    del advantage
    return log_ratio


reinforce = _constructor(_reinforce)


def _importance(log_ratio: Array, advantage: Array) -> Array:
    """Importance sampling, TRPO's surrogate: g = r, w = r."""
    del advantage
    return _ratio(log_ratio)


importance = _constructor(_importance)


def _truncated_importance(log_ratio: Array, advantage: Array, cap: Any) -> Array:
    """Truncated importance sampling: w = min(c, r), with the cap c 1 in V-trace and 2 in TIS."""
    del advantage
    return _clipped_weight(log_ratio, 0.0, cap)


truncated_importance = _constructor(_truncated_importance)


def _cispo(log_ratio: Array, advantage: Array, low: Any, high: Any) -> Array:
    """CISPO: w = clip(r, low, high), whatever the sign of the advantage.

    The paper's low and high are 1 - epsilon_low and 1 + epsilon_high; the default, min(r, 5), is
    the one in common use.
    """
    del advantage
    return _clipped_weight(log_ratio, low, high)


cispo = _constructor(_cispo)


def _soft_clip(log_ratio: Array, temperature: Any) -> Array:
    return 4.0 / temperature * jax.nn.sigmoid(temperature * (_ratio(log_ratio) - 1.0))


def _sapo(
    log_ratio: Array, advantage: Array, temperature_positive: Any, temperature_negative: Any
) -> Array:
    r"""Soft adaptive policy optimization: a temperature for each sign of the advantage.

    .. math:: g = \frac{4}{\tau} \sigma(\tau (r - 1)), \qquad w = 4 r \sigma (1 - \sigma)

    At A = 0 the temperature is the negative one.
    """
    temperature = jnp.where(advantage > 0, temperature_positive, temperature_negative)
    return _soft_clip(log_ratio, temperature)


sapo = _constructor(_sapo)


def _p3o(log_ratio: Array, advantage: Array, temperature: Any) -> Array:
    """P3O's "Scopic" loss, without its KL penalty: g = 4/t sigmoid(t (r - 1))."""
    del advantage
    return _soft_clip(log_ratio, temperature)


p3o = _constructor(_p3o)


def _spo(log_ratio: Array, advantage: Array, clip: Any) -> Array:
    """Simple policy optimization: w = r (1 - sign(A) (r - 1) / epsilon).

    The weight is 0 at r = 1 + sign(A) epsilon and changes sign beyond. (ICML 2025; version 6 of the
    paper is another method, which clips the KL.)
    """
    ratio = _ratio(log_ratio)
    return ratio - jnp.sign(advantage) * jnp.square(ratio - 1.0) / (2.0 * clip)


spo = _constructor(_spo)


def _rollback(log_ratio: Array, advantage: Array, clip: Any, slope: Any) -> Array:
    """PPO with rollback: w = r inside PPO's clip and -slope r beyond it."""
    ratio = _ratio(log_ratio)
    edge = _ppo(log_ratio, advantage, clip, None, None)
    return edge - slope * (ratio - edge)  # beyond the clip, ratio - edge is what PPO cut off


rollback = _constructor(_rollback)


def _topr(log_ratio: Array, advantage: Array) -> Array:
    """Tapered off-policy REINFORCE: w = 1 where A >= 0, else min(r, 1)."""
    return jnp.where(advantage >= 0, log_ratio, _clipped_weight(log_ratio, 0.0, 1.0))


topr = _constructor(_topr)


def _smooth(log_ratio: Array, advantage: Array, sharpness: Any, kind: str) -> Array:
    r"""Smooth trust-region gates; with x = t (r - 1):

    .. math:: w_{\text{erf}} = r e^{-x^2/2}, \quad w_{\text{arctan}} = \frac{r}{1 + x^2},
              \quad w_{\text{softsign}} = \frac{r}{(1 + x^2)^{3/2}}

    The paper's t is 10 to 12.
    """
    del advantage
    x = sharpness * (_ratio(log_ratio) - 1.0)
    if kind == "erf":
        return jnp.sqrt(jnp.pi / 2) / sharpness * jax.lax.erf(x / jnp.sqrt(2.0))
    if kind == "arctan":
        return jnp.arctan(x) / sharpness
    # Beyond 1e6 the slope is below 1e-18; x^2 must not overflow.
    x = jnp.clip(x, -1e6, 1e6)
    return x * jax.lax.rsqrt(1.0 + jnp.square(x)) / sharpness


smooth = _constructor(_smooth)


def _bounded(distance: Array, slope: Array) -> Array:
    """tanh(slope distance) / slope for a distance of at least 0, and its limit at a slope of 0."""
    slope = jnp.clip(slope, 1e-20, 1e20)
    # tanh by e^-2x, whose derivative is exact where 1 - tanh^2 is a rounding error times the ratio.
    double = 2.0 * slope * distance
    return -jnp.expm1(-double) / (1.0 + jnp.exp(-double)) / slope


def _discovered(log_ratio: Array, advantage: Array, drift_alpha: Any, drift_beta: Any) -> Array:
    r"""Discovered Policy Optimisation's drift, found by meta-learning: g = r - drift(r, A) / A.

    .. math:: A \ge 0: \text{drift} = \text{relu}((r-1) A - \alpha \tanh((r-1) A / \alpha)), \quad
              w = r \, \text{sech}^2((r-1) A / \alpha) \text{ where } r > 1
    .. math:: A < 0: \text{drift} = \text{relu}(A \log r - \beta \tanh(A \log r / \beta)), \quad
              w = r - \tanh^2(A \log r / \beta) \text{ where } r < 1

    and w = r elsewhere, and where A is near 0. Known as DPO, which is another method's name, too.
    """
    ratio, size = _ratio(log_ratio), jnp.abs(advantage)
    above, below = jnp.maximum(ratio - 1.0, 0.0), jnp.maximum(-log_ratio, 0.0)
    rising = jnp.minimum(ratio, 1.0) + _bounded(above, size / drift_alpha)
    falling = ratio + (below - _bounded(below, size / drift_beta))
    return jnp.where(advantage >= 0, rising, falling)


discovered = _constructor(_discovered)


def _dual_constructor(formula: Callable[..., Array]) -> Callable[..., Tunable]:
    """As `_constructor`, of a gate of two ratios."""
    return _constructor(formula, DUAL_GATES, DUAL_CONSTRUCTORS)


def _acceptance(log_ratio: Array, sharpness: Any) -> Array:
    return jax.nn.sigmoid(sharpness * (_ratio(log_ratio) - 1.0))


def _dual_product(
    log_ratio: Array, advantage: Array, log_ratio_ref: Array, sharpness: Any, normalize: bool
) -> Array:
    r"""A gate in each of the two ratios, multiplied.

    .. math:: g = \sigma(k (r - 1)) \, \sigma(k (\rho - 1)), \qquad w(1, 1) = k / 4
    """
    del advantage
    gate = _acceptance(log_ratio, sharpness) * _acceptance(log_ratio_ref, sharpness)
    return _scale(sharpness, normalize) * gate


dual_product = _dual_constructor(_dual_product)


def _dual_geometric(
    log_ratio: Array,
    advantage: Array,
    log_ratio_ref: Array,
    sharpness: Any,
    mix: Any,
    normalize: bool,
) -> Array:
    r"""RGPO's gate in the geometric mean of the two ratios.

    .. math:: g = \sigma(k (u - 1)), \quad u = r^c \rho^{1 - c}, \qquad w = k u \sigma (1 - \sigma)

    It is the gate form of a dual KL, E[R] - a KL(pi, pi_ref) - c KL(pi, pi_old), whose maximiser
    mixes the two policies geometrically. With c = 1 it is `rgpo`.
    """
    del advantage
    mean = mix * log_ratio + (1.0 - mix) * log_ratio_ref
    return _scale(sharpness, normalize) * _acceptance(mean, sharpness)


dual_geometric = _dual_constructor(_dual_geometric)


def _dual_two_sided(
    log_ratio: Array, advantage: Array, log_ratio_ref: Array, sharpness: Any, normalize: bool
) -> Array:
    r"""RGPO's gate, times a factor that fades on either side of rho = 1.

    .. math:: g = \sigma(k (r - 1)) \cdot 4 \sigma(k m) \sigma(-k m), \quad m = \log \rho

    The factor is detached: it weighs the gradient, and has none. A gate that only rises with rho
    is open for all ratios far above 1, where w tends to w(r); this one closes there.
    """
    del advantage
    m = jax.lax.stop_gradient(sharpness * log_ratio_ref)
    factor = 4.0 * jax.nn.sigmoid(m) * jax.nn.sigmoid(-m)
    return _scale(sharpness, normalize) * _acceptance(log_ratio, sharpness) * factor


dual_two_sided = _dual_constructor(_dual_two_sided)


def _dual_min(
    log_ratio: Array, advantage: Array, log_ratio_ref: Array, sharpness: Any, normalize: bool
) -> Array:
    """The smaller of the gates in the two ratios; where they tie, half of each weight."""
    del advantage
    gate = jnp.minimum(_acceptance(log_ratio, sharpness), _acceptance(log_ratio_ref, sharpness))
    return _scale(sharpness, normalize) * gate


dual_min = _dual_constructor(_dual_min)


def make(name: str, **settings: Any) -> Tunable:
    """Builds a gate from its name: `make("rgpo", sharpness=2.0)`, `make("dual_min")`.

    Raises:
      ValueError: no gate has this name (the message has the nearest), or a setting is out of range.
      TypeError: the gate has no such setting.
    """
    constructors = CONSTRUCTORS | DUAL_CONSTRUCTORS
    if name not in constructors:
        nearest = difflib.get_close_matches(name, constructors, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(nearest)}? " if nearest else ""
        raise ValueError(f"unknown gate {name!r}: {hint}known gates: {', '.join(constructors)}")
    return constructors[name](**settings)


def is_dual(gate: Tunable) -> bool:
    """Whether a gate is one of two ratios: it has an argument `log_ratio_ref`."""
    return "log_ratio_ref" in inspect.signature(gate.function).parameters


def checked(gate: Gate) -> Tunable:
    """A gate of one ratio as a `Tunable`; one that is not of the suite is checked, see `check`.

    Raises:
      ValueError: it is of the suite, and of two ratios; or as `check`.
    """
    gate = as_tunable(gate)
    if is_of_suite(gate.function) and is_dual(gate):
        raise ValueError(
            "a gate of two ratios, which is for language models: expected one of "
            "(log_ratio, advantage)"
        )
    traced = any(isinstance(number, jax.core.Tracer) for number in jax.tree.leaves(gate.numbers))
    return gate if traced or is_of_suite(gate.function) else check(gate)


def check(gate: Gate) -> Tunable:
    """Checks that a user's function is a gate, and wraps it as a `Tunable`.

    Raises:
      ValueError: it cannot be called with (log_ratio, advantage), is not elementwise in shape, or
        gives a value or weight that is not finite at ratios from 1/2 to 2.
    """
    gate = as_tunable(gate)
    try:
        hash(gate.function)
    except TypeError:
        raise ValueError("a gate must be hashable: it selects the compiled program") from None
    slopes = []
    # 0 among them: there every first minibatch is.
    log_ratio = jnp.array([[-0.7, -0.35, -0.05], [0.0, 0.35, 0.7]])
    for sign in (-1.0, 1.0):
        advantage = jnp.full_like(log_ratio, sign)
        try:
            value = gate(log_ratio, advantage)
            slope = weight(gate)(log_ratio, advantage)
        except Exception as error:
            raise ValueError(f"not a gate, (log_ratio, advantage) -> g: {error}") from error
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(f"its value is {jnp.result_type(value)}, expected a float")
        if jnp.shape(value) != log_ratio.shape:
            raise ValueError(f"not elementwise: shape {log_ratio.shape} became {jnp.shape(value)}")
        if not bool(jnp.all(jnp.isfinite(value)) & jnp.all(jnp.isfinite(slope))):
            raise ValueError("its value or weight is not finite at ratios from 1/2 to 2")
        slopes.append(slope)
    if not any(bool(jnp.any(slope)) for slope in slopes):
        raise ValueError("its weight is 0 at all ratios from 1/2 to 2: it would never learn")
    return gate
