"""Property values in the format of the engine's protocol.

A loaded property map consists of JSON values. Secrets, assets and archives are objects with a signature. They are
returned unchanged, so that secrets stay secret, and assets keep the hash of their contents.
"""

import json
from typing import Any

from google.protobuf import json_format, struct_pb2

# Defined by the engine's protocol; see `pulumi.runtime.rpc`.
SIGNATURE = "4dabf18193072939515e22adb298388d"
SECRET = "1b47061264138c4ac30d75fd1eb44270"
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"

Properties = dict[str, Any]


def load(properties: struct_pb2.Struct) -> Properties:
    """Load a property map without null properties, which the engine treats as missing.

    Integral numbers become integers, because shells treat 3.0 and 3 differently.
    """
    return {key: _whole(value) for key, value in json_format.MessageToDict(properties).items() if value is not None}


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def dump(properties: Properties) -> struct_pb2.Struct:
    return json_format.ParseDict(properties, struct_pb2.Struct())


def plain(value: Any) -> Any:
    """The value without its secret marks."""
    if isinstance(value, dict):
        if value.get(SIGNATURE) == SECRET:
            return plain(value["value"])
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def has_secret(value: Any) -> bool:
    return f'"{SIGNATURE}": "{SECRET}"' in json.dumps(value)


def changed(old: Any, new: Any) -> bool:
    """Whether the values differ, ignoring secret marks."""
    return plain(old) != plain(new)
