"""ONNX of a function of arrays: its jaxpr, operation by operation.

So no network is described a second time. Operations on constants alone are computed while the graph
is made. Needs the extra `export`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import helper, numpy_helper

_OPSET, _IR_VERSION = 18, 9  # of 2022 and 2023, which runtimes of today read
_TYPES = {
    np.dtype(name): helper.np_dtype_to_tensor_dtype(np.dtype(name))
    for name in ("float32", "float64", "int8", "int32", "int64", "uint8", "uint32", "bool")
}

# Operations of one ONNX operator, with the same arguments.
_SAME = {
    "abs": "Abs",
    "add": "Add",
    "and": "And",
    "cos": "Cos",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "stop_gradient": "Identity",
    "sub": "Sub",
    "tanh": "Tanh",
}
_REDUCTIONS = {"reduce_max": "ReduceMax", "reduce_min": "ReduceMin", "reduce_sum": "ReduceSum"}
# Operations that stand for a jaxpr of their own, and under which name they have it.
_CALLS = {
    "jit": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


class NotInOnnx(Exception):
    """A function does what this module has no operator for; the message names it."""


def convert(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> bytes:
    """A serialised ONNX model of a function.

    Args:
      function: of arrays or dicts of them, to an array or a tuple of such.
      arguments: their shapes and types; the first axis may be symbolic, all others have sizes.
      inputs: a name for each array, those of a dict in the order of its keys.
      outputs: a name for each result.

    Raises:
      NotInOnnx: it does what there is no operator for here.
    """
    closed = jax.jit(function).trace(*arguments).jaxpr
    graph = _Graph()
    for name, variable in zip(inputs, closed.jaxpr.invars, strict=True):
        graph.name_input(name, variable.aval)
    results = graph.run(closed.jaxpr, closed.consts, inputs)
    for name, result, variable in zip(outputs, results, closed.jaxpr.outvars, strict=True):
        graph.nodes.append(helper.make_node("Identity", [graph.named(result)], [name]))
        graph.outputs.append(_described(name, variable.aval))
    whole = helper.make_graph(
        graph.nodes, "policy", graph.inputs, graph.outputs, list(graph.constants.values())
    )
    model = helper.make_model(
        whole,
        producer_name="rgpo_jax",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _type_of(dtype: Any) -> int:
    if np.dtype(dtype) not in _TYPES:
        raise NotInOnnx(f"no arithmetic in {np.dtype(dtype).name}")
    return _TYPES[np.dtype(dtype)]


def _is_size(size: Any) -> bool:
    return isinstance(size, int)  # and not a symbol


def _described(name: str, aval: Any) -> onnx.ValueInfoProto:
    shape = [size if _is_size(size) else str(size) for size in aval.shape]
    return helper.make_tensor_value_info(name, _type_of(aval.dtype), shape)


def _aval(atom: Any) -> Any:
    """Shape and type of a variable or a literal; JAX's own hint knows neither."""
    return atom.aval


def _needed(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """The equations on which results depend, in their order."""
    wanted, kept = set(map(id, jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in wanted for variable in equation.outvars):
            kept.append(equation)
            wanted.update(map(id, equation.invars))
    return kept[::-1]


class _Graph:
    """A graph in the making; a value in it is the name of a result, or an array: a constant.

    Attributes:
      nodes, inputs, outputs, constants: what it is made of.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._count = 0

    def name_input(self, name: str, aval: Any) -> None:
        self.inputs.append(_described(name, aval))
        if not self._is_sized(aval):
            self._batch = self.add("Shape", name, end=1)

    @staticmethod
    def _is_sized(aval: Any) -> bool:
        return all(map(_is_size, aval.shape))

    def _new_name(self) -> str:
        self._count += 1
        return f"x{self._count}"

    def named(self, value: Any) -> str:
        """The name of a value, which a constant gets."""
        if isinstance(value, str):
            return value
        name = self._new_name()
        array = np.asarray(value)
        _type_of(array.dtype)
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def add(self, operator: str, *values: Any, **attributes: Any) -> str:
        """Adds a node, and returns the name of its result."""
        name = self._new_name()
        names = [self.named(value) for value in values]
        self.nodes.append(helper.make_node(operator, names, [name], **attributes))
        return name

    def run(self, jaxpr: core.Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list:
        """The values of a jaxpr's results."""
        values = dict(zip(map(id, jaxpr.constvars), constants, strict=True))
        values |= dict(zip(map(id, jaxpr.invars), arguments, strict=True))

        def read(atom: Any) -> Any:
            is_literal = isinstance(atom, core.Literal)
            return np.asarray(atom.val, _aval(atom).dtype) if is_literal else values[id(atom)]

        for equation in _needed(jaxpr):
            name, found = equation.primitive.name, [read(atom) for atom in equation.invars]
            if name in _CALLS:
                inner = equation.params[_CALLS[name]]
                results = self.run(inner.jaxpr, inner.consts, found)
            elif not any(isinstance(value, str) for value in found) and all(
                self._is_sized(variable.aval) for variable in equation.outvars
            ):
                result = equation.primitive.bind(*found, **equation.params)
                results = result if equation.primitive.multiple_results else [result]
            elif name == "split":
                results = self._split(found[0], equation.params)
            else:
                results = [self._operate(name, found, equation)]
            values |= dict(zip(map(id, equation.outvars), results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _operate(self, name: str, values: list[Any], equation: core.JaxprEqn) -> str:
        """The result of one operation, of which not all arguments are constant."""
        params: Mapping[str, Any] = equation.params
        result, operands = _aval(equation.outvars[0]), list(map(_aval, equation.invars))
        if name in _SAME:
            return self.add(_SAME[name], *values)
        if name in _REDUCTIONS:
            return self.add(_REDUCTIONS[name], values[0], np.array(params["axes"]), keepdims=0)
        if name == "convert_element_type":
            return self.add("Cast", values[0], to=_type_of(result.dtype))
        if name == "integer_pow":
            return self.add("Pow", values[0], np.array(params["y"], result.dtype))
        if name == "square":
            return self.add("Mul", values[0], values[0])
        if name == "rsqrt":
            return self.add("Reciprocal", self.add("Sqrt", values[0]))
        if name == "ne":
            return self.add("Not", self.add("Equal", *values))
        if name == "select_n" and operands[0].dtype == bool and len(values) == 3:
            which, where_false, where_true = values
            return self.add("Where", which, where_true, where_false)
        if name == "argmax":
            (axis,) = params["axes"]
            found = self.add("ArgMax", values[0], axis=axis, keepdims=0)
            return self.add("Cast", found, to=_type_of(result.dtype))
        if name == "concatenate":
            return self.add("Concat", *values, axis=params["dimension"])
        if name == "stack":  # from jax 0.11 on
            axis = params["axis"]
            shape = [*result.shape[:axis], 1, *result.shape[axis + 1 :]]
            parts = [self._reshape(value, shape) for value in values]
            return self.add("Concat", *parts, axis=axis)
        if name == "transpose":
            return self.add("Transpose", values[0], perm=params["permutation"])
        if name in ("reshape", "squeeze", "expand_dims"):
            return self._reshape(values[0], result.shape)
        if name == "broadcast_in_dim":
            return self._broadcast(values[0], operands[0].shape, result.shape, params)
        if name == "slice" and set(params["strides"] or [1]) == {1}:
            bounds = params["start_indices"], params["limit_indices"]
            return self._slice(values[0], operands[0].shape, *bounds)
        if name == "pad" and not any(inner for *_, inner in params["padding_config"]):
            lows, highs, _ = zip(*params["padding_config"], strict=True)
            return self.add("Pad", values[0], np.array([*lows, *highs], np.int64), values[1])
        if name == "gather" and operands[1].ndim == 1 and not isinstance(values[1], str):
            # So is a slice written, x[:, 1:3] or x[:, 0], where an axis is symbolic.
            starts = [0] * operands[0].ndim
            for axis, start in zip(
                params["dimension_numbers"].start_index_map, values[1].tolist(), strict=True
            ):
                starts[axis] = start
            ends = [start + size for start, size in zip(starts, params["slice_sizes"], strict=True)]
            part = self._slice(values[0], operands[0].shape, starts, ends)
            return self._reshape(part, result.shape)
        if name == "dot_general":
            return self._contract(values, [aval.ndim for aval in operands], params)
        if name == "conv_general_dilated":
            return self._convolve(values, params)
        raise NotInOnnx(f"no operator for {name}")

    def _reshape(self, value: Any, shape: Sequence[Any]) -> str:
        # One size may be left to be inferred: there is one symbol, the batch.
        sizes = [size if _is_size(size) else -1 for size in shape]
        return self.add("Reshape", value, np.array(sizes, np.int64))

    def _broadcast(
        self, value: Any, old: Sequence[Any], new: Sequence[Any], params: Mapping[str, Any]
    ) -> str:
        spread: list[Any] = [1] * len(new)
        for axis, size in zip(params["broadcast_dimensions"], old, strict=True):
            spread[axis] = size
        value = self._reshape(value, spread)
        if spread == list(new):
            return value
        parts = [np.array([size], np.int64) if _is_size(size) else self._batch for size in new]
        return self.add("Expand", value, self.add("Concat", *parts, axis=0))

    def _slice(
        self, value: Any, shape: Sequence[Any], starts: Sequence[int], ends: Sequence[Any]
    ) -> str:
        whole = zip(starts, ends, shape, strict=True)
        axes = [axis for axis, (start, end, size) in enumerate(whole) if (start, end) != (0, size)]
        begin, end = ([bounds[axis] for axis in axes] for bounds in (starts, ends))
        return self.add("Slice", value, *(np.array(x, np.int64) for x in (begin, end, axes)))

    def _split(self, value: Any, params: Mapping[str, Any]) -> list[str]:
        names = [self._new_name() for _ in params["sizes"]]
        arguments = [self.named(value), self.named(np.array(params["sizes"], np.int64))]
        self.nodes.append(helper.make_node("Split", arguments, names, axis=params["axis"]))
        return names

    def _contract(self, values: list[Any], ranks: list[int], params: Mapping[str, Any]) -> str:
        (left, right), (left_batch, right_batch) = params["dimension_numbers"]
        if (left, right) == ((ranks[0] - 1,), (0,)) and ranks[1] == 2 and not left_batch:
            return self.add("MatMul", *values)
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        terms = [[next(letters) for _ in range(rank)] for rank in ranks]
        for ours, theirs in zip((*left, *left_batch), (*right, *right_batch), strict=True):
            terms[1][theirs] = terms[0][ours]
        used = {*left, *left_batch}, {*right, *right_batch}
        result = [terms[0][axis] for axis in left_batch]
        for term, gone in zip(terms, used, strict=True):
            result += [letter for axis, letter in enumerate(term) if axis not in gone]
        equation = f"{''.join(terms[0])},{''.join(terms[1])}->{''.join(result)}"
        return self.add("Einsum", *values, equation=equation)

    def _convolve(self, values: list[Any], params: Mapping[str, Any]) -> str:
        if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
            raise NotInOnnx("no operator for a transposed convolution")
        numbers = params["dimension_numbers"]
        begins, ends = zip(*params["padding"], strict=True)
        result = self.add(
            "Conv",
            self.add("Transpose", values[0], perm=numbers.lhs_spec),
            self.add("Transpose", values[1], perm=numbers.rhs_spec),
            strides=params["window_strides"],
            dilations=params["rhs_dilation"],
            group=params["feature_group_count"],
            pads=[*begins, *ends],
        )
        return self.add("Transpose", result, perm=np.argsort(numbers.out_spec).tolist())
