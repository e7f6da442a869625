"""Counting, adding and sorting: every record shows in the answer."""

from __future__ import annotations

import random
import time
import zlib
from operator import add
from pathlib import Path
from typing import Any

from chaos.workloads import Params, Workload, dawdle, differences, exact, scaled


class WordCount(Workload):
    """Words of text files; how often each occurs is known because it was written so often."""

    name = "wordcount"

    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        words = {f"w{i:03}": rng.randint(1, scaled(120, scale, 2)) for i in range(200)}
        return {"words": words, "files": rng.randint(2, 4), "reducers": rng.randint(2, 5),
                "seed": rng.randrange(1 << 30), "sleep_s": 0.15}  # fmt: skip

    def setup(self, params: Params, directory: Path) -> None:
        words = [word for word, count in params["words"].items() for _ in range(count)]
        random.Random(params["seed"]).shuffle(words)
        lines = [" ".join(words[i : i + 9]) for i in range(0, len(words), 9)]
        for number in range(params["files"]):
            text = "".join(f"{line}\n" for line in lines[number :: params["files"]])
            (directory / f"part-{number}.txt").write_text(text)

    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        lines = sc.textFile(str(directory / "part-*.txt"), 8)
        words = lines.mapPartitions(dawdle(params["sleep_s"])).flatMap(str.split)
        counts = words.map(lambda word: (word, 1)).reduceByKey(add, params["reducers"])
        return counts.mapPartitions(dawdle(params["sleep_s"])).collect()

    def check(self, params: Params, observed: Any) -> list[str]:
        return exact(params["words"], observed)


class Bank(Workload):
    """Transfers between accounts: each balance is known, and no money is made or lost."""

    name = "bank"

    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        return {"accounts": 40, "transfers": scaled(6000, scale), "seed": rng.randrange(1 << 30),
                "slices": rng.randint(4, 8), "reducers": rng.randint(2, 4), "sleep_s": 0.2}  # fmt: skip

    def transfers(self, params: Params) -> list[tuple[int, int, int]]:
        rng, n = random.Random(params["seed"]), params["accounts"]
        return [(rng.randrange(n), rng.randrange(n), rng.randint(1, 100)) for _ in range(params["transfers"])]

    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        start = sc.parallelize([(account, 1000) for account in range(params["accounts"])], 2)
        moves = (
            sc.parallelize(self.transfers(params), params["slices"])
            .mapPartitions(dawdle(params["sleep_s"]))
            .flatMap(lambda move: [(move[0], -move[2]), (move[1], move[2])])
        )
        balances = start.union(moves).reduceByKey(add, params["reducers"])
        balances = balances.mapPartitions(dawdle(params["sleep_s"]))
        return {"balances": balances.collect(), "sum": balances.values().sum()}

    def check(self, params: Params, observed: Any) -> list[str]:
        expected = dict.fromkeys(range(params["accounts"]), 1000)
        for source, target, amount in self.transfers(params):
            expected[source] -= amount
            expected[target] += amount
        wrong = exact(expected, observed["balances"])
        if observed["sum"] != 1000 * params["accounts"]:
            wrong.append(f"all accounts hold {observed['sum']}, not {1000 * params['accounts']}")
        return wrong


class Sort(Workload):
    """All numbers below n in a scrambled order: sorted they are ``range(n)``."""

    name = "sort"
    PRIME = 1_000_003

    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        return {"n": scaled(20_000, scale), "factor": rng.randrange(1, self.PRIME),
                "slices": rng.randint(3, 6), "reducers": rng.randint(2, 5),
                "ascending": rng.random() < 0.7, "sleep_s": 0.2}  # fmt: skip

    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        factor, prime, n = params["factor"], self.PRIME, params["n"]
        order = sorted(range(n), key=lambda i: i * factor % prime)
        numbers = sc.parallelize(order, params["slices"]).mapPartitions(dawdle(params["sleep_s"]))
        ordered = numbers.sortBy(lambda x: x, params["ascending"], params["reducers"])
        return ordered.mapPartitions(dawdle(params["sleep_s"])).collect()

    def check(self, params: Params, observed: Any) -> list[str]:
        expected = list(range(params["n"]))
        if not params["ascending"]:
            expected.reverse()
        if observed == expected:
            return []
        if len(observed) != len(expected):
            return [f"{len(observed)} records instead of {len(expected)}"]
        at = next(i for i, (got, want) in enumerate(zip(observed, expected, strict=True)) if got != want)
        return [f"record {at} is {observed[at]}, not {expected[at]}"]


class Accumulators(Workload):
    """Updates made inside tasks count once for each output, however often its task ran."""

    name = "accumulators"

    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        return {"n": scaled(4000, scale), "slices": rng.randint(4, 8), "reducers": rng.randint(2, 4),
                "sleep_s": 0.25}  # fmt: skip

    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        seen, reduced = sc.accumulator(0), sc.accumulator(0)

        def note(x: int) -> tuple[int, int]:
            seen.add(1)
            return x % 50, x

        def note_key(pair: tuple[int, int]) -> tuple[int, int]:
            reduced.add(pair[1])
            return pair

        slow = dawdle(params["sleep_s"])
        numbers = sc.parallelize(range(params["n"]), params["slices"]).mapPartitions(slow)
        sums = numbers.map(note).reduceByKey(add, params["reducers"])
        total = sums.mapPartitions(slow).map(note_key).count()
        return {"keys": total, "seen": seen.value, "reduced": reduced.value}

    def check(self, params: Params, observed: Any) -> list[str]:
        n = params["n"]
        expected = {"keys": min(n, 50), "seen": n, "reduced": n * (n - 1) // 2}
        return [
            f"{name} is {observed[name]}, not {want}"
            for name, want in expected.items()
            if observed[name] != want
        ]


class Results(Workload):
    """Results too large for a message: they lie in stores until the driver has read them."""

    name = "results"

    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        return {"partitions": rng.randint(3, 6), "size": scaled(3 << 19, scale), "sleep_s": 0.4,
                "seed": rng.randrange(256)}  # fmt: skip

    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        seed, size = params["seed"], params["size"]
        blobs = (
            sc.parallelize(range(params["partitions"]), params["partitions"])
            .mapPartitions(dawdle(params["sleep_s"]))
            .map(lambda i: (i, bytes([(i + seed) % 256]) * size))
            .collect()
        )
        return [[i, len(blob), zlib.crc32(blob)] for i, blob in blobs]

    def check(self, params: Params, observed: Any) -> list[str]:
        size, seed = params["size"], params["seed"]
        expected = [
            [i, size, zlib.crc32(bytes([(i + seed) % 256]) * size)] for i in range(params["partitions"])
        ]
        return [] if observed == expected else [f"{observed} instead of {expected}"]


class Repartition(Workload):
    """Records in an order that is never the same again, dealt out in turn: an output that is built once more
    puts them elsewhere, and whoever mixed it with the old one would lose some and double others."""

    name = "repartition"
    deterministic = False

    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        return {"n": scaled(30_000, scale), "slices": rng.randint(3, 6), "between": rng.randint(2, 5),
                "sleep_s": 0.2}  # fmt: skip

    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        slow = dawdle(params["sleep_s"])

        def shuffled(records: Any) -> Any:
            mixed = list(records)
            random.SystemRandom().shuffle(mixed)
            return mixed

        numbers = sc.parallelize(range(params["n"]), params["slices"]).mapPartitions(slow)
        between = numbers.map(lambda x: (x % 1000, x)).groupByKey(params["between"])
        dealt = between.flatMap(lambda pair: pair[1]).mapPartitions(shuffled).repartition(params["slices"])
        records = dealt.mapPartitions(slow).collect()
        return {"count": len(records), "distinct": len(set(records)), "sum": sum(records)}

    def check(self, params: Params, observed: Any) -> list[str]:
        n = params["n"]
        expected = {"count": n, "distinct": n, "sum": n * (n - 1) // 2}
        return [f"{k} is {observed[k]}, not {want}" for k, want in expected.items() if observed[k] != want]


class Spark23207(Workload):
    """A million records dealt out by random keys; half of the reducers read long after the others.

    The recipe in which Spark lost and doubled records without a word: whoever loses outputs in between, and
    mixes what was read with what is built again, counts wrong.  A round takes four seconds."""

    name = "spark-23207"
    deadline_s = 40.0
    deterministic = False

    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        return {"n": scaled(1_000_000, scale), "maps": rng.randint(4, 7), "reducers": rng.choice([6, 8]),
                "random_keys": rng.random() < 0.7, "reduce": rng.random() < 0.5, "sleep_s": 1.0}  # fmt: skip

    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        maps, reducers, sleep_s = params["maps"], params["reducers"], params["sleep_s"]

        def drawn(records: Any) -> Any:
            rng = random.Random(random.SystemRandom().randbytes(16))
            return [(rng.getrandbits(32), record) for record in records]

        def paced(index: int, records: Any) -> Any:
            if index >= reducers // 2:
                time.sleep(sleep_s)  # before anything is read
            return records

        def counted(records: Any) -> Any:
            seen = list(records)
            return [(len(seen), len(set(seen)), sum(seen))]

        numbers = sc.parallelize(range(params["n"]), maps).map(lambda x: (x * 7919 % 1009, x))
        shuffled = numbers.partitionBy(maps).values()
        if params["random_keys"]:
            dealt = shuffled.mapPartitions(drawn).partitionBy(reducers).values()
        else:
            dealt = shuffled.repartition(reducers)
        totals = dealt.mapPartitionsWithIndex(paced).mapPartitions(counted)
        if params["reduce"]:
            count, distinct, total = totals.reduce(lambda a, b: tuple(map(add, a, b)))
        else:
            count, distinct, total = map(sum, zip(*totals.collect(), strict=True))
        return {"count": count, "distinct": distinct, "sum": total}

    def check(self, params: Params, observed: Any) -> list[str]:
        n = params["n"]
        return differences({"count": n, "distinct": n, "sum": n * (n - 1) // 2}, observed)
