"""What operators cost: floating-point operations, and bytes read and written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from memcli.engines.torch.geometry import has_storage, storage_key, tensors_in
from memcli.engines.torch.tape import Tape


class Work:
    """Sums by step. FLOPs by PyTorch's own formulas for matrix products, convolutions and
    attention; one for each element of the result for everything else."""

    def __init__(self, n_steps: int) -> None:
        self.flops = np.zeros(n_steps, np.float64)
        self.moved = np.zeros(n_steps, np.float64)

    @contextlib.contextmanager
    def of(self, step: int, tape: Tape) -> Iterator[None]:
        """Counts the operators that the tape sees meanwhile towards a step."""

        def count(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
            read = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
            written = list(tensors_in(result))
            sources = {storage_key(t) for t in read if has_storage(t)}
            views = all(has_storage(t) and storage_key(t) in sources for t in written)
            if views and not func._schema.is_mutable:
                return
            formula = flop_registry.get(func.overloadpacket)
            if formula is not None:
                self.flops[step] += formula(*args, **kwargs, out_val=result)
            else:
                self.flops[step] += sum(t.numel() for t in written)
            self.moved[step] += sum(t.numel() * t.element_size() for t in [*read, *written])

        tape.on_operator = count
        try:
            yield
        finally:
            tape.on_operator = None
