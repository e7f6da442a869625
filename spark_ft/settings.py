"""Configuration: SparkConf's strings, read once into a frozen ``Settings``.

Each row of the table gives a key, its default, how it is read, why it is there, and its range.
A known key with a bad value is refused at start, by name; an unknown ``spark.*`` key is kept and
reported once.  Environment variables are read here and nowhere else.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any

from spark_ft import failpoints
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


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("expected a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("expected a number") from None


def _failpoints(text: str) -> str:
    failpoints.parse(text)
    return text


def _path(text: str) -> str:
    """A directory; ``file:`` URIs too, as Spark has them."""
    return re.sub(r"^file:(//[^/]*)?", "", text)


def _paths(text: str) -> str:
    """Several directories, with commas between them."""
    return ",".join(_path(part.strip()) for part in text.split(",") if part.strip())


def _key(  # type: ignore[no-untyped-def]  # a dataclass field stands for its value
    key: str,
    default: object,
    read: object,
    why: str,
    least: float | None = None,
    most: float | None = None,
):
    return field(default=default, metadata={"key": key, "read": read, "why": why, "range": (least, most)})


_SHORTEST_S = 0.001  # of a time that must not be zero


@record
class Settings:
    """Every setting the engine knows; times in seconds, sizes in bytes.

    The name is Spark's wherever Spark has the notion; ours are ``spark.ft.*``.
    """

    # Who and where
    master: str = _key("spark.master", "local[*]", str, "where to run")
    app_name: str = _key("spark.app.name", "pyspark-shell", str, "shown to people")
    app_id: str = _key("spark.app.id", "", str, "identity across driver restarts; drawn when empty")
    local_dir: str = _key("spark.local.dir", "", _paths, "scratch: the first of these that can be used; the system's when empty")
    driver_host: str = _key("spark.driver.host", "", str, "of the driver's sockets, as others find it; the bind address when empty")
    driver_bind: str = _key("spark.driver.bindAddress", "", str, "where they listen; at the driver's host when empty, by ipc when that is, too")
    keys: str = _key("spark.ft.keys", "", _path, "directory of the cluster's keys; TCP beyond this machine needs them")
    secret: str = _key("spark.authenticate.secret", "", str, "of a spark:// cluster; who has another is no part of it")
    driver_port: int = _key("spark.driver.port", 0, _whole, "of its control socket; 0: any", least=0, most=65535)
    driver_data_port: int = _key("spark.driver.blockManager.port", 0, _whole, "of its block server; 0: any", least=0, most=65535)
    submit_timeout_s: float = _key("spark.ft.submitTimeout", 60.0, seconds, "a driver waits so long for a manager", least=0)
    cores_max: int = _key("spark.cores.max", 0, _whole, "of a spark:// cluster, in all; 0: all there are", least=0)
    advertise_directory: str = _key("spark.ft.advertise.directory", "", _path, "of ipc sockets, as others find it; as bound when empty")
    log_level: str = _key("spark.log.level", "WARN", str.upper, "of the engine's log on stderr")
    input_mode: str = _key("spark.ft.input.mode", "FAILFAST", _choice("FAILFAST", "PERMISSIVE"), "PERMISSIVE: bad records of files are counted, not errors")
    default_parallelism: int = _key("spark.default.parallelism", 0, _whole, "reduce partitions; 0: not set", least=0)

    # Executors
    executor_memory_bytes: int = _key("spark.executor.memory", 1 << 30, _mebibytes, "execution + storage", least=16 << 20)
    enforce_memory: bool = _key("spark.ft.executor.memory.enforce", False, boolean, "MemoryError beyond it, not only spilling")
    driver_memory_bytes: int = _key("spark.driver.memory", 0, _mebibytes, "of local[n] in all, as in Spark")
    executor_cores: int = _key("spark.executor.cores", 1, _whole, "task slots of one executor process", least=1)
    executor_instances: int = _key("spark.executor.instances", 0, _whole, "executors wanted; 0: all there are", least=0)
    memory_fraction: float = _key("spark.memory.fraction", 0.6, _number, "share for execution + storage", least=0.01, most=1)
    storage_fraction: float = _key("spark.memory.storageFraction", 0.5, _number, "part safe from eviction", least=0, most=1)
    hash_seed: int = _key("spark.ft.hashSeed", 0, _whole, "PYTHONHASHSEED of every executor", least=0, most=2**32 - 1)
    allow_spark_context: bool = _key("spark.executor.allowSparkContext", False, boolean, "in tasks")
    faulthandler: bool = _key("spark.python.worker.faulthandler.enabled", True, boolean, "native tracebacks")
    pyspark_memory_bytes: int = _key("spark.executor.pyspark.memory", 0, _mebibytes, "RLIMIT_AS; 0: none")

    # Tasks and stages
    task_cpus: int = _key("spark.task.cpus", 1, _whole, "cores that one task takes", least=1)
    max_failures: int = _key("spark.task.maxFailures", 4, _whole, "failures blamed on one task that end the job", least=1)
    max_kills: int = _key("spark.ft.task.maxKills", 2, _whole, "deaths of a task's process before it is suspect", least=1)
    stage_max_attempts: int = _key("spark.stage.maxConsecutiveAttempts", 4, _whole, "tries without progress", least=1)
    scheduler_mode: str = _key("spark.scheduler.mode", "FIFO", _choice("FIFO", "FAIR"), "between jobs")
    locality_wait_s: float = _key("spark.locality.wait", 3.0, _milliseconds, "wait for a local slot", least=0)
    speculation: bool = _key("spark.speculation", True, boolean, "twins of slow tasks")
    speculation_interval_s: float = _key("spark.speculation.interval", 0.1, _milliseconds, "how often to look", least=_SHORTEST_S)
    speculation_multiplier: float = _key("spark.speculation.multiplier", 3.0, _number, "times the median is slow", least=1)
    speculation_quantile: float = _key("spark.speculation.quantile", 0.9, _number, "share of tasks done first", least=0, most=1)
    speculation_min_s: float = _key("spark.speculation.minTaskRuntime", 0.1, _milliseconds, "shortest worth it", least=0)
    speculation_min_finished: int = _key("spark.ft.speculation.minFinished", 10, _whole, "tasks done before any", least=1)
    kill_grace_s: float = _key("spark.ft.task.killGrace", 2.0, seconds, "from SIGINT to SIGKILL", least=0)
    exclude_on_failure: bool = _key("spark.excludeOnFailure.enabled", True, boolean, "executors where tasks fail that succeed elsewhere")
    exclude_timeout_s: float = _key("spark.excludeOnFailure.timeout", 3600.0, seconds, "evidence is older; longest back-off", least=0)
    exclude_stage_tasks: int = _key("spark.excludeOnFailure.stage.maxFailedTasksPerExecutor", 2, _whole, "of one stage", least=1)
    exclude_app_tasks: int = _key("spark.excludeOnFailure.application.maxFailedTasksPerExecutor", 2, _whole, "proved", least=1)
    exclude_app_executors: int = _key("spark.excludeOnFailure.application.maxFailedExecutorsPerNode", 2, _whole, "then its host", least=1)
    barrier_check_interval_s: float = _key("spark.scheduler.barrier.maxConcurrentTasksCheck.interval", 10.0, seconds, "between looks for a gang's slots", least=0)
    barrier_check_failures: int = _key("spark.scheduler.barrier.maxConcurrentTasksCheck.maxFailures", 1, _whole, "looks in vain that end its job", least=1)
    barrier_sync_timeout_s: float = _key("spark.barrier.sync.timeout", 365.0 * 86400, seconds, "a barrier() waits no longer", least=0)
    stall_timeout_s: float = _key("spark.ft.task.stallTimeout", 60.0, seconds, "no progress, no CPU: stalled; 0: never", least=0)
    task_timeout_s: float = _key("spark.ft.task.timeout", 0.0, seconds, "a longer attempt has failed; 0: none", least=0)
    prefetch_tasks: int = _key("spark.ft.task.prefetch", 1, _whole, "attempts queued behind a running one", least=0)

    # Liveness
    heartbeat_interval_s: float = _key("spark.executor.heartbeatInterval", 1.0, seconds, "progress reports", least=_SHORTEST_S)
    lease_s: float = _key("spark.ft.lease", 8.0, seconds, "an unacknowledged executor takes no new work after", least=_SHORTEST_S)
    lost_after_s: float = _key("spark.network.timeout", 10.0, seconds, "a silent peer is lost", least=_SHORTEST_S)
    driver_grace_s: float = _key("spark.ft.driver.grace", 30.0, seconds, "executors outlive a driver so long", least=0)
    launch_ack_s: float = _key("spark.ft.launchTimeout", 5.0, seconds, "who heeds nothing for so long gets no more", least=_SHORTEST_S)
    decommission: bool = _key("spark.decommission.enabled", True, boolean, "SIGTERM lets workers and executors leave in order")
    decommission_s: float = _key("spark.executor.decommission.forceKillTimeout", 60.0, seconds, "from SIGTERM to the end", least=0)
    move_data: bool = _key("spark.storage.decommission.enabled", True, boolean, "away from hosts that leave")
    move_outputs: bool = _key("spark.storage.decommission.shuffleBlocks.enabled", True, boolean, "of maps, too")
    move_partitions: bool = _key("spark.storage.decommission.rddBlocks.enabled", True, boolean, "persisted ones, too")
    worker_grace_s: float = _key("spark.ft.worker.grace", 5.0, seconds, "a lost worker's host waits so long for an heir", least=0)
    no_resources_timeout_s: float = _key("spark.ft.noResourcesTimeout", 60.0, seconds, "then NO_RESOURCES", least=0)
    executor_restart_s: float = _key("spark.ft.executor.restartDelay", 0.1, seconds, "first back-off of a restart", least=0)
    executor_max_crashes: int = _key("spark.ft.executor.maxCrashes", 5, _whole, "failed starts before giving up", least=1)

    # Shuffle, stores and memory
    fetch_retries: int = _key("spark.shuffle.io.maxRetries", 3, _whole, "then the failure is reported", least=0)
    fetch_timeout_s: float = _key("spark.ft.fetch.timeout", 5.0, seconds, "without a byte, per try", least=_SHORTEST_S)
    fetch_window_bytes: int = _key("spark.reducer.maxSizeInFlight", 48 << 20, _mebibytes, "credit of a reducer", least=1 << 20)
    shuffle_replicas: int = _key("spark.ft.shuffle.replicas", 1, _whole, "hosts that hold each map output", least=1)
    replicate_again: bool = _key("spark.storage.replication.proactive", True, boolean, "copies in place of lost ones")
    compress: bool = _key("spark.shuffle.compress", True, boolean, "of shuffle batches, where it pays")
    python_worker_memory_bytes: int = _key("spark.python.worker.memory", 512 << 20, _mebibytes, "one aggregation", least=1 << 20)
    segment_bytes: int = _key("spark.ft.store.segmentSize", 1 << 30, size_bytes, "map size of a store segment", least=64 << 10)
    transaction_bytes: int = _key("spark.ft.store.transactionSize", 16 << 20, size_bytes, "dirty pages at most", least=16 << 10)
    any_file_system: bool = _key("spark.ft.store.anyFileSystem", False, boolean, "stores even on network file systems")
    gc_interval_s: float = _key("spark.ft.store.gcInterval", 10.0, seconds, "stale readers, garbage segments", least=_SHORTEST_S)
    reference_tracking: bool = _key("spark.cleaner.referenceTracking", True, boolean, "drop unreachable data")

    clean_checkpoints: bool = _key("spark.cleaner.referenceTracking.cleanCheckpoints", False, boolean, "delete those that nothing reads")
    keep_lineage: bool = _key("spark.ft.checkpoint.keepLineage", True, boolean, "beside a checkpoint, to mend it")

    # A driver's next life; only with spark.app.id
    recovery_dir: str = _key("spark.ft.recovery.dir", "", _path, "what outlives a driver; beside the scratch directories when empty")
    recovery_results_bytes: int = _key("spark.ft.recovery.resultsSize", 64 << 20, size_bytes, "of kept results; the oldest go first", least=0)
    recovery_fails: bool = _key("spark.ft.recovery.failOnJournalError", False, boolean, "end jobs, rather than go on without a journal")

    # Results and messages
    max_result_bytes: int = _key("spark.driver.maxResultSize", 1 << 30, size_bytes, "of one job; 0: no limit")
    inline_result_bytes: int = _key("spark.ft.result.inlineSize", 1 << 20, size_bytes, "larger go by the store")
    max_message_bytes: int = _key("spark.rpc.message.maxSize", 128 << 20, _mebibytes, "of one control message", least=1 << 20)

    # For people
    event_log: bool = _key("spark.eventLog.enabled", True, boolean, "JSON lines of all that happens")
    event_log_dir: str = _key("spark.eventLog.dir", "", _path, "where; one for each user under the temporary directory when empty")
    event_log_rolling: bool = _key("spark.eventLog.rolling.enabled", True, boolean, "in parts; else it ends when it is full")
    event_log_part_bytes: int = _key("spark.eventLog.rolling.maxFileSize", 16 << 20, size_bytes, "of one part", least=4 << 10)
    event_log_bytes: int = _key("spark.ft.eventLog.maxSize", 64 << 20, size_bytes, "of one application's log", least=16 << 10)
    event_logs_bytes: int = _key("spark.ft.eventLog.maxTotalSize", 256 << 20, size_bytes, "of all logs in a directory that is cleaned", least=0)
    event_logs_clean: bool = _key("spark.history.fs.cleaner.enabled", False, boolean, "remove old logs; always done in the default directory")
    event_logs_age_s: float = _key("spark.history.fs.cleaner.maxAge", 7 * 86400.0, seconds, "older logs go", least=0)
    event_logs_count: int = _key("spark.history.fs.cleaner.maxNum", 1000, _whole, "more logs than that go", least=1)
    event_queue: int = _key("spark.scheduler.listenerbus.eventqueue.capacity", 10_000, _whole, "events a listener may lag behind", least=1)
    event_log_queue: int = _key("spark.scheduler.listenerbus.eventqueue.eventLog.capacity", 100_000, _whole, "and the event log", least=1)
    extra_listeners: str = _key("spark.extraListeners", "", str, "classes, by module and name, that are told of all that happens")
    retained_jobs: int = _key("spark.ui.retainedJobs", 1000, _whole, "that the status tracker knows", least=1)
    retained_stages: int = _key("spark.ui.retainedStages", 1000, _whole, "that the status tracker knows", least=1)
    overwrite_files: bool = _key("spark.files.overwrite", False, boolean, "by another file of the same name")
    progress: bool = _key("spark.ui.showConsoleProgress", False, boolean, "bars on the terminal")
    failpoints: str = _key("spark.ft.failpoints", "", _failpoints, "named faults, for tests; see failpoints.py")

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
            least, most = row.metadata["range"]
            value: Any = values[row.name]
            if least is not None and not value >= least:
                raise SettingsError(f"{key}={conf[key]!r}: must be at least {_shown(row.name, least)}")
            if most is not None and not value <= most:
                raise SettingsError(f"{key}={conf[key]!r}: must be at most {_shown(row.name, most)}")
        settings = cls(**values, extra=dict(conf))  # type: ignore[arg-type]  # each read by its row's reader
        settings._check()
        return settings

    @property
    def silence_s(self) -> float:
        """When a silent peer is given up: later than the last lease that it can believe in ends (S30), and
        early enough for that to be known everywhere within ``lost_after_s``."""
        return (self.lease_s + self.lost_after_s) / 2

    def _check(self) -> None:
        """What two settings say together.  Raises SettingsError that names the one that was given."""
        beat, lease = "heartbeat_interval_s", "lease_s"
        rules = (
            (self.lease_s < self.lost_after_s, lease, "must be shorter than", "lost_after_s"),
            (self.heartbeat_interval_s < self.lease_s, beat, "must be shorter than", lease),
            (
                self.transaction_bytes * 2 <= self.segment_bytes,
                "transaction_bytes",
                "must be at most half of",
                "segment_bytes",
            ),
            (
                self.inline_result_bytes * 2 <= self.max_message_bytes,
                "inline_result_bytes",
                "must be at most half of",
                "max_message_bytes",
            ),
        )
        for holds, one, relation, other in rules:
            if not holds:
                given = next((name for name in (one, other) if _KEYS[name] in self.extra), one)
                raise SettingsError(
                    f"{_KEYS[given]}={self.extra.get(_KEYS[given])!r}: {_KEYS[one]} "
                    f"({_shown(one, getattr(self, one))}) {relation} {_KEYS[other]} "
                    f"({_shown(other, getattr(self, other))})"
                )


_KEYS: dict[str, str] = {row.name: row.metadata["key"] for row in fields(Settings) if "key" in row.metadata}


def _shown(name: str, value: float) -> str:
    """A value as one would write it in a configuration."""
    if not name.endswith("_bytes"):
        return f"{value:g}s" if name.endswith("_s") else f"{value:g}"
    size = int(value)
    unit = next((unit for unit in "tgmk" if size and size % _SIZE[unit] == 0), "b")
    return f"{size // _SIZE[unit]}{unit}"


def known_keys() -> frozenset[str]:
    """The keys that ``Settings`` reads."""
    return frozenset(_KEYS.values())


def environment(name: str, default: str = "") -> str:
    """The one door to environment variables."""
    return os.environ.get(name, default)


SUBMITTED = "SPARK_FT_SUBMITTED"  # environment variable: what spark-ft submit was told, for the program


def dump_pairs(pairs: Mapping[str, str]) -> str:
    return json.dumps(dict(pairs))


def submitted_pairs() -> dict[str, str]:
    """Settings that ``spark-ft submit`` hands to the program that it runs."""
    text = environment(SUBMITTED)
    return {str(key): str(value) for key, value in json.loads(text).items()} if text else {}


def apply_environment(pairs: Mapping[str, str]) -> None:
    """Set what a program wants of its executors' environment (``spark.executorEnv.*``), save for what
    was fixed when the interpreter started."""
    prefix = "spark.executorEnv."
    for key, value in pairs.items():
        if key.startswith(prefix) and key != f"{prefix}PYTHONHASHSEED":
            os.environ[key.removeprefix(prefix)] = value


def snapshot_environment() -> dict[bytes, bytes]:
    """The environment as it is now."""
    return dict(os.environb)


def restore_environment(before: Mapping[bytes, bytes]) -> None:
    """Make the environment again what ``snapshot_environment`` saw; cheap when it still is."""
    held: Any = os.environb
    if held._data != before:  # the plain dictionary below: comparing mappings takes 30 us
        os.environb.clear()
        os.environb.update(before)


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process to be started: ours with ``changes`` over it."""
    return {**os.environ, **changes}
