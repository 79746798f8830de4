"""Wraps scopes of a JAX function in jax.checkpoint."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

# <plan>
# Scopes that are recomputed together, by name: jax.named_scope, modules of Flax, layers of Keras.
GROUPS: list[tuple[str, ...]] = []
# Scopes that every group runs for itself, rather than hold on to what they make.
REPEATED: tuple[str, ...] = ()
# </plan>

_NUMBERED = re.compile(r"_\d+$")
_WRAPPED = re.compile(r"^\w+\((.*)\)$")  # jvp(...), vmap(...), transpose(...) around a scope


def recompute(
    function: Callable[..., Any],
    groups: Sequence[Sequence[str]] | None = None,
    repeated: Sequence[str] | None = None,
) -> Callable[..., Any]:
    """``function`` with what groups make dropped, and recomputed in the backward pass.

    Give it the function that is differentiated: ``jax.grad(recompute(loss))``, under ``jax.jit``.
    Operations are told by the scopes in which they are written; those that no group names are left
    alone. Random numbers come from keys, so that a second run has the same.

    Raises:
        ValueError: a group that no operation is in, or groups that read one another.
    """
    groups = GROUPS if groups is None else groups
    repeated = REPEATED if repeated is None else repeated

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        flat, structure = jax.tree_util.tree_flatten((args, kwargs))
        arrays = [k for k, x in enumerate(flat) if hasattr(x, "dtype") or isinstance(x, float)]
        shape: list[Any] = []

        def plain(*given: Any) -> list[Any]:
            filled = list(flat)
            for k, x in zip(arrays, given, strict=True):
                filled[k] = x
            own, named = jax.tree_util.tree_unflatten(structure, filled)
            outputs, shape[:] = _flattened(function(*own, **named))
            return outputs

        given = [flat[k] for k in arrays]
        closed = jax.make_jaxpr(plain)(*given)
        made = _Parts(closed.jaxpr, groups, repeated).run(closed.consts, given)
        return jax.tree_util.tree_unflatten(shape[0], made)

    return wrapped


def _flattened(outputs: Any) -> tuple[list[Any], list[Any]]:
    flat, structure = jax.tree_util.tree_flatten(outputs)
    return flat, [structure]


class _Parts:
    """A jaxpr's equations in parts, each a group or a single equation that is in none."""

    def __init__(
        self, jaxpr: Any, groups: Sequence[Sequence[str]], repeated: Sequence[str]
    ) -> None:
        self.jaxpr = jaxpr
        self.maker = {v: k for k, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars}
        scopes = [_scopes(eqn) for eqn in jaxpr.eqns]
        names = [(name, g) for g, group in enumerate(groups) for name in group]
        self.of = _assigned(scopes, names)
        empty = [groups[g][0] for g in range(len(groups)) if g not in self.of.values()]
        if empty:
            raise ValueError(f"no operation is in the scope {', '.join(empty[:5])}")
        self.repeated = {
            k for k in _assigned(scopes, [(name, 0) for name in repeated]) if k not in self.of
        }
        self._take_in()

    def run(self, consts: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        values = dict(zip(self.jaxpr.constvars, consts, strict=True))
        values.update(zip(self.jaxpr.invars, given, strict=True))
        for equations, grouped, reads, makes in self._ordered():
            function = functools.partial(self._run, equations, reads, makes)
            if grouped:
                function = jax.checkpoint(function)  # type: ignore[assignment]
            values.update(zip(makes, function(*(values[v] for v in reads)), strict=True))
        return [_value(v, values) for v in self.jaxpr.outvars]

    def _run(
        self, equations: Sequence[int], reads: Sequence[Any], makes: Sequence[Any], *given: Any
    ) -> list[Any]:
        known = dict(zip(reads, given, strict=True))
        for k in equations:
            eqn = self.jaxpr.eqns[k]
            functions, parameters = eqn.primitive.get_bind_params(eqn.params)
            values = [_value(v, known) for v in eqn.invars]
            made = eqn.primitive.bind(*functions, *values, **parameters)
            if not eqn.primitive.multiple_results:
                made = [made]
            known.update(zip(eqn.outvars, made, strict=True))
        return [known[v] for v in makes]

    def _take_in(self) -> None:
        """Give equations that no group names to a group that they stand within.

        Between two of its own, or where nothing is read before and nothing but it reads them.
        """
        equations = self.jaxpr.eqns
        reads = [[self.maker[v] for v in eqn.invars if self._made(v)] for eqn in equations]
        count = len(equations)
        before, after, only = [0] * count, [0] * count, [-1] * count
        for k, makers in enumerate(reads):
            for maker in makers:
                before[k] |= before[maker] | (1 << self.of[maker] if maker in self.of else 0)
        for v in self.jaxpr.outvars:
            if self._made(v):
                only[self.maker[v]] = -2  # given out
        for k in reversed(range(count)):
            free = k not in self.of and k not in self.repeated
            if free and only[k] >= 0 and not reads[k]:
                self.of[k] = only[k]
            group = self.of.get(k, -2)
            own = after[k] | (1 << group if group >= 0 else 0)
            for maker in reads[k]:
                after[maker] |= own
                only[maker] = group if only[maker] in (-1, group) else -2
        for k in range(count):
            both = before[k] & after[k]
            if both and k not in self.of and k not in self.repeated:
                self.of[k] = both.bit_length() - 1

    def _made(self, v: Any) -> bool:
        return not _literal(v) and v in self.maker

    def _through(self, k: int, needs: list[int]) -> Iterator[Any]:
        """Variables that an equation reads, through repeated ones, which go to ``needs``."""
        for v in self.jaxpr.eqns[k].invars:
            if self._made(v) and self.maker[v] in self.repeated:
                yield from self._through(self.maker[v], needs)
                needs.append(self.maker[v])
            elif not _literal(v):
                yield v

    def _ordered(self) -> Iterator[tuple[list[int], bool, list[Any], list[Any]]]:
        members: dict[Any, list[int]] = {}
        given_out = {v for v in self.jaxpr.outvars if not _literal(v)}
        for k, eqn in enumerate(self.jaxpr.eqns):
            if k not in self.repeated or given_out.intersection(eqn.outvars):
                members.setdefault(self.of.get(k, ("alone", k)), []).append(k)
        part_of = {k: part for part, listed in members.items() for k in listed}
        reads: dict[Any, list[Any]] = {}
        runs: dict[Any, list[int]] = {}
        for part, listed in members.items():
            needs: list[int] = []
            wanted: dict[Any, None] = {}
            for k in listed:
                wanted.update(dict.fromkeys(self._through(k, needs)))
                needs.append(k)
            runs[part] = list(dict.fromkeys(needs))
            own = {v for k in runs[part] for v in self.jaxpr.eqns[k].outvars}
            reads[part] = [v for v in wanted if v not in own]
        handed = given_out.union(*reads.values()) if reads else given_out
        left = dict(members)
        done: set[Any] = set()
        while left:
            ready = [
                part
                for part in left
                if all(part_of[self.maker[v]] in done for v in reads[part] if v in self.maker)
            ]
            if not ready:
                raise ValueError("groups read one another: take one of them out of GROUPS")
            for part in ready:
                done.add(part)
                makes = [
                    v for k in left.pop(part) for v in self.jaxpr.eqns[k].outvars if v in handed
                ]
                yield runs[part], not isinstance(part, tuple), reads[part], makes


def _assigned(scopes: Sequence[list[str]], names: Sequence[tuple[str, int]]) -> dict[int, Any]:
    """The number of the first name that is part of an equation's scope, by equation.

    A scope may have a number more than its name, as Keras and Flax count calls.
    """
    found: dict[int, Any] = {}
    for shorten in (False, True):
        wanted: dict[tuple[str, ...], int] = {tuple(n.split("/")): g for n, g in names}
        longest = max(map(len, wanted), default=0)
        taken: dict[int, Any] = {}
        for k, parts in enumerate(scopes):
            path = tuple(_NUMBERED.sub("", p) for p in parts) if shorten else tuple(parts)
            for start in range(len(path)):
                for length in range(1, longest + 1):
                    group = wanted.get(path[start : start + length])
                    if group is not None:
                        taken.setdefault(k, group)
        if len(set(taken.values())) > len(set(found.values())):
            found = taken
    return found


def _scopes(eqn: Any) -> list[str]:
    parts = []
    for part in str(eqn.source_info.name_stack).split("/"):
        while (match := _WRAPPED.match(part)) is not None:
            part = match[1]
        parts.append(part)
    return [part for part in parts if part]


def _literal(v: Any) -> bool:
    return hasattr(v, "val")


def _value(v: Any, values: dict[Any, Any]) -> Any:
    return v.val if _literal(v) else values[v]
