"""What leaves the engine or is handed into it: files, broadcasts; and one long plain job."""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from typing import Any

from chaos import programs
from chaos.workloads import Params, Workload, dawdle, exact, scaled
from spark_ft import StorageLevel


class Save(Workload):
    """A text file for each partition, published once, whatever became of the tasks that wrote it."""

    name = "save"

    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        return {"n": scaled(3000, scale), "slices": rng.randint(3, 6), "reducers": rng.randint(3, 6),
                "sleep_s": 0.2}  # fmt: skip

    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        target = directory / "saved"
        rows = sc.parallelize(range(params["n"]), params["slices"]).mapPartitions(dawdle(params["sleep_s"]))
        rows = rows.map(lambda x: (x, x * x)).partitionBy(params["reducers"])
        rows.mapPartitions(dawdle(params["sleep_s"])).map(lambda kv: f"{kv[0]} {kv[1]}").saveAsTextFile(
            str(target)
        )
        names = sorted(path.name for path in target.iterdir())
        parts = [(target / name).read_text() for name in names if name.startswith("part-")]
        return {"names": names, "rows": [line.split() for part in parts for line in part.splitlines()]}

    def check(self, params: Params, observed: Any) -> list[str]:
        wrong = exact({str(x): str(x * x) for x in range(params["n"])}, observed["rows"])
        expected = [f"part-{i:05}" for i in range(params["reducers"])]
        parts = [name for name in observed["names"] if not name.startswith((".", "_"))]
        if parts != expected:
            wrong.append(f"files {parts} instead of {expected}")
        if "_SUCCESS" not in observed["names"]:
            wrong.append("there is no _SUCCESS")
        if "_temporary" in observed["names"]:
            wrong.append("_temporary was left behind")
        return wrong


class Parcels(Workload):
    """Records that do not compress, shuffled and kept on disk: some are larger than a small segment."""

    name = "parcels"
    SIZES = (1_000, 10_000, 50_000, 100_000, 200_000, 300_000)

    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        sizes = [scaled(rng.choice(self.SIZES), scale) for _ in range(24)]
        return {"sizes": sizes, "slices": rng.randint(3, 6), "reducers": rng.randint(2, 5), "sleep_s": 0.3,
                "keep": rng.random() < 0.5, "seed": rng.randrange(1 << 30)}  # fmt: skip

    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        sizes, seed = params["sizes"], params["seed"]
        slow = dawdle(params["sleep_s"])
        numbers = sc.parallelize(range(len(sizes)), params["slices"]).mapPartitions(slow)
        parcels = numbers.map(lambda i: (i, self.contents(seed, i, sizes[i]))).partitionBy(params["reducers"])
        if params["keep"]:
            parcels = parcels.persist(StorageLevel.DISK_ONLY)
        received = parcels.mapValues(lambda parcel: [len(parcel), zlib.crc32(parcel)]).mapPartitions(slow)
        return {"received": received.collect(), "weight": parcels.map(lambda pair: len(pair[1])).sum()}

    @staticmethod
    def contents(seed: int, number: int, size: int) -> bytes:
        return random.Random(f"{seed}/{number}").randbytes(size)

    def check(self, params: Params, observed: Any) -> list[str]:
        sizes = params["sizes"]
        contents = [self.contents(params["seed"], i, size) for i, size in enumerate(sizes)]
        expected = {i: [len(parcel), zlib.crc32(parcel)] for i, parcel in enumerate(contents)}
        wrong = exact(expected, observed["received"])
        if observed["weight"] != sum(sizes):
            wrong.append(f"all parcels weigh {observed['weight']}, not {sum(sizes)}")
        return wrong


class Broadcast(Workload):
    """A table of a few megabytes that every task looks things up in."""

    name = "broadcast"

    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        return {"rows": scaled(40_000, scale, 10), "n": scaled(5000, scale), "slices": rng.randint(4, 8),
                "factor": rng.randrange(1, 1000), "sleep_s": 0.3}  # fmt: skip

    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        rows, factor = params["rows"], params["factor"]
        table = sc.broadcast({i: f"{i * factor:040}" for i in range(rows)})
        looked_up = (
            sc.parallelize(range(params["n"]), params["slices"])
            .mapPartitions(dawdle(params["sleep_s"]))
            .map(lambda i: (i % 100, int(table.value[i % rows])))
            .reduceByKey(max, 3)
            .collect()
        )
        table.destroy()
        return looked_up

    def check(self, params: Params, observed: Any) -> list[str]:
        expected: dict[int, int] = {}
        for i in range(params["n"]):
            value = i % params["rows"] * params["factor"]
            expected[i % 100] = max(expected.get(i % 100, 0), value)
        return exact(expected, observed)


class Program(Workload):
    """A random program over the whole RDD interface, compared with plain lists; see chaos/programs."""

    name = "program"
    deadline_s = 60.0

    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        return {"seed": rng.randrange(1 << 30), "steps": scaled(6, scale, 2), "sleep_s": 0.1}

    def drawn(self, params: Params, sleep_s: float) -> programs.Program:
        return programs.program(programs.Seeded(random.Random(params["seed"])), params["steps"], 2, sleep_s)

    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        return self.drawn(params, params["sleep_s"]).outcomes(sc)

    def check(self, params: Params, observed: Any) -> list[str]:
        expected = [list(told) for told in self.drawn(params, 0.0).outcomes(None)]
        wrong = [
            f"{text}: {got} instead of {want}"
            for (text, want), (_, got) in zip(expected, observed, strict=False)
            if want != got
        ]
        return wrong if len(expected) == len(observed) else [*wrong, f"{len(observed)} answers: {observed}"]


class Long(Workload):
    """One job of about twenty seconds on two slots: tasks of half a second, and nothing else."""

    name = "long"
    deadline_s = 60.0
    rounds_max = 1

    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        return {"tasks": scaled(80, scale, 2), "sleep_s": 0.5}

    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        tasks = params["tasks"]
        return sc.parallelize(range(tasks), tasks).mapPartitions(dawdle(params["sleep_s"])).collect()

    def check(self, params: Params, observed: Any) -> list[str]:
        return [] if observed == list(range(params["tasks"])) else [f"observed {observed}"]
