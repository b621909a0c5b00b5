"""JSON that was written by this project, or by nobody knows whom, read as what its types say."""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.command import RunError

LONGEST_KEY = 120  # characters in a message
Scalar = str | int | float | bool | None


class Misfit(ValueError):
    """A JSON value is not of the shape of its type."""

    def __init__(self, key: str, found: str, expected: str) -> None:
        key = key if len(key) <= LONGEST_KEY else f"{key[:LONGEST_KEY]}…"
        super().__init__(
            f"{key}: found {found}, expected {expected}" if key else f"found {found}, expected {expected}"
        )


def parse_json(text: str | bytes, file: Path | str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise RunError(f"{file}: not JSON of this project (nested too deeply).") from None
    except ValueError as error:
        raise RunError(f"{file}: not JSON ({error}); it was changed after the run wrote it.") from None


def describe_value(value: Any) -> str:
    """Return a JSON value in a few words, however large it is."""
    for kinds, words in ((Mapping, "an object"), (list, "a list"), (type(None), "null")):
        if isinstance(value, kinds):
            return words
    text = json.dumps(value[:41] if isinstance(value, str) else value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}…"


@functools.cache
def list_fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """Return the type of each field of a dataclass, and whether the JSON may lack it."""
    hints, found = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        hint, optional = hints[field.name], field.default is not dataclasses.MISSING
        if optional:  # where it is None, the JSON lacks it, and has no null
            (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
        found[field.name] = hint, optional
    return found


def read_value(value: Any, hint: Any, key: str) -> Any:
    """Return a JSON value as one of the type `hint`: a dataclass, a TypedDict, a mapping, a tuple, a scalar.

    Raises:
        Misfit: it is of another shape.
    """
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return read_object(value, typing.cast(type, hint), key)
    if typing.is_typeddict(hint):
        return read_keys(value, hint, key)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Mapping:
        check_kind(value, Mapping, key, "an object")
        return {name: read_value(inner, arguments[1], join_key(key, name)) for name, inner in value.items()}
    if origin is tuple:
        check_kind(value, list, key, "a list")
        return tuple(read_value(inner, arguments[0], f"{key}[{place}]") for place, inner in enumerate(value))
    if origin is types.UnionType or origin is typing.Union:
        if value is None and type(None) in arguments:
            return None
        kinds = [kind for kind in arguments if kind is not type(None)]
        return read_value(value, kinds[0], key) if len(kinds) == 1 else read_scalar(value, key)
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    check_kind(value, (int, float) if hint is float else hint, key, names[hint])
    if isinstance(value, bool) and hint is not bool:
        raise Misfit(key, describe_value(value), names[hint])
    return check_finite(value, key)


def read_object(value: Any, kind: type, key: str) -> Any:
    """Return a JSON object as a dataclass."""
    check_kind(value, Mapping, key, "an object")
    known = list_fields(kind)
    for name in value:
        if name not in known:
            raise Misfit(join_key(key, name), "an unknown key", f"some of {', '.join(known)}")
    found = {}
    for name, (hint, optional) in known.items():
        if name in value or not optional:
            found[name] = read_field(value, name, hint, key)
    return kind(**found)


def read_keys(value: Any, kind: Any, key: str) -> Any:
    """Return a JSON object that has a TypedDict's keys; it may have others."""
    check_kind(value, Mapping, key, "an object")
    for name, hint in typing.get_type_hints(kind).items():
        if name in value or name in kind.__required_keys__:
            read_field(value, name, hint, key)
    return value


def join_key(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def read_field(value: Mapping[str, Any], name: str, hint: Any, key: str) -> Any:
    place = join_key(key, name)
    if name not in value:
        raise Misfit(place, "nothing", "this key")
    return read_value(value[name], hint, place)


def read_scalar(value: Any, key: str) -> Scalar:
    check_kind(value, (str, int, float, bool), key, "a text, a number, true, false or null")
    return typing.cast(Scalar, check_finite(value, key))


def check_kind(value: Any, kinds: Any, key: str, expected: str) -> None:
    if not isinstance(value, kinds):
        raise Misfit(key, describe_value(value), expected)


def check_finite(value: Any, key: str) -> Any:
    try:
        finite = not isinstance(value, int | float) or math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        finite = False
    if not finite:
        raise Misfit(key, describe_value(value), "a finite number")
    return value
