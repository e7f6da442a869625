"""Whose code a module is, and what names one state of it.

    python      the interpreter's own library: named by the interpreter's version
    engine      this package, by its version and the digest of its files
    installed   a distribution, by its name, version and what its RECORD says of its files
    user        everything else: ``__main__``, modules beside it, shipped and editable ones; by their code

Files are read once in a process; what is installed while it runs is not seen.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import site
import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from spark_ft.lineage.canonical import digest_of

ENGINE = __name__.partition(".")[0]
_ENGINE_ROOT = Path(__file__).resolve().parents[1]
FORMAT = 1  # of fingerprints: grows whenever the same program would get another one

PYTHON, INSTALLED, USER = "python", "installed", "user"


class Origin(NamedTuple):
    """``kind`` is one of those above (ENGINE among them); ``name`` is for people; ``digest`` names the state,
    and is empty for user code."""

    kind: str
    name: str
    digest: bytes


_USER = Origin(USER, "", b"")


@cache
def interpreter() -> Origin:
    """Code compiled by one interpreter is not another's."""
    name = f"{platform.python_implementation()} {platform.python_version()}"
    return Origin(PYTHON, name, digest_of(name, importlib.util.MAGIC_NUMBER))


@cache
def engine() -> Origin:
    """Of this package."""
    found = _distribution_at(ENGINE, str(_ENGINE_ROOT))
    return Origin(ENGINE, ENGINE, digest_of(str(FORMAT), found.digest if found else _files_digest()))


def origin(module_name: str) -> Origin:
    """Whose a module is, imported or not; names that cannot be found are the user's."""
    if module_name in ("", "__main__", "__mp_main__"):
        return _USER
    return _origin(module_name, id(sys.modules.get(module_name)))


@cache
def _origin(module_name: str, _: int) -> Origin:
    top = module_name.partition(".")[0]
    if top == ENGINE:
        return engine()
    file = _file_of(module_name)
    if file is None:
        return interpreter() if top in sys.builtin_module_names or top in sys.stdlib_module_names else _USER
    if file == "":
        return interpreter()
    if _below(file, _library_folders()) and not _below(file, _site_folders()):
        return interpreter()
    if (found := _distribution_at(top, file)) is not None:
        return found
    return _by_files(top, file) if _below(file, _site_folders()) else _USER


def _file_of(module_name: str) -> str | None:
    """Where a module comes from; "" for one inside the interpreter, None when nobody knows."""
    module, spec = sys.modules.get(module_name), _spec(module_name)
    where = getattr(spec, "origin", None)
    if where in ("built-in", "frozen"):
        return ""
    if where is None or where == "namespace":
        where = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return None if where is None else os.path.abspath(where)


def _spec(module_name: str) -> Any:
    """How a module is found, without importing anything; None when it is not."""
    spec: Any = None
    names = module_name.split(".")
    for end in range(1, len(names) + 1):
        name, places = ".".join(names[:end]), None if spec is None else spec.submodule_search_locations
        if (end > 1 and places is None) or name == "__main__":
            return None
        spec = getattr(sys.modules.get(name), "__spec__", None) or _first_spec(name, places)
        if spec is None:
            return None
    return spec


def _first_spec(name: str, places: Any) -> Any:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if find is not None and (spec := find(name, places)) is not None:
            return spec
    return None


def _below(file: str, folders: tuple[str, ...]) -> bool:
    return file.startswith(folders)


@cache
def _library_folders() -> tuple[str, ...]:
    names = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    return tuple(os.path.abspath(name) + os.sep for name in names if name)


@cache
def _site_folders() -> tuple[str, ...]:
    names = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()}
    names.update(site.getsitepackages())
    return tuple(os.path.abspath(name) + os.sep for name in names if name)


def _distribution_at(top: str, file: str) -> Origin | None:
    """The distribution that put ``file``, a module below ``top``, where it is."""
    try:
        candidates = [importlib.metadata.distribution(top)]
    except importlib.metadata.PackageNotFoundError:
        if not _below(file, _site_folders()):
            return None
        candidates = [importlib.metadata.distribution(name) for name in sorted(_providers().get(top, ()))]
    held = [each for each in candidates if _holds(each, top, file)]
    if not held:
        return None
    names = [f"{each.metadata['Name']} {each.version}" for each in held]
    parts = [part for each, name in zip(held, names, strict=True) for part in (name.encode(), _record(each))]
    return Origin(INSTALLED, ", ".join(names), digest_of(b"installed", *parts))


@cache
def _providers() -> dict[str, set[str]]:
    return {top: set(names) for top, names in importlib.metadata.packages_distributions().items()}


def _holds(distribution: importlib.metadata.Distribution, top: str, file: str) -> bool:
    """An editable one lists none of its modules, or lies beside them without a list: they are the user's."""
    folder = os.path.abspath(str(distribution.locate_file("")))
    if not file.startswith(os.path.join(folder, top)):
        return False
    listed = distribution.read_text("RECORD")
    if listed is None:
        return _below(file, _site_folders())
    return any(line.startswith((f"{top}/", f"{top}.")) for line in listed.splitlines())


def _record(distribution: importlib.metadata.Distribution) -> bytes:
    """What RECORD says of the files of code: not of what an installer notes about itself."""
    lines = (distribution.read_text("RECORD") or "").splitlines()
    return "\n".join(sorted(x for x in lines if ".dist-info/" not in x and ".pyc," not in x)).encode()


def _files_digest() -> bytes:
    files = sorted(_ENGINE_ROOT.rglob("*.py"))
    return digest_of(*(str(path.relative_to(_ENGINE_ROOT)) for path in files), *map(Path.read_bytes, files))


def _by_files(top: str, file: str) -> Origin:
    """A module that lies among the installed ones and belongs to none: by the bytes of its file."""
    try:
        content = Path(file).read_bytes()
    except OSError:
        return _USER
    return Origin(INSTALLED, f"{top}, a file without a distribution", digest_of(b"file", content))


# --- The user's modules, as a worker will import them -------------------------------------------


class Source(NamedTuple):
    """The code of a user's module as its file has it; ``file`` digests a compiled extension instead."""

    code: CodeType | None
    file: bytes = b""
    is_package: bool = False


def source_of(module_name: str) -> Source | None:
    """None when there is no such module, or nothing to be read of it (``__main__`` of a notebook)."""
    spec, module = _spec(module_name), sys.modules.get(module_name)
    loader = getattr(spec, "loader", None) or getattr(module, "__loader__", None)
    try:
        if (
            loader is not None
            and hasattr(loader, "get_code")
            and (code := loader.get_code(module_name)) is not None
        ):
            places = getattr(spec, "submodule_search_locations", None)
            return Source(code, is_package=places is not None)
        where = getattr(spec, "origin", None)
        return Source(None, digest_of(Path(where).read_bytes())) if where else None
    except (ImportError, OSError, SyntaxError, ValueError):
        return None
