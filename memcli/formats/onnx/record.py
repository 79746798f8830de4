"""Where an ONNX file keeps its plan."""

from __future__ import annotations

from memcli.formats.node_plan import MARK_NUMBERS, MARK_TEXTS, MARKS
from memcli.formats.node_plan import NodePlan as OnnxPlan

__all__ = ["MARKS", "MARK_KEY", "MARK_NUMBERS", "MARK_TEXTS", "PLAN_KEY", "OnnxPlan"]

# The key in ModelProto.metadata_props. Every tool that was tried keeps these entries.
PLAN_KEY = "memcli.plan"
# The same, node by node, for viewers: 'kept', 'again' or 'each' in NodeProto.metadata_props.
MARK_KEY = "memcli.mark"
