"""The process that owns jobs: SchedulerCore in its host, and everything that gives it life.

    user thread                                I/O thread
    submit ── shape, blobs ── JobSubmitted ──> SchedulerCore ── Send … ──> executors, workers
    JobHandle.result <── deliver, finish ───── effects     <── messages ──

The user's threads pickle functions and unpickle results; the I/O thread only schedules, so user
code can neither stop nor break it.  Each shuffle's functions are pickled once, when a job first
needs them, and stay as they were then: a lost output is rebuilt by the very code that wrote it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import secrets
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_ft import accumulators, closures
from spark_ft.clock import BootClock, wall_ms
from spark_ft.cluster.copier import Copier
from spark_ft.cluster.interface import ClusterManager
from spark_ft.cluster.local import LocalCluster
from spark_ft.cluster.standalone import StandaloneCluster
from spark_ft.driver.eventlog import open_event_log
from spark_ft.driver.garbage import Garbage
from spark_ft.driver.handle import JobHandle
from spark_ft.errors import ClusterError, DriverFenced, FetchError, SparkFtError
from spark_ft.executor.versions import versions
from spark_ft.ids import (
    DRIVER_HOST,
    NO_ACTION,
    ActionId,
    AppId,
    BlobId,
    Fingerprint,
    Generation,
    HostId,
    Incarnation,
    JobId,
    NodeId,
    ShuffleId,
    new_incarnation,
)
from spark_ft.lineage.dependency import ShuffleDependency
from spark_ft.lineage.node import Node
from spark_ft.lineage.shape import shape_of
from spark_ft.log import get_logger
from spark_ft.protocol.effects import (
    CancelJobs,
    Copy,
    CopyEnded,
    Decommission,
    DeliverResult,
    DropStores,
    Effect,
    EndWorker,
    Event,
    FinishJob,
    Forget,
    JobFailure,
    JobSubmitted,
    Journal,
    Keep,
    LearnHosts,
    MergeAccums,
    Note,
    Received,
    Redeliver,
    Released,
    ResultLost,
    SendBlob,
    Stopping,
    WithdrawResults,
)
from spark_ft.protocol.messages import BlockRef, FetchFailed, StageBlob
from spark_ft.scheduler.core import SchedulerCore
from spark_ft.settings import Settings
from spark_ft.storage.blocks import StoreReader, StoreWriter, pack_block, serve
from spark_ft.transport.blocks import BlockClient, BlockServer, RemoteFetch
from spark_ft.transport.host import Host

if TYPE_CHECKING:
    from spark_ft.driver.resumable import Resumable
    from spark_ft.lineage.fingerprint import Fingerprints, JobIdentity

_INLINE_BLOB = 1 << 20  # larger stage blobs stand in the driver's store

log = get_logger(__name__)


def open_cluster(settings: Settings, executor_env: Mapping[str, str]) -> ClusterManager:
    """Whom the master URL means.  Raises SettingsError, ClusterError."""
    if settings.master.strip().startswith("spark://"):
        return StandaloneCluster(settings, executor_env)
    return LocalCluster(settings, executor_env)


class Driver:
    """Runs jobs on a cluster of its own making.  All methods may be called from any thread.

    Raises SettingsError for a bad master or setting, ClusterError when processes cannot be
    started; nothing is left behind then.
    """

    def __init__(
        self,
        settings: Settings,
        executor_env: Mapping[str, str] | None = None,
        observers: Sequence[Callable[[str, Mapping[str, object]], None]] = (),
    ) -> None:
        self.settings = settings
        self.me: Incarnation = new_incarnation("driver")
        self.start_ms = wall_ms()
        self.cluster = open_cluster(settings, executor_env or {})
        self.app_id = AppId(settings.app_id or self.cluster.new_app_id(self.start_ms))
        self.default_parallelism = settings.default_parallelism or self.cluster.parallelism
        self._observers = tuple(observers)
        self._token = self.cluster.token or secrets.token_bytes(16)
        self._jobs: dict[JobId, JobHandle] = {}
        self._job_ids = itertools.count()
        self._blob_ids = itertools.count()
        self._blobs: dict[BlobId, StageBlob] = {}
        self._shuffle_blobs: dict[ShuffleId, BlobId] = {}
        self._garbage = Garbage(self._jobs, self._drop_blob, self.drop_block)
        self._merges: list[tuple[tuple[int, bytes], ...]] = []
        self._lock = threading.RLock()
        self._writer: StoreWriter | None = None
        self._client: BlockClient | None = None
        self._hosts: dict[HostId, str] = {}
        self._stopped = False
        self._owner_pid = os.getpid()

        self._life: Resumable | None = None
        with contextlib.ExitStack() as failed:  # what has been begun ends with a constructor that raises
            failed.callback(self.cluster.stop)
            if settings.app_id:
                self._life = self._begin_life(executor_env or {})
                failed.callback(self._life.close, keep=True)
            data = None if self._life is None else self._life.application.path
            self.scratch: Path = self.cluster.make_scratch(self.app_id, data)
            failed.callback(self.cluster.remove_scratch)
            self._events = open_event_log(settings, self.app_id)
            if self._events is not None:
                failed.callback(self._events.close)
                self._observers = (self._events.write, *observers)
            self._roots: dict[HostId, Path] = {DRIVER_HOST: (data or self.scratch) / "driver"}
            self._reader = StoreReader(self._roots)
            data_endpoint, keys = self.cluster.endpoint("driver-data"), self.cluster.keys
            self._server = BlockServer(data_endpoint, self._token, serve(self._reader, DRIVER_HOST), keys)
            said = self.cluster  # the master may say more than the settings do
            own = replace(
                settings,
                max_failures=said.max_failures,
                executor_memory_bytes=said.executor_memory_bytes,
            )
            self._core = SchedulerCore(
                own, self.me, self.app_id, versions(),
                recovered=None if self._life is None else self._life.recovered,
                awaited=() if self._life is None else self._life.hosts_of_before(self.cluster.hosts),
            )  # fmt: skip
            self._host = Host(
                self._core,
                self.me,
                token=self._token,
                clock=BootClock(),
                perform=self._perform,
                bind=self.cluster.endpoint("driver"),
                max_message_bytes=settings.max_message_bytes,
                peer_silence_s=settings.silence_s,
                on_error=self._core_failed,
                keys=keys,
            )
            if self._life is not None:
                self._life.attach(self._host, self._jobs, self._without_journal)
            relays = Incarnation(f"{self.me}-relays")  # a store has one writer, and ours is self.me's
            root = self._roots[DRIVER_HOST]
            self._copier = Copier(relays, DRIVER_HOST, root, self._token, settings, self._copied, keys)
            failed.pop_all()
        try:
            self._server.start()
            self._hosts[DRIVER_HOST] = self._server.endpoint
            self._core.learn_hosts({DRIVER_HOST: self.cluster.advertised(self._server.endpoint)})
            about = {
                "app": self.app_id, "name": settings.app_name, "pid": os.getpid(), "master": settings.master,
                "scratch": str(self.scratch),
            }  # fmt: skip
            self._note("application_start", about)
            self.cluster.start(self._host, self.me, self.app_id, self._token, self.scratch)
            self._thread = threading.Thread(target=self._host.run, name="spark-ft-driver", daemon=True)
            self._thread.start()
            self.cluster.wait_until_up()
        except BaseException:  # Ctrl-C too: nobody gets this object to stop what has been started
            self.stop()
            raise

    def _begin_life(self, executor_env: Mapping[str, str]) -> Resumable:
        """Memory, compression and their like change how records lie, never which: those are no part of what
        things are called."""
        from spark_ft.driver.resumable import Resumable, about_program  # 20 ms that others need not spend

        surroundings = {f"environment {name}": value for name, value in executor_env.items()}
        surroundings["hash seed"] = str(self.settings.hash_seed)
        about = about_program(self.settings, os.getpid(), self.start_ms)
        return Resumable(self.settings, self.app_id, self.me, about, surroundings)

    @property
    def fingerprints(self) -> Fingerprints | None:
        """Only a program that was given a name is met again."""
        return None if self._life is None else self._life.fingerprints

    def flush_events(self) -> None:
        """Wait, for at most a second, until the event log tells all that has happened so far."""
        if self._events is not None:
            self._events.flush()

    # --- Jobs ---

    def submit(
        self,
        node: Node,
        function: Callable[[int, Iterator[Any]], Any],
        partitions: Sequence[int] | None = None,
        *,
        name: str = "",
        properties: Mapping[str, str] | None = None,
        pool: str = "default",
        group: str | None = None,
        tags: frozenset[str] = frozenset(),
        scope: int = -1,
        counted: Mapping[NodeId, int] | None = None,
    ) -> JobHandle:
        """Start a job: ``function(partition index, iterator)`` on the given partitions of ``node``.

        ``scope``: of the action that it is a job of; ``counted``: nodes whose functions were made from the
        answers of a scope.  Raises pickle.PicklingError, before anything runs, when a function cannot be
        pickled.
        """
        self._check_running()
        identity = self.identify(node, function, partitions, properties)
        action = ActionId(identity.key) if identity is not None and not identity.unsafe else NO_ACTION
        if identity is not None and identity.unsafe:
            self._note("job_not_resumable", {"name": name, "why": identity.unsafe})
        if self._life is not None and self._life.parts_here(action, name):
            self._note("program_differs", {"name": name})
        shape = shape_of(node)
        chosen = tuple(range(shape.nodes[node.id].partition_count) if partitions is None else partitions)
        blob = self._add_blob(closures.dump_stage(node, function, None, identity.key if identity else b""))
        job = JobId(next(self._job_ids))
        handle = JobHandle(
            job,
            chosen,
            read_block=self.read_block,
            cancel=lambda job_id, reason: self._host.post(CancelJobs(job=job_id, reason=reason)),
            result_lost=lambda job_id, part, text: self._host.post(ResultLost(job_id, part, text)),
            settle=self.settle_accumulators,
            close=lambda job_id: self._close_job(job_id, blob),
            max_result_bytes=self.settings.max_result_bytes,
            action=action,
            keep=self._life.keep if action and self._life is not None else None,
        )
        event = JobSubmitted(
            job, shape, chosen, blob, self._blobs_of_shuffles(node), name, pool, group, tags,
            properties or {}, getattr(function, "final", False), scope,
            tuple(of for at, of in counted.items() if at in shape.nodes) if counted else (), action,
        )  # fmt: skip
        self._jobs[job] = handle
        self._host.post(event)
        return handle

    def identify(
        self,
        node: Node,
        function: Callable[..., Any],
        partitions: Sequence[int] | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> JobIdentity | None:
        """What a job is called in every life of this application; None where there is but one life.  To be
        asked once for each job: equal ones are counted."""
        if self._life is None:
            return None
        # What begins so is for people, pools and this engine.
        read = {key: text for key, text in (properties or {}).items() if not key.startswith("spark.")}
        return self._life.identify(node, function, partitions, read)

    @property
    def seed(self) -> bytes:
        """16 bytes, drawn once in all lives of this application; empty where there is but one."""
        return b"" if self._life is None else self._life.application.seed

    def cancel(
        self,
        job: JobId | None = None,
        group: str | None = None,
        tag: str | None = None,
        reason: str = "cancelled",
    ) -> None:
        """Cancel one job, a group, a tag, or everything."""
        self._host.post(CancelJobs(job, group, tag, reason))

    def decommission(self, host: HostId, within_s: float) -> None:
        """Let a host be left in order: its tasks end or are run elsewhere, its data is moved, and its
        processes end when that is done, or after ``within_s`` at the latest (EX-13)."""
        self._host.post(Decommission(host, within_s))

    def _close_job(self, job: JobId, blob: BlobId) -> None:
        if (handle := self._jobs.pop(job, None)) is not None and not self._stopped:
            self._merges += handle.take_updates()  # of a job that was given up
            self._drop_blob(blob)
            self._garbage.collect()
            self._host.post(Released(blobs=(blob,)))

    def _drop_blob(self, blob: BlobId) -> None:
        known = self._blobs.pop(blob, None)
        if known is not None and known.block is not None:
            self.drop_block(known.block)

    def _add_blob(self, payload: bytes) -> BlobId:
        blob = BlobId(next(self._blob_ids))
        if len(payload) <= _INLINE_BLOB:
            self._blobs[blob] = StageBlob(blob, payload)
        else:
            view = memoryview(payload)
            chunks = (bytes(view[i : i + _INLINE_BLOB]) for i in range(0, len(view), _INLINE_BLOB))
            self._blobs[blob] = StageBlob(blob, block=self.put_block("blob", b"%d" % blob, chunks))
        return blob

    def _blobs_of_shuffles(self, target: Node) -> dict[ShuffleId, BlobId]:
        """The stage blob of every shuffle that ``target`` rests on, pickled now if never before."""
        found: dict[ShuffleId, BlobId] = {}
        seen = {target.id}
        stack = [target]
        while stack:
            for dependency in stack.pop().dependencies:
                parent = dependency.parent
                assert parent is not None
                if isinstance(dependency, ShuffleDependency) and dependency.shuffle not in found:
                    dependency.map_count = parent.partition_count
                    with self._lock:
                        blob = self._shuffle_blobs.get(dependency.shuffle)
                        if blob is None:
                            blob = self._add_blob(closures.dump_stage(parent, None, dependency))
                            self._shuffle_blobs[dependency.shuffle] = blob
                    found[dependency.shuffle] = blob
                if parent.id not in seen:
                    seen.add(parent.id)
                    stack.append(parent)
        return found

    def settle_accumulators(self) -> None:
        """Apply the updates that have come in; in the calling thread, because user code may do it."""
        while self._merges:
            with self._lock:
                updates = self._merges.pop(0) if self._merges else ()
            accumulators.merge(updates)

    # --- Blocks ---

    def put_block(self, kind: str, name: bytes, chunks: Iterable[bytes]) -> BlockRef:
        """Write a block into the driver's own store.  Raises StoreFull."""
        with self._lock:
            if self._writer is None:
                self._writer = StoreWriter(
                    self._roots[DRIVER_HOST] / "stores" / self.me,
                    DRIVER_HOST,
                    segment_bytes=self.settings.segment_bytes,
                    transaction_bytes=self.settings.transaction_bytes,
                    any_file_system=self.settings.any_file_system,
                )
            return self._writer.put_block(kind, name, chunks)

    def drop_block(self, ref: BlockRef, tell: bool = False) -> None:
        """Give back the space of a block of the driver's own store.  ``tell``: whoever asks for it yet hears
        that it was dropped on purpose."""
        with self._lock:
            if self._writer is not None and not self._stopped:
                if tell:
                    self._writer.mark_expired([ref])
                self._writer.drop_blocks([ref])

    def read_block(self, ref: BlockRef) -> bytes:
        """The bytes of any block in the cluster, verified.  Raises FetchError, StorageError."""
        if ref.host in self._roots:
            return b"".join(self._reader.block(ref))
        with self._lock:
            if self._client is None:
                self._client = BlockClient(
                    self._token,
                    self._hosts,
                    window_bytes=self.settings.fetch_window_bytes,
                    timeout_s=self.settings.fetch_timeout_s,
                    retries=self.settings.fetch_retries,
                    rng=random.Random(self.me),
                    keys=self.cluster.keys,
                )
            try:
                return b"".join(piece for _, piece in self._client.fetch([(ref.host, pack_block(ref))]))
            except RemoteFetch as error:
                lost = FetchFailed(
                    ShuffleId(-1), Generation(0), -1, ref.host, ref.store, error.evidence, error.text, ref
                )
                raise FetchError(lost) from error

    def release(
        self,
        shuffles: Iterable[ShuffleId] = (),
        nodes: Iterable[NodeId] = (),
        broadcasts: Iterable[int] = (),
        scopes: Iterable[int] = (),
    ) -> None:
        """The program no longer refers to these.  Safe from finalizers: it only posts an event."""
        if self._stopped:
            return
        gone = tuple(shuffles)
        blobs = tuple(b for b in (self._shuffle_blobs.pop(s, None) for s in gone) if b is not None)
        if blobs:
            self._garbage.add(blobs)
        self._host.post(Released(gone, tuple(nodes), blobs, tuple(broadcasts), tuple(scopes)))

    def discard(self, blocks: Iterable[BlockRef]) -> None:
        """Give back blocks of the driver's own store once no live job reads them.  Safe from finalizers."""
        self._garbage.add(blocks=blocks)

    # --- I/O thread ---

    def _perform(self, effect: Effect) -> None:
        match effect:
            case DeliverResult() | WithdrawResults() | FinishJob():
                if (handle := self._jobs.get(effect.job)) is not None:
                    self._tell(handle, effect)
            case MergeAccums():
                self._merges.append(effect.accums)
            case Note():
                self._note(effect.kind, effect.fields)
            case SendBlob():
                if (blob := self._blobs.get(effect.blob)) is not None:
                    self._host.send(effect.to, blob)
            case EndWorker(worker):
                self.cluster.end_worker(worker)
            case Copy():
                self._copier.copy(effect)
            case Forget():
                self._copier.forget(effect.nodes, effect.copies)
            case DropStores():
                self._copier.drop(Fingerprint(item) for item in effect.fingerprints)
            case LearnHosts():
                self._hosts.update({HostId(host): endpoint for host, endpoint in effect.hosts.items()})
            case Keep() | Journal() | Redeliver():
                assert self._life is not None, "only its ledger asks for that"
                self._life.perform(effect)
            case _:
                raise AssertionError(f"a scheduler does not ask for {effect!r}")

    def _tell(self, handle: JobHandle, effect: DeliverResult | WithdrawResults | FinishJob) -> None:
        match effect:
            case DeliverResult():
                handle.deliver(effect.partition, effect.result, effect.accums)
            case WithdrawResults():
                handle.withdraw()
                if self._life is not None:
                    self._life.withdraw(handle.action)
            case FinishJob():
                self._merges += handle.take_updates()
                handle.finish(effect.failure)

    def _copied(self, ended: CopyEnded) -> None:
        """In the copier's thread: our own answer comes as a worker's would."""
        self._host.post(Received(self.me, ended.made))

    def _note(self, kind: str, fields: Mapping[str, object]) -> None:
        """The one stream of what happens: to the event log, the status and the listeners alike."""
        for observer in self._observers:
            observer(kind, fields)

    def _without_journal(self, error: SparkFtError) -> None:
        """Go on without a next life, or end every job: as the settings say, and always when we are fenced."""
        self._note("journal_ended", {"condition": error.getCondition(), "text": error.getMessage()})
        if self._life is None or self._life.refusal is None:
            return
        failure = JobFailure(error.getCondition() or "", error.getMessage())
        for handle in list(self._jobs.values()):
            handle.finish(failure)
        self._host.post(CancelJobs(reason=error.getMessage()))
        if isinstance(error, DriverFenced):
            self._host.post(Stopping())
            threading.Thread(target=self.cluster.stop, name="spark-ft-fenced", daemon=True).start()

    def _core_failed(self, error: BaseException, event: Event) -> None:
        """The scheduler met what it never should: every job ends with that, nothing hangs (DR-10)."""
        text = f"internal error in the scheduler at {event!r}:\n{traceback.format_exc()}"
        log.error("%s", text)
        for job, handle in list(self._jobs.items()):
            handle.finish(JobFailure("INTERNAL_ERROR", text))
            if not isinstance(event, CancelJobs):  # or a core that cannot cancel would be asked for ever
                self._host.post(CancelJobs(job=job, reason="internal error"))
        self._note("internal_error", {"text": text})  # last: who reads it finds all of that done

    # --- End ---

    def _check_running(self) -> None:
        if self._stopped:
            raise ClusterError("This application has been stopped; make a new SparkContext.")
        if self._life is not None and self._life.refusal is not None:
            raise self._life.refusal

    def stop(self, keep: bool = False) -> None:
        """End every job and process of this application; idempotent, at most 2 s.  ``keep``: it is no good
        end, and what a next driver of this id can go on from stays."""
        if self._stopped or os.getpid() != self._owner_pid:
            return
        self._stopped = True
        thread = getattr(self, "_thread", None)
        if thread is not None:
            self._host.post(Stopping())
        self.cluster.stop()
        self._host.stop(0.0)  # nobody is left to acknowledge anything
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)
        for handle in list(self._jobs.values()):
            handle.finish(JobFailure("JOB_CANCELLED", "the application was stopped"))
        self._server.stop()
        if self._client is not None:
            self._client.close()
        if self._writer is not None:
            self._writer.close()
        self._copier.close()
        self._note("application_end", {"app": self.app_id})
        if self._events is not None:
            self._events.close()
        self.cluster.remove_scratch()
        if self._life is not None:
            self._life.close(keep)
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or a pipe without a reader
            sys.stdout.flush()
