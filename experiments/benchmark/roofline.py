"""What a compiled program has to do, what its device can do, and so its share of the roofline.

XLA's own `cost_analysis` counts the body of a loop once, and nearly all the work here is in loops.
Here a body counts as often as it runs. A loop whose length depends on data counts once. So a
`Program`, which is such a loop, counts as one repetition, and the work of an iterative solver is a
lower bound.
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.comparing.timing import Program
from experiments.training.programs import memory_of

_BITS = re.compile(r"\d+")
_SHAPE = re.compile(r"\b(pred|token|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_WORKSPACE = re.compile(r"\b[su]8\[\d+\]")
# Names for what is there already, and ends of what was counted where it began.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_SLICES = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass(frozen=True)
class Work:
    """What one repetition of a program has to do.

    Attributes:
      bytes: that its kernels read and write, by the shapes of what each takes and gives; NaN where
        the compiled program cannot be read.
      flops: of its matrix products and convolutions.
    """

    bytes: float
    flops: float


class Peaks(NamedTuple):
    """What a device was seen to do.

    Attributes:
      bytes_per_second: read and written, of a large array.
      flops_per_second: of a large matrix product, by its precision.
    """

    bytes_per_second: float
    flops_per_second: Mapping[str, float]


def compile_loop(
    step: Callable[[Any], tuple[Any, Any]], state: Any, steps: int
) -> tuple[Program, Work]:
    """Compiles a program that repeats `step`.

    Args:
      step: state -> (state, what it reports); nothing of either is left out as dead.
      state: to begin with.
      steps: of the environments, or of whatever is counted, in one repetition.
    """

    def body(_: Any, carry: Any) -> Any:
        state, total = carry
        state, report = step(state)
        return state, total + sum(
            jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(report)
        )

    def repeat(carry: Any, count: Any) -> Any:
        return jax.lax.fori_loop(0, count, body, carry)

    carry = (state, jnp.zeros(()))
    started = time.perf_counter()
    traced = jax.jit(repeat).trace(carry, jnp.int32(1))
    compiled = traced.lower().compile()
    compile_seconds = time.perf_counter() - started
    program = Program(
        lambda carry, count: compiled(carry, jnp.int32(count)),
        carry,
        steps,
        compile_seconds,
        memory_of(compiled),
    )
    try:
        moved = bytes_moved(compiled.as_text())
    except (LookupError, ValueError):  # a compiler may write what we do not know: time it anyway
        moved = math.nan
    return program, Work(moved, flops(traced.jaxpr.jaxpr))


def measure_peaks(array_bytes: int, matrix_size: int, seconds: float) -> Peaks:
    """Times copies and matrix products.

    Args:
      array_bytes: of the array that is read and written; far more than caches hold.
      matrix_size: rows and columns of square matrices.
      seconds: that a timing takes, about.
    """

    def best(step: Callable, state: Any, amount: int) -> float:
        program, _ = compile_loop(lambda state: (step(state), ()), state, amount)
        count = program.calibrate(seconds)
        return amount * count / min(program.seconds(count) for _ in range(5))

    array = jnp.zeros(array_bytes // 4, jnp.float32)
    bandwidth = best(lambda x: x + 1.0, array, 2 * array.nbytes)
    products = {}
    for name, dtype, precision in (
        ("float32", jnp.float32, "highest"),
        ("float32 by default", jnp.float32, None),
        ("bfloat16", jnp.bfloat16, None),
    ):
        # Entries keep their size from one product to the next.
        matrix = jnp.full((matrix_size, matrix_size), 1 / matrix_size, dtype)
        with jax.default_matmul_precision(precision):
            products[name] = best(lambda x, y=matrix: x @ y, matrix, 2 * matrix_size**3)
    return Peaks(bandwidth, products)


def flops(jaxpr: Any) -> float:
    """Of the matrix products and convolutions of a jaxpr: two a multiplication."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            terms = math.prod(left[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * terms
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / features
        else:
            inner = [flops(body) for body in _bodies(params)]
            if name == "cond":
                total += max(inner)
            else:
                total += params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)
    return total


def _bodies(params: Mapping[str, Any]) -> Iterator[Any]:
    """The jaxprs within an equation."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


class _Instruction(NamedTuple):
    """One line of a compiled program's text; `rest` is what follows its operands."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    rest: str


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The instructions of each computation, the root last, and the name of the first that runs."""
    computations: dict[str, list[_Instruction]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            lines = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            inside, _, rest = found[5].partition(")")
            operands = re.findall(r"%([\w.-]+)", inside)
            lines.append(_Instruction(found[2], found[3], found[4], operands, rest))
    return computations, entry


def _size(shape: str) -> float:
    """Bytes of an array, or of all arrays of a tuple."""
    total = 0.0
    for kind, dimensions in _SHAPE.findall(shape):
        width = _BITS.search(kind)
        bits = int(width[0]) if width else 8 * (kind == "pred")
        total += bits / 8 * math.prod(int(n) for n in dimensions.split(",") if n)
    return total


def bytes_moved(text: str) -> float:
    """What the kernels of a compiled program read and write, from its text.

    Args:
      text: of `jax.stages.Compiled.as_text()`.
    """
    computations, entry = _parse(text)

    def called(instruction: _Instruction, *roles: str) -> list[str]:
        pattern = rf"\b(?:{'|'.join(roles)})=(\{{[^}}]*\}}|%?[\w.-]+)"
        found = re.findall(pattern, instruction.rest)
        return [name for names in found for name in re.findall(r"[\w.-]+", names)]

    def of_fusion(instruction: _Instruction) -> float:
        """What is read of each operand, which may be a slice, and what is written."""
        inner = computations[called(instruction, "calls")[0]]
        inner_sizes = {line.name: _size(line.shape) for line in inner}
        parameters = [line for line in inner if line.opcode == "parameter"]
        total, written = 0.0, _size(instruction.shape)
        for parameter in parameters:
            users = [line for line in inner if parameter.name in line.operands]
            in_place = [
                line
                for line in users
                if line.opcode == "dynamic-update-slice" and line.operands[0] == parameter.name
            ]
            for line in in_place:
                written -= inner_sizes[line.name] - inner_sizes[line.operands[1]]
            if users and all(line.opcode in _SLICES or line in in_place for line in users):
                total += sum(inner_sizes[line.name] for line in users if line not in in_place)
            else:
                total += inner_sizes[parameter.name]
        return total + max(written, 0.0)

    def of_one(instruction: _Instruction, sizes: Mapping[str, float]) -> float:
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            return 0.0
        if opcode == "while":
            trips = _TRIPS.search(instruction.rest)
            body = of_computation(called(instruction, "body")[0])
            return (int(trips[1]) if trips else 1) * body
        if opcode == "conditional":
            roles = ("branch_computations", "true_computation", "false_computation")
            return max(map(of_computation, called(instruction, *roles)))
        read = sum(sizes.get(name, 0.0) for name in instruction.operands)
        if opcode == "call" or opcode.endswith("-start"):
            bodies = called(instruction, "to_apply", "calls")
            return sum(map(of_computation, bodies)) if bodies else 2 * read
        if opcode == "fusion":
            return of_fusion(instruction)
        if opcode in _SLICES:
            return 2 * _size(instruction.shape)
        if opcode == "dynamic-update-slice":
            return 2 * sizes[instruction.operands[1]]
        # Beside the results of a library's kernel there is its workspace, in bytes.
        shape = _WORKSPACE.sub("", instruction.shape) if opcode == "custom-call" else ""
        return read + _size(shape or instruction.shape)

    def of_computation(name: str) -> float:
        instructions = computations[name]
        sizes = {line.name: _size(line.shape) for line in instructions}
        return sum(of_one(line, sizes) for line in instructions)

    return of_computation(entry)
