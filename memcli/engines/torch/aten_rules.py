"""Rules for PyTorch's own operators: which draw, and which leave their states alone run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket

from memcli.engines.torch import rules

aten = torch.ops.aten

# Functions of torch and torch.nn.functional that draw, as a graph made by symbolic tracing has
# them; the operators of exported graphs are told by their tag.
_DRAWING_FUNCTIONS = frozenset(
    {
        torch.dropout,
        torch.alpha_dropout,
        torch.feature_dropout,
        torch.feature_alpha_dropout,
        torch.native_dropout,
        torch.rrelu,
        torch.bernoulli,
        torch.multinomial,
        torch.normal,
        torch.poisson,
        torch.rand,
        torch.rand_like,
        torch.randn,
        torch.randn_like,
        torch.randint,
        torch.randint_like,
        torch.randperm,
        torch.binomial,
        torch.nn.functional.dropout,
        torch.nn.functional.dropout1d,
        torch.nn.functional.dropout2d,
        torch.nn.functional.dropout3d,
        torch.nn.functional.alpha_dropout,
        torch.nn.functional.feature_alpha_dropout,
        torch.nn.functional.rrelu,
        torch.nn.functional.gumbel_softmax,
        torch.nn.functional.fractional_max_pool2d,
        torch.nn.functional.fractional_max_pool3d,
        torch.nn.functional.scaled_dot_product_attention,
        torch.nn.functional.multi_head_attention_forward,
    }
)


# Recurrent layers and attention have kernels for inference alone.
_WITH_GRADIENTS = frozenset(
    {
        torch.lstm,
        torch.gru,
        torch.rnn_tanh,
        torch.rnn_relu,
        aten.lstm.input,
        aten.lstm.data,
        aten.gru.input,
        aten.gru.data,
        aten.rnn_tanh.input,
        aten.rnn_tanh.data,
        aten.rnn_relu.input,
        aten.rnn_relu.data,
        aten.scaled_dot_product_attention.default,
        torch.nn.functional.scaled_dot_product_attention,
        torch.nn.functional.multi_head_attention_forward,
    }
)


def with_gradients(function: Any) -> bool:
    """Whether a function has to run again as if gradients were asked for, to give the same bits."""
    if isinstance(function, rules.OwnRules):
        return function.with_gradients
    return rules.with_gradients(function) or function in _WITH_GRADIENTS


def draws(function: Any) -> bool:
    """Whether a function may draw random numbers, by its registration or its operator's tag."""
    if isinstance(function, rules.OwnRules):
        return function.draws
    if rules.draws(function) or function in _DRAWING_FUNCTIONS:
        return True
    if isinstance(function, OpOverloadPacket):
        overloads = [getattr(function, name) for name in function.overloads()]
        return any(torch.Tag.nondeterministic_seeded in o.tags for o in overloads)
    if isinstance(function, OpOverload):
        return torch.Tag.nondeterministic_seeded in function.tags
    return False


def again_of(function: Any) -> Callable[..., Any]:
    """What to call when ``function`` runs again, leaving states as they are."""
    if isinstance(function, rules.OwnRules):
        return function.again
    other = rules.again_of(function)
    return _AGAIN.get(function, other) if other is function else other


def leaves_states(function: Any) -> bool:
    """Whether the second run is another function, which does not look at states (buffers)."""
    if isinstance(function, rules.OwnRules):
        return function.leaves_states
    return again_of(function) is not function


def saves_alike(function: Any) -> bool:
    """Whether a second run with gradients saves what the first one saved, in the same order."""
    if isinstance(function, rules.OwnRules):
        return function.saves_alike or not function.leaves_states
    return not leaves_states(function)


def _batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *rest: Any, **named: Any
) -> Any:
    """``torch.batch_norm`` and ``aten.batch_norm``: the batch's statistics, none updated."""
    if training:
        mean = var = None
    return torch.batch_norm(x, weight, bias, mean, var, training, *rest, **named)


def _functional_batch_norm(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """``torch.nn.functional.batch_norm`` with no running statistics where it trains."""
    if training:
        running_mean = running_var = None
    return torch.nn.functional.batch_norm(
        x, running_mean, running_var, weight, bias, training, momentum, eps
    )


def _native_batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> Any:
    if training:
        mean = var = None
    return aten.native_batch_norm.default(x, weight, bias, mean, var, training, momentum, eps)


def _legit(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> Any:
    if training:
        return aten._native_batch_norm_legit.no_stats(x, weight, bias, True, momentum, eps)
    return aten._native_batch_norm_legit.default(x, weight, bias, mean, var, False, momentum, eps)


def _legit_functional(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> Any:
    """The same number of outputs; nothing is saved of the new running statistics."""
    if training:
        first = aten._native_batch_norm_legit.no_stats(x, weight, bias, True, momentum, eps)
        return (*first, None, None)
    return aten._native_batch_norm_legit_functional.default(
        x, weight, bias, mean, var, False, momentum, eps
    )


def _instance_norm(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, use_input_stats: bool, *rest: Any
) -> Any:
    """``torch.instance_norm`` and ``aten.instance_norm``."""
    if use_input_stats:
        mean = var = None
    return torch.instance_norm(x, weight, bias, mean, var, use_input_stats, *rest)


def _functional_instance_norm(
    x: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if use_input_stats:
        running_mean = running_var = None
    return torch.nn.functional.instance_norm(
        x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


_AGAIN: dict[Any, Callable[..., Any]] = {
    torch.batch_norm: _batch_norm,
    aten.batch_norm: _batch_norm,
    aten.batch_norm.default: _batch_norm,
    torch.nn.functional.batch_norm: _functional_batch_norm,
    torch.native_batch_norm: _native_batch_norm,
    aten.native_batch_norm: _native_batch_norm,
    aten.native_batch_norm.default: _native_batch_norm,
    aten._native_batch_norm_legit: _legit,
    aten._native_batch_norm_legit.default: _legit,
    aten._native_batch_norm_legit_functional: _legit_functional,
    aten._native_batch_norm_legit_functional.default: _legit_functional,
    torch.instance_norm: _instance_norm,
    aten.instance_norm: _instance_norm,
    aten.instance_norm.default: _instance_norm,
    torch.nn.functional.instance_norm: _functional_instance_norm,
}
