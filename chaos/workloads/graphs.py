"""Iterations over shuffles and joins: one lost or doubled record spreads through every later round."""

from __future__ import annotations

import random
from operator import add
from pathlib import Path
from typing import Any

from chaos.workloads import Params, Workload, dawdle, exact, scaled


class Ring(Workload):
    """A ring through all nodes, walked by pointer doubling: after k joins each points 2**k steps on."""

    name = "ring"
    deadline_s = 30.0

    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        return {"nodes": scaled(800, scale, 3), "doublings": rng.randint(2, 4), "slices": rng.randint(2, 4),
                "seed": rng.randrange(1 << 30), "sleep_s": 0.2}  # fmt: skip

    def ring(self, params: Params) -> list[int]:
        """The nodes in the order of the ring."""
        order = list(range(params["nodes"]))
        random.Random(params["seed"]).shuffle(order)
        return order

    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        order, slices = self.ring(params), params["slices"]
        pairs = list(zip(order, order[1:] + order[:1], strict=True))
        pointers = sc.parallelize(sorted(pairs), slices)
        for _ in range(params["doublings"]):
            turned = pointers.mapPartitions(dawdle(params["sleep_s"])).map(lambda pair: (pair[1], pair[0]))
            pointers = turned.join(pointers, slices).map(lambda row: row[1])
        return pointers.collect()

    def check(self, params: Params, observed: Any) -> list[str]:
        order, n = self.ring(params), params["nodes"]
        steps = 2 ** params["doublings"]
        return exact({order[i]: order[(i + steps) % n] for i in range(n)}, observed)


class PageRank(Workload):
    """PageRank in whole numbers, so that plain Python gives the very same ranks."""

    name = "pagerank"
    deadline_s = 30.0
    ONE = 10**9

    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        return {"nodes": scaled(300, scale, 5), "rounds": rng.randint(2, 4), "slices": rng.randint(2, 4),
                "seed": rng.randrange(1 << 30), "sleep_s": 0.2}  # fmt: skip

    def links(self, params: Params) -> list[tuple[int, list[int]]]:
        rng, n = random.Random(params["seed"]), params["nodes"]
        return [(i, sorted(rng.sample(range(n), rng.randint(1, 4)))) for i in range(n)]

    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        one, slices = self.ONE, params["slices"]
        links = sc.parallelize(self.links(params), slices).partitionBy(slices).cache()
        ranks = links.mapValues(lambda _: one)
        for _ in range(params["rounds"]):
            given = links.join(ranks, slices).flatMap(
                lambda row: [(target, row[1][1] // len(row[1][0])) for target in row[1][0]]
            )
            summed = given.mapPartitions(dawdle(params["sleep_s"])).reduceByKey(add, slices)
            ranks = summed.mapValues(lambda total: one * 15 // 100 + total * 85 // 100)
        answer = ranks.collect()
        links.unpersist()
        return answer

    def check(self, params: Params, observed: Any) -> list[str]:
        links = dict(self.links(params))
        ranks = dict.fromkeys(links, self.ONE)
        for _ in range(params["rounds"]):
            totals: dict[int, int] = {}
            for node, rank in ranks.items():
                for target in links[node]:
                    totals[target] = totals.get(target, 0) + rank // len(links[node])
            ranks = {node: self.ONE * 15 // 100 + total * 85 // 100 for node, total in totals.items()}
        return exact(ranks, observed)


class KMeans(Workload):
    """k-means over whole coordinates; centres are rounded down, so plain Python agrees exactly."""

    name = "kmeans"
    deadline_s = 30.0

    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        return {"points": scaled(1500, scale, 10), "k": rng.randint(2, 5), "rounds": rng.randint(2, 4),
                "slices": rng.randint(3, 5), "seed": rng.randrange(1 << 30), "sleep_s": 0.2}  # fmt: skip

    def points(self, params: Params) -> list[tuple[int, int]]:
        rng = random.Random(params["seed"])
        return [(rng.randrange(10_000), rng.randrange(10_000)) for _ in range(params["points"])]

    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        points = self.points(params)
        centres = points[: params["k"]]
        cached = sc.parallelize(points, params["slices"]).mapPartitions(dawdle(params["sleep_s"])).cache()
        for _ in range(params["rounds"]):
            told = sc.broadcast(centres)
            sums = (
                cached.mapPartitions(dawdle(params["sleep_s"]))
                .map(lambda p, told=told: (nearest(p, told.value), (p[0], p[1], 1)))
                .reduceByKey(lambda a, b: (a[0] + b[0], a[1] + b[1], a[2] + b[2]))
                .collectAsMap()
            )
            centres = moved(centres, sums)
            told.unpersist()
        cached.unpersist()
        return centres

    def check(self, params: Params, observed: Any) -> list[str]:
        points = self.points(params)
        centres = points[: params["k"]]
        for _ in range(params["rounds"]):
            sums: dict[int, tuple[int, int, int]] = {}
            for point in points:
                x, y, count = sums.get(index := nearest(point, centres), (0, 0, 0))
                sums[index] = x + point[0], y + point[1], count + 1
            centres = moved(centres, sums)
        got = [tuple(centre) for centre in observed]
        return [] if got == centres else [f"centres {got} instead of {centres}"]


def nearest(point: tuple[int, int], centres: list[tuple[int, int]]) -> int:
    """The nearest centre; of equals the first."""
    x, y = point
    distances = [(x - cx) ** 2 + (y - cy) ** 2 for cx, cy in centres]
    return distances.index(min(distances))


def moved(centres: list[tuple[int, int]], sums: Any) -> list[tuple[int, int]]:
    """Each centre in the middle of its points; one without points stays."""
    means = {index: (x // count, y // count) for index, (x, y, count) in sums.items()}
    return [means.get(index, centre) for index, centre in enumerate(centres)]


class Joins(Workload):
    """Inner, outer and co-grouped joins of two sets of keys that overlap by a known part."""

    name = "joins"
    deadline_s = 30.0

    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        n = scaled(600, scale, 3)
        return {"left": n, "from": rng.randrange(n), "right": rng.randint(1, n), "slices": rng.randint(2, 4),
                "reducers": rng.randint(2, 4), "sleep_s": 0.15}  # fmt: skip

    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        start, reducers = params["from"], params["reducers"]
        left = sc.parallelize(range(params["left"]), params["slices"]).map(lambda k: (k, k * 2))
        right = sc.parallelize(range(start, start + params["right"]), params["slices"]).map(lambda k: (k, -k))
        left = left.mapPartitions(dawdle(params["sleep_s"]))
        full = left.fullOuterJoin(right, reducers).mapPartitions(dawdle(params["sleep_s"]))
        both = left.cogroup(right, reducers).mapValues(lambda two: (sum(two[0]), sum(two[1])))
        return {"inner": left.join(right, reducers).collect(), "full": full.collect(), "both": both.collect()}

    def check(self, params: Params, observed: Any) -> list[str]:
        left = {k: k * 2 for k in range(params["left"])}
        right = {k: -k for k in range(params["from"], params["from"] + params["right"])}
        every = sorted({*left, *right})
        inner = {k: [left[k], right[k]] for k in every if k in left and k in right}
        full = {k: [left.get(k), right.get(k)] for k in every}
        both = {k: [left.get(k, 0), right.get(k, 0)] for k in every}
        expected: dict[str, dict[int, list[Any]]] = {"inner": inner, "full": full, "both": both}
        return [
            f"{name}: {line}"
            for name, want in expected.items()
            for line in exact(want, [(key, list(value)) for key, value in observed[name]])
        ]


class Iterate(Workload):
    """Steps over a cached RDD, each new one cached before the old one is given up."""

    name = "iterate"
    deadline_s = 30.0

    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        level = rng.choice(["MEMORY_ONLY", "MEMORY_AND_DISK", "DISK_ONLY"])
        return {"n": scaled(3000, scale), "rounds": rng.randint(3, 5), "slices": rng.randint(3, 5),
                "level": level, "sleep_s": 0.12}  # fmt: skip

    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        from spark_ft import StorageLevel

        level = getattr(StorageLevel, params["level"])
        numbers = sc.parallelize(range(params["n"]), params["slices"])
        current = numbers.map(lambda x: (x % 97, x)).persist(level)
        sums = []
        for _ in range(params["rounds"]):
            step = (
                current.mapPartitions(dawdle(params["sleep_s"]))
                .mapValues(lambda x: (x * 31 + 7) % 10_007)
                .partitionBy(params["slices"])
                .persist(level)
            )
            sums.append(step.values().sum())
            current.unpersist()
            current = step
        count = current.count()
        current.unpersist()
        return {"sums": sums, "count": count}

    def check(self, params: Params, observed: Any) -> list[str]:
        values = list(range(params["n"]))
        sums = []
        for _ in range(params["rounds"]):
            values = [(x * 31 + 7) % 10_007 for x in values]
            sums.append(sum(values))
        expected = {"sums": sums, "count": params["n"]}
        return [] if observed == expected else [f"{observed} instead of {expected}"]
