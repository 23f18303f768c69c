r"""Gates: what a policy gradient puts in the place of the importance ratio.

With the log-ratio $\ell = \log \pi_\theta(a|s) - \log \pi_{old}(a|s)$, the ratio $r = e^\ell$ and
the advantage $A$, every agent of this suite ascends

    J(theta) = E_old[ g(l, A) A ],   grad J = E_old[ w(l, A) A grad log pi ],   w = dg/dl = g'(r) r.

A gate is the function $g$, elementwise in (log_ratio, advantage); `weight(gate)` is $w$. The gate
is part of the graph and never detached. Methods that are published with a detached weight
(V-trace, CISPO, TOPR) stand here as the antiderivative of that weight: the gradient is the same,
and the objective is a function that a line search can evaluate.

A gate is a `Tunable`: its numbers are pytree leaves and may be traced arrays, so a sweep over, say,
the sharpness is one vmapped program. Value and gradient are finite for every float32 log-ratio in
[-1e4, 1e4]: beyond e^20 the ratio is continued linearly in l, with its slope frozen at e^20.
(Numbers of a gate from 1e-6 to 1e10 were tried.)

Only `rgpo` maps into [0, 1]; `reinforce`, `importance` and `ppo`, which the paper names as choices
of w, belong to the family through their weight and are not acceptance gates.
"""

import difflib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rgpo_jax.ranges import ABOVE_ONE, FRACTION, NON_NEGATIVE, POSITIVE, Range
from rgpo_jax.tunable import Tunable, as_tunable, require

Array = jax.Array
Gate = Tunable | Callable[[Array, Array], Array]

_LARGEST_RATIO = 485165195.4  # e^20; its square, and SPO's gate of it, stay finite in float32
_SMALLEST_RATIO = 1e-30


def weight(gate: Gate) -> Callable[[Array, Array], Array]:
    """Returns w = dg/dl, the weight that a gate gives to a sample's policy gradient.

    Args:
      gate: function (log_ratio, advantage) -> g, elementwise.

    Returns:
      Function (log_ratio, advantage) -> w, of the shape to which the two broadcast.
    """

    def weight_function(log_ratio: Array, advantage: Array) -> Array:
        log_ratio = jnp.asarray(log_ratio, jnp.result_type(float, log_ratio))
        log_ratio, advantage = jnp.broadcast_arrays(log_ratio, jnp.asarray(advantage))
        value, pullback = jax.vjp(lambda l: gate(l, advantage), log_ratio)
        return pullback(jnp.ones_like(value))[0]

    return weight_function


def _clipped_weight(log_ratio: Array, low: Any, high: Any) -> Array:
    """The antiderivative in l of clip(e^l, low, high) that equals e^l between the two bounds."""
    low, high = jnp.maximum(low, _SMALLEST_RATIO), jnp.maximum(high, _SMALLEST_RATIO)
    inside = jnp.clip(log_ratio, jnp.log(low), jnp.log(high))
    return jnp.exp(inside) * (1.0 + log_ratio - inside)


def _ratio(log_ratio: Array) -> Array:
    """e^l, continued linearly where it would leave float32."""
    return _clipped_weight(log_ratio, 0.0, _LARGEST_RATIO)


def _rgpo(
    log_ratio: Array,
    advantage: Array,
    sharpness: Any,
    form: str,
    normalize: bool,
    call_back: bool,
) -> Array:
    ratio = _ratio(log_ratio)
    distance = ratio - 1.0 if form == "linear" else log_ratio
    scale = 4.0 / sharpness if normalize else 1.0
    acceptance = scale * jax.nn.sigmoid(sharpness * distance)
    if not call_back:
        return acceptance
    returning = jnp.sign(log_ratio) * jnp.sign(advantage) < 0
    return jnp.where(returning, scale * (0.5 + sharpness / 4.0 * (ratio - 1.0)), acceptance)


def rgpo(
    sharpness: Any = 4.0,
    form: Literal["linear", "log"] = "linear",
    normalize: bool = False,
    call_back: bool = False,
) -> Tunable:
    r"""Rejection-Gated Policy Optimization: a smooth acceptance gate.

    .. math:: g = \sigma(k (r - 1)), \qquad w = k r \sigma(1 - \sigma), \qquad w(1) = k / 4

    The log form (ours) is g = sigmoid(k l), whose weight is at most k/4 for every ratio.

    Args:
      sharpness: k > 0; how fast the gate closes. It also scales the policy loss by k/4.
      form: "linear" in the ratio (the paper's) or "log", linear in the log-ratio.
      normalize: multiply by 4/k, so that w(1) = 1 and k changes the shape alone.
      call_back: where the advantage calls for a step that brings the ratio back to 1, w = (k/4) r
        in the place of a weight that fades (ours; PPO's clip leaves w = r there). KL stays several
        times smaller, but w is no longer bounded where A < 0, and g leaves [0, 1].

    Source: arXiv 2604.14895. At k = 4 the weight is that of P3O (arXiv 2205.10047) and of
    SAPO (arXiv 2511.20347), which came before.
    """
    require("sharpness", sharpness, POSITIVE)
    if form not in ("linear", "log"):
        raise ValueError(f"form = {form!r}: expected 'linear' or 'log'")
    if not isinstance(normalize, bool):
        raise ValueError(f"normalize = {normalize!r}: expected True or False")
    if not isinstance(call_back, bool):
        raise ValueError(f"call_back = {call_back!r}: expected True or False")
    options = (("form", form), ("normalize", normalize), ("call_back", call_back))
    return Tunable(_rgpo, {"sharpness": sharpness}, options)


def _ppo(log_ratio: Array, advantage: Array, clip: Any, clip_high: Any, dual_clip: Any) -> Array:
    ratio = _ratio(log_ratio)
    ceiling = 1.0 + (clip if clip_high is None else clip_high)
    floor = 1.0 - clip
    # `where` and not `minimum`: at a tie the sample is unclipped, and its weight is r.
    rising = jnp.where(ratio <= ceiling, ratio, ceiling)
    falling = jnp.where(ratio >= floor, ratio, floor)
    if dual_clip is not None:
        falling = jnp.where(falling <= dual_clip, falling, dual_clip)
    return jnp.where(advantage >= 0, rising, falling)


def ppo(clip: Any = 0.2, clip_high: Any = None, dual_clip: Any = None) -> Tunable:
    r"""Proximal policy optimization: min(r A, clip(r) A) / A.

    .. math:: w = r \text{ where unclipped, else } 0; \quad A > 0: r \le 1 + \epsilon_{high};
              \quad A < 0: 1 - \epsilon \le r \le c

    Args:
      clip: epsilon in (0, 1), the clip range on both sides.
      clip_high: another range above 1 (DAPO's clip-higher, arXiv 2503.14476); None: `clip`.
      dual_clip: c > 1; drops samples with A < 0 and r > c (arXiv 1912.09729); None: off.

    Source: arXiv 1707.06347.
    """
    require("clip", clip, FRACTION)
    if clip_high is not None:
        require("clip_high", clip_high, POSITIVE)
    if dual_clip is not None:
        require("dual_clip", dual_clip, ABOVE_ONE)
    return Tunable(_ppo, {"clip": clip, "clip_high": clip_high, "dual_clip": dual_clip})


def _reinforce(log_ratio: Array, advantage: Array) -> Array:
    del advantage
    return log_ratio


def reinforce() -> Tunable:
    """REINFORCE: g = log r, w = 1. Source: Williams, 1992."""
    return Tunable(_reinforce)


def _importance(log_ratio: Array, advantage: Array) -> Array:
    del advantage
    return _ratio(log_ratio)


def importance() -> Tunable:
    """Importance sampling, TRPO's surrogate: g = r, w = r. Source: arXiv 1502.05477."""
    return Tunable(_importance)


def _truncated_importance(log_ratio: Array, advantage: Array, cap: Any) -> Array:
    del advantage
    return _clipped_weight(log_ratio, 0.0, cap)


def truncated_importance(cap: Any = 1.0) -> Tunable:
    """Truncated importance sampling: w = min(c, r).

    Args:
      cap: c > 0 (V-trace 1, TIS 2).

    Source: V-trace, arXiv 1802.01561.
    """
    require("cap", cap, POSITIVE)
    return Tunable(_truncated_importance, {"cap": cap})


def _cispo(log_ratio: Array, advantage: Array, low: Any, high: Any) -> Array:
    del advantage
    return _clipped_weight(log_ratio, low, high)


def cispo(low: Any = 0.0, high: Any = 5.0) -> Tunable:
    """CISPO: w = clip(r, low, high), whatever the sign of the advantage.

    Args:
      low: least weight, at least 0 (1 - epsilon_low in the paper).
      high: largest weight, above low (1 + epsilon_high in the paper).

    Source: arXiv 2506.13585; the default, min(r, 5), is the one in common use.
    """
    require("low", low, NON_NEGATIVE)
    require("high", high, POSITIVE)
    if not isinstance(low, jax.core.Tracer):
        require("high", high, Range(lambda x: x > low, f"a number above low = {low}"))
    return Tunable(_cispo, {"low": low, "high": high})


def _soft_clip(log_ratio: Array, temperature: Any) -> Array:
    return 4.0 / temperature * jax.nn.sigmoid(temperature * (_ratio(log_ratio) - 1.0))


def _sapo(
    log_ratio: Array, advantage: Array, temperature_positive: Any, temperature_negative: Any
) -> Array:
    temperature = jnp.where(advantage > 0, temperature_positive, temperature_negative)
    return _soft_clip(log_ratio, temperature)


def sapo(temperature_positive: Any = 1.0, temperature_negative: Any = 1.05) -> Tunable:
    r"""Soft adaptive policy optimization: a temperature for each sign of the advantage.

    .. math:: g = \frac{4}{\tau} \sigma(\tau (r - 1)), \qquad w = 4 r \sigma (1 - \sigma)

    Args:
      temperature_positive: tau > 0 where A > 0.
      temperature_negative: tau > 0 elsewhere.

    Source: arXiv 2511.20347.
    """
    require("temperature_positive", temperature_positive, POSITIVE)
    require("temperature_negative", temperature_negative, POSITIVE)
    return Tunable(
        _sapo,
        {
            "temperature_positive": temperature_positive,
            "temperature_negative": temperature_negative,
        },
    )


def _p3o(log_ratio: Array, advantage: Array, temperature: Any) -> Array:
    del advantage
    return _soft_clip(log_ratio, temperature)


def p3o(temperature: Any = 4.0) -> Tunable:
    """P3O's "Scopic" loss, without its KL penalty: g = 4/t sigmoid(t (r - 1)).

    Args:
      temperature: t > 0.

    Source: arXiv 2205.10047.
    """
    require("temperature", temperature, POSITIVE)
    return Tunable(_p3o, {"temperature": temperature})


def _spo(log_ratio: Array, advantage: Array, clip: Any) -> Array:
    ratio = _ratio(log_ratio)
    return ratio - jnp.sign(advantage) * jnp.square(ratio - 1.0) / (2.0 * clip)


def spo(clip: Any = 0.2) -> Tunable:
    """Simple policy optimization: w = r (1 - sign(A) (r - 1) / epsilon).

    Args:
      clip: epsilon > 0; the weight is 0 at r = 1 + sign(A) epsilon and changes sign beyond.

    Source: arXiv 2401.16025v9 (ICML 2025); v6 is another method, which clips the KL.
    """
    require("clip", clip, POSITIVE)
    return Tunable(_spo, {"clip": clip})


def _rollback(log_ratio: Array, advantage: Array, clip: Any, slope: Any) -> Array:
    ratio = _ratio(log_ratio)
    edge = _ppo(log_ratio, advantage, clip, None, None)
    return edge - slope * (ratio - edge)  # beyond the clip, ratio - edge is what PPO cut off


def rollback(clip: Any = 0.2, slope: Any = 0.3) -> Tunable:
    """PPO with rollback: w = r inside PPO's clip and -slope r beyond it.

    Args:
      clip: epsilon in (0, 1).
      slope: alpha >= 0; 0 is PPO.

    Source: arXiv 1903.07940.
    """
    require("clip", clip, FRACTION)
    require("slope", slope, NON_NEGATIVE)
    return Tunable(_rollback, {"clip": clip, "slope": slope})


def _topr(log_ratio: Array, advantage: Array) -> Array:
    return jnp.where(advantage >= 0, log_ratio, _clipped_weight(log_ratio, 0.0, 1.0))


def topr() -> Tunable:
    """Tapered off-policy REINFORCE: w = 1 where A >= 0, else min(r, 1).

    Source: arXiv 2503.14286.
    """
    return Tunable(_topr)


def _smooth(log_ratio: Array, advantage: Array, sharpness: Any, kind: str) -> Array:
    del advantage
    x = sharpness * (_ratio(log_ratio) - 1.0)
    if kind == "erf":
        return jnp.sqrt(jnp.pi / 2) / sharpness * jax.lax.erf(x / jnp.sqrt(2.0))
    if kind == "arctan":
        return jnp.arctan(x) / sharpness
    # Beyond 1e6 the slope is below 1e-18; x^2 must not overflow.
    x = jnp.clip(x, -1e6, 1e6)
    return x * jax.lax.rsqrt(1.0 + jnp.square(x)) / sharpness


def smooth(kind: Literal["erf", "arctan", "softsign"] = "erf", sharpness: Any = 10.0) -> Tunable:
    r"""Smooth trust-region gates; with x = t (r - 1):

    .. math:: w_{erf} = r e^{-x^2/2}, \quad w_{arctan} = \frac{r}{1 + x^2},
              \quad w_{softsign} = \frac{r}{(1 + x^2)^{3/2}}

    Args:
      kind: "erf", "arctan" or "softsign".
      sharpness: t > 0; the paper uses 10 to 12.

    Source: arXiv 2602.19345.
    """
    require("sharpness", sharpness, POSITIVE)
    if kind not in ("erf", "arctan", "softsign"):
        raise ValueError(f"kind = {kind!r}: expected 'erf', 'arctan' or 'softsign'")
    return Tunable(_smooth, {"sharpness": sharpness}, (("kind", kind),))


CONSTRUCTORS: dict[str, Callable[..., Tunable]] = {
    constructor.__name__: constructor
    for constructor in (
        rgpo,
        ppo,
        reinforce,
        importance,
        truncated_importance,
        cispo,
        sapo,
        p3o,
        spo,
        rollback,
        topr,
        smooth,
    )
}


def make(name: str, **settings: Any) -> Tunable:
    """Builds a gate from its name: `make("rgpo", sharpness=2.0)`.

    Raises:
      ValueError: no gate has this name (the message has the nearest), or a setting is out of range.
      TypeError: the gate has no such setting.
    """
    if name not in CONSTRUCTORS:
        nearest = difflib.get_close_matches(name, CONSTRUCTORS, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(nearest)}? " if nearest else ""
        raise ValueError(f"unknown gate {name!r}: {hint}known gates: {', '.join(CONSTRUCTORS)}")
    return CONSTRUCTORS[name](**settings)


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
    log_ratio = jnp.linspace(-0.7, 0.7, 6).reshape(2, 3)
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
