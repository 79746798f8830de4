"""What becomes of a tensor under a plan for PyTorch: the numbers that all parts share.

``KEPT``: it stays for the backward pass. ``AGAIN``: it is dropped, made again when the backward
pass first needs it, and held until its last need. ``EACH``: it is made again at every need.
``AUXILIARY`` is added where what the function saves inside itself goes as well; ``RESULTS`` are the
bits of a mark that say what becomes of the function's results.
"""

KEPT, AGAIN, EACH = 0, 1, 2
AUXILIARY = 4
RESULTS = AUXILIARY - 1
ALL_MARKS = (KEPT, AGAIN, EACH, KEPT | AUXILIARY, AGAIN | AUXILIARY, EACH | AUXILIARY)
