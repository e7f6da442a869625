"""SparkContext: the way in.  One per process; it owns a Driver, and is the Session of its RDDs.

    SparkContext ── Settings, Driver ── StatusStore (observes the driver's notes)
         │ parallelize, textFile …  ──> a node of lineage/sources.py ──> RDD
         └ DriverSession (driver/session.py) runs jobs

* At most one context lives in a process.  A constructor that raises leaves none, and no process.
* After ``stop``, and in a child of the user's own ``fork``, every use is a UsageError that says so;
  a new context can be made in both.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
import types
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, NoReturn, TypeVar

import spark_ft
from spark_ft import accumulators, files, log
from spark_ft import conf as confs
from spark_ft.accumulators import Accumulator, AccumulatorParam
from spark_ft.badrecords import BadRecords
from spark_ft.conf import SparkConf
from spark_ft.driver.driver import Driver
from spark_ft.driver.session import DESCRIPTION, GROUP, INTERRUPT, TAGS, DriverSession, callsite
from spark_ft.errors import ContextInTaskError, JobError, PySparkRuntimeError, SettingsError
from spark_ft.ids import drawn_fingerprint
from spark_ft.lineage import sources
from spark_ft.lineage.narrow import CheckpointPoint
from spark_ft.listener import ListenerBus, load_listeners
from spark_ft.rdd import RDD
from spark_ft.rdd.transform import union_of
from spark_ft.settings import Settings, boolean, environment, known_keys
from spark_ft.status import StatusStore, StatusTracker
from spark_ft.taskcontext import TaskContext

__all__ = ["SparkContext"]

T = TypeVar("T")
R = TypeVar("R")

_log = log.get_logger(__name__)


class SparkContext(DriverSession):
    """The connection of a program to its executors.

    >>> with SparkContext("local[2]", "example") as sc:  # doctest: +SKIP
    ...     sc.parallelize(range(10)).sum()
    45
    """

    _active_spark_context: ClassVar[SparkContext | None] = None
    _lock: ClassVar[threading.RLock] = threading.RLock()

    PACKAGE_EXTENSIONS: Iterable[str] = (".zip", ".egg", ".jar", ".whl")
    _jvm: ClassVar[None] = None
    _gateway: ClassVar[None] = None
    _jsc: ClassVar[None] = None

    def __init__(
        self,
        master: str | None = None,
        appName: str | None = None,
        sparkHome: str | None = None,
        pyFiles: Sequence[str] | None = None,
        environment: Mapping[str, Any] | None = None,
        batchSize: int = 0,
        serializer: Any = None,
        conf: SparkConf | None = None,
        gateway: Any = None,
        jsc: Any = None,
        profiler_cls: type | None = None,
        udf_profiler_cls: type | None = None,
        memory_profiler_cls: type | None = None,
    ) -> None:
        """Start the driver side and the executors.  Arguments override ``conf``, which is copied.

        ``sparkHome``, ``batchSize``, ``serializer``, ``gateway``, ``jsc`` and the profilers are accepted
        and change nothing.  Raises ValueError when another context lives, SettingsError for a bad
        master or setting, ClusterError when processes cannot be started.
        """
        if conf is None or (conf.get("spark.executor.allowSparkContext") or "").lower() != "true":
            _assert_on_driver()
        self._callsite = callsite()
        self.serializer = serializer
        self.profiler_collector = None
        self._python_includes: list[str] = []
        with SparkContext._lock:
            _refuse_second(SparkContext._active_spark_context)
            self._conf = (conf or SparkConf())._without_drawn_app_id()
            given = {"spark.master": master, "spark.app.name": appName, "spark.home": sparkHome}
            self._conf.setAll((key, value) for key, value in given.items() if value)
            for name, text in (environment or {}).items():
                self._conf.setExecutorEnv(name, str(text))
            self._conf.setIfMissing("spark.master", "local[*]")
            self._conf.setIfMissing("spark.app.name", "pyspark-shell")
            super().__init__(f"app={self.appName}, master={self.master}")
            self.environment = _executor_environment(self._conf)
            settings = Settings.from_conf(self._conf.asdict())
            _report_unknown(self._conf)
            self._bad_records = BadRecords() if settings.input_mode == "PERMISSIVE" else None
            try:
                log.set_level(settings.log_level)
            except ValueError as error:
                raise SettingsError(f"spark.log.level={settings.log_level!r}: {error}") from None
            self._status = StatusStore(settings.retained_jobs, settings.retained_stages)
            self._listeners = ListenerBus(settings.event_queue)
            for listener in load_listeners(settings.extra_listeners, self._conf):
                self._listeners.add(listener)
            try:
                driver = Driver(settings, self.environment, (self._status.note, self._listeners.note))
            except BaseException:  # Ctrl-C too: nobody else would stop their thread
                self._listeners.stop(0.0)
                raise
            self._files = files.Registry(
                driver.scratch / "files", None if self.master.startswith("local") else driver.put_block
            )
            self._open(driver)
            try:
                self._set_up(driver, pyFiles or ())
            except BaseException:  # as above; here the cluster's processes run already
                self._end("could not be started")
                raise
            SparkContext._active_spark_context = self

    def _set_up(self, driver: Driver, py_files: Sequence[str]) -> None:
        """What needs the driver: facts of this run, and what the settings say is to be shipped."""
        if not self._conf.contains("spark.app.id"):
            self._conf.set("spark.app.id", driver.app_id)
            self._conf._drawn_app_id = driver.app_id
        self._conf.set("spark.app.startTime", driver.start_ms)
        self._conf.setIfMissing("spark.executor.id", "driver")
        for path in (*_listed(self._conf, "spark.submit.pyFiles"), *py_files):
            self.addPyFile(path)
        for path in _listed(self._conf, "spark.files"):
            self.addFile(path)
        for path in _listed(self._conf, "spark.archives"):
            self.addArchive(path)
        if self._conf.contains("spark.checkpoint.dir"):
            self.setCheckpointDir(self._conf.get("spark.checkpoint.dir", ""))

    # --- Life ---

    @classmethod
    def getOrCreate(cls, conf: SparkConf | None = None) -> SparkContext:
        """The live context, whose configuration stays as it is, or a new one."""
        with SparkContext._lock:
            return SparkContext._active_spark_context or SparkContext(conf=conf or SparkConf())

    def stop(self) -> None:
        """End every job and process of this application.  Idempotent; at most 2 s, and one more where
        listeners lag behind.

        With ``spark.app.id`` that drops what the application has finished; not so while an exception
        is on its way out, for then the program may be mended and started again (docs/resume.md).
        """
        self._stop(keep=sys.exc_info()[1] is not None)

    def _stop(self, keep: bool) -> None:
        with SparkContext._lock:
            if SparkContext._active_spark_context is self:
                SparkContext._active_spark_context = None
            self._end("has been stopped", keep)

    def _end(self, why: str, keep: bool = False) -> None:
        driver = self._close(why)
        if driver is not None:
            self._files.close()
            self.checkpoints.close(keep)
            driver.stop(keep)
            self._listeners.stop()

    def __enter__(self) -> SparkContext:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._stop(keep=value is not None)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ContextInTaskError(errorClass="CONTEXT_ONLY_VALID_ON_DRIVER", messageParameters={})

    def __repr__(self) -> str:
        return f"<SparkContext master={self.master} appName={self.appName}>"

    # --- What it is ---

    @property
    def master(self) -> str:
        return self._conf.get("spark.master", "")

    @property
    def appName(self) -> str:
        return self._conf.get("spark.app.name", "")

    @property
    def sparkHome(self) -> str | None:
        return self._conf.get("spark.home")

    @property
    def version(self) -> str:
        return spark_ft.__version__

    @property
    def pythonVer(self) -> str:
        return f"{sys.version_info[0]}.{sys.version_info[1]}"

    @property
    def applicationId(self) -> str:
        """Unique; ``local-<ms>`` in local mode."""
        return str(self._live().app_id)

    @property
    def startTime(self) -> int:
        """Milliseconds since the epoch."""
        return self._live().start_ms

    @property
    def uiWebUrl(self) -> str | None:
        return None

    @property
    def defaultParallelism(self) -> int:
        """Partitions of a collection when no number is given."""
        return self.default_parallelism

    @property
    def defaultMinPartitions(self) -> int:
        return min(self.defaultParallelism, 2)

    @property
    def resources(self) -> dict[str, Any]:
        return {}

    @property
    def _temp_dir(self) -> str:
        folder = self._live().scratch / "tmp"
        folder.mkdir(exist_ok=True)
        return str(folder)

    def getConf(self) -> SparkConf:
        """A copy of the configuration."""
        return self._conf.copy()

    def sparkUser(self) -> str:
        return environment("SPARK_USER") or environment("USER") or environment("LOGNAME") or str(os.getuid())

    def setLogLevel(self, logLevel: str) -> None:
        """ALL, DEBUG, ERROR, FATAL, INFO, OFF, TRACE or WARN; ValueError for anything else."""
        log.set_level(logLevel)

    @classmethod
    def setSystemProperty(cls, key: str, value: str) -> None:
        """``spark.*`` properties become defaults of the SparkConfs made from now on."""
        confs._system_properties[key] = value

    @classmethod
    def getSystemProperty(cls, key: str) -> str | None:
        return confs._system_properties.get(key)

    def statusTracker(self) -> StatusTracker:
        return StatusTracker(self._status)

    def addSparkListener(self, listener: Any) -> None:
        """Tell an object derived from ``spark_ft.listener.SparkListener`` of all that happens from now on."""
        self._live()
        self._listeners.add(listener)

    def removeSparkListener(self, listener: Any) -> None:
        """It is told no more."""
        self._listeners.remove(listener)

    def show_profiles(self) -> None:
        raise PySparkRuntimeError(errorClass="INCORRECT_CONF_FOR_PROFILE", messageParameters={})

    def dump_profiles(self, path: str) -> None:
        raise PySparkRuntimeError(errorClass="INCORRECT_CONF_FOR_PROFILE", messageParameters={})

    # --- Sources ---

    def parallelize(self, c: Iterable[T], numSlices: int | None = None) -> RDD[T]:
        """Distribute a collection, cut into ``numSlices`` partitions by PySpark's rules."""
        count = self.defaultParallelism if numSlices is None else int(numSlices)
        look = self._fingerprint
        node = sources.parallel_collection(self.new_node_id(), c, count, self.put_block, look)
        self.track_slices(node)
        return RDD(self, node)

    def range(
        self, start: int, end: int | None = None, step: int = 1, numSlices: int | None = None
    ) -> RDD[int]:
        """Like the builtin ``range``; the numbers are made in the tasks."""
        numbers = range(start) if end is None else range(start, end, step)
        return self.parallelize(numbers, numSlices)

    def emptyRDD(self) -> RDD[Any]:
        """No partitions."""
        self._live()
        return RDD(self, sources.Empty(self.new_node_id()))

    def union(self, rdds: Sequence[RDD[T]]) -> RDD[T]:
        """One after the other."""
        self._live()
        return union_of(self, rdds)

    def textFile(self, name: str, minPartitions: int | None = None, use_unicode: bool = True) -> RDD[Any]:
        """The lines of text files: a path, directory, glob or comma list, plain or compressed.

        Large plain files are split by bytes.  ``use_unicode=False`` gives bytes.
        """
        minimum = self.defaultMinPartitions if minPartitions is None else minPartitions
        node = sources.TextFile(self.new_node_id(), name, minimum, use_unicode, self._bad_records)
        return RDD(self, node)

    def wholeTextFiles(
        self, path: str, minPartitions: int | None = None, use_unicode: bool = True
    ) -> RDD[tuple[Any, Any]]:
        """(URI, content) of each file."""
        return self._whole_files(path, minPartitions, use_unicode)

    def binaryFiles(self, path: str, minPartitions: int | None = None) -> RDD[tuple[str, bytes]]:
        """(URI, bytes) of each file."""
        return self._whole_files(path, minPartitions, None)

    def _whole_files(self, path: str, minimum: int | None, unicode: bool | None) -> RDD[Any]:
        minimum = self.defaultMinPartitions if minimum is None else minimum
        parallelism, bad = self.defaultParallelism, self._bad_records
        return RDD(self, sources.WholeFiles(self.new_node_id(), path, minimum, unicode, parallelism, bad))

    def binaryRecords(self, path: str, recordLength: int) -> RDD[bytes]:
        """Records of fixed length."""
        if recordLength < 1:
            raise ValueError(f"recordLength must be positive, not {recordLength}")
        minimum, bad = self.defaultMinPartitions, self._bad_records
        return RDD(self, sources.FixedRecords(self.new_node_id(), path, recordLength, minimum, bad))

    @property
    def badRecords(self) -> dict[str, int]:
        """With ``spark.ft.input.mode`` PERMISSIVE: URI -> records that were bad in what finished tasks have
        read of it, each counted once however often it was read.  Empty in the mode FAILFAST, where the
        first of them is an error."""
        return {} if self._bad_records is None else self._bad_records.by_file()

    def pickleFile(self, name: str, minPartitions: int | None = None) -> RDD[Any]:
        """What ``saveAsPickleFile`` wrote, a partition for each part file."""
        self._live()
        return RDD(self, sources.PickleFile(self.new_node_id(), name))

    # --- Shared variables and files ---

    def accumulator(self, value: T, accum_param: AccumulatorParam[T] | None = None) -> Accumulator[T]:
        """A sum that tasks add to.  TypeError without a param for anything but plain numbers."""
        self._live()
        return accumulators.new_accumulator(value, accum_param, next(self._accumulators))

    def addFile(self, path: str, recursive: bool = False) -> None:
        """Ship a file (a directory with ``recursive``) to every executor; SparkFiles.get finds it."""
        self._live()
        self._files.add(path, recursive=recursive, overwrite=self._overwrite_files)

    def addPyFile(self, path: str) -> None:
        """Ship a ``.py``, ``.zip``, ``.egg`` or ``.whl``: importable here and in tasks, at once."""
        self._live()
        self._files.add(path, kind="py", overwrite=self._overwrite_files)
        self._python_includes.append(os.path.basename(path))

    def addArchive(self, path: str) -> None:
        """Ship an archive and unpack it; ``x.zip#name`` names the directory."""
        self._live()
        self._files.add(path, kind="archive", overwrite=self._overwrite_files)

    @property
    def listFiles(self) -> list[str]:
        return self._files.uris(archives=False)

    @property
    def listArchives(self) -> list[str]:
        return self._files.uris(archives=True)

    @property
    def _overwrite_files(self) -> bool:
        return boolean(self._conf.get("spark.files.overwrite", "false"))

    # --- Jobs ---

    def runJob(
        self,
        rdd: RDD[T],
        partitionFunc: Callable[[Iterator[T]], Iterable[R]],
        partitions: Sequence[int] | None = None,
        allowLocal: bool = False,
    ) -> list[R]:
        """``partitionFunc`` of the given partitions (default: all), as one flat list."""
        if partitions is not None:
            count = rdd.getNumPartitions()
            for index in partitions:
                if not 0 <= index < count:
                    raise JobError(
                        f"Attempting to access a non-existent partition: {index}. "
                        f"Total number of partitions: {count}",
                        "WRONG_PARTITION",
                    )
        function = functools.partial(_partition_list, partitionFunc)
        return list(chain.from_iterable(rdd._run(function, partitions)))

    def setJobGroup(self, groupId: str, description: str, interruptOnCancel: bool = False) -> None:
        """Label the jobs that this thread starts from now on."""
        self.setLocalProperty(GROUP, groupId)
        self.setLocalProperty(DESCRIPTION, description)
        self.setLocalProperty(INTERRUPT, "true" if interruptOnCancel else "false")

    def setJobDescription(self, value: str | None) -> None:
        self.setLocalProperty(DESCRIPTION, value)

    def setInterruptOnCancel(self, interruptOnCancel: bool) -> None:
        self.setLocalProperty(INTERRUPT, "true" if interruptOnCancel else "false")

    def cancelJobGroup(self, groupId: str) -> None:
        """End the group's running jobs; their callers get JobCancelled."""
        self._live().cancel(group=groupId, reason=f"job group {groupId} was cancelled")

    def cancelAllJobs(self) -> None:
        self._live().cancel(reason="all jobs were cancelled")

    def cancelJobsWithTag(self, tag: str) -> None:
        self._live().cancel(tag=_checked_tag(tag), reason=f"jobs with tag {tag} were cancelled")

    def addJobTag(self, tag: str) -> None:
        """One more label for the jobs of this thread; a comma or nothing is an error."""
        self._set_tags({*self.getJobTags(), _checked_tag(tag)})

    def removeJobTag(self, tag: str) -> None:
        self._set_tags(self.getJobTags() - {_checked_tag(tag)})

    def getJobTags(self) -> set[str]:
        return set(filter(None, (self.getLocalProperty(TAGS) or "").split(",")))

    def clearJobTags(self) -> None:
        self._set_tags(set())

    def _set_tags(self, tags: set[str]) -> None:
        self.setLocalProperty(TAGS, ",".join(sorted(tags)) or None)

    def setLocalProperty(self, key: str, value: str | None) -> None:
        """A string of this thread that its tasks can ask for; None removes it."""
        properties = self._properties()
        if value is None:
            properties.pop(key, None)
        else:
            properties[key] = str(value)

    def getLocalProperty(self, key: str) -> str | None:
        return self._properties().get(key)

    def _sent_properties(self) -> dict[str, str]:
        properties = dict(self._properties())
        if self._files.text:
            properties[files.PROPERTY] = self._files.text
        return properties

    # --- What RDDs ask, beside DriverSession ---

    def conf(self, key: str, default: str) -> str:
        return self._conf.get(key, default)

    # --- Checkpoints ---

    def setCheckpointDir(self, dirName: str) -> None:
        """RDD checkpoints go into a directory of this application's own below ``dirName``: a path that all
        hosts share, or a URL.  With spark.app.id it is the same one in each of its lives."""
        seed = self._live().seed
        name = str(uuid.UUID(bytes=seed or drawn_fingerprint(), version=4))
        self.checkpoints.set_root(dirName, name, lives_on=bool(seed))

    def getCheckpointDir(self) -> str | None:
        return self.checkpoints.root

    def has_checkpoint_dir(self) -> bool:
        return self.checkpoints.root is not None

    def write_checkpoint(self, point: CheckpointPoint) -> None:
        """Write a marked RDD by a job of its own; then it is read from there, whoever has died."""
        if (fingerprints := self._live().fingerprints) is not None:
            fingerprints.fix(point)
        self.checkpoints.write(point)

    def checkpointFile(self, name: str) -> RDD[Any]:
        """What an application has checkpointed, this one or another: by what ``getCheckpointFile`` said, or
        by its name within this application's checkpoint directory.

        Raises JobError (CHECKPOINT_NOT_FOUND).
        """
        self._live()
        return RDD(self, self.checkpoints.restore(name))

    def _checkpointFile(self, name: str, input_deserializer: Any = None) -> RDD[Any]:
        return self.checkpointFile(name)


def _partition_list(function: Callable[[Iterator[Any]], Iterable[Any]], _: int, records: Any) -> list[Any]:
    return list(function(records))


def _assert_on_driver() -> None:
    if TaskContext.get() is not None:
        raise PySparkRuntimeError(errorClass="CONTEXT_ONLY_VALID_ON_DRIVER", messageParameters={})


def _refuse_second(other: SparkContext | None) -> None:
    if other is not None:
        function, path, line = other._callsite
        raise ValueError(
            "Cannot run multiple SparkContexts at once; existing SparkContext"
            f"(app={other.appName}, master={other.master}) created by {function} at {path}:{line} "
        )


def _executor_environment(conf: SparkConf) -> dict[str, str]:
    prefix = "spark.executorEnv."
    return {key.removeprefix(prefix): value for key, value in conf.getAll() if key.startswith(prefix)}


def _listed(conf: SparkConf, key: str) -> list[str]:
    return [item.strip() for item in conf.get(key, "").split(",") if item.strip()]


def _checked_tag(tag: str) -> str:
    if not tag or "," in tag:
        raise ValueError(f"Spark job tag cannot be empty or contain ',': {tag!r}")
    return tag


def _report_unknown(conf: SparkConf) -> None:
    """A misspelt key of our own would be silently without effect."""
    for key, _ in conf.getAll():
        if key.startswith("spark.ft.") and key not in known_keys():
            _log.warning("unknown setting %s is kept but has no effect", key)


def _stop_at_exit() -> None:
    active = SparkContext._active_spark_context
    if active is not None:
        active._stop(keep=getattr(sys, "last_value", None) is not None)  # an exception has ended the program


def _forget_after_fork() -> None:
    """In the child of a fork: sockets, threads and executors belong to the parent alone."""
    SparkContext._lock = threading.RLock()
    inherited, SparkContext._active_spark_context = SparkContext._active_spark_context, None
    if inherited is not None:
        inherited._close("belongs to the process that this one was forked from")


atexit.register(_stop_at_exit)
os.register_at_fork(after_in_child=_forget_after_fork)
