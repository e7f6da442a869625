"""Lineages made by hand: what the simulator's programs and the builders of tests are made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from spark_ft.ids import Fingerprint, NodeId, ShuffleId
from spark_ft.lineage.shape import LineageShape, NodeShape, ShuffleShape


@dataclass
class Shapes:
    """All nodes and shuffles that there are; a job sees what is reachable from its node."""

    nodes: dict[NodeId, NodeShape] = field(default_factory=dict)
    shuffles: dict[ShuffleId, ShuffleShape] = field(default_factory=dict)

    def shuffle(self, parent: NodeId, reduce_count: int) -> ShuffleId:
        id = ShuffleId(len(self.shuffles))
        name = Fingerprint(id.to_bytes(16, "big"))
        self.shuffles[id] = ShuffleShape(id, parent, self.nodes[parent].partition_count, reduce_count, name)
        return id

    def shape(self, target: NodeId) -> LineageShape:
        """All that is reachable from ``target``, as the driver would tell it."""
        nodes: dict[NodeId, NodeShape] = {}
        shuffles: dict[ShuffleId, ShuffleShape] = {}
        stack = [target]
        while stack:
            id = stack.pop()
            if id in nodes:
                continue
            node = nodes[id] = self.nodes[id]
            stack.extend(dependency.parent for dependency in node.narrow)
            for shuffle in node.shuffles:
                shuffles[shuffle] = self.shuffles[shuffle]
                stack.append(self.shuffles[shuffle].parent)
        return LineageShape(target, nodes, shuffles)
