"""python derive.py: writes arguments.json from the package pulumi-gcp of the Python that runs it.

The file says which arguments the resources in RESOURCES take: by resource its type, by type its arguments. An argument
is `str`, `int`, `float`, `bool` or a type; `[x]` is a list of x, `{x}` a map to x, and a `!` in front says required.
"""

import ast
import importlib.util
import json
import re
from importlib import metadata
from pathlib import Path

RESOURCES = [
    "compute/address:Address",
    "compute/attachedDisk:AttachedDisk",
    "compute/disk:Disk",
    "compute/firewall:Firewall",
    "compute/instance:Instance",
    "compute/network:Network",
    "compute/router:Router",
    "compute/routerNat:RouterNat",
    "compute/subnetwork:Subnetwork",
    "container/cluster:Cluster",
    "container/nodePool:NodePool",
    "projects/iAMMember:IAMMember",
    "projects/service:Service",
    "serviceaccount/account:Account",
]
PRIMITIVE = re.compile(r"_builtins\.(\w+)")


def main() -> None:
    found = importlib.util.find_spec("pulumi_gcp")
    assert found and found.origin
    package = Path(found.origin).parent
    resources, types = {}, {}
    for token in RESOURCES:
        module, name = token.split("/")[0], token.split(":")[1]
        file = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", token.split("/")[1].split(":")[0]).lower()
        file = {"i_ammember": "iam_member"}.get(file, file)
        classes = parsed(package / module / "_inputs.py") | parsed(package / module / f"{file}.py")
        resources[token] = add(f"{name}Args", classes, types)
    version = metadata.version("pulumi-gcp")
    # A line per type keeps both the file and its changes short.
    tables = {
        name: ",\n".join(f"  {json.dumps(key)}: {json.dumps(table[key])}" for key in sorted(table))
        for name, table in {"resources": resources, "types": unique(types)}.items()
    }
    text = "".join(f',\n "{name}": {{\n{lines}\n }}' for name, lines in tables.items())
    Path(__file__).with_name("arguments.json").write_text(f'{{\n "version": {json.dumps(version)}{text}\n}}\n')


def parsed(file: Path) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)}


def add(name: str, classes: dict[str, ast.ClassDef], types: dict[str, dict[str, str]]) -> str:
    """Adds a class and all that it refers to; returns its name in the file."""
    short = name.removesuffix("Args")
    if short in types:
        return short
    types[short] = {}
    body = classes[name].body
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    init = next(node for node in functions if node.name == "__init__")
    names = {function.name: camel for function in functions if (camel := getter(function))}
    for argument, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
        assert argument.annotation
        written = ast.unparse(argument.annotation)
        required = "!" if default is None else ""
        types[short][names[argument.arg]] = required + kind(written, classes, types)
    return short


def getter(function: ast.FunctionDef) -> str:
    """The name on the wire of what a property reads, empty for other functions."""
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pulumi.getter":
            return ast.literal_eval(decorator.keywords[0].value)
        if ast.unparse(decorator) == "pulumi.getter":
            return function.name
    return ""


def kind(written: str, classes: dict[str, ast.ClassDef], types: dict[str, dict[str, str]]) -> str:
    primitive, named = PRIMITIVE.findall(written), re.search(r"'(\w+Args)'", written)
    inner = add(named[1], classes, types) if named else primitive[-1]
    if "Mapping[" in written:
        return "{" + inner + "}"
    return f"[{inner}]" if "Sequence[" in written else inner


def unique(types: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The types, each kept under the shortest of the names that the same content has."""
    while True:
        first: dict[str, str] = {}
        for name in sorted(types, key=lambda name: (len(name), name)):
            first.setdefault(json.dumps(types[name]), name)
        same = {name: first[json.dumps(content)] for name, content in types.items()}
        if all(name == kept for name, kept in same.items()):
            return types
        types = {
            name: {key: renamed(value, same) for key, value in content.items()}
            for name, content in types.items()
            if same[name] == name
        }


def renamed(written: str, names: dict[str, str]) -> str:
    return re.sub(r"\w+", lambda word: names.get(word[0], word[0]), written)


if __name__ == "__main__":
    main()
