"""What a Python value is made of, as far as a task can tell: the parts that a fingerprint is made from.

    functions   the user's: code, defaults, captured variables, the globals it reads, its imports
                others: by name, and the distribution they came with
    classes     the user's: bases and namespace; others: by name
    modules     the user's, where one is used as a whole: the code of its file, and what that imports
    values      numbers, strings and collections by content; dicts in order, sets without
    objects     what they would be pickled as: the class, and its state by ``__reduce_ex__``

What does not come apart (a lock, a generator, an open file) is a part that says why, and differs from
everything.  An object whose class has ``__fingerprint__`` stands for what that returns.
"""

from __future__ import annotations

import copyreg
import functools
import operator
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from spark_ft.lineage import packages
from spark_ft.lineage.canonical import Part, digest_of, plain
from spark_ft.lineage.code import Chain, Import, facts
from spark_ft.lineage.packages import USER, origin

_MISSING = object()
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_PROTOCOL = 4  # the last one without buffers outside the pickle
_NOT_OF_A_CLASS = {
    "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__",
    "__annotate__", "__annotate_func__", "__annotations_cache__", "__firstlineno__", "__static_attributes__",
    "__orig_bases__", "__parameters__", "__type_params__", "_abc_impl",
}  # fmt: skip


def expand(value: Any) -> Part:
    """One object taken apart.  Never raises."""
    try:
        maker = _MAKERS.get(type(value))
        return _object(value) if maker is None else maker(value)
    except Exception as error:  # user code runs in properties and __reduce__: it may raise anything
        return _unknown(value, f"{type(error).__name__}: {error}")


def _unknown(value: Any, why: str) -> Part:
    return Part(_kind(value), b"", unsafe=why)


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _found(module_name: str, qualname: str) -> Any:
    """What a pickle that names it would load; _MISSING when there is nothing."""
    value: Any = sys.modules.get(module_name, _MISSING)
    for name in qualname.split("."):
        value = getattr(value, name, _MISSING)
        if value is _MISSING:
            break
    return value


def _by_name(value: Any, what: str) -> Part | None:
    """A function or class of the interpreter, the engine or a distribution; None for the user's, and for
    one made anew each time."""
    module, name = getattr(value, "__module__", None) or "builtins", value.__qualname__
    whose = origin(module)
    if whose.kind == USER or _found(module, name) is not value:
        return None
    return _named(what, module, name, whose)


def _named(what: str, module: str, name: str, whose: packages.Origin) -> Part:
    how = f"{what} {module}.{name}, of {whose.name}"
    return Part(how, digest_of(b"named", what, module, name, whose.digest))


# --- Functions ----------------------------------------------------------------------------------


def _function(function: types.FunctionType) -> Part:
    if (known := _by_name(function, "function")) is not None:
        return known
    about = facts(function.__code__)
    whose = origin(function.__module__ or "")
    names: list[str] = []
    children: list[Any] = []
    lacking: list[str] = []

    def add(name: str, value: Any) -> None:
        if value is _MISSING:
            lacking.append(name)
        else:
            names.append(name)
            children.append(value)

    for i, value in enumerate(function.__defaults__ or ()):
        add(f"default {i}", value)
    for name, value in sorted((function.__kwdefaults__ or {}).items()):
        add(f"default {name}", value)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        add(f"variable {name}", _content(cell))
    if whose.kind == USER:  # what others' code reads of its module goes with the distribution
        for chain in about.globals:
            for name, value in _global(function.__globals__, chain):
                add(f"global {name}", value)
        for name, value in _imported(function.__globals__, about.imports):
            add(f"import {name}", value)
    for name, value in sorted(function.__dict__.items()):
        add(f"attribute {name}", value)
    how = f"function {function.__name__} at line {function.__code__.co_firstlineno}, by its code"
    label = digest_of(b"function", about.digest, whose.digest, *lacking)
    return Part(how, label, children, names)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return _MISSING


def _global(namespace: dict[str, Any], chain: Chain) -> Iterator[tuple[str, Any]]:
    """A global as code reads it.  Of a user's module, what is asked of it; of any other, its name."""
    name, *attributes = chain
    value = namespace.get(name, _MISSING)
    if value is _MISSING:
        builtin = namespace.get("__builtins__", {})
        builtin = builtin if isinstance(builtin, dict) else vars(builtin)
        yield name, builtin.get(name, _MISSING)
        return
    for attribute in attributes:
        if not isinstance(value, types.ModuleType) or origin(value.__name__).kind != USER:
            break
        inner = vars(value).get(attribute, _MISSING)
        if inner is _MISSING:  # made when it is asked for, or missing: then by the whole module
            break
        name, value = f"{name}.{attribute}", inner
    yield name, value


def _imported(namespace: dict[str, Any], imports: Sequence[Import]) -> Iterator[tuple[str, Any]]:
    """The modules that code imports when it runs."""
    package = namespace.get("__package__") or ""
    for name, names, level in imports:
        full = name
        if level:
            above = package.rsplit(".", level - 1)[0] if level > 1 else package
            full = f"{above}.{name}" if name else above
        yield full, whole_module(full)
        for inner in names:  # perhaps modules too
            if origin(full).kind == USER and packages.source_of(f"{full}.{inner}") is not None:
                yield f"{full}.{inner}", whole_module(f"{full}.{inner}")


class WholeModule:
    """A module by the code that whoever imports it will run."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


@functools.cache
def whole_module(name: str) -> WholeModule:
    """One object a name: cycles of imports end."""
    return WholeModule(name)


def _whole_module(module: WholeModule) -> Part:
    whose = origin(module.name)
    if whose.kind != USER:
        return Part(f"module {module.name}, of {whose.name}", digest_of(b"module", whose.digest, module.name))
    source = packages.source_of(module.name)
    if source is None:
        if module.name in sys.modules:
            return Part(f"module {module.name}", b"", unsafe="its code cannot be read")
        return Part(f"module {module.name}, not to be found", digest_of(b"no module", module.name))
    if source.code is None:
        return Part(f"module {module.name}, by its file", digest_of(b"extension", source.file))
    about = facts(source.code)
    package = {"__package__": module.name if source.is_package else module.name.rpartition(".")[0]}
    imported = dict(_imported(package, about.imports))
    label = digest_of(b"module", about.digest)
    return Part(f"module {module.name}, by its code", label, list(imported.values()), list(imported))


def _module(module: types.ModuleType) -> Part:
    if module.__name__ in sys.modules:
        return _whole_module(whole_module(module.__name__))
    return _unknown(module, "a module that nobody can import")


def _builtin(function: types.BuiltinFunctionType) -> Part:
    owner = function.__self__
    if owner is None or isinstance(owner, types.ModuleType):
        module = function.__module__ or "builtins"
        whose = origin(module)
        if whose.kind == USER:  # of a compiled module that is the user's
            label = digest_of(b"builtin", function.__qualname__)
            return Part(f"function {function.__qualname__}", label, [whole_module(module)], ["module"])
        return _named("function", module, function.__qualname__, whose)
    return Part(f"method {function.__name__}", digest_of(b"method", function.__name__), [owner], ["self"])


def _method(method: types.MethodType) -> Part:
    return Part("method", b"method", [method.__func__, method.__self__], ["function", "self"])


def _descriptor(value: Any) -> Part:
    """``str.upper`` and its like: a slot of a class."""
    name = value.__name__
    return Part(f"method {value.__qualname__}", digest_of(b"slot", name), [value.__objclass__], ["class"])


def _slot(value: types.MemberDescriptorType) -> Part:
    return Part(f"slot {value.__name__}", digest_of(b"member", value.__name__))


def _wrapping(value: Any) -> Part:
    return Part(type(value).__name__, type(value).__name__.encode(), [value.__func__], ["function"])


def _property(value: property) -> Part:
    return Part("property", b"property", [value.fget, value.fset, value.fdel], ["get", "set", "delete"])


def _cached_property(value: functools.cached_property[Any]) -> Part:
    return Part("cached property", b"cached property", [value.func], ["function"])


def _cached_function(value: Any) -> Part:
    if (known := _by_name(value, "function")) is not None:
        return known
    return Part(
        "cached function", b"lru_cache", [value.__wrapped__, value.cache_parameters()], ["function", "cache"]
    )


def _code(code: types.CodeType) -> Part:
    return Part(f"code of {code.co_name}", facts(code).digest)


def _cell(cell: types.CellType) -> Part:
    value = _content(cell)
    return Part("empty cell", b"empty cell") if value is _MISSING else Part("cell", b"cell", [value])


# --- Classes ------------------------------------------------------------------------------------


def _class(kind: type) -> Part:
    if (known := _by_name(kind, "class")) is not None:
        return known
    if not kind.__flags__ & _HEAP_TYPE:  # written in C: there is nothing to look into
        whose = origin(kind.__module__)
        if whose.kind != USER:
            return _named("class", kind.__module__, kind.__qualname__, whose)
        label = digest_of(b"class in C", kind.__qualname__)
        return Part(f"class {kind.__qualname__}", label, [whole_module(kind.__module__)], ["module"])
    names, children = ["metaclass"], [type(kind)]
    for i, base in enumerate(kind.__bases__):
        names.append(f"base {i}")
        children.append(base)
    for name, value in sorted(vars(kind).items()):
        if name not in _NOT_OF_A_CLASS:
            names.append(f"attribute {name}")
            children.append(value)
    return Part(f"class {kind.__qualname__}", digest_of(b"class", kind.__name__), children, names)


def classes_of_main() -> dict[str, type]:
    """What a program has defined itself: records that were pickled earlier are made into these."""
    main = vars(sys.modules["__main__"]) if "__main__" in sys.modules else {}
    found = {name: value for name, value in list(main.items()) if isinstance(value, type)}
    return {name: kind for name, kind in sorted(found.items()) if kind.__module__ == "__main__"}


# --- Values -------------------------------------------------------------------------------------


def _sequence(value: Sequence[Any]) -> Part:
    how = f"{type(value).__name__} of {len(value)}"
    if (known := plain(value)) is not None:
        return Part(how, digest_of(b"plain", known))
    return Part(how, type(value).__name__.encode(), list(value))


def _dict(value: dict[Any, Any]) -> Part:
    how = f"dict of {len(value)}"
    if (known := plain(value)) is not None:
        return Part(how, digest_of(b"plain", known))
    return Part(how, b"dict", [item for pair in list(value.items()) for item in pair])


def _view(value: types.MappingProxyType[Any, Any]) -> Part:
    return Part("view of a dict", b"mappingproxy", [dict(value)])


def _set(value: frozenset[Any]) -> Part:
    return Part(
        f"{type(value).__name__} of {len(value)}", type(value).__name__.encode(), list(value), ordered=False
    )


def _bytearray(value: bytearray) -> Part:
    return Part(f"bytearray of {len(value)}", digest_of(b"bytearray", bytes(value)))


def _range(value: range | slice) -> Part:
    ends = [value.start, value.stop, value.step]
    return Part(repr(value), type(value).__name__.encode(), ends)


def _object(value: Any) -> Part:
    kind = type(value)
    if isinstance(value, type):
        return _class(value)
    if (stands_for := getattr(kind, "__fingerprint__", None)) is not None:
        return Part(_kind(value), b"stands for", [kind, stands_for(value)], ["class", "__fingerprint__"])
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray" and kind.__qualname__ == "ndarray":
        return _array(value)
    return _reduced(value)


def _array(array: Any) -> Part:
    """A numpy array by its bytes; one of objects by them."""
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    head = repr((array.dtype.str, array.dtype.descr, array.shape, order)).encode()
    how = f"array of {array.shape}, {array.dtype}"
    if array.dtype.hasobject:
        return Part(how, digest_of(b"array", head), [array.ravel().tolist()])
    return Part(how, digest_of(b"array", head, array.tobytes(order)))


def _reduced(value: Any) -> Part:
    """An object as it would be pickled: the parts of that, never the pickle."""
    kind = type(value)
    reducer: Callable[[Any], Any] | None = copyreg.dispatch_table.get(kind)
    try:
        made = value.__reduce_ex__(_PROTOCOL) if reducer is None else reducer(value)
    except Exception as error:  # whatever a user's class raises
        return _unknown(value, f"it cannot be taken apart ({error})")
    if isinstance(made, str):
        module = getattr(value, "__module__", None) or kind.__module__
        whose = origin(module)
        if whose.kind == USER:  # whoever imports the module makes it anew
            label = digest_of(b"global", made)
            return Part(f"{module}.{made}", label, [kind, whole_module(module)], ["class", "module"])
        return _named("global", module, made, whose)
    function, arguments, state, items, pairs, setter = (*made, None, None, None, None)[:6]
    if isinstance(value, (set, frozenset)):  # pickled as a list in no certain order
        arguments = (frozenset(value),)
    names = ["class", "made by"]
    children: list[Any] = [kind, function]
    for i, argument in enumerate(arguments):
        if argument is not kind:
            names.append(f"argument {i}")
            children.append(argument)
    if (attributes := _attributes(state)) is not None:
        for name, item in attributes:
            names.append(f"attribute {name}")
            children.append(item)
    elif state is not None:
        names.append("state")
        children.append(state)
    for name, rest in (("items", items), ("pairs", pairs)):
        if rest is not None:
            names.append(name)
            children.append(list(rest))
    if setter is not None:
        names.append("setter")
        children.append(setter)
    return Part(_kind(value), b"object", children, names)


def _attributes(state: Any) -> list[tuple[str, Any]] | None:
    """The state of most objects, by name: their ``__dict__``, or that and the values of their slots."""
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    found: list[tuple[str, Any]] = []
    for part in parts:
        if part is None:
            continue
        if type(part) is not dict or not all(type(name) is str for name in part):
            return None
        found += part.items()
    return sorted(found, key=operator.itemgetter(0)) if found else None


_MAKERS: dict[type, Callable[[Any], Part]] = {
    types.FunctionType: _function,
    types.BuiltinFunctionType: _builtin,
    types.MethodType: _method,
    types.MethodDescriptorType: _descriptor,
    types.WrapperDescriptorType: _descriptor,
    types.ClassMethodDescriptorType: _descriptor,
    types.GetSetDescriptorType: _descriptor,
    types.MemberDescriptorType: _slot,
    types.CodeType: _code,
    types.CellType: _cell,
    types.ModuleType: _module,
    WholeModule: _whole_module,
    type(functools.lru_cache(len)): _cached_function,
    functools.cached_property: _cached_property,
    staticmethod: _wrapping,
    classmethod: _wrapping,
    property: _property,
    type: _class,
    list: _sequence,
    tuple: _sequence,
    dict: _dict,
    types.MappingProxyType: _view,
    set: _set,
    frozenset: _set,
    bytearray: _bytearray,
    range: _range,
    slice: _range,
}
