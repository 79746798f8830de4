"""Constants and what shapes alone decide."""

from __future__ import annotations

import torch

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.registry import Host, Result, Site, operator
from memcli.engines.torch.convert.values import Unsupported, has_data, tensor_of, torch_type


@operator("Constant")
def constant(site: Site) -> Result:
    attributes = site.attributes
    if "value" in attributes:
        value = attributes["value"]
        return Host(tensor_of(value) if has_data(value) else value)
    for name, dtype in (
        ("value_float", torch.float32),
        ("value_floats", torch.float32),
        ("value_int", torch.int64),
        ("value_ints", torch.int64),
    ):
        if name in attributes:
            return Host(torch.tensor(attributes[name], dtype=dtype))
    raise Unsupported("a constant that is no tensor of numbers")


@operator("ConstantOfShape")
def constant_of_shape(site: Site) -> Result:
    filled = tensor_of(site.get("value", None)) if "value" in site.attributes else torch.zeros(1)
    # Expanded, it takes no memory however large it is.
    return Host(filled.reshape(()).expand(site.ints(0)))


@operator("Shape")
def shape(site: Site) -> Result:
    sizes = site.shape()[site.get("start", 0) : site.attributes.get("end")]
    return Host(torch.tensor(sizes, dtype=torch.int64))


@operator("Size")
def size(site: Site) -> Result:
    return Host(torch.tensor(site.value(0).tensor.numel()))


@operator("Range")
def range_(site: Site) -> Result:
    start, limit, step = (site.number(i) for i in range(3))
    if (limit - start) * step <= 0:
        return Host(torch.empty(0, dtype=site.dtype()))
    return Host(torch.arange(start, limit, step, dtype=site.dtype()))


@operator("EyeLike")
def eye_like(site: Site) -> Result:
    rows, columns = site.shape()
    dtype = torch_type(site.get("dtype", 0)) if "dtype" in site.attributes else site.dtype()
    ones = torch.ones(rows, columns)
    k = site.get("k", 0)
    return Host((ones.triu(k) * ones.tril(k)).to(dtype))


@operator("NonZero")
def non_zero(site: Site) -> Result:
    return Host(torch.stack(torch.nonzero(site.array(0), as_tuple=True)))


@operator("Unique", "Compress")
def selected(site: Site) -> Result:
    if site.node.op_type == "Unique":
        raise Unsupported("its output's shape depends on data")
    chosen = torch.nonzero(site.array(1).reshape(-1)).reshape(-1).tolist()
    index = site.constant(torch.tensor(chosen).long(), "index")
    if "axis" not in site.attributes:
        return Call(torch.take, (site.value(0), index))
    return Call(torch.index_select, (site.value(0), site.axis(site.get("axis", 0)), index))
