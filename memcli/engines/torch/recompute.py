"""Runs dropped steps again: from the nearest kept storages, as the forward pass ran them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memcli.engines.torch.geometry import Geometry, physical, tensors_in, view_of
from memcli.engines.torch.program import Program
from memcli.engines.torch.requests import Record, Requests, Storage
from memcli.marks import EACH, KEPT, RESULTS

MODIFIED = (
    "one of the variables needed for gradient {} has been modified by an inplace operation: "
    "it is at version {} now; run backward before changing parameters or inputs"
)


class External(NamedTuple):
    """A parameter, buffer or input that a dropped step reads. ``version``: -1 for a state."""

    tensor: Tensor
    version: int
    requires_grad: bool


class Internal(NamedTuple):
    """A tensor in a step's storage that a dropped step reads."""

    storage: Storage
    geometry: Geometry
    requires_grad: bool


class _Frame:
    """A recomputation under way: ``at`` counts the groups of storages gathered so far."""

    __slots__ = ("at", "final", "record", "values", "wanted")

    def __init__(self, record: Record, wanted: list[Storage], final: bool) -> None:
        self.record = record
        self.wanted = wanted
        self.final = final  # its tokens are given back once it ran
        self.at = 0
        self.values: dict[Storage, Tensor] = {}


class Recomputation:
    """What a forward pass has to remember to run its steps again: devices, autocast, the graph."""

    def __init__(self, program: Program, devices: set[torch.device]) -> None:
        self.program = program
        self.cuda = sorted({d.index or 0 for d in devices if d.type == "cuda"})
        self.autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in sorted({d.type for d in devices} & {"cpu", "cuda", "xpu", "mps"} or {"cpu"})
        ]

    @staticmethod
    def _available(storage: Storage, requests: Requests) -> Tensor | None:
        if storage.mark != KEPT:
            return requests.memo.get(storage)
        tensor = storage.tensor
        if tensor is None:
            raise RuntimeError(
                "a tensor that this recomputation starts from was freed: backward through the "
                "graph a second time needs retain_graph=True"
            )
        if storage.version >= 0 and tensor._version != storage.version:
            raise RuntimeError(MODIFIED.format("recomputation", tensor._version))
        return tensor

    def _obtain(self, storage: Storage, requests: Requests) -> Tensor:
        """Recomputes a dropped storage, and before it what it is made from."""
        record = storage.record
        assert record is not None
        final = record.mark & RESULTS != EACH or requests.is_last([storage])
        frames = [_Frame(record, [storage], final)]
        while True:
            frame = frames[-1]
            missing = self._gather(frame, requests)
            if missing is not None:
                frames.append(missing)
                continue
            results = self._again(frame)
            frame.values.clear()
            if frame.final:
                requests.let_go(frame.record)
            if frame.record.mark & RESULTS != EACH:
                for made in results:
                    if made in requests.of:
                        requests.memo[made] = results[made]
            frames.pop()
            if not frames:
                return results[storage]
            parent = frames[-1]
            for wanted in frame.wanted:
                parent.values[wanted] = results[wanted]
            parent.at += 1
            # Held on to, they would be part of the next recomputation's peak.
            del results

    def _gather(self, frame: _Frame, requests: Requests) -> _Frame | None:
        """Puts together what a step reads; the frame of a step that must run first, if any."""
        while frame.at < len(frame.record.groups):
            group = frame.record.groups[frame.at]
            found = {}
            for storage in group:
                tensor = self._available(storage, requests)
                if tensor is None:
                    record = storage.record
                    assert record is not None
                    each = record.mark & RESULTS == EACH
                    dropped = [s for s in group if s.mark != KEPT]
                    final = not each or (frame.final and requests.is_last(dropped))
                    for other in group:  # of one step some may stay and some be dropped
                        if other.mark == KEPT:
                            kept = self._available(other, requests)
                            assert kept is not None
                            frame.values[other] = kept
                    return _Frame(record, dropped, final)
                found[storage] = tensor
            frame.values.update(found)
            frame.at += 1
        return None

    def _again(self, frame: _Frame) -> dict[Storage, Tensor]:
        """Runs a step again; its dropped storages."""
        record = frame.record
        step = self.program.steps[record.storages[0].step]
        inputs = {n: self._rebuild(d, frame.values) for n, d in record.inputs.items()}
        args, kwargs = step.arguments(inputs)
        captured: list[Tensor] = []
        capture = any(s.position < 0 for s in record.storages)
        with self._replayed(record), capturing(captured) if capture else contextlib.nullcontext():
            result = step.again(*args, **kwargs)
        leaves = list(tensors_in(result))
        results = {}
        for storage in record.storages:
            if storage.mark == KEPT:
                continue
            if storage.position < 0:
                results[storage] = physical(captured[~storage.position])
            elif storage.position < len(leaves):  # new states may be left out, at the end
                results[storage] = physical(leaves[storage.position])
        return results

    def _rebuild(self, description: Any, values: dict[Storage, Tensor]) -> Any:
        kind = type(description)
        if kind is Internal:
            tensor = view_of(values[description.storage], description.geometry)
        elif kind is External:
            tensor = description.tensor
            if description.version >= 0 and tensor._version != description.version:
                raise RuntimeError(MODIFIED.format("recomputation", tensor._version))
            if tensor.requires_grad or not description.requires_grad:
                return tensor
            tensor = tensor.detach()
        elif kind is list:
            return [self._rebuild(item, values) for item in description]
        elif kind is dict:
            return {k: self._rebuild(item, values) for k, item in description.items()}
        else:
            return description
        # Operators choose their algorithm by this flag, too (matmul: whether to fold).
        return tensor.requires_grad_() if description.requires_grad else tensor

    @contextlib.contextmanager
    def _as_in_forward(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for kind, enabled, dtype in self.autocast:
                if enabled or torch.is_autocast_enabled(kind):
                    # A cast of a weight made here has no gradient: none may find it in the cache.
                    stack.enter_context(
                        torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
                    )
            yield

    @contextlib.contextmanager
    def _replayed(self, record: Record) -> Iterator[None]:
        if not record.generators:
            yield
            return
        now = self.generators()
        try:
            _set_generators(record.generators)
            yield
        finally:
            _set_generators(now)

    def generators(self) -> list[tuple[Any, Tensor]]:
        states: list[tuple[Any, Tensor]] = [(None, torch.get_rng_state())]
        return states + [(d, torch.cuda.get_rng_state(d)) for d in self.cuda]


def _set_generators(states: list[tuple[Any, Tensor]]) -> None:
    for device, state in states:
        if device is None:
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)


@contextlib.contextmanager
def capturing(into: list[Tensor]) -> Iterator[None]:
    """Runs with gradients, and takes what autograd would save, in order."""

    def pack(tensor: Tensor) -> None:
        into.append(tensor.detach())

    def unpack(_: None) -> Tensor:
        raise RuntimeError("a recomputation's own graph is never run backward")

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
