"""Sums, products and maxima of blobs; Scale and Bias."""

from __future__ import annotations

from memcli.formats.caffe.building import Shape, Tensor
from memcli.formats.caffe.layers.normalization import folded_into_batch_norm
from memcli.formats.caffe.registry import LayerCall, Result, Unsupported, layer

_PROD, _SUM, _MAX = 0, 1, 2
_SUM_OP, _ASUM, _SUMSQ, _MEAN = 1, 2, 3, 4


@layer("Eltwise")
def eltwise(call: LayerCall) -> Result:
    call.take((2, 1 << 16))
    p, shape = call.p.eltwise_param, call.x.shape
    for bottom in call.bottoms:
        if bottom.shape != shape:
            raise call.wrong(f"its bottoms have the shapes {shape} and {bottom.shape}")
    coefficients = list(p.coeff)
    if coefficients and (p.operation != _SUM or len(coefficients) != len(call.bottoms)):
        raise call.wrong("coeff is for SUM, one for each bottom")
    if p.operation == _MAX:
        return call.result("Max", call.bottoms, shape)
    if p.operation == _PROD:
        product = call.x
        for k, bottom in enumerate(call.bottoms[1:-1]):
            product = call.step(f"product{k}", "Mul", [product, bottom], shape)
        return call.result("Mul", [product, call.bottoms[-1]], shape)
    if len(call.bottoms) == 2 and coefficients == [1, -1]:
        return call.result("Sub", call.bottoms, shape)
    parts = [
        bottom
        if not coefficients or coefficients[k] == 1
        else call.times(bottom, coefficients[k], f"part{k}")
        for k, bottom in enumerate(call.bottoms)
    ]
    return call.result("Add" if len(parts) == 2 else "Sum", parts, shape)


@layer("Scale")
def scale(call: LayerCall) -> Result:
    """By a parameter, or by the second bottom; one that BatchNorm has taken in does nothing."""
    call.take((1, 2))
    if folded_into_batch_norm(call.net, call.position):
        return call.x
    p, x = call.p.scale_param, call.x
    if len(call.bottoms) == 2:
        factor, covered = _second(call, p.axis)
        parameters = 0
    else:
        covered = _covered(call, p.axis, p.num_axes)
        factor = _parameter(call, 0, "weight", covered, p.axis)
        parameters = 1
    if not p.bias_term:
        return call.result("Mul", [x, factor], x.shape)
    scaled = call.step("scaled", "Mul", [x, factor], x.shape)
    return call.result(
        "Add", [scaled, _parameter(call, parameters, "bias", covered, p.axis)], x.shape
    )


@layer("Bias")
def bias(call: LayerCall) -> Result:
    call.take((1, 2))
    p, x = call.p.bias_param, call.x
    if len(call.bottoms) == 2:
        added, _ = _second(call, p.axis)
    else:
        added = _parameter(call, 0, "bias", _covered(call, p.axis, p.num_axes), p.axis)
    return call.result("Add", [x, added], x.shape)


def _covered(call: LayerCall, axis: int, num_axes: int) -> Shape:
    """The part of the bottom's shape that the parameter has."""
    if num_axes == 0:
        return ()
    start = call.axis(axis)
    if num_axes < -1 or start + num_axes > call.x.rank:
        raise call.wrong(f"num_axes {num_axes} from axis {axis} of a blob of shape {call.x.shape}")
    return call.x.shape[start:] if num_axes == -1 else call.x.shape[start : start + num_axes]


def _parameter(call: LayerCall, index: int, what: str, covered: Shape, axis: int) -> Tensor:
    """A parameter, with ones for the dimensions after those that it covers."""
    after = call.x.rank - call.axis(axis) - len(covered) if covered else 0
    return call.weight(index, what, covered, stored=(*covered, *(1,) * after))


def _second(call: LayerCall, axis: int) -> tuple[Tensor, Shape]:
    """The second bottom, ready to broadcast, and the shape that it has."""
    second = call.bottoms[1]
    if second.rank == 0:
        return second, ()
    start = call.axis(axis)
    if call.x.shape[start : start + second.rank] != second.shape:
        raise call.wrong(f"{second.shape} does not fit {call.x.shape} from axis {axis} on")
    after = call.x.rank - start - second.rank
    shape = (*second.shape, *(1,) * after)
    if not after:
        return second, second.shape
    axes = call.builder.ints(*range(second.rank, second.rank + after))
    return call.step("spread", "Unsqueeze", [second, axes], shape), second.shape


@layer("Axpy")
def axpy(call: LayerCall) -> Result:
    """``a * x + y`` with a factor for each channel (squeeze-and-excitation nets)."""
    call.take(3)
    a, x, y = call.bottoms
    if y.shape != x.shape or a.shape[:2] != x.shape[:2] or any(n != 1 for n in a.shape[2:]):
        raise call.wrong(f"its bottoms have the shapes {a.shape}, {x.shape} and {y.shape}")
    if a.rank != x.rank:
        a = call.reshaped(a, (*a.shape[:2], *(1,) * (x.rank - 2)), "factors")
    scaled = call.step("scaled", "Mul", [a, x], x.shape)
    return call.result("Add", [scaled, y], x.shape)


@layer("Reduction")
def reduction(call: LayerCall) -> Result:
    call.take(1)
    p, x = call.p.reduction_param, call.x
    axis = call.axis(p.axis)
    axes, shape = list(range(axis, x.rank)), x.shape[:axis]
    operator = {
        _SUM_OP: "ReduceSum",
        _ASUM: "ReduceL1",
        _SUMSQ: "ReduceSumSquare",
        _MEAN: "ReduceMean",
    }[p.operation]
    inputs = [x, call.builder.ints(*axes)]
    if p.coeff == 1:
        return call.result(operator, inputs, shape, keepdims=0)
    return call.times(call.step("reduced", operator, inputs, shape, keepdims=0), p.coeff)


@layer("ArgMax")
def arg_max(call: LayerCall) -> Result:
    """Positions as floats; no gradient."""
    call.take(1)
    p, x = call.p.argmax_param, call.x
    if p.HasField("axis"):
        axis = call.axis(p.axis)
        shape = (*x.shape[:axis], int(p.top_k), *x.shape[axis + 1 :])
    elif p.out_max_val:
        raise Unsupported("out_max_val without an axis")
    else:
        x = call.reshaped(x, (x.shape[0], 1, x.count // x.shape[0]), "flat")
        axis, shape = 2, (x.shape[0], 1, int(p.top_k))
    if not 0 < p.top_k <= x.shape[axis]:
        raise call.wrong(f"top_k {p.top_k} of {x.shape[axis]}")
    name = f"{call.layer.name}/largest"
    values, places = call.builder.node(
        call.position,
        "TopK",
        [x, call.builder.ints(int(p.top_k))],
        name,
        [(name, shape, False), (f"{name}_at", shape, True)],
        axis=axis,
    )
    if p.out_max_val:
        return values
    return call.result("Cast", [places], shape, to=1)


@layer("Parameter")
def parameter(call: LayerCall) -> Result:
    call.take(0)
    shape = tuple(int(d) for d in call.p.parameter_param.shape.dim)
    if not shape or min(shape) < 1:
        raise call.wrong("has no shape")
    return call.weight(0, "value", shape)
