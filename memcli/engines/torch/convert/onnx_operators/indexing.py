"""Reading and writing at positions, largest elements."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.default_roles import PARAMETER
from memcli.engines.torch.convert.functions import indexing as functions
from memcli.engines.torch.convert.registry import Result, Site, operator
from memcli.engines.torch.convert.values import Unsupported


@operator("Gather")
def gather(site: Site) -> Result:
    """An embedding where rows of a weight are read at positions that are data."""
    x, index = site.value(0), site.value(1)
    axis = site.axis(site.get("axis", 0))
    rows = x.role == PARAMETER and axis == 0 and len(x.shape) == 2
    if index.known is not None and x.known is None:
        known = index.known.long()
        known = torch.where(known < 0, known + x.shape[axis], known)
        if known.dim() == 0:
            return Call(torch.select, (x, axis, int(known)))
        places = site.constant(known, "index")
        if rows:
            return Call(F.embedding, (places, x))
        if known.dim() == 1:
            return Call(torch.index_select, (x, axis, places))
    elif rows:
        return Call(F.embedding, (index, x))
    return Call(functions.taken, (x, index, axis))


@operator("GatherElements")
def gather_elements(site: Site) -> Result:
    axis = site.axis(site.get("axis", 0))
    return Call(functions.taken_elements, (site.value(0), site.value(1), axis))


@operator("GatherND")
def gather_nd(site: Site) -> Result:
    args = (site.value(0), site.value(1), site.get("batch_dims", 0))
    return Call(functions.taken_by_coordinates, args)


@operator("Scatter", "ScatterElements")
def scatter_elements(site: Site) -> Result:
    axis = site.axis(site.get("axis", 0))
    reduction = site.get("reduction", "none")
    args = (site.value(0), site.value(1), site.value(2), axis, reduction)
    return Call(functions.scattered, args)


@operator("ScatterND")
def scatter_nd(site: Site) -> Result:
    reduction = site.get("reduction", "none")
    plain = reduction in ("none", "add")
    function = functions.scattered_by_coordinates if plain else functions.scattered_and_reduced
    return Call(function, (site.value(0), site.value(1), site.value(2), reduction))


@operator("OneHot")
def one_hot(site: Site) -> Result:
    rank = site.rank() + 1
    axis = site.axis(site.get("axis", -1), rank)
    args = (site.value(0), site.value(2), int(site.number(1)), axis)
    return Call(functions.one_hot, args)


@operator("TopK")
def top_k(site: Site) -> Result:
    k = site.number(1) if site.has(1) else site.get("k", 1)
    axis = site.axis(site.get("axis", -1))
    flags = bool(site.get("largest", 1)), bool(site.get("sorted", 1))
    return Call(torch.topk, (site.value(0), k, axis, *flags), many=True)


@operator("CumSum", "CumProd")
def cumulate(site: Site) -> Result:
    product = site.node.op_type == "CumProd"
    axis = site.axis(int(site.number(1)))
    exclusive, backwards = bool(site.get("exclusive", 0)), bool(site.get("reverse", 0))
    args = (site.value(0), axis, exclusive, backwards, product)
    return Call(functions.cumulated, args)


@operator("GridSample")
def grid_sample(site: Site) -> Result:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(
        site.get("mode", "linear"), site.get("mode", "linear")
    )
    if site.rank() == 5 and mode == "bicubic":
        raise Unsupported("cubic sampling of volumes")
    padding = site.get("padding_mode", "zeros")
    args = (site.value(0), site.value(1), mode, padding, bool(site.get("align_corners", 0)))
    return Call(F.grid_sample, args)


@operator("AffineGrid")
def affine_grid(site: Site) -> Result:
    args = (site.value(0), site.ints(1), bool(site.get("align_corners", 0)))
    return Call(F.affine_grid, args)
