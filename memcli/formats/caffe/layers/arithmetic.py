"""Sums, products and maxima of blobs; Scale and Bias."""

from __future__ import annotations

from memcli.formats.caffe.building import Shape, Tensor
from memcli.formats.caffe.layers.normalization import folded_into_batch_norm
from memcli.formats.caffe.registry import Result, Site, Unsupported, layer

_PROD, _SUM, _MAX = 0, 1, 2
_SUM_OP, _ASUM, _SUMSQ, _MEAN = 1, 2, 3, 4


@layer("Eltwise")
def eltwise(site: Site) -> Result:
    site.take((2, 1 << 16))
    p, shape = site.p.eltwise_param, site.x.shape
    for bottom in site.bottoms:
        if bottom.shape != shape:
            raise site.wrong(f"its bottoms have the shapes {shape} and {bottom.shape}")
    coefficients = list(p.coeff)
    if coefficients and (p.operation != _SUM or len(coefficients) != len(site.bottoms)):
        raise site.wrong("coeff is for SUM, one for each bottom")
    if p.operation == _MAX:
        return site.result("Max", site.bottoms, shape)
    if p.operation == _PROD:
        product = site.x
        for k, bottom in enumerate(site.bottoms[1:-1]):
            product = site.step(f"product{k}", "Mul", [product, bottom], shape)
        return site.result("Mul", [product, site.bottoms[-1]], shape)
    if len(site.bottoms) == 2 and coefficients == [1, -1]:
        return site.result("Sub", site.bottoms, shape)
    parts = [
        bottom
        if not coefficients or coefficients[k] == 1
        else site.times(bottom, coefficients[k], f"part{k}")
        for k, bottom in enumerate(site.bottoms)
    ]
    return site.result("Add" if len(parts) == 2 else "Sum", parts, shape)


@layer("Scale")
def scale(site: Site) -> Result:
    """By a parameter, or by the second bottom; one that BatchNorm has taken in does nothing."""
    site.take((1, 2))
    if folded_into_batch_norm(site.net, site.position):
        return site.x
    p, x = site.p.scale_param, site.x
    if len(site.bottoms) == 2:
        factor, covered = _second(site, p.axis)
        parameters = 0
    else:
        covered = _covered(site, p.axis, p.num_axes)
        factor = _parameter(site, 0, "weight", covered, p.axis)
        parameters = 1
    if not p.bias_term:
        return site.result("Mul", [x, factor], x.shape)
    scaled = site.step("scaled", "Mul", [x, factor], x.shape)
    return site.result(
        "Add", [scaled, _parameter(site, parameters, "bias", covered, p.axis)], x.shape
    )


@layer("Bias")
def bias(site: Site) -> Result:
    site.take((1, 2))
    p, x = site.p.bias_param, site.x
    if len(site.bottoms) == 2:
        added, _ = _second(site, p.axis)
    else:
        added = _parameter(site, 0, "bias", _covered(site, p.axis, p.num_axes), p.axis)
    return site.result("Add", [x, added], x.shape)


def _covered(site: Site, axis: int, num_axes: int) -> Shape:
    """The part of the bottom's shape that the parameter has."""
    if num_axes == 0:
        return ()
    start = site.axis(axis)
    if num_axes < -1 or start + num_axes > site.x.rank:
        raise site.wrong(f"num_axes {num_axes} from axis {axis} of a blob of shape {site.x.shape}")
    return site.x.shape[start:] if num_axes == -1 else site.x.shape[start : start + num_axes]


def _parameter(site: Site, index: int, what: str, covered: Shape, axis: int) -> Tensor:
    """A parameter, with ones for the dimensions after those that it covers."""
    after = site.x.rank - site.axis(axis) - len(covered) if covered else 0
    return site.weight(index, what, covered, stored=(*covered, *(1,) * after))


def _second(site: Site, axis: int) -> tuple[Tensor, Shape]:
    """The second bottom, ready to broadcast, and the shape that it has."""
    second = site.bottoms[1]
    if second.rank == 0:
        return second, ()
    start = site.axis(axis)
    if site.x.shape[start : start + second.rank] != second.shape:
        raise site.wrong(f"{second.shape} does not fit {site.x.shape} from axis {axis} on")
    after = site.x.rank - start - second.rank
    shape = (*second.shape, *(1,) * after)
    if not after:
        return second, second.shape
    axes = site.builder.ints(*range(second.rank, second.rank + after))
    return site.step("spread", "Unsqueeze", [second, axes], shape), second.shape


@layer("Axpy")
def axpy(site: Site) -> Result:
    """``a * x + y`` with a factor for each channel (squeeze-and-excitation nets)."""
    site.take(3)
    a, x, y = site.bottoms
    if y.shape != x.shape or a.shape[:2] != x.shape[:2] or any(n != 1 for n in a.shape[2:]):
        raise site.wrong(f"its bottoms have the shapes {a.shape}, {x.shape} and {y.shape}")
    if a.rank != x.rank:
        a = site.reshaped(a, (*a.shape[:2], *(1,) * (x.rank - 2)), "factors")
    scaled = site.step("scaled", "Mul", [a, x], x.shape)
    return site.result("Add", [scaled, y], x.shape)


@layer("Reduction")
def reduction(site: Site) -> Result:
    site.take(1)
    p, x = site.p.reduction_param, site.x
    axis = site.axis(p.axis)
    axes, shape = list(range(axis, x.rank)), x.shape[:axis]
    operator = {
        _SUM_OP: "ReduceSum",
        _ASUM: "ReduceL1",
        _SUMSQ: "ReduceSumSquare",
        _MEAN: "ReduceMean",
    }[p.operation]
    inputs = [x, site.builder.ints(*axes)]
    if p.coeff == 1:
        return site.result(operator, inputs, shape, keepdims=0)
    return site.times(site.step("reduced", operator, inputs, shape, keepdims=0), p.coeff)


@layer("ArgMax")
def arg_max(site: Site) -> Result:
    """Positions as floats; no gradient."""
    site.take(1)
    p, x = site.p.argmax_param, site.x
    if p.HasField("axis"):
        axis = site.axis(p.axis)
        shape = (*x.shape[:axis], int(p.top_k), *x.shape[axis + 1 :])
    elif p.out_max_val:
        raise Unsupported("out_max_val without an axis")
    else:
        x = site.reshaped(x, (x.shape[0], 1, x.count // x.shape[0]), "flat")
        axis, shape = 2, (x.shape[0], 1, int(p.top_k))
    if not 0 < p.top_k <= x.shape[axis]:
        raise site.wrong(f"top_k {p.top_k} of {x.shape[axis]}")
    name = f"{site.layer.name}/largest"
    values, places = site.builder.node(
        site.position,
        "TopK",
        [x, site.builder.ints(int(p.top_k))],
        name,
        [(name, shape, False), (f"{name}_at", shape, True)],
        axis=axis,
    )
    if p.out_max_val:
        return values
    return site.result("Cast", [places], shape, to=1)


@layer("Parameter")
def parameter(site: Site) -> Result:
    site.take(0)
    shape = tuple(int(d) for d in site.p.parameter_param.shape.dim)
    if not shape or min(shape) < 1:
        raise site.wrong("has no shape")
    return site.weight(0, "value", shape)
