"""Policies in formats that others read: StableHLO, and ONNX.

What is exported is the policy's mode, for a batch of any size: an observation
[batch, *observation_shape] in the environment's units gives an action [batch, ...] in the
environment's units. A recurrent policy takes a memory [batch, H] as well, zeros where an episode
starts, and gives the one after the observation.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rgpo_jax.importing import install_hint
from rgpo_jax.policy import Policy
from rgpo_jax.policy_file import PolicyError


def stablehlo(policy: Policy) -> bytes:
    """StableHLO of `jax.export`, for CPUs and GPUs and TPUs alike.

    >>> act = jax.export.deserialize(content).call
    >>> action = act(observation)

    JAX promises to read it for six months.

    Raises:
      ImportError: flatbuffers is not installed, which the extra `export` brings.
    """
    from jax import export

    function, arguments = _mode(policy)
    exported = export.export(jax.jit(function), platforms=("cpu", "cuda", "rocm", "tpu"))
    try:
        return bytes(exported(*arguments).serialize())
    except ImportError as error:
        raise _needs_extra("StableHLO", error) from None


def onnx(policy: Policy) -> bytes:
    """An ONNX model, with inputs `observation` and `memory` and outputs `action`, `next_memory`.

    Of a dict of arrays each is an input, `observation.NAME`.

    Raises:
      ImportError: onnx is not installed, which the extra `export` brings.
      PolicyError: the policy does what `onnx_graph` has no operator for, or computes in half
        precision.
    """
    try:
        from rgpo_jax import onnx_graph
    except ImportError as error:
        raise _needs_extra("ONNX", error) from None
    function, arguments = _mode(policy)
    number = len(arguments)
    parts = policy.about.observation_shape
    names = [f"observation.{name}" for name in sorted(parts)] if isinstance(parts, dict) else []
    inputs = [*(names or ["observation"]), *["memory"][: number - 1]]
    outputs = ["action", "next_memory"][:number]
    try:
        return onnx_graph.convert(function, arguments, inputs, outputs)
    except onnx_graph.NotInOnnx as error:
        raise PolicyError(f"ONNX: {error}; StableHLO has it") from None


FORMATS: dict[str, Callable[[Policy], bytes]] = {".stablehlo": stablehlo, ".onnx": onnx}
"""Ending of a file's name -> what writes a policy so."""


def content(policy: Policy, suffix: str) -> bytes:
    """The content of a file that ends so.

    Raises:
      PolicyError: there is no such format, or it cannot say what the policy does.
      ImportError: the format needs the extra `export`.
    """
    if suffix not in FORMATS:
        raise PolicyError(f"a name that ends in {suffix!r}: expected {' or '.join(FORMATS)}")
    return FORMATS[suffix](policy)


def _mode(policy: Policy) -> tuple[Callable[..., Any], list[Any]]:
    """What is exported, and its arguments, whose first axis has no size yet."""
    from jax import export

    (batch,) = export.symbolic_shape("batch")
    about = policy.about

    def described(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), np.dtype(dtype))

    shapes: Any = about.observation_shape
    observation: Any = jax.tree.map(
        described, shapes, about.observation_dtype, is_leaf=lambda node: isinstance(node, tuple)
    )
    memory = policy.initial_memory()
    if memory is None:
        return lambda observation: policy.function(observation), [observation]
    return (
        lambda observation, memory: policy.function(observation, memory=memory),
        [observation, jax.ShapeDtypeStruct((batch, *memory.shape), memory.dtype)],
    )


def _needs_extra(format_name: str, error: ImportError) -> ImportError:
    return ImportError(f"{format_name} needs an extra: {install_hint('export')} ({error})")
