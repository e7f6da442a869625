"""Configuration: SparkConf's strings, read once into a frozen ``Settings``.

Each row of the table gives a key, its default, how it is read and why it is there.  A known key
with a bad value is refused at start, by name; an unknown ``spark.*`` key is kept and reported
once.  Environment variables are read here and nowhere else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import field, fields

from spark_ft.errors import SettingsError
from spark_ft.records import record

_TIME = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


def seconds(text: str, unit: str = "s") -> float:
    """``10ms``, ``5s``, ``2min``, ``1h``, ``1d``; a bare number is in ``unit``."""
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if not match or (match[2] or unit) not in _TIME:
        raise ValueError("expected a time such as 500ms, 10s or 2min")
    return float(match[1]) * _TIME[match[2] or unit]


def size_bytes(text: str, unit: str = "b") -> int:
    """``512m``, ``1g``, ``4mb``; a bare number is in ``unit``."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([bkmgtp]?)i?b?\s*", text.lower())
    if not match:
        raise ValueError("expected a size such as 64k, 512m or 1g")
    return int(float(match[1]) * _SIZE[match[2] or unit])


def boolean(text: str) -> bool:
    """``true`` or ``false``, any case."""
    if text.strip().lower() in ("true", "false"):
        return text.strip().lower() == "true"
    raise ValueError("expected true or false")


def _choice(*names: str):  # type: ignore[no-untyped-def]  # returns a reader of one of the names
    def read(text: str) -> str:
        if text.strip().upper() not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return text.strip().upper()

    return read


def _mebibytes(text: str) -> int:
    return size_bytes(text, "m")


def _kibibytes(text: str) -> int:
    return size_bytes(text, "k")


def _milliseconds(text: str) -> float:
    return seconds(text, "ms")


def _key(key: str, default: object, read: object, why: str):  # type: ignore[no-untyped-def]
    return field(default=default, metadata={"key": key, "read": read, "why": why})


@record
class Settings:
    """Every setting the engine knows; times in seconds, sizes in bytes.

    The name is Spark's wherever Spark has the notion; ours are ``spark.ft.*``.
    """

    # Who and where
    master: str = _key("spark.master", "local[*]", str, "where to run")
    app_name: str = _key("spark.app.name", "pyspark-shell", str, "shown to people")
    app_id: str = _key("spark.app.id", "", str, "identity across driver restarts; drawn when empty")
    local_dir: str = _key("spark.local.dir", "", str, "scratch; the system's temporary directory when empty")
    log_level: str = _key("spark.log.level", "WARN", str.upper, "of the engine's log on stderr")
    default_parallelism: int = _key("spark.default.parallelism", 0, int, "reduce partitions; 0: not set")

    # Executors
    executor_memory_bytes: int = _key("spark.executor.memory", 1 << 30, _mebibytes, "execution + storage")
    driver_memory_bytes: int = _key("spark.driver.memory", 0, _mebibytes, "of local[n] in all, as in Spark")
    executor_cores: int = _key("spark.executor.cores", 1, int, "task slots of one executor process")
    executor_instances: int = _key("spark.executor.instances", 0, int, "executors wanted; 0: all there are")
    memory_fraction: float = _key("spark.memory.fraction", 0.6, float, "share for execution + storage")
    storage_fraction: float = _key("spark.memory.storageFraction", 0.5, float, "part safe from eviction")
    hash_seed: int = _key("spark.ft.hashSeed", 0, int, "PYTHONHASHSEED of every executor")
    allow_spark_context: bool = _key("spark.executor.allowSparkContext", False, boolean, "in tasks")
    faulthandler: bool = _key("spark.python.worker.faulthandler.enabled", True, boolean, "native tracebacks")
    pyspark_memory_bytes: int = _key("spark.executor.pyspark.memory", 0, _mebibytes, "RLIMIT_AS; 0: none")

    # Tasks and stages
    max_failures: int = _key("spark.task.maxFailures", 4, int, "failures blamed on one task that end the job")
    max_kills: int = _key("spark.ft.task.maxKills", 2, int, "deaths of a task's process before it is suspect")
    stage_max_attempts: int = _key("spark.stage.maxConsecutiveAttempts", 4, int, "tries without progress")
    scheduler_mode: str = _key("spark.scheduler.mode", "FIFO", _choice("FIFO", "FAIR"), "between jobs")
    locality_wait_s: float = _key("spark.locality.wait", 3.0, _milliseconds, "wait for a local slot")
    speculation: bool = _key("spark.speculation", True, boolean, "twins of slow tasks")
    speculation_interval_s: float = _key("spark.speculation.interval", 0.1, _milliseconds, "how often to look")
    speculation_multiplier: float = _key("spark.speculation.multiplier", 3.0, float, "times the median is slow")
    speculation_quantile: float = _key("spark.speculation.quantile", 0.9, float, "share of tasks done first")
    speculation_min_s: float = _key("spark.speculation.minTaskRuntime", 0.1, _milliseconds, "shortest worth it")
    speculation_min_finished: int = _key("spark.ft.speculation.minFinished", 10, int, "tasks done before any")
    kill_grace_s: float = _key("spark.ft.task.killGrace", 2.0, seconds, "from SIGINT to SIGKILL")
    prefetch_tasks: int = _key("spark.ft.task.prefetch", 1, int, "attempts queued behind a running one")

    # Liveness
    heartbeat_interval_s: float = _key("spark.executor.heartbeatInterval", 1.0, seconds, "progress reports")
    lease_s: float = _key("spark.ft.lease", 8.0, seconds, "an unacknowledged executor takes no new work after")
    lost_after_s: float = _key("spark.network.timeout", 10.0, seconds, "a silent peer is lost")
    driver_grace_s: float = _key("spark.ft.driver.grace", 30.0, seconds, "executors outlive a driver so long")
    no_resources_timeout_s: float = _key("spark.ft.noResourcesTimeout", 60.0, seconds, "then NO_RESOURCES")
    executor_restart_s: float = _key("spark.ft.executor.restartDelay", 0.1, seconds, "first back-off of a restart")
    executor_max_crashes: int = _key("spark.ft.executor.maxCrashes", 5, int, "failed starts before giving up")

    # Shuffle, stores and memory
    fetch_retries: int = _key("spark.shuffle.io.maxRetries", 3, int, "then the failure is reported")
    fetch_timeout_s: float = _key("spark.ft.fetch.timeout", 5.0, seconds, "without a byte, per try")
    fetch_window_bytes: int = _key("spark.reducer.maxSizeInFlight", 48 << 20, _mebibytes, "credit of a reducer")
    compress: bool = _key("spark.shuffle.compress", True, boolean, "of shuffle batches, where it pays")
    python_worker_memory_bytes: int = _key("spark.python.worker.memory", 512 << 20, _mebibytes, "one aggregation")
    segment_bytes: int = _key("spark.ft.store.segmentSize", 1 << 30, size_bytes, "map size of a store segment")
    transaction_bytes: int = _key("spark.ft.store.transactionSize", 16 << 20, size_bytes, "dirty pages at most")
    gc_interval_s: float = _key("spark.ft.store.gcInterval", 10.0, seconds, "stale readers, garbage segments")
    reference_tracking: bool = _key("spark.cleaner.referenceTracking", True, boolean, "drop unreachable data")

    # Results and messages
    max_result_bytes: int = _key("spark.driver.maxResultSize", 1 << 30, size_bytes, "of one job; 0: no limit")
    inline_result_bytes: int = _key("spark.ft.result.inlineSize", 1 << 20, size_bytes, "larger go by the store")
    max_message_bytes: int = _key("spark.rpc.message.maxSize", 128 << 20, _mebibytes, "of one control message")

    # For people
    event_log: bool = _key("spark.eventLog.enabled", True, boolean, "JSON lines of all that happens")
    event_log_dir: str = _key("spark.eventLog.dir", "", str, "kept there; dropped with the scratch when empty")
    progress: bool = _key("spark.ui.showConsoleProgress", False, boolean, "bars on the terminal")
    failpoints: str = _key("spark.ft.failpoints", "", str, "named faults, for tests; see failpoints.py")

    extra: Mapping[str, str] = field(default_factory=dict)  # the keys we do not read, and all others as given

    @classmethod
    def from_conf(cls, conf: Mapping[str, str]) -> Settings:
        """Read a SparkConf's pairs.

        Raises SettingsError (BAD_CONFIG) that names the key, the value and what was expected.
        """
        values: dict[str, object] = {}
        for row in fields(cls):
            key = row.metadata.get("key")
            if key is None or key not in conf:
                continue
            try:
                values[row.name] = row.metadata["read"](str(conf[key]))
            except ValueError as error:
                raise SettingsError(f"{key}={conf[key]!r}: {error}") from None
        settings = cls(**values, extra=dict(conf))  # type: ignore[arg-type]  # each read by its row's reader
        settings._check()
        return settings

    def _check(self) -> None:
        rules = (
            (self.lease_s < self.lost_after_s, "spark.ft.lease", "must be shorter than spark.network.timeout"),
            (
                self.heartbeat_interval_s < self.lease_s,
                "spark.executor.heartbeatInterval",
                "must be shorter than spark.ft.lease",
            ),
            (self.max_failures >= 1, "spark.task.maxFailures", "must be at least 1"),
            (self.executor_cores >= 1, "spark.executor.cores", "must be at least 1"),
            (self.executor_memory_bytes >= 16 << 20, "spark.executor.memory", "must be at least 16m"),
            (0 < self.memory_fraction <= 1, "spark.memory.fraction", "must be in (0, 1]"),
            (0 <= self.storage_fraction <= 1, "spark.memory.storageFraction", "must be in [0, 1]"),
            (self.segment_bytes >= 1 << 20, "spark.ft.store.segmentSize", "must be at least 1m"),
            (
                self.transaction_bytes * 2 <= self.segment_bytes,
                "spark.ft.store.transactionSize",
                "must be at most half of spark.ft.store.segmentSize",
            ),
            (self.default_parallelism >= 0, "spark.default.parallelism", "must not be negative"),
            (0 <= self.hash_seed < 2**32, "spark.ft.hashSeed", "must fit in 32 bits"),
        )
        for holds, key, why in rules:
            if not holds:
                raise SettingsError(f"{key}={self.extra.get(key)!r}: {why}")


def known_keys() -> frozenset[str]:
    """The keys that ``Settings`` reads."""
    return frozenset(row.metadata["key"] for row in fields(Settings) if "key" in row.metadata)


def environment(name: str, default: str = "") -> str:
    """The one door to environment variables."""
    return os.environ.get(name, default)


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process to be started: ours with ``changes`` over it."""
    return {**os.environ, **changes}
