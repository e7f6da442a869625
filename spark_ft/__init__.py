"""spark_ft: PySpark RDD programs without a JVM, that keep going when parts of the machine die.

    from spark_ft import SparkContext

Names are loaded when they are first used, so that importing the package costs next to nothing in the
processes that need only a part of it.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from spark_ft.accumulators import Accumulator, AccumulatorParam
    from spark_ft.broadcast import Broadcast
    from spark_ft.conf import SparkConf
    from spark_ft.context import SparkContext
    from spark_ft.files import SparkFiles
    from spark_ft.rdd import RDD, RDDBarrier
    from spark_ft.serializers import CPickleSerializer, MarshalSerializer
    from spark_ft.status import SparkExecutorInfo, SparkJobInfo, SparkStageInfo, StatusTracker
    from spark_ft.storagelevel import StorageLevel
    from spark_ft.taskcontext import BarrierTaskContext, BarrierTaskInfo, TaskContext
    from spark_ft.util import InheritableThread, inheritable_thread_target

_WHERE = {
    "Accumulator": "accumulators",
    "AccumulatorParam": "accumulators",
    "BarrierTaskContext": "taskcontext",
    "BarrierTaskInfo": "taskcontext",
    "Broadcast": "broadcast",
    "CPickleSerializer": "serializers",
    "InheritableThread": "util",
    "MarshalSerializer": "serializers",
    "RDD": "rdd",
    "RDDBarrier": "rdd",
    "SparkConf": "conf",
    "SparkContext": "context",
    "SparkExecutorInfo": "status",
    "SparkFiles": "files",
    "SparkJobInfo": "status",
    "SparkStageInfo": "status",
    "StatusTracker": "status",
    "StorageLevel": "storagelevel",
    "TaskContext": "taskcontext",
    "inheritable_thread_target": "util",
}

__all__ = [
    "RDD",
    "Accumulator",
    "AccumulatorParam",
    "BarrierTaskContext",
    "BarrierTaskInfo",
    "Broadcast",
    "CPickleSerializer",
    "InheritableThread",
    "MarshalSerializer",
    "RDDBarrier",
    "SparkConf",
    "SparkContext",
    "SparkExecutorInfo",
    "SparkFiles",
    "SparkJobInfo",
    "SparkStageInfo",
    "StatusTracker",
    "StorageLevel",
    "TaskContext",
    "__version__",
    "inheritable_thread_target",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
