"""python derive.py [WHEEL]: generates shapes.json from Google's discovery documents.

They are part of the package google-api-python-client (110 MB), either installed or as a WHEEL file.

shapes.json lists the fields of the resources in ROOTS by type, in the terms of the documents: `string`, `integer`,
`number`, `boolean`, `any` or a type, with its format as in `string:int64`; `[x]` is a list of x, `{x}` a map to x,
and `a|b` is an enumeration.
"""

import importlib.util
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("shapes.json")
# API -> `gcloud GROUP...` that lists the resource -> the resource's type.
ROOTS = {
    "compute.v1": {
        "compute addresses": "Address",
        "compute disks": "Disk",
        "compute firewall-rules": "Firewall",
        "compute forwarding-rules": "ForwardingRule",
        "compute instances": "Instance",
        "compute instances get-guest-attributes": "GuestAttributesEntry",
        "compute networks": "Network",
        "compute networks subnets": "Subnetwork",
        "compute routers": "Router",
    },
    "container.v1": {"container clusters": "Cluster"},
    "iam.v1": {"iam roles": "Role", "iam service-accounts": "ServiceAccount"},
}


def documents(wheel: str = "") -> Path | zipfile.Path:
    """The folder of the documents. Raises ModuleNotFoundError if the package is missing."""
    inside = "googleapiclient/discovery_cache/documents/"
    if wheel:
        return zipfile.Path(wheel, inside)
    found = importlib.util.find_spec("googleapiclient")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("google-api-python-client is not installed")
    return Path(found.submodule_search_locations[0]).parent / inside


def derived(folder: Path | zipfile.Path) -> str:
    groups, shapes = {}, {}
    for api, roots in ROOTS.items():
        schemas = json.loads((folder / f"{api}.json").read_text())["schemas"]
        prefix = api.partition(".")[0]
        for group, name in roots.items():
            groups[group] = add(name, prefix, schemas, shapes)
    lines = {
        name: ",\n".join(f"  {json.dumps(key)}: {json.dumps(table[key])}" for key in sorted(table))
        for name, table in {"groups": groups, "types": shapes}.items()
    }
    return "{\n" + ",\n".join(f' "{name}": {{\n{text}\n }}' for name, text in lines.items()) + "\n}\n"


def add(name: str, api: str, schemas: dict[str, Any], shapes: dict[str, dict[str, str]]) -> str:
    """Add a type and all types that it refers to. Returns its name in the file."""
    full = f"{api}.{name}"
    if full not in shapes:
        shapes[full] = {}
        for key, schema in schemas[name].get("properties", {}).items():
            shapes[full][key] = written(schema, api, schemas, shapes)
    return full


def written(schema: dict[str, Any], api: str, schemas: dict[str, Any], shapes: dict[str, dict[str, str]]) -> str:
    if "$ref" in schema:
        return add(schema["$ref"], api, schemas, shapes)
    if schema["type"] == "array":
        return f"[{written(schema['items'], api, schemas, shapes)}]"
    if schema["type"] == "object" and "additionalProperties" not in schema:
        return "any"  # an anonymous object
    if schema["type"] == "object":
        return "{" + written(schema["additionalProperties"], api, schemas, shapes) + "}"
    if "enum" in schema:
        return "|".join(schema["enum"])
    # Of the formats, only numbers that are encoded as strings matter.
    number = re.fullmatch(r"u?int64", schema.get("format", ""))
    return schema["type"] + (":int64" if number and schema["type"] == "string" else "")


if __name__ == "__main__":
    FILE.write_text(derived(documents(*sys.argv[1:])))
