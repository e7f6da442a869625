"""Every workload by name."""

from __future__ import annotations

from chaos.workloads import Workload
from chaos.workloads.aggregates import Accumulators, Bank, Repartition, Results, Sort, Spark23207, WordCount
from chaos.workloads.graphs import Iterate, Joins, KMeans, PageRank, Ring
from chaos.workloads.outside import Broadcast, Long, Parcels, Program, Save

_ALL = (WordCount, Ring, Bank, Sort, PageRank, KMeans, Joins, Iterate, Accumulators, Save, Broadcast, Results,
        Parcels, Repartition, Spark23207, Program, Long)  # fmt: skip
WORKLOADS: dict[str, Workload] = {cls.name: cls() for cls in _ALL}
SWEPT = tuple(name for name in WORKLOADS if name != "long")  # a sweep goes over these
