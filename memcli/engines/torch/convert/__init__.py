"""Converting ONNX graphs to ``torch.fx`` modules, one function call per node."""

from memcli.engines.torch.convert.onnx_graph import Converted, FreeInput, convert

__all__ = ["Converted", "FreeInput", "convert"]
