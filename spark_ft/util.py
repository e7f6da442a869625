"""InheritableThread: threads that take over the local properties of the thread that starts them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from spark_ft.context import SparkContext

__all__ = ["InheritableThread", "inheritable_thread_target"]

F = TypeVar("F", bound=Callable[..., Any])


def inheritable_thread_target(f: F) -> F:
    """Wrap a thread's target: it runs with the local properties that this thread has now.

    >>> threading.Thread(target=inheritable_thread_target(work)).start()  # doctest: +SKIP
    """
    properties = _properties_here()

    @functools.wraps(f)
    def target(*args: Any, **kwargs: Any) -> Any:
        _inherit(properties)
        return f(*args, **kwargs)

    return target  # type: ignore[return-value]  # same signature as f


class InheritableThread(threading.Thread):
    """A thread that starts with a copy of the local properties of the thread that starts it;
    grand-children inherit them too."""

    def __init__(
        self, target: Callable[..., Any], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self._properties: dict[str, str] = {}

        def inheriting(*a: Any, **k: Any) -> Any:
            _inherit(self._properties)
            return target(*a, **k)

        super().__init__(target=inheriting, args=args, kwargs=kwargs or {})

    def start(self) -> None:
        self._properties = _properties_here()
        super().start()


def _properties_here() -> dict[str, str]:
    active = SparkContext._active_spark_context
    return {} if active is None else dict(active._properties())


def _inherit(properties: Mapping[str, str]) -> None:
    active = SparkContext._active_spark_context
    if active is not None:
        active._inherit(properties)
