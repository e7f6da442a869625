"""Hosts of their own on one machine: network namespaces on a bridge, where root permits."""

from __future__ import annotations

import functools
import os
import subprocess

BRIDGE_MARK = "sfb"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


@functools.cache
def permitted() -> str:
    """'' where namespaces can be made, else why not."""
    try:
        with Namespaces(1):
            return ""
    except FileNotFoundError:
        return "there is no `ip` command"
    except subprocess.CalledProcessError as error:
        return f"no network namespaces: {error.stderr.decode(errors='replace').strip()}"


class Namespaces:
    """``count`` namespaces with an address each, and this process at the bridge that joins them."""

    def __init__(self, count: int) -> None:
        self._mark = f"{os.getpid() % 100_000}"
        self._bridge = f"{BRIDGE_MARK}{self._mark}"
        self._net = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self.count = count
        self.address = f"{self._net}.1"

    def __enter__(self) -> Namespaces:
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("addr", "add", f"{self.address}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for number in range(self.count):
                self._make(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self, number: int) -> None:
        name, outer = self.name(number), self._outer(number)
        _ip("netns", "add", name)
        _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", outer, "master", self._bridge, "up")
        _ip("-n", name, "addr", "add", f"{self.address_of(number)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", name, "link", "set", device, "up")

    def __exit__(self, *_: object) -> None:
        for number in range(self.count):
            for undo in (["link", "del", self._outer(number)], ["netns", "del", self.name(number)]):
                subprocess.run(["ip", *undo], capture_output=True, timeout=10)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, timeout=10)

    def name(self, number: int) -> str:
        return f"sft{self._mark}n{number}"

    def _outer(self, number: int) -> str:
        return f"sfv{self._mark}n{number}"

    def address_of(self, number: int) -> str:
        return f"{self._net}.{number + 2}"

    def within(self, number: int) -> list[str]:
        """What a command is to begin with to run there; its pid stays the same."""
        return ["ip", "netns", "exec", self.name(number)]

    def cut(self, number: int) -> None:
        """Unplug it: nothing gets through, and nobody is told."""
        _ip("link", "set", self._outer(number), "down")

    def plug(self, number: int) -> None:
        _ip("link", "set", self._outer(number), "up")
