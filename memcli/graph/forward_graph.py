"""Forward graphs of tensors, and the training graph of costs that each stands for."""

from __future__ import annotations

from dataclasses import dataclass

from memcli.graph.cost_graph import CostGraph


@dataclass
class ForwardGraph:
    """``n`` tensors that functions compute (parameters and data are not among them), in order."""

    ids: list[int]  # n, the file's
    seconds: list[float]  # n, time of the function that computes the tensor
    sizes: list[int]  # n, bytes
    reads: list[list[int]]  # n, the tensors that the function reads
    # n, for the backward pass of the function: the tensors it reads (its inputs or its output),
    # and those of whose gradient it computes a part
    backward_reads: list[list[int]]
    backward_into: list[list[int]]
    name: str = ""

    @property
    def n(self) -> int:
        """How many tensors."""
        return len(self.ids)

    def joint(self) -> CostGraph:
        """Forward and backward in one graph: value ``v`` is a tensor, ``2 n - 1 - v`` its gradient.

        A gradient has its tensor's size. It reads, for each function whose backward pass adds to
        it, the gradient of that function's output and what the backward pass reads; it takes the
        forward time of these functions (each backward pass is split over its inputs, and the
        part for one input is counted like the function itself). The gradient of a tensor that
        nothing reads is the seed and reads the tensor. Gradients come in the reverse order.
        """
        n = self.n
        into: list[list[int]] = [[] for _ in range(n)]  # functions that add to v's gradient
        for w, targets in enumerate(self.backward_into):
            for v in targets:
                into[v].append(w)
        ids: list[int | str] = [*self.ids]
        seconds, sizes, reads = list(self.seconds), list(self.sizes), [*map(list, self.reads)]
        for v in reversed(range(n)):
            ids.append(f"grad {self.ids[v]}")
            sizes.append(self.sizes[v])
            seconds.append(sum(self.seconds[w] for w in into[v]) or self.seconds[v])
            inputs: set[int] = set()
            for w in into[v]:
                inputs |= {2 * n - 1 - w, *self.backward_reads[w]}
            reads.append(sorted(inputs or {v}))
        return CostGraph.build(ids, seconds, sizes, reads, self.name)
