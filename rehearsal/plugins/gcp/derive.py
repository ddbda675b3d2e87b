"""python derive.py: generates arguments.json from the installed package pulumi-gcp.

The file lists the arguments of the resources in RESOURCES: the type of each resource, and the arguments of each type.
An argument is `str`, `int`, `float`, `bool` or a type; `[x]` is a list of x, `{x}` a map to x, and `!` means required.

`said` contains facts from the package's documentation by type and argument, extracted from a few fixed phrases: `of`
are the allowed values, `least` and `most` the bounds, `default` the default; `fixed` means that a change replaces the
resource, and `apart` lists conflicting arguments. gcp.checks corrects errors in the documentation.
"""

import ast
import functools
import importlib.util
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

RESOURCES = [
    "compute/address:Address",
    "compute/attachedDisk:AttachedDisk",
    "compute/disk:Disk",
    "compute/firewall:Firewall",
    "compute/instance:Instance",
    "compute/instanceIAMMember:InstanceIAMMember",
    "compute/network:Network",
    "compute/router:Router",
    "compute/routerNat:RouterNat",
    "compute/subnetwork:Subnetwork",
    "container/cluster:Cluster",
    "container/nodePool:NodePool",
    "projects/iAMCustomRole:IAMCustomRole",
    "projects/iAMMember:IAMMember",
    "projects/service:Service",
    "serviceaccount/account:Account",
    "storage/bucketIAMMember:BucketIAMMember",
]
PRIMITIVE = re.compile(r"_builtins\.(\w+)")
PRIMITIVES = {"str", "int", "float", "bool"}
LEAD = re.compile(
    r"(?:(?:Possible|[Aa]ccepted|Acceptable|Valid|Supported) values|Available options|Values)"
    r"(?: for the level of PMU)?(?: are(?! described)| include)?:?\s+(?!are described)"
    r"|(?:Must be one|only be one|[Oo]ne) of:?\s+(?=[`\"*]*[A-Z]{2}|`\"none)|of the following values is required: "
    r"|Can be (?=[A-Z]{4})|Either (?=[`\"]+[A-Z])|accepts the value (?=`)"
)
BARE = re.compile(
    r"(?:^|\. )((?:`[A-Z_0-9]+`(?: \(default\))?(?:, or |, | or |\.(?= |$)|$)){2,})"
)  # a complete sentence
DEFAULT = re.compile(
    r"(?:[Dd]efaults to|[Dd]efault value is|[Dd]efault is|default is value is)"
    r" (?:[`\"]+(?P<quoted>[^`\"]+)[`\"]+|(?P<bare>[^\s.,;()]+))(?P<rest>[^.]*)"
)
CONDITION = re.compile(r"\b(if|when|for|unless|and|to)\b")  # the default is conditional
BOUNDS = (
    r"must be between (\d+) and (\d+)\b",
    r"minimum value for this field is (\d+) and the maximum value is (\d+)",
    r"between (\d+) and (\d+), inclusive",
)
FIXED = re.compile(
    r"Changing this (field )?(at any other time )?(forces a new|will force recreation|forces recreation)"
    r"|must be recreated to modify|only at resource creation|causes? (VM recreation|resource replacement)"
    r"|will (recreate the resource|cause the instance to recreate)|forces the instance to be recreated"
)
APART = re.compile(r"(?:Conflicts with|Mutually exclusive with|Only one of) ([^.]+)")


Types = dict[str, dict[str, str]]
Said = dict[str, dict[str, dict[str, Any]]]


def main() -> None:
    Path(__file__).with_name("arguments.json").write_text(derived())


def derived() -> str:
    found = importlib.util.find_spec("pulumi_gcp")
    assert found and found.origin
    package = Path(found.origin).parent
    resources, types, said = {}, {}, {}
    for token in RESOURCES:
        module, name = token.split("/")[0], token.split(":")[1]
        file = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", token.split("/")[1].split(":")[0]).lower()
        file = re.sub("(^i_am|iam)(?=member|custom)", "iam_", file)
        classes = sources(package / module / "_inputs.py") | sources(package / module / f"{file}.py")
        resources[token] = add(f"{name}Args", classes, types, said)
    share(said)
    version = metadata.version("pulumi-gcp")
    # One line per type keeps the file and its diffs short.
    types, said = unique(types, said)
    tables = {
        name: ",\n".join(f"  {json.dumps(key)}: {json.dumps(table[key])}" for key in sorted(table))
        for name, table in {"resources": resources, "types": types, "said": said}.items()
    }
    text = "".join(f',\n "{name}": {{\n{lines}\n }}' for name, lines in tables.items())
    return f'{{\n "version": {json.dumps(version)}{text}\n}}\n'


@functools.cache
def sources(file: Path) -> dict[str, str]:
    """The source of each class in a file. Files have up to 100,000 lines, so only the needed classes are parsed."""
    pieces = re.split(r"^(?=class )", file.read_text(), flags=re.MULTILINE)[1:]
    return {re.match(r"class (\w+)", piece)[1]: re.split(r"^(?=@)", piece, flags=re.MULTILINE)[0] for piece in pieces}


def add(name: str, classes: dict[str, str], types: Types, said: Said) -> str:
    """Add a class and all classes that it refers to. Returns its name in the file."""
    short = name.removesuffix("Args")
    if short in types:
        return short
    types[short] = {}
    (found,) = ast.parse(classes[name]).body
    assert isinstance(found, ast.ClassDef)
    body = found.body
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    init = next(node for node in functions if node.name == "__init__")
    getters = {function.name: (camel, function) for function in functions if (camel := getter(function))}
    for argument, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
        assert argument.annotation
        camel, function = getters[argument.arg]
        written = ast.unparse(argument.annotation)
        required = "!" if default is None else ""
        types[short][camel] = required + kind(written, classes, types, said)
        names = {python: other for python, (other, _) in getters.items()}
        if facts := facts_of(ast.get_docstring(function) or "", camel, types[short][camel].strip("![]{}"), names):
            said.setdefault(short, {})[camel] = facts
    return short


def facts_of(text: str, own: str, kind: str, names: dict[str, str]) -> dict[str, Any]:
    """Facts about the argument `own` in a text. `names` maps argument names from the text's form to ours."""
    flat = " ".join(text.split())
    facts: dict[str, Any] = {}
    if kind == "str" and (words := words_of(text)):
        facts["of"] = words
    if kind in PRIMITIVES and (found := DEFAULT.search(flat)) and not CONDITION.search(found["rest"]):
        value = found["quoted"] or found["bare"]
        if kind == "bool" and value in ("true", "false"):
            facts["default"] = value == "true"
        elif kind == "int" and (number := re.fullmatch(r"(\d+)(GB)?", value)):
            facts["default"] = int(number[1])
        elif kind == "str" and (found["quoted"] or value.isupper()):
            facts["default"] = value
    for phrase in BOUNDS:
        if kind == "int" and (found := re.search(phrase, flat)):
            facts |= {"least": int(found[1]), "most": int(found[2])}
    if FIXED.search(flat):
        facts["fixed"] = True
    for found in APART.finditer(flat):
        if others := [names[word] for word in re.findall(r"\w+", found[1]) if names.get(word, own) != own]:
            facts["apart"] = others
    return facts


def words_of(text: str) -> list[str]:
    """The possible values in a text: quoted words, upper-case words, or the first words of list items."""
    if bare := BARE.search(" ".join(text.split())):
        return list(dict.fromkeys(re.findall(r"\w+", re.sub(r"\(default\)| or ", "", bare[1]))))
    lead = LEAD.search(text)
    if not lead:
        return []
    rest = text[lead.end() :]
    if rest.lstrip().startswith("* "):
        items = rest.lstrip().split("\n\n")[0]
        return list(dict.fromkeys(re.findall(r'^\s*\* [`"]*([A-Za-z0-9_]+)', items, re.MULTILINE)))
    sentence = re.split(r"\.\s|\.$|\n\s*\n|;|\(\[", rest, maxsplit=1)[0]
    words = re.findall(r'[`"]+([A-Za-z0-9_./-]+)[`"]+', sentence) or re.findall(r"\b[A-Z][A-Z0-9_]{2,}\b", sentence)
    return list(dict.fromkeys(words))


def share(said: Said) -> None:
    """Copy facts about node configurations, which occur in three places but are fully documented in only one."""
    for name in [*said]:
        if name.startswith("ClusterNodeConfig"):
            for other in (name.replace("Cluster", "NodePool", 1), name.replace("Cluster", "ClusterNodePool", 1)):
                said[other] = said[name] | said.get(other, {})


def getter(function: ast.FunctionDef) -> str:
    """The name of a property in the protocol; empty for other functions."""
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pulumi.getter":
            return ast.literal_eval(decorator.keywords[0].value)
        if ast.unparse(decorator) == "pulumi.getter":
            return function.name
    return ""


def kind(written: str, classes: dict[str, str], types: Types, said: Said) -> str:
    primitive, named = PRIMITIVE.findall(written), re.search(r"'(\w+Args)'", written)
    inner = add(named[1], classes, types, said) if named else primitive[-1]
    if "Mapping[" in written:
        return "{" + inner + "}"
    return f"[{inner}]" if "Sequence[" in written else inner


def unique(types: Types, said: Said) -> tuple[Types, Said]:
    """The types without duplicates. Of several names for the same content, the shortest is used."""
    said = {name: facts for name, facts in said.items() if name in types}
    while True:
        first: dict[str, str] = {}
        content = {name: json.dumps([types[name], said.get(name)]) for name in types}
        for name in sorted(types, key=lambda name: (len(name), name)):
            first.setdefault(content[name], name)
        same = {name: first[content[name]] for name in types}
        if all(name == kept for name, kept in same.items()):
            return types, said
        said = {name: facts for name, facts in said.items() if same[name] == name}
        types = {
            name: {key: renamed(value, same) for key, value in arguments.items()}
            for name, arguments in types.items()
            if same[name] == name
        }


def renamed(written: str, names: dict[str, str]) -> str:
    return re.sub(r"\w+", lambda word: names.get(word[0], word[0]), written)


if __name__ == "__main__":
    main()
