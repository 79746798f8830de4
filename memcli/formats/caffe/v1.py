"""Layers of Caffe's second generation (``layers { type: CONVOLUTION }``) as those of today."""

from __future__ import annotations

from typing import Any

from memcli.formats.caffe.messages import SHARED_PARAMETERS
from memcli.formats.caffe.schema import message_class

# Names of types that are not the old one in other spelling.
_TYPES = {
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "LRN": "LRN",
    "MVN": "MVN",
    "RELU": "ReLU",
    "TANH": "TanH",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
}
# Where crop_size stood before there was a transform_param.
_WITH_CROPS = ("data_param", "image_data_param", "window_data_param")


def upgraded(old: Any) -> Any:
    """A V1LayerParameter as a LayerParameter; ``type`` stays empty where the old one says none."""
    new = message_class("LayerParameter")(
        name=old.name, bottom=list(old.bottom), top=list(old.top), loss_weight=list(old.loss_weight)
    )
    if old.HasField("type"):
        kind = old.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number[old.type].name
        words = [word.capitalize() for word in kind.split("_")]
        new.type = "" if kind == "NONE" else _TYPES.get(kind, "".join(words))
    for rules in ("include", "exclude"):
        for rule in getattr(old, rules):
            getattr(new, rules).add().CopyFrom(rule)
    for field in SHARED_PARAMETERS:
        if old.HasField(field):
            getattr(new, field).CopyFrom(getattr(old, field))
    blobs = max(len(old.param), len(old.blobs_lr), len(old.weight_decay))
    for i in range(blobs):
        spec = new.param.add()
        if i < len(old.param) and old.param[i]:
            spec.name = old.param[i]
        if i < len(old.blob_share_mode):
            spec.share_mode = old.blob_share_mode[i]
        if i < len(old.blobs_lr):
            spec.lr_mult = old.blobs_lr[i]
        if i < len(old.weight_decay):
            spec.decay_mult = old.weight_decay[i]
    for field in _WITH_CROPS:
        crop = getattr(old, field).crop_size
        if crop and not new.transform_param.crop_size:
            new.transform_param.crop_size = crop
    return new
