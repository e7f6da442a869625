"""The harness's hand on the fault proxy: starts its process, tells it rules, asks what they have done."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from chaos.nemesis.rules import Rule, both_ways

UP_WITHIN_S = 10.0
ANSWERS_WITHIN_S = 10.0


class FaultProxy:
    """One proxy process for the one application whose ``spark.local.dir`` is ``local_dir``.

    Start it before the application, give that ``settings``, close it after the application.  Methods may
    be called from any thread.  Raises OSError if the process does not come up, or has ended.
    """

    def __init__(self, local_dir: Path) -> None:
        # Names of sockets have 107 bytes: a short directory of its own, whatever the other is called.
        self._directory = Path(tempfile.mkdtemp(prefix="sft-p-", dir="/tmp"))
        self._lock = threading.Lock()
        control = self._directory / "control"
        path = os.pathsep.join(filter(None, sys.path))
        sockets = self._directory / "s"
        sockets.mkdir()
        local_dir.mkdir(parents=True, exist_ok=True)
        self.settings = {"spark.ft.advertise.directory": str(sockets)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "chaos.nemesis.proxy", str(local_dir), str(sockets), str(control)],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._control = socket.socket(socket.AF_UNIX)
        self._control.settimeout(ANSWERS_WITHIN_S)
        deadline_s = time.monotonic() + UP_WITHIN_S
        while True:
            try:
                self._control.connect(str(control))
                break
            except OSError:
                if time.monotonic() > deadline_s or self._process.poll() is not None:
                    self.close()
                    raise
                time.sleep(0.01)
        self._answers = self._control.makefile("rb")

    @property
    def pid(self) -> int:
        return self._process.pid

    def _tell(self, what: str, **how: Any) -> dict[str, Any]:
        with self._lock:
            self._control.sendall(json.dumps({"do": what, **how}).encode() + b"\n")
            answer: dict[str, Any] = json.loads(self._answers.readline() or b'{"error": "it has ended"}')
        if "error" in answer:
            raise OSError(f"the fault proxy: {answer['error']}")
        return answer

    def rules(self, *rules: Rule) -> list[dict[str, Any]]:
        """These and no others from now on; answers what those before have done, in their order."""
        before: list[dict[str, Any]] = self._tell("rules", rules=[rule.as_json() for rule in rules])["before"]
        return before

    def heal(self) -> list[dict[str, Any]]:
        """No rules any more."""
        return self.rules()

    def cut(self, one: str, other: str, plane: str = "*") -> None:
        """Nothing passes between them, in either direction, until ``heal``."""
        self.rules(*both_ways("hold", one, other, plane=plane))

    def tallies(self) -> list[dict[str, Any]]:
        """What each rule in force has done (rules.Tally)."""
        found: list[dict[str, Any]] = self._tell("tallies")["tallies"]
        return found

    def reset(self, one: str, other: str) -> int:
        """Reset the connections between them; how many there were."""
        return int(self._tell("reset", source=one, target=other)["reset"])

    def freeze(self, one: str, other: str) -> int:
        """Nothing passes any more, for good, through the connections that stand between them; how many there
        were.  New ones are as good as any: one end has vanished without a word and come back."""
        return int(self._tell("freeze", source=one, target=other)["frozen"])

    def half_close(self, source: str, target: str) -> int:
        """End what flows from ``source`` to ``target`` and nothing else; how many directions that were."""
        return int(self._tell("half-close", source=source, target=target)["half_closed"])

    def connections(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._tell("connections")["connections"]
        return found

    def close(self) -> None:
        """Idempotent: the process ends, its directory goes."""
        self._control.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
