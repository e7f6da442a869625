"""SparkConf: string pairs that a program sets before its context starts.

Keys and values are strings; ``str(value)`` is stored, so booleans become ``"True"`` and are read
case-insensitively.  Nothing is checked here: ``Settings.from_conf`` does that, by name, at start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import overload

from spark_ft.errors import PySparkRuntimeError
from spark_ft.settings import environment, submitted_pairs

_system_properties: dict[str, str] = {}  # what SparkContext.setSystemProperty keeps; read by new SparkConfs


def _defaults_file() -> dict[str, str]:
    """The pairs of ``$SPARK_CONF_DIR/spark-defaults.conf``."""
    folder = environment("SPARK_CONF_DIR")
    path = Path(folder) / "spark-defaults.conf"
    return read_properties(path) if folder and path.is_file() else {}


def read_properties(path: Path) -> dict[str, str]:
    """The pairs of a file of ``key value`` or ``key=value`` lines.  Raises OSError."""
    pairs: dict[str, str] = {}
    for raw in path.read_text(encoding="utf-8").splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        end = next((i for i, c in enumerate(line) if c.isspace() or c in "=:"), len(line))
        pairs[line[:end]] = line[end:].strip().lstrip("=:").strip()
    return pairs


class SparkConf:
    """Configuration of an application; setters chain.

    >>> SparkConf().setMaster("local[2]").setAppName("x").get("spark.master")
    'local[2]'
    """

    def __init__(
        self, loadDefaults: bool = True, _jvm: object = None, _jconf: object = None
    ) -> None:
        self._conf: dict[str, str] = {}
        self._drawn_app_id = ""  # the id of a run that this conf was copied from: another run gets its own
        if loadDefaults:
            self._conf.update(_defaults_file())
            self._conf.update(submitted_pairs())
            self._conf.update((k, v) for k, v in _system_properties.items() if k.startswith("spark."))

    def set(self, key: str, value: object) -> SparkConf:
        """Set one pair; the value is stored as ``str(value)``."""
        self._conf[key] = str(value)
        return self

    def setIfMissing(self, key: str, value: object) -> SparkConf:
        """Set one pair unless the key is there already."""
        self._conf.setdefault(key, str(value))
        return self

    def setMaster(self, value: str) -> SparkConf:
        return self.set("spark.master", value)

    def setAppName(self, value: str) -> SparkConf:
        return self.set("spark.app.name", value)

    def setSparkHome(self, value: str) -> SparkConf:
        return self.set("spark.home", value)

    def setExecutorEnv(
        self,
        key: str | None = None,
        value: str | None = None,
        pairs: Iterable[tuple[str, str]] | None = None,
    ) -> SparkConf:
        """Environment of executors: either ``key`` and ``value``, or ``pairs``.

        Raises PySparkRuntimeError (KEY_VALUE_PAIR_REQUIRED) for both or none.
        """
        if (key is not None) == (pairs is not None):
            raise PySparkRuntimeError(errorClass="KEY_VALUE_PAIR_REQUIRED", messageParameters={})
        for name, text in pairs if pairs is not None else ((key, value),):
            self.set(f"spark.executorEnv.{name}", text)
        return self

    def setAll(self, pairs: Iterable[tuple[str, object]]) -> SparkConf:
        for key, value in pairs:
            self.set(key, value)
        return self

    @overload
    def get(self, key: str) -> str | None: ...
    @overload
    def get(self, key: str, defaultValue: None) -> str | None: ...
    @overload
    def get(self, key: str, defaultValue: str) -> str: ...
    def get(self, key: str, defaultValue: str | None = None) -> str | None:
        return self._conf.get(key, defaultValue)

    def getAll(self) -> list[tuple[str, str]]:
        return list(self._conf.items())

    def contains(self, key: str) -> bool:
        return key in self._conf

    def toDebugString(self) -> str:
        """One ``key=value`` line for each pair, sorted by key."""
        return "\n".join(f"{key}={value}" for key, value in sorted(self._conf.items()))

    def copy(self) -> SparkConf:
        """An equal conf that shares nothing with this one."""
        made = SparkConf(loadDefaults=False).setAll(self._conf.items())
        made._drawn_app_id = self._drawn_app_id
        return made

    def _without_drawn_app_id(self) -> SparkConf:
        """A copy for a new context: an application id that nobody chose is not taken over."""
        made = self.copy()
        if made._drawn_app_id and made.get("spark.app.id") == made._drawn_app_id:
            del made._conf["spark.app.id"]
        made._drawn_app_id = ""
        return made

    def asdict(self) -> Mapping[str, str]:
        return dict(self._conf)
