"""Where one function of a program ends and the next begins: block copies, loops over periods, and what stands between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import networkx as nx

from nlc.graph.order import Node
from nlc.program.periods import Loop


def parts(
    needs: nx.DiGraph[Node], order: Sequence[Node], scope_of: Mapping[Node, str], loop_of: Mapping[Node, Loop]
) -> Iterator[list[Node]]:
    """The nodes of an order in parts, each after all it needs, and within one block copy, one loop, or between them.

    `scope_of` is the block copy of a node, empty between copies. A loop is in one part. What stands between copies and loops goes as early
    as it can; a copy begins once it waits for nothing outside, if ever. Nodes that are not in the order are there from the start.
    """
    between = [node for node in order if not scope_of[node] and node not in loop_of]
    units: dict[str, _Unit] = {}
    for node in order:
        if scope_of[node] or node in loop_of:
            units.setdefault(scope_of[node] or loop_of[node].id, _Unit()).add(node, loop_of.get(node))
    waiting = _Waiting(needs, order)
    while waiting.nodes:
        left = len(waiting.nodes)
        yield from waiting.taken(between)
        for unit in [unit for unit in units.values() if waiting.only_for(unit.nodes)]:
            yield from unit.parts(waiting)
        if len(waiting.nodes) == left:  # copies that wait for each other: one of them in pieces
            yield next(part for unit in units.values() for part in unit.parts(waiting))


class _Waiting:
    """The nodes that are in no part yet."""

    def __init__(self, needs: nx.DiGraph[Node], nodes: Sequence[Node]) -> None:
        self.needs, self.nodes = needs, set(nodes)

    def taken(self, nodes: Sequence[Node], together: bool = False) -> list[list[Node]]:
        """No part, or one of the nodes (in order) that wait for nothing but each other; `together`: of all or none of them."""
        found: dict[Node, None] = {}
        for node in nodes:
            if node in self.nodes and all(before in found or before not in self.nodes for before in self.needs.predecessors(node)):
                found[node] = None
        if not found or (together and len(found) < len(nodes)):
            return []
        self.nodes.difference_update(found)
        return [list(found)]

    def only_for(self, nodes: Sequence[Node]) -> bool:
        """Do those that wait, some of them, wait for nothing but each other?"""
        mine = self.nodes.intersection(nodes)
        return bool(mine) and not any(
            before in self.nodes and before not in mine for node in mine for before in self.needs.predecessors(node)
        )


class _Unit:
    """A block copy, or a loop that stands in none."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.bodies: dict[str, list[Node]] = {}

    def add(self, node: Node, loop: Loop | None) -> None:
        self.nodes.append(node)
        self.bodies.setdefault(loop.id if loop is not None else "", []).append(node)

    def parts(self, waiting: _Waiting) -> Iterator[list[Node]]:
        """What can run now; between loops as much as can."""
        going = True
        while going:
            found = [part for id, body in sorted(self.bodies.items()) for part in waiting.taken(body, together=id != "")]
            going = bool(found)
            yield from found
