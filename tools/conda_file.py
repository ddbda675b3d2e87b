"""Conda's environment.yml as an input file of a lock.

No light library knows which conda packages a Python package index has: the mapping of the package conda-pypi lacks
pandas and scikit-learn. So NAMES has well-known differences, and uv asks the index for each package.
"""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from tools.packages_here import NEEDED
from tools.python_packages import uv
from tools.running import InstallError

NAMES = {
    "brotli-python": "brotli",
    "dask-core": "dask",
    "docker-py": "docker",
    "h3-py": "h3",
    "matplotlib-base": "matplotlib",
    "msgpack-python": "msgpack",
    "neo4j-python-driver": "neo4j",
    "numpy-base": "numpy",
    "opencv": "opencv-python-headless",
    "pandera-core": "pandera",
    "psycopg2": "psycopg2-binary",
    "py-opencv": "opencv-python-headless",
    "py-xgboost": "xgboost",
    "py-xgboost-cpu": "xgboost-cpu",
    "pyarrow-core": "pyarrow",
    "pyqt": "pyqt5",
    "pysoundfile": "soundfile",
    "pytables": "tables",
    "python-blosc": "blosc",
    "python-build": "build",
    "python-duckdb": "duckdb",
    "python-graphviz": "graphviz",
    "python-igraph": "igraph",
    "python-kubernetes": "kubernetes",
    "python-tzdata": "tzdata",
    "python-xxhash": "xxhash",
    "python-zstd": "zstd",
    "pytorch": "torch",
    "pytorch-cpu": "torch",
    "pytorch-geometric": "torch-geometric",
    "pytorch-gpu": "torch",
    "qtconsole-base": "qtconsole",
    "ray-core": "ray",
    "ray-default": "ray",
    "redis-py": "redis",
    "seaborn-base": "seaborn",
    "tensorflow-gpu": "tensorflow",
    "tiledb-py": "tiledb",
    "trino-python-client": "trino",
}
# They are no Python packages, even if the index has other packages with some of these names.
OTHERS = re.compile(
    "_.*|.*[-_]linux[-_](64|aarch64)|(r|perl|bioconductor)-.*|cuda(-.*|toolkit)?|pytorch-(cuda|mutex)|"
    "lib(?!clang$|cst$|pysal$|rosa$|sass$|tmux$).*|"
    "bash|blas|boost(-cpp)?|bzip2|c-ares|c-compiler|ca-certificates|cairo|clang|compilers|cudnn|curl|cxx-compiler|eccodes|"
    "eigen|ffmpeg|fftw|fontconfig|fortran-compiler|freetype|gcc|geos|gfortran|git|git-lfs|glib|graphviz|gsl|gxx|hdf4|hdf5|"
    "icu|imagemagick|jpeg|jq|krb5|lapack|llvm-openmp|lz4-c|make|mamba|micromamba|conda|nccl|ncurses|netcdf|nodejs|openblas|"
    "openjdk|openjpeg|openmpi|mpich|openssl|pandoc|pango|parallel|perl|pixman|pkg-config|poppler|proj|qt|qt-main|readline|"
    "rsync|rust|samtools|snappy|sqlite|tesseract|tk|tmux|unzip|vim|wget|xz|yaml|zip|zlib|zstd"
)


@dataclass(frozen=True)
class Environment:
    """What a file asks for.

    `lines` maps the file's words for each package to its line of an input file, and `pip` has the lines of the section
    `pip`. `python` is a minor version or empty. `others` are packages that are no Python packages.
    """

    lines: dict[str, str]
    pip: list[str]
    python: str
    others: list[str]

    def input(self, missing: dict[str, str], name: str) -> str:
        lines = {*(line for words, line in self.lines.items() if words not in missing), *self.pip}
        named = {re.split(r"[^\w.-]", line)[0].lower() for line in lines}
        return "\n".join([f"# by daskstack lock {name}", *sorted({*lines, *(set(NEEDED) - named)})]) + "\n"


def read(path: Path) -> Environment:
    try:
        wanted = yaml.safe_load(path.read_text())["dependencies"]
        packages = [each for each in wanted if isinstance(each, str)]
        pip = [line for each in wanted if isinstance(each, dict) for line in each["pip"]]
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        text = "write the packages as a list under `dependencies`, and those of the index under `pip` in it"
        raise InstallError(f"{path} is not an environment file of conda ({error}): {text}") from None
    lines, others, python = {}, [], ""
    for words in packages:
        name, version = parsed(words)
        if name == "python":
            found = re.search(r"\d+\.\d+", version)
            python = found[0] if found else ""
        elif OTHERS.fullmatch(name):
            others.append(words)
        elif name != "pip":
            lines[words] = canonicalize_name(NAMES.get(canonicalize_name(name), name)) + version
    return Environment(lines, pip, python, others)


def parsed(words: str) -> tuple[str, str]:
    """The name of a conda package, and its versions as a package index writes them.

    Conda's `=1.2` means all versions that start with 1.2, and `=1.2=BUILD`, `==1.2` and ` 1.2 BUILD` mean 1.2 itself.
    Source: the page "Package match specifications" of conda-build's documentation.
    """
    match = re.fullmatch(r"(?:[^\s:]+::)?([\w.-]+)\s*(.*)", words.strip())
    if match is None:
        raise InstallError(f"{words!r} is not a package with versions, such as numpy=1.26 or numpy>=1.26: correct it")
    name, rest = match[1].lower(), re.sub(r"\s*([,<>=!~]+)\s*", r"\1", match[2])
    rest = rest.split()[0] if rest else ""  # a build can follow
    if exact := re.fullmatch(r"={0,2}(\w[\w.!+*]*)=[\w*.]+", rest):
        rest = f"=={exact[1]}"
    elif fuzzy := re.fullmatch(r"=(\w[\w.!+]*)", rest):
        rest = f"=={fuzzy[1]}.*"
    elif bare := re.fullmatch(r"=?(\w[\w.!+]*(?:\.\*)?)", rest):
        rest = f"=={bare[1]}"
    elif rest == "*":
        rest = ""
    try:
        SpecifierSet(rest)
    except InvalidSpecifier:
        raise InstallError(
            f"{words!r} has versions that a Python package index cannot have: write, for example, {name}>=1.2,<2"
        ) from None
    return name, rest


def missing(environment: Environment, python: str) -> dict[str, str]:
    """The packages whose wheels the index does not have, with uv's reasons."""

    def reason(line: str) -> str:
        command = [uv(), "pip", "compile", "--quiet", "--no-deps", "--no-build", "--universal"]
        done = subprocess.run(
            [*command, "--python-version", python, "-"], input=line, capture_output=True, text=True, timeout=300
        )
        if not done.returncode:
            return ""
        said = " ".join(done.stderr.split()) or f"uv ended with status {done.returncode}"
        cause = re.search(r"Because (.+?),? (?:and|we can) ", said)
        return cause[1] if cause else said

    with ThreadPoolExecutor(4) as pool:
        found = zip(environment.lines, pool.map(reason, environment.lines.values()), strict=True)
    return {words: why for words, why in found if why}
