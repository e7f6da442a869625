"""Text that every machine has: the sources of the running Python's standard library, repeated to a size.

Only ASCII and plain newlines are kept, so that every engine cuts it into the same lines.  Beside the
text a ``.json`` holds its right answers, counted here in plain Python.
"""

import collections
import json
import sysconfig
from pathlib import Path

LEFT_OUT = {"site-packages", "__pycache__", "test", "tests", "idle_test", "lib2to3"}


def library_sources() -> list[Path]:
    """The standard library's modules, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(
        path for path in root.rglob("*.py") if not LEFT_OUT.intersection(path.relative_to(root).parts)
    )


def library_lines() -> list[str]:
    lines: list[str] = []
    for path in library_sources():
        source = path.read_bytes().decode("ascii", "ignore").replace("\r", "")
        lines += source.splitlines()
    return lines


def make_text(directory: Path, size_bytes: int) -> Path:
    """A file of about ``size_bytes`` in ``directory`` and its facts beside it; made once for each size."""
    path = directory / f"library-{size_bytes}.txt"
    facts = path.with_suffix(".json")
    if path.exists() and facts.exists():
        return path
    directory.mkdir(parents=True, exist_ok=True)
    lines = library_lines()
    once = "\n".join(lines) + "\n"
    copies, rest = divmod(size_bytes, len(once))
    tail = once[:rest].rpartition("\n")[0] + "\n" if "\n" in once[:rest] else ""
    words: collections.Counter[str] = collections.Counter()
    for word, count in collections.Counter(once.split()).items():
        words[word] = count * copies
    words.update(tail.split())
    words = +words
    partial = path.with_suffix(".part")
    with partial.open("w") as out:
        for _ in range(copies):
            out.write(once)
        out.write(tail)
    facts.write_text(
        json.dumps(
            {
                "bytes": copies * len(once) + len(tail),
                "lines": copies * len(lines) + tail.count("\n"),
                "words": words.total(),
                "distinct_words": len(words),
                "self": words["self"],
            }
        )
    )
    partial.rename(path)
    return path


def facts_of(path: Path | str) -> dict[str, int]:
    """What ``make_text`` counted."""
    facts: dict[str, int] = json.loads(Path(path).with_suffix(".json").read_text())
    return facts
