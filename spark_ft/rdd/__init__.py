"""The RDD: one handle, its methods by theme.

base.py fields and marks · transform.py · pairs.py · ordering.py · actions.py · numeric.py ·
approx.py · saving.py · barrier.py; sampling.py and tasks.py hold what they run in tasks.
"""

from __future__ import annotations

from typing import TypeVar

from spark_ft.lineage.partitioner import Partitioner, portable_hash
from spark_ft.rdd.approx import ApproxMixin, BoundedFloat
from spark_ft.rdd.barrier import RDDBarrier
from spark_ft.rdd.base import Session
from spark_ft.rdd.saving import SavingMixin
from spark_ft.rdd.transform import union_of

__all__ = ["RDD", "BoundedFloat", "Partitioner", "RDDBarrier", "Session", "portable_hash", "union_of"]

T = TypeVar("T")


class RDD(ApproxMixin[T], SavingMixin[T]):
    """A resilient distributed dataset: records in partitions, and how to compute them again.

    Made by a SparkContext.  Transformations give another RDD and start nothing; actions run a job.
    """

    def barrier(self) -> RDDBarrier[T]:
        """Transformations whose tasks run all together or not at all."""
        return RDDBarrier(self)
