"""Runs operators for nothing: each marked, with a copy that nobody reads.

    python tests/integration/unread_copies.py TOGETHER.json

Prints {case: what happened} as JSON: "equal" (all gradients to the bit), "different", or what
MXNet said. Writes all cases as one symbol, in which the node of a case has its name.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["MXNET_STORAGE_FALLBACK_LOG_VERBOSE"] = "0"

import numpy as np

from memcli.engines.mxnet.shim import import_mxnet

mx = import_mxnet()
S = mx.sym


def _data(*shape: int, name: str = "data") -> Any:
    return S.tanh(_variable(name, *shape))


def _index(*shape: int) -> Any:
    return _variable("index", *shape)


def _variable(name: str, *shape: int) -> Any:
    return S.Variable("_".join([name, *map(str, shape)]), shape=shape)


def cases() -> dict[str, Any]:
    """{name: what makes the symbol under test, with a name and attributes}."""
    rows, maps, square = _data(2, 6, 8), _data(2, 8, 6, 6), _data(6, 6)
    positive = S.linalg.syrk(square) + S.eye(6) * 9
    rois = _variable("rois", 2, 5)
    c = S.contrib
    return {
        "LayerNorm": lambda **a: S.LayerNorm(rows, **a),
        "LayerNorm, statistics read": lambda **a: S.LayerNorm(rows, output_mean_var=True, **a)[1],
        "GroupNorm": lambda **a: S.GroupNorm(maps, num_groups=2, **a),
        "InstanceNorm": lambda **a: S.InstanceNorm(maps, **a),
        "L2Normalization": lambda **a: S.L2Normalization(maps, **a),
        "LRN": lambda **a: S.LRN(maps, nsize=3, **a),
        "BatchNorm": lambda **a: S.BatchNorm(maps, fix_gamma=False, **a),
        "Pooling": lambda **a: S.Pooling(maps, kernel=(2, 2), stride=(2, 2), **a),
        "Pooling, lp": lambda **a: S.Pooling(
            maps, kernel=(2, 2), stride=(2, 2), pool_type="lp", p_value=2, **a
        ),
        "softmax": lambda **a: S.softmax(rows, **a),
        "log_softmax": lambda **a: S.log_softmax(rows, **a),
        "SoftmaxActivation": lambda **a: S.SoftmaxActivation(square, **a),
        "norm": lambda **a: S.norm(rows, axis=1, **a),
        "moments": lambda **a: S.moments(rows, axes=(1,), **a)[0],
        "topk": lambda **a: S.topk(rows, k=2, ret_typ="both", **a)[0],
        "max": lambda **a: S.max(rows, axis=1, **a),
        "prod": lambda **a: S.prod(rows, axis=1, **a),
        "mean": lambda **a: S.mean(rows, axis=1, **a),
        "ROIPooling": lambda **a: S.ROIPooling(
            maps, rois, pooled_size=(2, 2), spatial_scale=1.0, **a
        ),
        "ROIAlign": lambda **a: c.ROIAlign(maps, rois, pooled_size=(2, 2), spatial_scale=1.0, **a),
        "BilinearSampler": lambda **a: S.BilinearSampler(maps, _variable("grid", 2, 2, 4, 4), **a),
        "SpatialTransformer": lambda **a: S.SpatialTransformer(
            maps,
            _variable("place", 2, 6),
            target_shape=(4, 4),
            transform_type="affine",
            sampler_type="bilinear",
            **a,
        ),
        "Correlation": lambda **a: S.Correlation(
            maps, _data(2, 8, 6, 6, name="other"), kernel_size=1, max_displacement=1, **a
        ),
        "UpSampling": lambda **a: S.UpSampling(maps, scale=2, sample_type="nearest", **a),
        "BilinearResize2D": lambda **a: c.BilinearResize2D(maps, height=9, width=9, **a),
        "AdaptiveAvgPooling2D": lambda **a: c.AdaptiveAvgPooling2D(maps, output_size=3, **a),
        "potrf": lambda **a: S.linalg.potrf(positive, **a),
        "gelqf": lambda **a: S.linalg.gelqf(square, **a)[0],
        "syevd": lambda **a: S.linalg.syevd(positive, **a)[1],
        "inverse": lambda **a: S.linalg.inverse(positive, **a),
        "det": lambda **a: S.linalg.det(positive, **a),
        "slogdet": lambda **a: S.linalg.slogdet(positive, **a)[1],
        "prelu": lambda **a: S.LeakyReLU(maps, act_type="prelu", **a),
        "gelu": lambda **a: S.LeakyReLU(maps, act_type="gelu", **a),
        "leaky": lambda **a: S.LeakyReLU(maps, **a),
        "relu": lambda **a: S.relu(maps, **a),
        "clip": lambda **a: S.clip(maps, -0.5, 0.5, **a),
        "hard_sigmoid": lambda **a: S.hard_sigmoid(square, **a),
        "smooth_l1": lambda **a: S.smooth_l1(rows, **a),
        "FullyConnected": lambda **a: S.FullyConnected(rows, num_hidden=4, **a),
        "Deconvolution": lambda **a: S.Deconvolution(maps, kernel=(3, 3), num_filter=4, **a),
        "batch_dot": lambda **a: S.batch_dot(rows, rows, transpose_b=True, **a),
        "dot": lambda **a: S.dot(square, square, **a),
        "Embedding": lambda **a: S.Embedding(_index(3), input_dim=10, output_dim=4, **a),
        "take": lambda **a: S.take(rows, _index(3), **a),
        "pick": lambda **a: S.pick(rows, _index(2, 6), **a),
        "gather_nd": lambda **a: S.gather_nd(square, _index(2, 4), **a),
        "SequenceReverse": lambda **a: S.SequenceReverse(rows, **a),
        "SequenceLast": lambda **a: S.SequenceLast(rows, **a),
        "SliceChannel": lambda **a: S.SliceChannel(rows, num_outputs=2, axis=1, **a)[0],
        "selfatt_qk": lambda **a: c.interleaved_matmul_selfatt_qk(_data(4, 2, 24), heads=2, **a),
        "where": lambda **a: S.where(rows > 0, rows, rows * 2, **a),
        "Pad": lambda **a: S.Pad(maps, mode="reflect", pad_width=(0, 0, 0, 0, 1, 1, 1, 1), **a),
        "depth_to_space": lambda **a: S.depth_to_space(maps, block_size=2, **a),
        "div_sqrt_dim": lambda **a: c.div_sqrt_dim(square, **a),
        "broadcast_mod": lambda **a: S.broadcast_mod(square, square * 0.3, **a),
    }


def gradients(symbol: Any) -> list[Any]:
    """Of a step on seeded values, in memory that others used before."""
    rng = np.random.RandomState(0)
    used = [mx.nd.full((2**k,), 1e3) for k in range(4, 14) for _ in range(8)]
    mx.nd.waitall()
    del used
    names = symbol.list_arguments()
    index = {name for name in names if name.startswith("index")}
    wanted = {name: "null" if name in index else "write" for name in names}
    bound = symbol.simple_bind(mx.cpu(), grad_req=wanted)
    for name, array in zip(names, bound.arg_arrays, strict=True):
        draw = rng.randint(0, 2, array.shape) if name in index else None
        array[:] = rng.uniform(0.1, 0.9, array.shape) if draw is None else draw
    bound.forward(is_train=True)
    bound.backward()
    return [array.asnumpy() for array in bound.grad_arrays if array is not None]


def loss(make: Any, **options: Any) -> Any:
    """The operator, kept as it is read, and a loss."""
    made = make(**options)
    first = made if len(made.list_outputs()) == 1 else made[0]
    # sin's gradient reads what sin reads; the identity in front of it is kept
    return S.MakeLoss(S.sum(S.sin(S.identity(first)) * 3))


def happened(make: Any) -> str:
    """What a case comes to."""
    plain = gradients(loss(make))
    try:
        again = gradients(loss(make, attr={"force_mirroring": "True"}))
    except mx.base.MXNetError as error:
        return str(error).strip().splitlines()[-1]
    same = all(a.tobytes() == b.tobytes() for a, b in zip(plain, again, strict=True))
    return "equal" if same else "different"


if __name__ == "__main__":
    found = cases()
    S.Group([loss(make, name=name) for name, make in found.items()]).save(sys.argv[1])
    json.dump({name: happened(make) for name, make in found.items()}, sys.stdout)
