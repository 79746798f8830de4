"""Caffe nets for tests: written by hand or by the example's script, run in PyTorch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memcli.engines.torch.convert import convert
from memcli.formats.caffe.file import CaffeFile, parse_caffe
from memcli.formats.onnx.roles import tensor_roles
from memcli.request import ShapeRequest
from tests.conftest import EXAMPLES

Arrays = dict[str, np.ndarray]


def densenet(**options: Any) -> str:
    """A DenseNet's train_test.prototxt as the example's script writes it."""
    spec = importlib.util.spec_from_file_location(
        "make_caffe_densenet", EXAMPLES / "make_caffe_densenet.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = {
        "depth": 10,
        "growth": 4,
        "batch": 4,
        "bottleneck": False,
        "dense_block": False,
        "dropout": 0.0,
    }
    return module.densenet(**{**given, **options})


def read(text: str, path: str = "net.prototxt", **asked: Any) -> CaffeFile:
    """A definition as memcli reads it."""
    return parse_caffe(text.encode(), path, "0" * 64, ShapeRequest(**asked))


def inputs(**shapes: Sequence[int]) -> str:
    """Input layers."""
    return "".join(
        f'layer {{ name: "in_{name}" type: "Input" top: "{name}" '
        f"input_param {{ shape {{ {' '.join(f'dim: {d}' for d in shape)} }} }} }}\n"
        for name, shape in shapes.items()
    )


def layer(kind: str, bottoms: str, tops: str = "y", more: str = "", name: str = "l") -> str:
    """One layer; bottoms and tops by blanks."""
    read_from = " ".join(f'bottom: "{b}"' for b in bottoms.split())
    written = " ".join(f'top: "{t}"' for t in tops.split())
    return f'layer {{ name: "{name}" type: "{kind}" {read_from} {written} {more} }}\n'


class Ran:
    """One forward pass in training mode: outputs, and the parameters by their names."""

    def __init__(self, text: str, values: Mapping[str, np.ndarray], order: Any = None) -> None:
        self.file = read(text)
        roles = {name: leaf.role for name, leaf in tensor_roles(self.file).items()}
        shapes = {name: value.shape for name, value in values.items()}
        made = convert(self.file.working, shapes=shapes, roles=roles, fake=False)
        self.module = made.module
        self.parameters = {
            name: getattr(self.module, attribute) for attribute, name in made.parameters.items()
        }
        if order is not None:  # other parameters, one after the other
            with torch.no_grad():
                for mine, other in zip(self.in_file_order(), order, strict=True):
                    mine.copy_(other)
        self.weights = {n: p.detach().numpy().copy() for n, p in self.parameters.items()}
        given = [torch.from_numpy(np.array(values[v.name])) for v in made.inputs]
        self.given = [g.requires_grad_() if g.is_floating_point() else g for g in given]
        results = self.module(*self.given)
        self.tensors = dict(zip(made.outputs, results, strict=True))
        self.outputs = {name: t.detach().numpy() for name, t in self.tensors.items()}
        for value in self.file.outputs:
            assert value.dims is not None
            assert self.outputs[value.name].shape[1:] == value.dims[1:], value
        self.names = [v.name for v in made.inputs]

    def in_file_order(self) -> list[torch.Tensor]:
        """The parameters as the file has them."""
        return [
            self.parameters[t.name]
            for t in self.file.graph.initializer
            if t.name in self.parameters
        ]

    def gradient(self, name: str) -> np.ndarray:
        """Of the sum of the outputs, by an input."""
        total = sum(t.sum() for t in self.tensors.values())
        (found,) = torch.autograd.grad(total, [self.given[self.names.index(name)]])
        return found.numpy()


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write(path: Path, text: str) -> Path:
    """The file."""
    path.write_text(text)
    return path
