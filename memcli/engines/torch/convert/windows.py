"""Where the windows of convolutions and poolings lie: strides, dilations and padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memcli.engines.torch.convert.registry import Site
from memcli.engines.torch.convert.values import Unsupported


@dataclass(frozen=True)
class Windows:
    """Sizes for each spatial dimension; padding before and after."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def symmetric(self) -> bool:
        return self.before == self.after

    def flat(self) -> tuple[int, ...]:
        """The padding as ``torch.nn.functional.pad`` takes it: last dimension first."""
        return flat_padding(self.before, self.after)


def flat_padding(before: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
    """(last before, last after, second last before, …)."""
    pairs = zip(reversed(before), reversed(after), strict=True)
    return tuple(size for pair in pairs for size in pair)


def windows_of(site: Site, sizes: Sequence[int], kernel: Sequence[int] | None = None) -> Windows:
    """The windows of a node over spatial dimensions of ``sizes``.

    Raises:
        Unsupported: attributes of another rank, an unknown ``auto_pad``.
    """
    rank = len(sizes)
    found = site.ints_of("kernel_shape", kernel)
    stride = site.ints_of("strides", (1,) * rank) or ()
    dilation = site.ints_of("dilations", (1,) * rank) or ()
    if found is None or not len(found) == len(stride) == len(dilation) == rank:
        raise Unsupported(f"its kernel, strides or dilations are not of {rank} dimensions")
    mode = site.get("auto_pad", "NOTSET") or "NOTSET"
    if mode == "NOTSET":
        pads = site.ints_of("pads", (0,) * (2 * rank)) or ()
        if len(pads) != 2 * rank:
            raise Unsupported(f"its pads are not of {rank} dimensions")
        return Windows(found, stride, dilation, pads[:rank], pads[rank:])
    if mode == "VALID":
        return Windows(found, stride, dilation, (0,) * rank, (0,) * rank)
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise Unsupported(f"auto_pad {mode!r}")
    total = [
        max((-(-size // step) - 1) * step + (k - 1) * d + 1 - size, 0)
        for size, step, k, d in zip(sizes, stride, found, dilation, strict=True)
    ]
    less, more = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    if mode == "SAME_UPPER":
        return Windows(found, stride, dilation, less, more)
    return Windows(found, stride, dilation, more, less)
