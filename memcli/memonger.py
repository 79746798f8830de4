"""The classic planner's interface for training scripts: a symbol in, a planned symbol out.

An existing script changes one import (``from memcli import memonger``)::

    planned = memonger.search_plan(net, data=(32, 3, 224, 224))
    memonger.get_cost(net, data=(32, 3, 224, 224))      # MB without the plan
    memonger.get_cost(planned, data=(32, 3, 224, 224))  # MB with it

The method is that of Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory
Cost", arXiv 1604.06174, section 4.3. On a symbol with ``mirror_stage`` marks the same thresholds
are tried, and the same nodes marked, as by the planner that came with the paper. The differences:

- A symbol without any ``mirror_stage`` mark is cut where memcli finds that little is alive. The
  original would mark everything, which saves nothing.
- Operators that draw random numbers or keep state are never marked (MXNet would run them twice
  and silently give wrong gradients), nor are operators without inputs. The original marks all.
- A BatchNorm that is recomputed gets ``cudnn_off``: cuDNN's would update the moving
  statistics twice. On the CPU that changes nothing.
- The symbol that is given is not changed, in no attribute.
- Costs come from memcli's exact model of MXNet's memory plan, fed by one bind in a process of
  its own: no GPU is needed, nothing is allocated, and a graph on which MXNet crashes does not take
  the script down. That bind is remembered, so that asking for costs after a search is immediate.
- A symbol with user operators (``Custom``) is bound in a fork of the script's process, where they
  are registered; before the script binds its first executor. They are never recomputed.
- Errors are memcli's: :class:`memcli.errors.BadInput` where the symbol, a shape or a dtype does
  not fit, :class:`memcli.errors.EngineFailed` where MXNet is missing or fails.

Costs are MB (MiB, rounded down) of feature maps and their gradients: the number in ``Total N MB
allocated`` at the end of an executor's ``debug_str()``, where every element counts as 4 bytes,
whatever its dtype. ``NNVM_EXEC_MATCH_RANGE`` and ``NNVM_AUTO_SEARCH_MATCH_RANGE`` are honoured as
they stand in the environment, as MXNet does when it trains.

Importing this module does not import MXNet; calling its functions does.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from memcli.engines.mxnet.shim import import_mxnet
from memcli.errors import BadInput
from memcli.formats.symbol.file import SymbolFile

# Whatever takes its time to load (numpy, numba, MXNet) is imported where it is needed: a script
# that imports this and calls nothing should not wait for it.
from memcli.request import ShapeRequest

if TYPE_CHECKING:
    from mxnet.symbol import Symbol

    from memcli.engines.mxnet.record import Analysis
    from memcli.graph.cost import Cost
    from memcli.graph.training import Flags
    from memcli.search.thresholds import ClassicPass, ClassicRow

__all__ = ["get_cost", "make_mirror_plan", "search_plan"]

Shape = Sequence[int]
TypeDict = Mapping[str, Any]  # argument name -> what numpy.dtype takes: np.float16, 'float16'


def search_plan(
    sym: Symbol, ntrial: int = 6, type_dict: TypeDict | None = None, **shapes: Shape
) -> Symbol:
    """The symbol with the marks of the cheapest plan that the search finds.

    Args:
        sym: the network; its outputs may be losses or not. Not changed.
        ntrial: thresholds that are tried after the first three guesses.
        type_dict: dtypes of arguments by name, for what is not float32.
        shapes: shapes of inputs by name, as for ``simple_bind``.

    Prints a line with threshold and cost, both in MB, for every threshold tried. Without
    ``mirror_stage`` marks there are many; those are printed that are better than all before,
    and a plan is given only where one is better than none.

    Raises:
        BadInput: the symbol, a shape or a dtype does not fit, or a shape is missing.
        EngineFailed: MXNet is missing, failed or crashed.
    """
    subject = _subject(sym, type_dict, shapes)
    tries = _try_marks if subject.analysis.graph.stage_at else _try_cuts
    best: tuple[int, Cost, Flags] | None = None
    for threshold, cost, flags in tries(subject, ntrial):
        if best is None or _order(subject, cost) < _order(subject, best[1]):
            best = threshold, cost, flags
    assert best is not None  # both try at least one plan
    threshold, cost, flags = best
    print(f"Find best plan with threshold={threshold}, cost={cost.total_mb} MB")
    return subject.planned(flags)


def make_mirror_plan(
    sym: Symbol, threshold: int, plan_info: dict[str, int] | None = None, **shapes: Shape
) -> Symbol:
    """The symbol with the marks of one threshold.

    Args:
        sym: the network. Not changed.
        threshold: MB of feature maps, at 4 bytes an element, after which the next possible cut
            is kept.
        plan_info: gets ``max_size``, bytes of the largest stage that a kept cut closes, and
            ``save_size``, bytes of all kept cuts. Without ``mirror_stage`` marks the bytes are
            those of the true dtypes, the last stage counts for ``max_size`` as well, and what
            the kept nodes' gradients read counts for ``save_size``.
        shapes: shapes of inputs by name.

    Raises:
        BadInput: the symbol or a shape does not fit, or a shape is missing.
        EngineFailed: MXNet is missing, failed or crashed.
    """
    from memcli.search.thresholds import classic_pass

    subject = _subject(sym, None, shapes)
    if subject.analysis.graph.stage_at:
        found = classic_pass(subject.rows(), threshold << 20)
        flags, save_size, max_size = _classic_flags(subject, found), found.save_size, found.max_size
    else:
        flags, save_size, max_size = _cheapest_cuts(subject, threshold << 20)
    if plan_info is not None:
        plan_info["max_size"] = max_size
        plan_info["save_size"] = save_size
    return subject.planned(flags)


def get_cost(sym: Symbol, type_dict: TypeDict | None = None, **shapes: Shape) -> int:
    """MB of feature maps and their gradients when the symbol trains with the marks that it has.

    Args:
        sym: a network, planned or not.
        type_dict: dtypes of arguments by name, for what is not float32.
        shapes: shapes of inputs by name.

    Raises:
        BadInput: the symbol, a shape or a dtype does not fit, or a shape is missing.
        EngineFailed: MXNet is missing, failed or crashed.
    """
    import numpy as np

    subject = _subject(sym, type_dict, shapes)
    graph = subject.analysis.graph
    marked = subject.source.marked()
    if any((merged in marked) != (stays in marked) for merged, stays in graph.alias.items()):
        # MXNet merges equal nodes, but not where their marks differ: not the graph analyzed.
        return _bound_cost(subject)
    flags = np.zeros(graph.n_forward, np.uint8)
    for position, node in graph.node_of_position().items():
        flags[node] = position in marked
    return subject.cost(flags).total_mb


# --------------------------------------------------------------------------- the analysis


@dataclass
class _Subject:
    """A symbol, and what is known of how it trains."""

    source: SymbolFile
    request: ShapeRequest
    analysis: Analysis

    def cost(self, flags: Flags) -> Cost:
        """What recomputing these forward nodes costs, in this process's environment."""
        return self.analysis.model.evaluate(flags, _match_ranges())

    def planned(self, flags: Flags) -> Symbol:
        """The symbol with exactly these forward nodes marked."""
        from memcli.engines.mxnet.forms import marked_positions
        from memcli.engines.mxnet.planning import guards

        # An earlier plan's marks and guards are taken off first.
        bare = SymbolFile.from_bytes(self.source.with_marks((), None), "the symbol")
        positions = marked_positions(self.analysis, flags)
        added = guards(bare, positions)
        return import_mxnet().sym.load_json(bare.with_marks(positions, None, added).decode())

    def rows(self) -> list[ClassicRow]:
        """The internal outputs as the classic pass reads them."""
        from memcli.search.base import Search, Settings
        from memcli.search.published.memonger import classic_rows

        return classic_rows(Search(self.analysis.search_space(), Settings()))


# The latest analysis: a script asks for the cost of a symbol before and after it is planned.
_latest: tuple[Any, Analysis] | None = None


def _subject(sym: Symbol, type_dict: TypeDict | None, shapes: Mapping[str, Shape]) -> _Subject:
    """Reads and analyzes a symbol.

    Raises:
        BadInput: no symbol, or its shapes or dtypes do not fit, or a shape is missing.
        EngineFailed: MXNet is missing, failed or crashed.
    """
    from memcli.engines.mxnet.record import analyze
    from memcli.engines.user_code import custom_nodes

    global _latest
    mx = import_mxnet()
    if not isinstance(sym, mx.sym.Symbol):
        raise BadInput(f"an mx.sym.Symbol is wanted, and this is a {type(sym).__name__}")
    request = ShapeRequest(
        shapes=_all_shapes(mx, sym, shapes), dtypes=_dtype_names(sym, type_dict or {})
    )
    source = SymbolFile.from_bytes(sym.tojson().encode(), "the symbol")
    # What is bound has no marks, so that symbols that differ in them alone share one analysis.
    bare = source.with_marks((), None)
    environment = {k: v for k, v in os.environ.items() if k.startswith("MXNET_")}
    key = (bare, request, environment)
    if _latest is None or _latest[0] != key:
        # User operators are known where the caller has registered them: in this process.
        here = bool(custom_nodes(source.raw))
        analysis = analyze(source.raw, request, losses=False, here=here)
        guessed = [name for name in analysis.assumed if name not in shapes]
        if guessed:
            raise BadInput(
                f"the shapes given do not tell the shape of: {', '.join(guessed[:8])}",
                f"give it: {guessed[0]}=(...)",
            )
        _latest = (key, analysis)
    return _Subject(source, request, _latest[1])


def _bound_cost(subject: _Subject) -> int:
    """MXNet's own figure in MB, of a bind of the symbol with its marks.

    Raises:
        BadInput: MXNet refuses to bind it.
        EngineFailed: MXNet crashed.
    """
    from memcli.engines.mxnet.record import ask_mxnet
    from memcli.engines.user_code import custom_nodes

    with TemporaryDirectory(prefix="memcli-") as folder:
        raw = subject.source.raw
        result, _ = ask_mxnet(
            raw,
            subject.request,
            Path(folder),
            marked=None,
            losses=False,
            here=bool(custom_nodes(raw)),
        )
    return int(result["total_mb"])


def _all_shapes(mx: Any, sym: Symbol, shapes: Mapping[str, Shape]) -> dict[str, list[int]]:
    """The shapes given, and those of all other arguments that MXNet infers from them.

    Raises:
        BadInput: an unknown name, or shapes that contradict the symbol.
    """
    from memcli.engines.mxnet.analyze import clean_message

    names: list[str] = sym.list_arguments()
    times = Counter(names)
    for name in shapes:
        if name not in times:
            shown = ", ".join(names[:8])
            raise BadInput(f"the symbol has no argument '{name}'", f"its arguments: {shown}")
    given = {name: tuple(int(d) for d in shape) for name, shape in shapes.items()}
    try:
        inferred, _, _ = sym.infer_shape_partial(**given)
    except (mx.base.MXNetError, ValueError, TypeError) as error:
        raise BadInput(f"these shapes do not fit the symbol: {clean_message(error)}") from None
    result = {
        name: list(shape)
        for name, shape in zip(names, inferred or [], strict=False)
        # One name may stand for several variables of different shapes.
        if shape and all(d > 0 for d in shape) and times[name] == 1
    }
    return result | {name: list(shape) for name, shape in given.items()}


def _dtype_names(sym: Symbol, type_dict: TypeDict) -> dict[str, str]:
    """Names of the dtypes given; names that are no arguments are passed over, as by MXNet.

    Raises:
        BadInput: a value that is no dtype.
    """
    import numpy as np

    arguments = set(sym.list_arguments())
    result = {}
    for name, kind in type_dict.items():
        try:
            found = np.dtype(kind).name
        except TypeError:
            raise BadInput(f"type_dict: {kind!r} of '{name}' is no dtype") from None
        if name in arguments:
            result[name] = found
    return result


def _match_ranges() -> tuple[int, ...]:
    """The match ranges that MXNet's memory plan will try in this environment."""
    from memcli.graph.cost import DEFAULT_MATCH_RANGE

    try:
        largest = max(1, int(os.environ.get("NNVM_EXEC_MATCH_RANGE", DEFAULT_MATCH_RANGE)))
    except ValueError:
        largest = DEFAULT_MATCH_RANGE
    if os.environ.get("NNVM_AUTO_SEARCH_MATCH_RANGE", "").lower() not in ("1", "true"):
        return (largest,)
    return tuple(1 << k for k in range(largest.bit_length()))


# --------------------------------------------------------------------------- searching


def _order(subject: _Subject, cost: Cost) -> tuple[float, ...]:
    """What makes a plan better: on marks, whole MB and then the first one, as in the original."""
    if subject.analysis.graph.stage_at:
        return (cost.total_mb,)
    return cost.total_bytes, cost.pool_bytes, cost.recompute_flops


def _try_marks(subject: _Subject, trials: int) -> Iterator[tuple[int, Cost, Flags]]:
    """The original's search: (threshold in MB, cost, plan) for each of its thresholds."""
    from memcli.search.thresholds import classic_pass, classic_thresholds

    rows = subject.rows()
    passes: dict[int, ClassicPass] = {}

    def outcome(threshold: int) -> tuple[int, int]:
        if threshold not in passes:
            passes[threshold] = classic_pass(rows, threshold << 20)
        return passes[threshold].save_size, passes[threshold].max_size

    for threshold in classic_thresholds(outcome, trials):
        outcome(threshold)
        flags = _classic_flags(subject, passes[threshold])
        cost = subject.cost(flags)
        print(f"Search threshold={threshold} MB, cost={cost.total_mb} MB")
        yield threshold, cost, flags


def _classic_flags(subject: _Subject, found: ClassicPass) -> Flags:
    """Forward nodes to recompute, less those that MXNet must not run twice."""
    import numpy as np

    graph = subject.analysis.graph
    node_of = graph.node_of_position()
    flags = np.zeros(graph.n_forward, np.uint8)
    kept = np.zeros(graph.n_forward, np.uint8)
    for position, recomputed in found.mark.items():
        # Equal nodes are one when MXNet trains; it is kept if one of them is.
        node = node_of.get(graph.alias.get(position, position))
        if node is not None:
            (flags if recomputed else kept)[node] = 1
    flags[kept == 1] = 0
    return flags & graph.can_recompute


def _try_cuts(subject: _Subject, trials: int) -> Iterator[tuple[int, Cost, Flags]]:
    """No plan, and then memcli's search over cuts that it finds: (threshold in MB, cost, plan)."""
    from memcli.search.base import Search, Settings
    from memcli.search.published.memonger import search_cuts

    analysis = subject.analysis
    search = Search(analysis.search_space(), Settings(trials=trials))
    search_cuts(search)
    nothing = analysis.model.none()
    least = subject.cost(nothing)
    yield 0, least, nothing
    for found in search.tried:
        # The search knows nothing of this process's environment.
        same = _match_ranges() == (found.cost.match_range,)
        cost = found.cost if same else subject.cost(found.plan.recompute)
        threshold = found.plan.notes.get("threshold_mb", 0)
        if cost.total_bytes < least.total_bytes:
            print(f"Search threshold={threshold} MB, cost={cost.total_mb} MB")
            least = cost
        yield threshold, cost, found.plan.recompute


def _cheapest_cuts(subject: _Subject, threshold: int) -> tuple[Flags, int, int]:
    """One threshold, in bytes, on each set of cuts found: (plan, save_size, max_size)."""
    from memcli.search.cutpoints import cut_pass, families, find_cuts, recompute_all_but

    graph = subject.analysis.graph
    sizes = graph.operator_bytes()
    best: tuple[int, Flags, int, int] | None = None
    for family in families(find_cuts(graph)):
        kept, save_size, max_size = cut_pass(graph, family, sizes, threshold)
        flags = recompute_all_but(graph, [cut.nodes for cut in kept])
        cost = subject.cost(flags).total_bytes
        if best is None or cost < best[0]:
            best = cost, flags, save_size, max_size
    if best is None:
        return subject.analysis.model.none(), 0, 0
    return best[1:]
