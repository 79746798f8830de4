"""The record of one training step in PyTorch, from which any plan's memory follows.

Made by ``memcli.engines.torch.trace`` in a process that has PyTorch; read without it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# Kinds of events, each with a number and bytes.
ALLOCATED = 0  # of a storage that every plan has (temporaries, gradients): its number, bytes
FREED = 1
FORWARD = 2  # a step ended and is left: what it made is there
BACKWARD = 3  # the gradient of a step's output is complete; -1: the forward pass ended
BEGIN = 4  # a step's function is called
END = 5  # it returned: what it made (``first``) is there
SAVED = 6  # a handle: autograd saved a tensor in a step's storage
UNUSED = 7  # no value of the forward pass lies in a step's storage any more
OUTPUT = 8  # a step's storage that the graph gives out
UNPACKED = 9  # autograd asks for a handle's tensor
DONE = 10  # and has no more use for it
GONE = 11  # autograd let go of a handle
AGAIN = 12  # a step runs a second time as a recomputation would; bytes 1: with auxiliaries
AGAIN_END = 13
PARAMETER_GRADIENT = 14  # as ALLOCATED, of a gradient that stays after the step
# A thread's first product of matrices: cuBLAS takes its work space, and keeps it. The number is 0
# for the forward pass's thread, 1 for the backward pass's. On CUDA alone.
WORKSPACE = 15


@dataclass
class Trace:
    """Steps are the function nodes of the fx graph, storages what they make, in order.

    ``first``: storages of step i are ``first[i]:first[i + 1]``, results first and then auxiliaries
    (what the function saves inside itself). ``input_first``, ``inputs``: storages that each step
    reads, those of one step side by side. ``again_bytes``: size when recomputed. ``flops`` and
    ``moved_bytes``: of running a step a second time. ``saved_by``: for each handle the step whose
    function saved it.
    """

    names: list[str]
    operators: list[str]
    first: Ints
    storage_bytes: Ints
    again_bytes: Ints
    storage_number: Ints  # of its allocation among the events; -1: not to be seen there
    again_number: Ints  # 2 x storages: the same in a second run, plain and with auxiliaries
    auxiliary: NDArray[np.bool_]
    given_out: NDArray[np.bool_]  # storages of the graph's outputs
    input_first: Ints
    inputs: Ints
    handle_storage: Ints
    saved_by: Ints
    kinds: Ints
    numbers: Ints
    event_bytes: Ints
    # steps that run again as they ran first: dropped, they drop what they save inside, too
    with_gradients: NDArray[np.bool_]
    flops: NDArray[np.float64]
    moved_bytes: NDArray[np.float64]
    resident_bytes: Ints  # each storage of parameters, states and inputs, there before the step
    parameter_bytes: int
    state_bytes: int
    input_bytes: int
    device: str  # of which the numbers hold: "cpu" or "cuda"

    @property
    def n_steps(self) -> int:
        """Number of function nodes."""
        return len(self.names)

    def to_bytes(self) -> bytes:
        """As a compressed npz file."""
        out = io.BytesIO()
        np.savez_compressed(
            out, **{f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}
        )
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Trace:
        """What ``to_bytes`` wrote.

        Raises:
            ValueError: the bytes are no such file.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as found:
                arrays = {f.name: found[f.name] for f in fields(cls)}
        except (OSError, KeyError, EOFError, ValueError) as error:
            raise ValueError(f"not a trace: {error}") from error
        values: dict = {
            name: array.tolist() if name in _PLAIN else array for name, array in arrays.items()
        }
        return cls(**values)


_PLAIN = {
    "names",
    "operators",
    "parameter_bytes",
    "state_bytes",
    "input_bytes",
    "device",
}
