"""What becomes of a tensor under a plan: the numbers that all parts share.

``KEPT``: it stays for the backward pass. ``AGAIN``: it is dropped, recomputed when the backward
pass first needs it, and held until its last need. The third mark is each engine's own, and called
``THIRD`` where no engine is meant: under MXNet ``BARRIER``, recomputed behind a save barrier (see
:mod:`memcli.engines.mxnet.memory.pool`); under PyTorch ``EACH``, recomputed at every need.

PyTorch's marks have one more bit. ``AUXILIARY`` is added where what the function saves inside
itself goes as well; ``RESULTS`` are the bits of a mark that say what becomes of the function's
results.
"""

KEPT, AGAIN, THIRD = 0, 1, 2
BARRIER = EACH = THIRD
AUXILIARY = 4
RESULTS = AUXILIARY - 1
ALL_MARKS = (KEPT, AGAIN, EACH, KEPT | AUXILIARY, AGAIN | AUXILIARY, EACH | AUXILIARY)
