"""The kinds of model files that memcli reads.

A new one is a package that ends in a file object which the engine takes, and an entry here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memcli.errors import BadInput
from memcli.formats.caffe.detect import looks_like_caffe
from memcli.formats.protobuf import looks_like_onnx
from memcli.formats.pt2.archive import looks_like_pt2
from memcli.quoting import shown_path

if TYPE_CHECKING:
    from memcli.formats.detect import ModelSource
    from memcli.formats.input_shapes import ShapesAsked
    from memcli.formats.stripped import Stripped


@dataclass(frozen=True)
class ModelFormat:
    """A kind of model file.

    Args:
        name: as JSON has it.
        noun: as sentences have it, with its article.
        ending: of the name of a planned file, without the dot.
        engine: name of the engine that trains such models.
        recognizes: whether bytes (gzip taken off) are such a file.
        stripping: ``module:function`` that takes a plan off; see :meth:`strip`.
        reading: ``module:function`` that reads a file that PyTorch trains; '' for other engines'.
        next_step: what to do with a verified file of that path, for the last line of a report.
        naming: ``module:function`` that refuses names of planned files; '' where all will do.
        depends_on_shapes: whether the graph that a file stands for depends on the shapes.
        exports: whether ``memcli export`` takes planned files of it.
        certain: whether recognizing is sure; else other known kinds of file are ruled out first.
    """

    name: str
    noun: str
    ending: str
    engine: str
    recognizes: Callable[[bytes], bool]
    stripping: str
    reading: str = ""
    next_step: Callable[[str], str] | None = None
    naming: str = ""
    depends_on_shapes: bool = False
    exports: bool = False
    certain: bool = True

    def strip(self, source: ModelSource, out: str) -> Stripped:
        """The file without its plan, which is to be written to ``out``.

        Raises:
            BadInput: no plan, or one that cannot be taken off.
        """
        return _function(self.stripping)(source, out)

    def read(self, source: ModelSource, asked: ShapesAsked, as_planned: bool) -> Any:
        """The file as PyTorch's engine takes it; see :func:`memcli.formats.model_file.read_model`.

        Raises:
            BadInput: it cannot be read, or another engine trains such files.
        """
        if not self.reading:
            raise BadInput(
                f"{shown_path(source.path)}: is {self.noun}, which PyTorch does not train"
            )
        return _function(self.reading)(source, asked, as_planned)

    def check_name(self, out: str) -> None:
        """Refuses a name that does not say how a planned file is to be written.

        Raises:
            BadInput: it does not.
        """
        if self.naming:
            _function(self.naming)(out)


def _function(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _is_json(data: bytes) -> bool:
    start = data[:512].lstrip(b" \t\r\n\v\f")
    return start.startswith((b"{", b"\xef\xbb\xbf{"))


FORMATS: dict[str, ModelFormat] = {
    kind.name: kind
    for kind in (
        ModelFormat(
            name="mxnet-symbol",
            noun="an MXNet symbol",
            ending="json",
            engine="mxnet",
            recognizes=_is_json,
            stripping="memcli.formats.stripping:strip_symbol",
        ),
        ModelFormat(
            name="caffe-prototxt",
            noun="a Caffe net",
            ending="prototxt",
            engine="torch",
            recognizes=lambda data: looks_like_caffe(data) == "net",
            stripping="memcli.formats.stripping:strip_caffe",
            reading="memcli.formats.caffe.file:read_caffe",
            # Caffe itself knows of no plan
            next_step=lambda path: f"memcli.torch.load({path!r})",
            naming="memcli.formats.caffe.file:check_caffe_output",
            depends_on_shapes=True,
        ),
        ModelFormat(
            name="onnx",
            noun="an ONNX file",
            ending="onnx",
            engine="torch",
            recognizes=looks_like_onnx,
            stripping="memcli.formats.stripping:strip_onnx",
            reading="memcli.formats.onnx.file:read_planned_onnx",
            exports=True,
            certain=False,
        ),
        ModelFormat(
            name="pt2",
            noun="an exported PyTorch program",
            ending="pt2",
            engine="torch",
            recognizes=looks_like_pt2,
            stripping="memcli.formats.pt2.file:strip_pt2",
            reading="memcli.formats.pt2.file:read_pt2",
            next_step=lambda path: f"memcli.torch.load({path!r})",
            exports=True,
        ),
    )
}
