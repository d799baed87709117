"""Every event type there is, found in the generated code, and examples of each: one filled, any number at random."""

import importlib
import typing
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

GENERATED = Path(__file__).parents[2] / "proto/gen"
GOLDEN = Path(__file__).parents[1] / "golden"

_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
}


def event_types() -> list[type[Any]]:
    """Return the events of every package of the contracts."""
    modules = sorted(path.relative_to(GENERATED) for path in GENERATED.glob("recorrido/*/v*/events.py"))
    return [event for path in modules for event in importlib.import_module(".".join(path.with_suffix("").parts)).EVENTS]


def struct_types() -> list[type[msgspec.Struct]]:
    """Return the event types and every struct that they hold, each once."""
    return list({found: None for event in event_types() for found in structs_within(event)})


def structs_within(struct: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """Return a struct type and every one that it holds, each once."""
    found: dict[type[msgspec.Struct], None] = {}

    def visit(struct: type[msgspec.Struct]) -> None:
        found[struct] = None
        for annotation in typing.get_type_hints(struct).values():
            for each in _within(annotation):
                if isinstance(each, type) and issubclass(each, msgspec.Struct) and each not in found:
                    visit(each)

    visit(struct)
    return list(found)


def _within(annotation: Any) -> Iterator[Any]:
    arguments = typing.get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _within(argument)


def descriptor(struct: type[msgspec.Struct]) -> Descriptor:
    """Return the descriptor of the struct's protobuf message."""
    found: Descriptor = type(struct().to_proto()).DESCRIPTOR  # type: ignore[attr-defined]
    assert found.full_name == struct.type_name  # type: ignore[attr-defined]
    return found


# -- at random -----------------------------------------------------------------------------------------------------


def structs(struct: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Generate structs over the whole range of what the contract can carry."""
    hints = typing.get_type_hints(struct)
    fields = descriptor(struct).fields_by_name
    return st.builds(
        struct,
        **{field.name: _values(hints[field.name], fields[field.name]) for field in msgspec.structs.fields(struct)},
    )


def _values(annotation: Any, field: FieldDescriptor) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - one per kind of type
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if type(None) in arguments:
        (inner,) = (a for a in arguments if a is not type(None))
        return st.none() | _values(inner, field)
    if origin is tuple:
        return st.lists(_values(arguments[0], field), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)
    if annotation is str:
        return st.text(max_size=20)
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return st.integers(*_INTEGERS[field.type])
    if annotation is float:
        # Adding 0.0 turns the minus off -0.0, which proto3 JSON tells apart and nobody else.
        return st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0)
    if annotation is datetime:
        return st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001
    if issubclass(annotation, StrEnum):
        return st.sampled_from(annotation)
    return structs(annotation)


# -- filled --------------------------------------------------------------------------------------------------------


def filled(struct: type[msgspec.Struct]) -> Any:
    """Return the example of `struct` in which every field is given, and no two alike; the same every time."""
    return _Filler().struct(struct)


class _Filler:
    def __init__(self) -> None:
        self._number = 0

    def _next(self) -> int:
        self._number += 1
        return self._number

    def struct(self, struct: type[msgspec.Struct]) -> Any:
        hints = typing.get_type_hints(struct)
        return struct(**{f.name: self._value(hints[f.name], f.name) for f in msgspec.structs.fields(struct)})

    def _value(self, annotation: Any, name: str) -> Any:  # noqa: PLR0911 - one per kind of type
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if type(None) in arguments:
            (inner,) = (a for a in arguments if a is not type(None))
            return self._value(inner, name)
        if origin is tuple:
            return (self._value(arguments[0], name), self._value(arguments[0], name))
        if origin is Mapping:
            return {f"{name} {self._next()}": f"{name} {self._next()}" for _ in range(2)}
        number = self._next()
        if annotation is str:
            # Letters of two languages, a quote, a line break and a sign outside of the first plane.
            return f'{name} {number} čü"\n\N{SLIGHTLY SMILING FACE}'
        if annotation is bool:
            return True
        if annotation is int:
            return number
        if annotation is float:
            return number + 0.125
        if annotation is datetime:
            return datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC) + timedelta(days=number)
        if issubclass(annotation, StrEnum):
            values = list(annotation)
            return values[1 + number % (len(values) - 1)]
        return self.struct(annotation)


def oddities() -> Iterator[tuple[str, bytes]]:
    """Yield events of every type, as type and data, that can be decoded and make no sense: empty ones, and odd ones."""
    for struct in event_types():
        name: str = struct.type_name
        yield name, b"{}"
        whole = msgspec.json.decode(msgspec.json.encode(filled(struct)))
        for text in ("\0", "x" * 9_000, "-1", str(2**64)):
            yield name, msgspec.json.encode(_odd(whole, text))


def _odd(value: Any, text: str) -> Any:
    """Return what JSON holds with other texts, times and numbers than anybody would expect; names of values stay."""
    if isinstance(value, dict):
        return {key: _odd(each, text) for key, each in value.items()}
    if isinstance(value, list):
        return [_odd(each, text) for each in value]
    if isinstance(value, str):
        of_a_time = "0001-01-01T00:00:00Z" if value.endswith("Z") else value
        return text if "čü" in value else of_a_time
    return value if isinstance(value, bool) else type(value)(-(2**31))


def golden_files(struct: type[msgspec.Struct]) -> list[Path]:
    """Return the stored examples of an event type, oldest first."""
    files = GOLDEN.glob(f"{struct.type_name}.*.json")  # type: ignore[attr-defined]
    return sorted(files, key=lambda path: int(path.name.split(".")[-2]))
