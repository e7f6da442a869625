"""The driver listens where the user says, or says why not before anything has been started (row NET-11)."""

import time
from operator import add

import psutil
import pytest

from spark_ft.errors import ClusterError


def listens_at() -> set[str]:
    sockets = psutil.Process().net_connections("tcp")
    return {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}


def test_NET_11_the_driver_listens_at_the_address_that_it_is_given_and_nowhere_else(start) -> None:
    before = listens_at()
    running = start("local-cluster[2,1,512]", spark_driver_bindAddress="127.0.0.7")
    assert listens_at() - before == {"127.0.0.7"}
    sums = running.sc.parallelize(range(100), 4).map(lambda x: (x % 3, x)).reduceByKey(add, 2)
    assert sorted(sums.collect()) == [(key, sum(range(key, 100, 3))) for key in range(3)]
    told = running.sc.broadcast(list(range(100_000)))  # which executors read from the driver's block server
    assert running.sc.parallelize(range(2), 2).map(lambda i: told.value[i]).collect() == [0, 1]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"spark_driver_host": "nobody.invalid"}, "spark.driver.host=nobody.invalid: no IPv4 address"),
        ({"spark_driver_bindAddress": "0.0.0.0"}, "spark.driver.bindAddress=0.0.0.0: other machines"),
        ({"spark_driver_bindAddress": "127.0.0.1", "spark_driver_host": "127.0.0.9"}, "leads nowhere"),
    ],
)
def test_NET_11_a_bad_address_is_a_named_error_at_once_and_leaves_nothing(start, settings, says) -> None:
    began = time.monotonic()
    with pytest.raises(ClusterError, match=says) as caught:
        start("local-cluster[2,1,512]", **settings)
    assert caught.value.getCondition() == "BAD_BIND_ADDRESS"
    assert time.monotonic() - began < 5.0
    assert start("local[1]").sc.parallelize([1]).collect() == [1]
