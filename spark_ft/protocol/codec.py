"""Messages <-> bytes: msgpack arrays, typed on the way in, derived from the type hints.

    message of the union     [tag, field, field, ...]       tag: the class's name
    dataclass inside it      [field, field, ...]            or tagged, where the hint is a union
    tuple                    array                          dict: map         None: nil

What holds:

- ``decode(encode(m)) == m`` for every message whose fields fit their hints.
- Nothing of a wrong type gets past ``decode``: whoever holds a message need not look again.
  Whatever is wrong with the bytes, the only thing raised is RemoteProtocolError.
- A field that is missing at the end takes its default, one too many at the end is ignored, so
  two neighbouring versions understand each other; unknown tags are refused by name.
- No pickle: bytes stay bytes.

The functions that build and check are generated once per class when this module is imported (as
``dataclasses`` makes ``__init__``): a loop over fields at run time would be four times slower, and
a message of a few fields has to cost a few microseconds.
"""

from __future__ import annotations

import dataclasses
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgpack  # type: ignore[import-untyped]  # it ships no types

from spark_ft.errors import LocalProtocolError, RemoteProtocolError
from spark_ft.protocol.messages import Message

WIRE_VERSION = 1  # of the frame's header; a change of messages alone needs no new one
MAX_BYTES = 128 << 20  # of one message, unless told otherwise

Raw = tuple[Any, ...]  # what msgpack makes of one message
T = TypeVar("T")


def encode(message: Message, max_bytes: int = MAX_BYTES) -> bytes:
    """One message as bytes.

    Raises LocalProtocolError for what is no message, does not fit msgpack (an integer beyond
    64 bits, an object) or is larger than ``max_bytes``.
    """
    try:
        data: bytes = msgpack.packb(_encode_message[type(message)](message), unicode_errors="surrogatepass")
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise LocalProtocolError(f"{type(message).__name__} cannot be sent: {error!r}") from error
    if len(data) > max_bytes:
        what = f"{type(message).__name__} of {len(data)} bytes"
        raise LocalProtocolError(f"{what} is larger than spark.rpc.message.maxSize ({max_bytes})")
    return data


def decode(data: bytes | memoryview, max_bytes: int = MAX_BYTES) -> Message:
    """The message in ``data``; RemoteProtocolError if there is none, or a wrong one."""
    return build(_unpack(data, max_bytes))


def join(encoded: Sequence[bytes]) -> bytes:
    """Several encoded messages as one body, to be taken apart by ``split``."""
    count = len(encoded)
    if count < 16:
        head = bytes((0x90 | count,))
    elif count < 1 << 16:
        head = b"\xdc" + count.to_bytes(2, "big")
    else:
        head = b"\xdd" + count.to_bytes(4, "big")
    return head + b"".join(encoded)


def split(body: bytes | memoryview, max_bytes: int = MAX_BYTES) -> tuple[Raw, ...]:
    """The messages of a body, each still to be ``build``-ed: one bad one need not cost the others."""
    raws = _unpack(body, max_bytes)
    if type(raws) is not tuple:
        raise RemoteProtocolError("a body must be an array of messages")
    return raws


def build(raw: Raw) -> Message:
    """Check one unpacked message and make the dataclass of it."""
    try:
        if type(raw) is not tuple or not raw or type(raw[0]) is not str or raw[0] not in _BY_TAG:
            _bad("unknown tag of a message", raw)
        message: Message = _decode_message[raw[0]](raw[1:])
    except RecursionError as error:
        raise RemoteProtocolError("a message nests too deep") from error
    return message


def pack_record(item: object) -> bytes:
    """A dataclass that is no message, tagged, for ``unpack_record``: what a journal holds."""
    data: bytes = msgpack.packb(_encoder(type(item), True)(item), unicode_errors="surrogatepass")
    return data


def unpack_record(kinds: Mapping[str, type[T]], data: bytes) -> T:
    """What ``pack_record`` made of one of ``kinds`` (by name).  Raises RemoteProtocolError."""
    raw = _unpack(data, MAX_BYTES)
    if type(raw) is not tuple or not raw or type(raw[0]) is not str or raw[0] not in kinds:
        _bad("unknown tag of a record", raw)
    item: T = _class_decoder(kinds[raw[0]])(raw[1:])
    return item


def _unpack(data: bytes | memoryview, max_bytes: int) -> Any:
    if len(data) > max_bytes:
        raise RemoteProtocolError(f"{len(data)} bytes are more than the {max_bytes} allowed")
    try:
        return msgpack.unpackb(data, use_list=False, strict_map_key=False, unicode_errors="surrogatepass")
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"not msgpack: {error!r}") from error


# --- Generated functions ------------------------------------------------------------------

_Function = Callable[[Any], Any]
_PRIMITIVES = {int: "int", str: "str", bytes: "bytes", bool: "bool"}
_MESSAGES: tuple[type, ...] = typing.get_args(Message)


def _bad(where: str, value: object) -> typing.NoReturn:
    raise RemoteProtocolError(f"{where}: unexpected {type(value).__name__} {reprlib.repr(value)}")


def _strip(hint: Any) -> Any:
    """A NewType is, on the wire, what it is made of."""
    while isinstance(hint, typing.NewType):
        hint = hint.__supertype__
    return hint


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return ()


# Encoding: an expression over ``v``, or None where msgpack can take the value as it is.

_plain_encoders: dict[type, _Function] = {}
_tagged_encoders: dict[type, _Function] = {}  # with the tag in front


def _encoder(cls: type, tagged: bool) -> _Function:
    table = _tagged_encoders if tagged else _plain_encoders
    if cls not in table:
        names: dict[str, Any] = {}
        hints = typing.get_type_hints(cls)
        parts = [repr(cls.__name__)] if tagged else []
        for row in dataclasses.fields(cls):
            parts.append(_encode_expression(hints[row.name], f"m.{row.name}", names) or f"m.{row.name}")
        parts.append("")  # the comma that makes a tuple of a single part
        table[cls] = _compile(f"def encode_{cls.__name__}(m):\n return ({', '.join(parts)})", names)
    return table[cls]


def _encode_expression(hint: Any, value: str, names: dict[str, Any]) -> str | None:
    hint = _strip(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if alternatives := _alternatives(hint):
        classes = [a for a in alternatives if dataclasses.is_dataclass(a)]
        inner = [_encode_expression(a, value, names) for a in alternatives if a is not types.NoneType]
        if len(classes) > 1:
            for cls in classes:
                _encoder(typing.cast(type, cls), True)
            names["tagged"] = _tagged_encoders
            expression: str | None = f"tagged[type({value})]({value})"
        else:
            expression = inner[0] if len(inner) == 1 else None
        if expression and types.NoneType in alternatives:
            expression = f"(None if {value} is None else {expression})"
        return expression
    if dataclasses.is_dataclass(hint):
        name = f"encode_{hint.__name__}"  # type: ignore[union-attr]  # a dataclass is a type here
        names[name] = _encoder(typing.cast(type, hint), False)
        return f"{name}({value})"
    if origin is tuple and args[-1] is Ellipsis:
        item = _encode_expression(args[0], "v", names)
        return item and f"({value} and [{item} for v in {value}])"
    if origin is dict:
        item = _encode_expression(args[1], "v", names)
        return item and f"{{k: {item} for k, v in {value}.items()}}"
    return None


# Decoding: one function per hint, with the common cases written out in their class's function.


def _decoder(hint: Any, where: str) -> _Function:
    """A function that checks a value against ``hint`` and returns what it stands for."""
    hint = _strip(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    names: dict[str, Any] = {"bad": _bad}
    if alternatives := _alternatives(hint):
        return _union_decoder(alternatives, where)
    if dataclasses.is_dataclass(hint):
        return _class_decoder(typing.cast(type, hint))
    if origin is tuple and args[-1] is Ellipsis:
        names["item"] = _decoder(args[0], where)
        return _compile(
            f"def f(v):\n if type(v) is not tuple: bad({where!r}, v)\n return tuple([item(x) for x in v])",
            names,
        )
    if origin is tuple:
        names.update({f"f{i}": _decoder(arg, where) for i, arg in enumerate(args)})
        items = "".join(f"f{i}(v[{i}])," for i in range(len(args)))
        return _compile(
            f"def f(v):\n if type(v) is not tuple or len(v) != {len(args)}: bad({where!r}, v)\n"
            f" return ({items})",
            names,
        )
    if origin is dict:
        names["key"], names["item"] = _decoder(args[0], where), _decoder(args[1], where)
        return _compile(
            f"def f(v):\n if type(v) is not dict: bad({where!r}, v)\n"
            " return {key(k): item(x) for k, x in v.items()}",
            names,
        )
    lines = _check_lines(hint, "v", where, names)
    if lines is None:
        raise TypeError(f"{where}: {hint} cannot travel")
    return _compile("def f(v):\n" + "".join(f" {line}\n" for line in lines) + " return v", names)


def _union_decoder(alternatives: tuple[Any, ...], where: str) -> _Function:
    names: dict[str, Any] = {"bad": _bad}
    rest = [a for a in alternatives if a is not types.NoneType]
    none = "if v is None: return None\n " if len(rest) < len(alternatives) else ""
    if len(rest) == 1:
        names["inner"] = _decoder(rest[0], where)
        return _compile(f"def f(v):\n {none}return inner(v)", names)
    if not all(dataclasses.is_dataclass(a) for a in rest):
        raise TypeError(f"{where}: a union of other things than dataclasses cannot travel")
    names["table"] = {a.__name__: _class_decoder(a) for a in rest}
    return _compile(
        f"def f(v):\n {none}if type(v) is not tuple or not v or type(v[0]) is not str: bad({where!r}, v)\n"
        f" inner = table.get(v[0])\n if inner is None: bad('unknown tag in ' + {where!r}, v[0])\n"
        " return inner(v[1:])",
        names,
    )


_class_decoders: dict[type, _Function] = {}


def _class_decoder(cls: type) -> _Function:
    """The fields of ``cls`` in order -> an instance; too few take defaults, too many are ignored."""
    if cls in _class_decoders:
        return _class_decoders[cls]
    hints, rows = typing.get_type_hints(cls), dataclasses.fields(cls)
    required = sum(
        row.default is dataclasses.MISSING and row.default_factory is dataclasses.MISSING for row in rows
    )
    decoders = [_decoder(hints[row.name], f"{cls.__name__}.{row.name}") for row in rows]

    def some(v: Raw) -> Any:
        if len(v) < required:
            _bad(f"{cls.__name__} needs {required} fields", v)
        return cls(*[decode(item) for decode, item in zip(decoders, v, strict=False)])

    names: dict[str, Any] = {"bad": _bad, "cls": cls, "some": some}
    body = [f"if type(v) is not tuple: bad({cls.__name__!r}, v)"]
    if rows:
        variables = ", ".join(f"v{i}" for i in range(len(rows)))
        body += [f"if len(v) < {len(rows)}: return some(v)", f"{variables}, *_ = v"]
        if len(rows) > 1:  # the plain unpacking is faster, and the usual case
            body[-1:] = [f"if len(v) > {len(rows)}: v = v[:{len(rows)}]", f"{variables} = v"]
        for i, row in enumerate(rows):
            lines = _check_lines(_strip(hints[row.name]), f"v{i}", f"{cls.__name__}.{row.name}", names)
            if lines is None:
                names[f"f{i}"] = decoders[i]
                lines = [f"if v{i} != (): v{i} = f{i}(v{i})"]
                if typing.get_origin(_strip(hints[row.name])) is not tuple:
                    lines = [f"v{i} = f{i}(v{i})"]
            body += lines
        body.append(f"return cls({variables})")
    else:
        body.append("return cls()")
    source = f"def decode_{cls.__name__}(v):\n" + "".join(f" {line}\n" for line in body)
    _class_decoders[cls] = _compile(source, names)
    return _class_decoders[cls]


def _check_lines(hint: Any, value: str, where: str, names: dict[str, Any]) -> list[str] | None:
    """Statements that check ``value`` in place, for hints that need no function of their own."""
    if hint in _PRIMITIVES:
        return [f"if type({value}) is not {_PRIMITIVES[hint]}: bad({where!r}, {value})"]
    if hint is float:  # a float that happens to be whole may have been an int at the sender's
        return [
            f"if type({value}) is not float:",
            f"  if type({value}) is not int: bad({where!r}, {value})",
            f"  {value} = float({value})",
        ]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and args[-1] is Ellipsis and (item := _strip(args[0])) in _PRIMITIVES:
        names[f"only_{item.__name__}"] = {item}
        return [
            f"if type({value}) is not tuple or not {{*map(type, {value})}} <= only_{item.__name__}: "
            f"bad({where!r}, {value})"
        ]
    if origin is dict and all(_strip(arg) in _PRIMITIVES for arg in args):
        key, item = (_strip(arg) for arg in args)
        names[f"only_{key.__name__}"], names[f"only_{item.__name__}"] = {key}, {item}
        return [
            f"if type({value}) is not dict or not ({{*map(type, {value})}} <= only_{key.__name__} and "
            f"{{*map(type, {value}.values())}} <= only_{item.__name__}): bad({where!r}, {value})"
        ]
    return None


def _compile(source: str, names: dict[str, Any]) -> _Function:
    """The one function that ``source`` defines; ``names`` are its globals."""
    before = set(names)
    exec(source, names)  # source is made above, of the names of our own classes and fields
    (name,) = set(names) - before - {"__builtins__"}
    return typing.cast(_Function, names.pop(name))


class _Encoders(dict[type, _Function]):
    """Message class -> encoder, generated when the first message of that kind is sent: a process meets
    a few kinds only, and generating all of them would take a tenth of its start."""

    def __missing__(self, cls: type) -> _Function:
        if cls not in _MESSAGES:
            raise KeyError(cls)
        return self.setdefault(cls, _encoder(cls, True))


class _Decoders(dict[str, _Function]):
    """Tag -> decoder of the fields, generated when the first message of that kind comes."""

    def __missing__(self, tag: str) -> _Function:
        return self.setdefault(tag, _class_decoder(_BY_TAG[tag]))


_BY_TAG = {cls.__name__: cls for cls in _MESSAGES}
_encode_message = _Encoders()
_decode_message = _Decoders()
