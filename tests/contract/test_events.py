"""Events against their contract: a struct and its protobuf message are the same thing, in JSON and in every language.

Also against their past: whatever a store holds can be read for ever.
"""

import json
from typing import Any

import msgspec
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.foundation.events import encode
from tests.support.event_types import GOLDEN, descriptor, event_types, filled, golden_files, struct_types, structs

EVENTS = event_types()
STRUCTS = struct_types()
by_name = pytest.mark.parametrize("event_type", EVENTS, ids=lambda event: event.type_name)
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def proto(event: Any) -> Any:
    return event.to_proto()


def test_the_discovery_finds_events() -> None:
    names = [event.type_name for event in EVENTS]
    assert len(names) == len(set(names))
    assert {"recorrido.ingest.v1.InteractionRecorded", "recorrido.actions.v1.ActionOpened"} <= set(names)


@by_name
@many
@given(data=st.data())
def test_what_we_write_every_protobuf_reads(event_type: Any, data: st.DataObject) -> None:
    event = data.draw(structs(event_type))
    read = json_format.Parse(encode(event), type(proto(event))())
    assert read == proto(event)
    assert event_type.from_proto(read) == event


@by_name
@many
@given(data=st.data(), full=st.booleans())
def test_what_any_protobuf_writes_we_read(event_type: Any, data: st.DataObject, full: bool) -> None:  # noqa: FBT001
    message = proto(data.draw(structs(event_type)))
    text = json_format.MessageToJson(message, always_print_fields_with_no_presence=full)
    assert msgspec.json.decode(text, type=event_type) == event_type.from_proto(message)


@by_name
@many
@given(data=st.data())
def test_json_and_binary_carry_the_same(event_type: Any, data: st.DataObject) -> None:
    event = data.draw(structs(event_type))
    message = proto(event)
    over_the_wire = type(message).FromString(message.SerializeToString())
    assert event_type.from_proto(over_the_wire) == event == msgspec.json.decode(encode(event), type=event_type)


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.type_name)
def test_a_struct_has_the_fields_of_its_message_by_their_json_names(struct: Any) -> None:
    fields = [(f.name, f.encode_name) for f in msgspec.structs.fields(struct)]
    assert fields == [(f.name, f.json_name) for f in descriptor(struct).fields]


@by_name
def test_an_empty_event_is_an_empty_object(event_type: Any) -> None:
    assert encode(event_type()) == b"{}"
    assert msgspec.json.decode(b"{}", type=event_type) == event_type()


# -- what a newer contract may bring -------------------------------------------------------------------------------


def with_unknown_fields(content: dict[str, Any], message: Descriptor) -> dict[str, Any]:
    more: dict[str, Any] = {"fieldOfTomorrow": [{"x": None}]}
    for field in message.fields:
        value, within = content.get(field.json_name), field.message_type
        # A key of a map is content, not a field.
        if isinstance(value, dict) and within is not None and not within.GetOptions().map_entry:
            value = with_unknown_fields(value, within)
        elif isinstance(value, list) and within is not None:
            value = [with_unknown_fields(each, within) for each in value]
        more[field.json_name] = value
    return more


@by_name
def test_unknown_fields_are_passed_over_at_every_depth(event_type: Any) -> None:
    event = filled(event_type)
    more = with_unknown_fields(json.loads(encode(event)), descriptor(event_type))
    assert msgspec.json.decode(json.dumps(more), type=event_type) == event


def enums(message: Descriptor, seen: frozenset[str] = frozenset()) -> list[tuple[FieldDescriptor, ...]]:
    """Return the path to every enum that a message holds."""
    paths: list[tuple[FieldDescriptor, ...]] = []
    for field in message.fields:
        if field.enum_type is not None:
            paths.append((field,))
        elif field.message_type is not None and field.message_type.full_name not in seen:
            deeper = enums(field.message_type, seen | {message.full_name})
            paths.extend((field, *path) for path in deeper)
    return paths


ENUM_PATHS = [(event, path) for event in EVENTS for path in enums(descriptor(event))]


@pytest.mark.parametrize(
    ("event_type", "path"),
    ENUM_PATHS,
    ids=[f"{event.type_name}:{'.'.join(field.name for field in path)}" for event, path in ENUM_PATHS],
)
def test_an_unknown_enum_value_reads_as_unspecified(event_type: Any, path: tuple[FieldDescriptor, ...]) -> None:
    content = json.loads(encode(filled(event_type)))
    message = proto(filled(event_type))
    at, inside = content, message
    for field in path[:-1]:
        at, inside = at[field.json_name], getattr(inside, field.name)
        if field.is_repeated:
            at, inside = at[0], inside[0]
    if path[-1].is_repeated:
        at[path[-1].json_name][0] = "VALUE_OF_TOMORROW"
        getattr(inside, path[-1].name)[0] = 77
    else:
        at[path[-1].json_name] = "VALUE_OF_TOMORROW"
        setattr(inside, path[-1].name, 77)

    from_json = msgspec.json.decode(json.dumps(content), type=event_type)
    assert from_json == event_type.from_proto(message)
    value: Any = from_json
    for field in path:
        value = getattr(value, field.name)
        value = value[0] if isinstance(value, tuple) else value
    assert value.name == "UNSPECIFIED"


def test_a_time_finer_than_ours_is_read() -> None:
    # A protobuf of another language may write nanoseconds.
    (event_type,) = (e for e in EVENTS if e.type_name == "recorrido.actions.v1.ActionOpened")
    event = msgspec.json.decode(b'{"occurredAt": "2026-01-02T03:04:05.123456789Z"}', type=event_type)
    message = json_format.Parse('{"occurredAt": "2026-01-02T03:04:05.123456789Z"}', type(proto(event))())
    difference = event.occurred_at - event_type.from_proto(message).occurred_at
    assert abs(difference.total_seconds()) <= 0.000_001


# -- golden bytes --------------------------------------------------------------------------------------------------

HOW = "run `PYTHONPATH=.:proto/gen .venv/bin/python tests/golden/write.py` and commit what it writes"
STORED = [(event, path) for event in EVENTS for path in golden_files(event)]


@by_name
def test_every_type_is_stored_with_every_field(event_type: Any) -> None:
    stored = [path.read_bytes() for path in golden_files(event_type)]
    assert stored, f"no golden file of {event_type.type_name}: {HOW}"
    assert encode(filled(event_type)) in stored, f"no golden file holds every field of {event_type.type_name}: {HOW}"


@pytest.mark.parametrize(("event_type", "path"), STORED, ids=[path.name for _, path in STORED])
def test_what_was_written_once_is_read_for_ever(event_type: Any, path: Any) -> None:
    stored = path.read_bytes()
    event = msgspec.json.decode(stored, type=event_type)
    assert encode(event) == stored
    assert json_format.Parse(stored, type(proto(event))()) == proto(event)


def test_no_golden_file_belongs_to_a_type_that_is_gone() -> None:
    assert set(GOLDEN.glob("*.json")) == {path for _, path in STORED}
