"""``local``: simulated annealing on the exact memory, from the best of the initial plans.

Several chains start from different plans and match ranges; the best ones go on, for longer
(successive halving), and take stretches of nodes from one another. The amount of work is fixed,
not the time, so that the same seed gives the same plan on every machine; ``--time-limit`` allows
more, in further rounds.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from memcli.graph.cost import Found
from memcli.graph.training import Flags, Ints
from memcli.search import annealing
from memcli.search.base import Search
from memcli.search.cutpoints import last_forward_use
from memcli.search.initial_plans import consider_initial_plans
from memcli.search.knapsack import consider_knapsack_plans
from memcli.search.role_descent import consider_roles
from memcli.search.space import NO_BLOCKS

NAME = "local"
# Work of a search in nodes of the joint graph evaluated: some seconds on one core. Larger graphs
# get more, by the root of their size.
_WORK = 120_000_000
_USUAL_NODES = 700
_MOST_WORK = 180_000_000  # of graphs that take milliseconds to evaluate
# What is enough where plans reserve blocks, as a part of it, on a graph of the usual size; on
# larger ones as many steps.
_ENOUGH = 0.3
_LARGE = 10_000
_LEAST_STEPS = 48
_MOST_STEPS = 1000  # for each node to decide on: small graphs are searched through before
# Part of the work for each round of chains, and how many chains there are in it.
_ROUNDS = ((0.3, 8), (0.25, 6), (0.25, 4), (0.2, 2))
# With fewer steps than these in all: fewer chains, longer ones.
_MANY_STEPS = 24_000
_SHORT_ROUNDS = ((0.2, 4), (0.2, 2), (0.6, 1))
# Chains that reserve blocks from each plan that chains start from, where the graph may: without a
# budget, when they go first, and within one.
_RESERVING = 2
_RESERVING_WITHIN = 1
# First temperature of a chain of thousands of steps, as a part of its energy; short ones are
# colder. Within a budget chains start from plans that are filled up to it.
_HEAT = 0.012
_HEAT_WITHIN = 0.006
# Where blocks are reserved the pool follows the plan closely, and good plans are near one another.
_HEAT_RESERVING = 0.001
_LATER = 0.5  # of it in later rounds, which go on from good plans
# What plans to start from differ in, as a part of the nodes to decide on: with less, a search that
# goes on from an earlier one starts from one plan several times.
_APART = 0.05
# The price of memory at the budget, as a part of its mean below.
_AT_THE_BUDGET = 0.6
# The price of recomputation at a limit on it, in times of its mean above.
_AT_THE_LIMIT = 3.0
# Both are guesses: chains take them in turns as they are, and higher.
_PRICES = (1.0, 1.7)
# How often a part of the network does as another one like it; more often within a budget, where
# most parts are to be alike, less often in networks of few parts.
_COPIED = 0.1
_COPIED_WITHIN = 0.3
_COPIED_SELDOM = 0.04
_FEW_PARTS = 100  # nodes to decide on
_PENALTIES = ((annealing.OVER_FIRST, annealing.OVER), (annealing.WASTED_FIRST, annealing.WASTED))
# Chains are cut into slices, so that a time limit is met.
_SLICE_SECONDS = 0.5
_LEAST_SECONDS = 0.05
_LEAST_SLICE = 4  # steps
# Part of the time left, where there is a limit, for the plan of little memory to begin with.
_LOW_PART = 0.25


@dataclass(eq=False)
class _Chain:
    """One annealing chain: where it is, and the best plan it has seen."""

    flags: Flags
    match_range: int
    portable: bool
    seed: int
    lowest: float = float("inf")
    steps: int = 0
    price: float = 1.0  # of what is over a limit at first, in times of the usual
    reserved: Ints = field(default_factory=lambda: NO_BLOCKS)


class _Annealer:
    """What all chains of one search share."""

    def __init__(self, search: Search, *, least_memory: bool = False) -> None:
        graph = search.graph
        self.search = search
        last = last_forward_use(graph)
        fixed = search.hinted_keep | search.hinted_recompute
        self.nodes = np.array(
            [
                v
                for v in range(graph.n_forward)
                if graph.can_recompute[v] and last[v] > v and v not in fixed
            ],
            np.int64,
        )
        self.groups = search.roles
        # larger tensors are tried more often, by the root of their size
        self.weights = np.cumsum(np.sqrt(1.0 + graph.node_bytes()[self.nodes]))
        base = search.space.evaluate(search.space.none())
        self.scale = max(1.0, float(base.pool_bytes))
        self.params = _parameters(search, self.scale, least_memory)
        within = search.settings.budget is not None and not least_memory
        self.within = within
        self.costly_chance = 0.15 if within else 0.0
        self.copy_chance = _COPIED if search.settings.budget is None else _COPIED_WITHIN
        if len(self.nodes) < _FEW_PARTS:
            self.copy_chance = _COPIED_SELDOM
        self.heat = _HEAT_WITHIN if within else _HEAT
        # marks of plans that chains take stretches from: what the last round ended at
        self.others = np.zeros((0, graph.n_forward), np.uint8)
        self.rate = 0.25e-6 * graph.n_nodes  # seconds a step, refined as chains run

    def affordable(self, steps: int) -> int:
        """So many steps of all chains together, or what there is time for.

        A chain that is cut short has been hot to its end, and ends at a worse plan.
        """
        left = self.search.seconds_left
        if left == float("inf"):
            return steps
        return max(_LEAST_STEPS, min(steps, int(max(0.0, left) * _workers() / self.rate)))

    def energy(self, found: Found) -> float:
        """What a chain minimizes, of a plan that was evaluated."""
        cost = found.cost
        pool, flops, work = cost.pool_bytes, cost.recompute_flops, cost.recompute_seconds
        return float(annealing.energy_of(self.params, float(pool), flops, work, 1.0))

    def run(self, chain: _Chain, steps: int, *, live: bool) -> _Chain:
        """Go on with a chain for ``steps``, from the best plan it has."""
        search = self.search
        walk = search.annealing(portable=chain.portable)
        params = self.params.copy()
        if not live:
            params[annealing.LEAST] = 0.0
        for begins, ends in _PENALTIES:
            params[begins] = min(params[ends], chain.price * params[begins])
        rng = np.array([0x9E3779B97F4A7C15 ^ (chain.seed * 0x2545F491)], np.uint64)
        state, best = chain.flags.copy(), chain.flags.copy()
        reserved = chain.reserved.copy()
        reserving = (chain.match_range, chain.reserved.copy(), reserved, search.block_sizes)
        reference = chain.lowest if np.isfinite(chain.lowest) else 1.0
        heat = self.heat if self.within or not len(chain.reserved) else _HEAT_RESERVING
        first = heat * reference * min(1.0, steps / 4000) * (1.0 if live else _LATER) + 1e-12
        done, lowest = 0, chain.lowest
        while done < steps and not search.out_of_time:
            seconds = min(_SLICE_SECONDS, max(_LEAST_SECONDS, search.seconds_left / 3))
            part = min(steps - done, max(_LEAST_SLICE, int(seconds / self.rate)))
            began = time.monotonic()
            lowest = walk(
                state,
                best,
                self.nodes,
                self.weights,
                search.third_mark,
                *self.groups,
                *search.kept_instead,
                self.costly_chance,
                self.copy_chance,
                self.others,
                params,
                reserving,
                rng,
                part,
                first,
                first / 100,
                done,
                steps,
                lowest,
            )
            self.rate = max(1e-7, (time.monotonic() - began) / part)
            done += part
        return replace(chain, flags=best, lowest=lowest, steps=done, reserved=reserved)


def _parameters(search: Search, scale: float, least_memory: bool) -> NDArray[np.float64]:
    """Weights of the energy: memory as a part of the baseline's, work of a forward pass.

    ``least_memory``: as if there were no budget.
    """
    settings, space = search.settings, search.space
    p = np.zeros(annealing.N_PARAMETERS)
    forward = max(1e-30, space.forward_seconds)
    p[annealing.BUDGET] = p[annealing.LIMIT] = np.inf
    if settings.budget is None or least_memory:
        p[annealing.MEMORY], p[annealing.WORK] = 1 / scale, 1e-4 / forward
        p[annealing.LEAST] = 1 / scale
    else:
        p[annealing.MEMORY], p[annealing.WORK] = 1e-5 / scale, 1 / forward
        p[annealing.BUDGET], p[annealing.OVER] = settings.budget, 30 / scale
        p[annealing.OVER_FIRST] = min(p[annealing.OVER], _price_of_memory(search) / forward)
    if settings.max_recompute is not None:
        p[annealing.LIMIT] = settings.max_recompute * space.forward_flops
        p[annealing.WASTED] = 10 / max(1.0, space.forward_flops)
        if p[annealing.MEMORY] == 1 / scale:
            p[annealing.WASTED_FIRST] = min(p[annealing.WASTED], _price_of_work(search) / scale)
    return p


def _price_of_memory(search: Search) -> float:
    """About how much less time is recomputed for one more byte at the budget, seconds; 0 unknown.

    Between the plan of least memory and the one of least recomputation that fit, the mean of it
    falls towards the budget: a part of it stands for the price there.
    """
    budget = search.settings.budget
    assert budget is not None
    fit = [f.cost for f in search.tried if f.cost.pool_bytes <= budget]
    if not fit:
        return 0.0
    low = min(fit, key=lambda cost: (cost.pool_bytes, cost.recompute_seconds))
    least = min(cost.recompute_seconds for cost in fit)
    room = budget - low.pool_bytes
    return _AT_THE_BUDGET * (low.recompute_seconds - least) / room if room else 0.0


def _price_of_work(search: Search) -> float:
    """About how many bytes less a plan takes for one more FLOP at the limit; 0 unknown.

    Between the best plan within the limit and the one of least memory, the mean of it falls: at
    the limit the price is some times as high.
    """
    limit = (search.settings.max_recompute or 0.0) * search.space.forward_flops
    within = [f.cost.pool_bytes for f in search.tried if f.cost.recompute_flops <= limit]
    low = min(
        (f.cost for f in search.tried), key=lambda cost: (cost.pool_bytes, cost.recompute_flops)
    )
    beyond = low.recompute_flops - limit
    if not within or beyond <= 0:
        return 0.0
    return _AT_THE_LIMIT * (min(within) - low.pool_bytes) / beyond


def _workers() -> int:
    return max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1))


def _first_chains(search: Search, annealer: _Annealer, most: int) -> list[_Chain]:
    """Different plans among the best tried, at several match ranges each."""
    ranked = sorted(search.tried, key=annealer.energy)
    if search.settings.budget is None:
        # the lowest live peak has room that the pool does not show yet
        low = min(ranked, key=lambda found: found.cost.live_peak_bytes)
        ranked = [ranked[0], low, *ranked[1:]]
    chosen: list[Found] = []
    apart = max(2, int(_APART * len(annealer.nodes)))
    for found in ranked:
        flags = found.plan.recompute
        if all(np.count_nonzero(flags != c.plan.recompute) > apart for c in chosen):
            chosen.append(found)
        if len(chosen) == 3:
            break
    chains: list[_Chain] = []
    queues = []
    for number, found in enumerate(chosen):
        options = []
        for match_range in search.match_ranges:
            cost = search.space.evaluate(found.plan.recompute, (match_range,))
            options.append((annealer.energy(Found(found.plan, cost)), match_range))
        options.sort()
        best = [pair for pair in options if pair[1] in search.usual_match_ranges][:3]
        queue = [options[0], *(pair for pair in best if pair != options[0])]
        seed = search.settings.seed * 101 + number
        chain = _Chain(found.plan.recompute, options[0][1], False, seed)
        queues.append([replace(chain, match_range=r, lowest=energy) for energy, r in queue])
        if len(search.block_sizes):
            blocks = search.space.first_blocks(chain.flags)
            own = replace(chain, match_range=search.match_ranges[0], reserved=blocks)
            count = _RESERVING_WITHIN if annealer.within else _RESERVING
            place = 1 if annealer.within else 0
            queues[-1][place:place] = [replace(own, seed=seed + 7 * k) for k in range(count)]
    # the first of each, then the second of each
    for place in range(max(map(len, queues))):
        chains += [queue[place] for queue in queues if place < len(queue)]
    for number, chain in enumerate(chains):
        chain.price = _PRICES[number % len(_PRICES)]
    return chains[:most]


def refine(search: Search, part: float = 1.0) -> None:
    """Improve the best of the plans tried so far.

    Args:
        search: with at least one plan tried; otherwise nothing is done.
        part: of the usual work, 0 to 1; below 1 no further rounds follow while time is left.
    """
    if not search.tried or search.out_of_time:
        return
    search.progress("local search")
    size = max(1, search.graph.n_nodes)
    larger = max(1.0, size / _USUAL_NODES)
    effort = _WORK * larger**0.5
    if size > _LARGE:
        effort = _MOST_WORK
    if search.settings.budget is None and len(search.block_sizes):
        effort = min(effort, _ENOUGH * _WORK * larger)
    steps = int(part * search.space.effort * effort / size)
    work = max(_LEAST_STEPS, min(search.space.most_steps, steps))
    if search.settings.budget is not None:
        # a plan of little memory first: what it leaves of the budget is room to keep more
        low = _Annealer(search, least_memory=True)
        if len(low.nodes):
            end = search.until
            if end is not None:
                search.until = end - (1 - _LOW_PART) * max(0.0, search.seconds_left)
            _rounds(search, low, low.affordable(work // 3), 0)
            search.until = end
    consider_knapsack_plans(search, NAME)
    if search.out_of_time:
        return
    consider_roles(search, NAME)
    annealer = _Annealer(search)
    if not len(annealer.nodes):
        return
    work = min(work, max(_LEAST_STEPS, _MOST_STEPS * len(annealer.nodes)))
    extra = 0
    while True:
        best = _rounds(search, annealer, annealer.affordable(work), extra)
        extra += 1
        if part < 1 or search.settings.time_limit is None or search.out_of_time or best is None:
            return
        work *= 2


def _rounds(search: Search, annealer: _Annealer, work: int, salt: int) -> _Chain | None:
    """Successive halving over chains; the best one."""
    rounds = _ROUNDS if work >= _MANY_STEPS else _SHORT_ROUNDS
    annealer.others = annealer.others[:0]
    chains = _first_chains(search, annealer, rounds[0][1])
    for chain in chains:
        chain.seed += 7919 * salt
    for number, (part, count) in enumerate(rounds):
        chains = chains[:count]
        if not chains or search.out_of_time:
            break
        steps = max(8, int(work * part / len(chains)))
        search.progress("local search", number / len(rounds))
        with ThreadPoolExecutor(_workers()) as pool:
            futures = [
                pool.submit(annealer.run, chain, steps, live=number == 0 or salt % 2 == 1)
                for chain in chains
            ]
            chains = [future.result() for future in futures]
        for chain in chains:
            search.evaluated += chain.steps
            chain.seed += 1
            remember(search, chain)
        chains.sort(key=lambda chain: chain.lowest)
        annealer.others = np.array([chain.flags for chain in chains])
        if number == 1 and not search.space.is_portable(chains[0].flags):
            # a plan that plain kernels run, too, is preferred where it costs little
            flags = search.admissible(chains[0].flags, portable=True)
            twin = replace(chains[0], flags=flags, portable=True, lowest=float("inf"), steps=0)
            chains = [chains[0], twin]
    return chains[0] if chains else None


def remember(search: Search, chain: _Chain) -> None:
    """Put the best plan of a chain among the candidates."""
    cuts = search.kept_cuts(chain.flags)
    found = search.consider(NAME, chain.flags, cuts, chain.match_range, chain.reserved)
    found.plan.notes["seed"] = search.settings.seed


def explore(search: Search) -> None:
    """Consider the initial plans."""
    consider_initial_plans(search, NAME)
    if not search.tried:  # a graph of one operator has nothing to choose from
        search.consider(NAME, search.space.none(), [])
