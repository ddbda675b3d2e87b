"""Operations on trees of property values: secrets, unknown values, differences, and changes by others."""

from typing import Any

from command import wire

SHORTEST_SECRET = 4  # characters; redacting shorter strings would make texts unreadable


def secret(value: Any) -> dict[str, Any]:
    return {wire.SIGNATURE: wire.SECRET, "value": value}


def is_secret(value: Any) -> bool:
    return isinstance(value, dict) and value.get(wire.SIGNATURE) == wire.SECRET


def has_unknown(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(has_unknown, value.values()))
    return any(map(has_unknown, value)) if isinstance(value, list) else value == wire.UNKNOWN


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value if item is not None]
    return value


def marked(value: Any, like: Any) -> Any:
    """The value with the secret marks of `like`."""
    if is_secret(like):
        return secret(value)
    if isinstance(value, dict) and isinstance(like, dict):
        return {key: marked(item, like.get(key)) for key, item in value.items()}
    if isinstance(value, list) and isinstance(like, list):
        if len(value) == len(like):
            return [marked(item, other) for item, other in zip(value, like, strict=True)]
        return secret(value) if wire.has_secret(like) else value
    return value


def redacted(text: str, inputs: Any) -> str:
    """The text without the secret strings of the inputs."""
    for word in sorted(_secrets(inputs, False), key=len, reverse=True):
        text = text.replace(word, "[secret]")
    return text


def _secrets(value: Any, inside: bool) -> set[str]:
    if is_secret(value):
        return _secrets(value["value"], True)
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return set().union(*(_secrets(item, inside) for item in items))
    return {value} if inside and isinstance(value, str) and len(value) >= SHORTEST_SECRET else set()


def differences(old: Any, new: Any, path: str = "") -> dict[str, str]:
    """Differences between plain values: path -> ADD, DELETE or UPDATE. Lists and assets count as single values."""
    if not (isinstance(old, dict) and isinstance(new, dict)) or wire.SIGNATURE in old | new:
        return {} if old == new else {path: "UPDATE"}
    found = {}
    for key in sorted(old.keys() | new.keys()):
        below = _below(path, key)
        if key not in old or key not in new:
            found[below] = "DELETE" if key in old else "ADD"
        else:
            found |= differences(old[key], new[key], below)
    return found


def _below(path: str, key: str) -> str:
    if not key.replace("_", "").replace("-", "").isalnum():
        return f'{path}["{key}"]'
    return f"{path}.{key}" if path else key


def touches(path: str, places: tuple[str, ...] | list[str]) -> bool:
    """Whether `path` is equal to, inside of, or a parent of one of `places`."""
    return any(_inside(path, place) or _inside(place, path) for place in places)


def _inside(path: str, place: str) -> bool:
    return path == place or path.startswith((f"{place}.", f"{place}["))


def drifted(inputs: Any, before: Any, now: Any) -> Any:
    """Plain inputs, updated with the object's current values where these have changed.

    A value that the cluster only normalises (`1024Mi` becomes `1Gi`) has not changed, so the input is kept.
    """
    if before == now:
        return inputs
    if not all(isinstance(value, dict) for value in (inputs, before, now)):
        return now
    return {
        key: drifted(item, before.get(key), now.get(key))
        for key, item in inputs.items()
        if key in now or key not in before
    }
