"""All strategies. A new one is a module of its own, and an entry here."""

from __future__ import annotations

from memcli.search.strategy import Strategy

_SEARCH = "memcli.search"
_OPTMEMORY = f"{_SEARCH}.published.optmemory:run"
_CAFFE = f"{_SEARCH}.published.caffe_dense:run"


def _published(name: str, text: str, function: str, /, **arguments: object) -> Strategy:
    """What a hand-made system does to its networks."""
    return Strategy(
        name, text, function, arguments=arguments, as_published=True, for_any_graph=False
    )


# In the order in which users see them.
ALL: tuple[Strategy, ...] = (
    Strategy(
        "auto",
        "the best plan of all strategies",
        f"{_SEARCH}.auto:explore",
        refine=f"{_SEARCH}.local:refine",
    ),
    Strategy(
        "memonger",
        "the classic search over thresholds, on stage marks or on cuts found",
        f"{_SEARCH}.published.memonger:run",
        as_published=True,
    ),
    Strategy(
        "local",
        "local search on the exact pool, from the classic search's best",
        f"{_SEARCH}.local:explore",
        refine=f"{_SEARCH}.local:refine",
    ),
    Strategy(
        "sqrt",
        "stages around the square root of the work, by a budget (Chen et al.)",
        f"{_SEARCH}.sqrt:run",
    ),
    Strategy(
        "cheap",
        "recompute only what costs next to nothing, no convolutions",
        f"{_SEARCH}.cheap:run",
    ),
    Strategy("dp", "dynamic programming over lower sets (Kusumoto et al.)", f"{_SEARCH}.dp:run"),
    Strategy(
        "milp",
        "mixed-integer program: small graphs to the end, with a proof",
        f"{_SEARCH}.milp:run",
    ),
    Strategy("none", "recompute nothing", f"{_SEARCH}.none:run"),
    _published(
        "optmemory-0",
        "LuaTorch's DenseNet: recompute nothing",
        _OPTMEMORY,
        name="optmemory-0",
        level=0,
    ),
    _published(
        "optmemory-1",
        "as optmemory-0 (optnet shares gradients, which the engine does anyway)",
        _OPTMEMORY,
        name="optmemory-1",
        level=1,
    ),
    _published(
        "optmemory-2",
        "as optmemory-0 (so does shareGradInput)",
        _OPTMEMORY,
        name="optmemory-2",
        level=2,
    ),
    _published(
        "optmemory-3",
        "LuaTorch's DenseNet: Concats of dense blocks are recomputed",
        _OPTMEMORY,
        name="optmemory-3",
        level=3,
    ),
    _published(
        "optmemory-4",
        "LuaTorch's DenseNet: and the BatchNorm and ReLU behind them",
        _OPTMEMORY,
        name="optmemory-4",
        level=4,
    ),
    _published(
        "efficient-densenet",
        "PyTorch's efficient DenseNet, the same as optmemory-4",
        _OPTMEMORY,
        name="efficient-densenet",
        level=4,
    ),
    _published(
        "recompute-grad",
        "TensorFlow's efficient DenseNet: dense layers are recomputed as a whole",
        f"{_SEARCH}.published.recompute_grad:run",
    ),
    _published(
        "caffe-dense",
        "Caffe's DenseBlock: all in dense layers but convolutions is recomputed, and Concats",
        _CAFFE,
        name="caffe-dense",
        ultra=False,
    ),
    _published(
        "caffe-dense-ultra",
        "Caffe's DenseBlock: and each layer's first convolution; its last result is kept",
        _CAFFE,
        name="caffe-dense-ultra",
        ultra=True,
    ),
)
STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for strategy in ALL}
# For any graph; what is compared where nothing is asked for.
GENERAL = {name: strategy for name, strategy in STRATEGIES.items() if strategy.for_any_graph}
# Plans of these are as they were published: of the graph as it came, nothing is put into it.
AS_PUBLISHED = frozenset(strategy.name for strategy in ALL if strategy.as_published)
DESCRIPTIONS = {strategy.name: strategy.help for strategy in ALL}
