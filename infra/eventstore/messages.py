"""Messages of KurrentDB's protocol that the Python client's package lacks, declared by field name, number and type."""

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FEATURES_PACKAGE: Final = "event_store.client.server_features"
OPERATIONS_PACKAGE: Final = "event_store.client.operations"

_Field = descriptor_pb2.FieldDescriptorProto
_TYPES: Final = {"string": _Field.TYPE_STRING, "int32": _Field.TYPE_INT32}
_Fields = Mapping[str, tuple[int, str]]


def _declare(package: str, messages: Mapping[str, _Fields]) -> dict[str, Any]:
    """Message classes by name. A type is "string", "int32" or the name of a message; "[]" after it means repeated."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field_name, (number, declared) in fields.items():
            kind = declared.removesuffix("[]")
            field = message.field.add(name=field_name, number=number, label=_Field.LABEL_OPTIONAL)
            if kind != declared:
                field.label = _Field.LABEL_REPEATED
            if kind in _TYPES:
                field.type = _TYPES[kind]
            else:
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".{package}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}


_features = _declare(
    FEATURES_PACKAGE,
    {
        "SupportedMethod": {
            "method_name": (1, "string"),
            "service_name": (2, "string"),
            "features": (3, "string[]"),
        },
        "SupportedMethods": {"methods": (1, "SupportedMethod[]"), "event_store_server_version": (2, "string")},
    },
)
SupportedMethods: Final = _features["SupportedMethods"]

_operations = _declare(
    OPERATIONS_PACKAGE,
    {
        "Options": {"thread_count": (1, "int32"), "start_from_chunk": (2, "int32")},
        "StartScavengeReq": {"options": (1, "Options")},
        "StopOptions": {"scavenge_id": (1, "string")},
        "StopScavengeReq": {"options": (1, "StopOptions")},
        # scavenge_result is an enum on the wire, which is the same as an int32.
        "ScavengeResp": {"scavenge_id": (1, "string"), "scavenge_result": (2, "int32")},
    },
)
StartScavengeReq: Final = _operations["StartScavengeReq"]
StopScavengeReq: Final = _operations["StopScavengeReq"]
ScavengeResp: Final = _operations["ScavengeResp"]

SCAVENGE_STARTED: Final = 0
SCAVENGE_IN_PROGRESS: Final = 1
SCAVENGE_STOPPED: Final = 2
