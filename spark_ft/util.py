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
    properties = SparkContext._copy_local_properties()

    @functools.wraps(f)
    def target(*args: Any, **kwargs: Any) -> Any:
        SparkContext._set_local_properties(properties)
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
            SparkContext._set_local_properties(self._properties)
            return target(*a, **k)

        super().__init__(target=inheriting, args=args, kwargs=kwargs or {})

    def start(self) -> None:
        self._properties = SparkContext._copy_local_properties()
        super().start()
