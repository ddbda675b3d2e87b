"""Finds the Pulumi engine, and the environment variables for it.

Needs only Python's standard library: the set-up imports this module before it installs anything.
"""

import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from daskstack import client_output, project

PROJECT = project.find() or Path.cwd()
VERSION = "3.259.0"  # the version that we install if PATH has no engine
MINIMUM = (3, 214, 0)  # older engines have no `pulumi.Stash`
COMMAND = "1.2.1"  # the plugin's version; must match pulumi-command in pyproject.toml
KUBERNETES_PLUGIN = "4.34.2"  # must match pulumi-kubernetes there
GCP_PLUGIN = "10.2.0"  # must match pulumi-gcp there
STATE_LIMIT = 120  # seconds for a command that reads or writes a stack's state


class EngineError(RuntimeError):
    """The engine is missing, needs a setting, or failed. The message contains the remedy."""


def checked_project() -> Path:
    """PROJECT. Raises EngineError if it is not a project folder."""
    if not project.is_project(PROJECT):
        raise EngineError(
            f"{PROJECT} and the folders above it are not a checkout of daskstack: change to one,"
            f" or set {project.VARIABLE} to its path"
        )
    return PROJECT


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder for files that we can create again: engines, stand-in plugins, logs of the set-up."""
    return _folder(environ, "XDG_CACHE_HOME", ".cache")


def data_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder for data that we cannot create again: the state of stacks in the local backend."""
    return _folder(environ, "XDG_DATA_HOME", ".local/share")


def config_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder in which users keep access files."""
    return _folder(environ, "XDG_CONFIG_HOME", ".config")


def engine(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The `pulumi` to run: the one on PATH if it is new enough, else the one that we downloaded or built, else None."""
    ambient = shutil.which("pulumi", path=callers_path(environ))
    if ambient and version(ambient) >= MINIMUM:
        return Path(ambient)
    ours = [downloaded_engine(environ), built_engine(environ)]
    return next((path for path in ours if path.exists()), None)


def downloaded_engine(environ: Mapping[str, str] = os.environ) -> Path:
    return cache_folder(environ) / "engine" / VERSION / "pulumi"


def built_engine(environ: Mapping[str, str] = os.environ) -> Path:
    modules = PROJECT / "rehearsal" / "engine"
    made_of = digest(modules / "go.mod", modules / "go.sum", VERSION)
    return cache_folder(environ) / "engine" / made_of / "pulumi"


def language_host(engine: Path, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the official Python language host is next to the engine or on PATH."""
    beside = engine.resolve().with_name("pulumi-language-python")
    return beside.exists() or shutil.which(beside.name, path=callers_path(environ)) is not None


def official(engine: Path, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the official plugins that every `vms` stack needs are installed."""
    plugin = pulumi_home(environ) / "plugins" / f"resource-command-v{COMMAND}"
    return plugin.exists() and language_host(engine, environ)


def standins(engine: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of an engine's stand-in plugins. A new engine has none yet, so we try the official plugins again."""
    return cache_folder(environ) / "plugins" / digest(*standin_sources(), str(engine))


def complete(standins: Path) -> bool:
    """Whether the stand-ins and the Python that runs them are completely installed."""
    return all((standins / each).is_file() for each in ("complete", "venv/bin/python", "home/logs"))


def standin_sources() -> list[Path]:
    """All source files of the stand-ins."""
    files = sorted((PROJECT / "rehearsal" / "plugins").rglob("*.*"))
    return [file for file in files if file.is_file() and "__pycache__" not in file.parts]


def pulumi_home(environ: Mapping[str, str] = os.environ) -> Path:
    """The caller's own Pulumi home, even if `make env` has set PULUMI_HOME to ours."""
    home = environ.get("PULUMI_HOME")
    if not home or Path(home).is_relative_to(cache_folder(environ)):
        return _home_in_database(environ) / ".pulumi"
    return Path(home)


def variables(stack: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables to add to `environ` so that the engine can run on a stack. Creates the local state folder.

    Stack `dev` always uses the local backend, with an empty passphrase. Any other stack uses the backend in which the
    caller is logged in; without a login it uses the local backend with the caller's passphrase. Raises EngineError if
    there is no project or no engine, or if a stack other than `dev` has no passphrase in the local backend.
    """
    checked_project()
    found = engine(environ)
    if found is None:
        raise EngineError(
            f"no Pulumi engine: expected `pulumi` {dotted(MINIMUM)} or newer on PATH,"
            " or the one that `make up` installs"
        )
    result = {"PULUMI_SKIP_UPDATE_CHECK": "true"}
    path = callers_path(environ)
    if found.is_relative_to(cache_folder(environ)):
        path = os.pathsep.join([str(found.parent), path])
    result["PATH"] = path

    replaced = standins(found, environ)
    if not official(found, environ) and complete(replaced):
        result["PULUMI_HOME"] = str(replaced / "home")
        result["PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION"] = "true"

    state = data_folder(environ) / "state"
    backend = _callers_backend(environ, state.as_uri())
    if stack != "dev" and backend:
        result["PULUMI_BACKEND_URL"] = backend
        if "PULUMI_HOME" in result:
            result["PULUMI_CREDENTIALS_PATH"] = str(_credentials(environ).parent)
    else:
        # Its passphrase is empty, so the state of stack dev contains secrets that anybody who reads it can decrypt.
        state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        state.mkdir(mode=0o700, exist_ok=True)
        result["PULUMI_BACKEND_URL"] = state.as_uri()
        if stack == "dev":
            result["PULUMI_CONFIG_PASSPHRASE"] = ""
        elif not (environ.get("PULUMI_CONFIG_PASSPHRASE") or environ.get("PULUMI_CONFIG_PASSPHRASE_FILE")):
            raise EngineError(
                f"stack {stack} has no passphrase for its secrets: set PULUMI_CONFIG_PASSPHRASE (its state is"
                f" then kept in {state}), or log in with `pulumi login`"
            )
    # The engine's default, four operations per processor, is too low: remote commands mostly wait.
    result["PULUMI_PARALLEL"] = environ.get("PULUMI_PARALLEL") or "64"
    return result


def exports(stack: str) -> str:
    """The variables as commands for a shell."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables(stack).items())


def pulumi(stack: str, *arguments: str, **kwargs) -> subprocess.CompletedProcess:
    """Runs `pulumi ARGUMENTS --stack STACK` on this project; `kwargs` go to `subprocess.run`.

    Only for commands that read or write the stack's state: raises EngineError after STATE_LIMIT.
    """
    environ = {**os.environ, **variables(stack)}
    command = [str(engine()), "--cwd", str(PROJECT), *arguments, "--stack", stack]
    try:
        return subprocess.run(command, env=environ, timeout=STATE_LIMIT, **kwargs)
    except subprocess.TimeoutExpired:
        raise EngineError(
            f"`pulumi {' '.join(arguments)}` of stack {stack} did not end within {STATE_LIMIT} s: check that its"
            " backend is reachable; `pulumi whoami --verbose` prints its URL"
        ) from None


def outputs(stack: str, *, secrets: bool = True) -> dict:
    """A stack's outputs by name. Raises EngineError if the stack does not exist or cannot be read."""
    reveal = ["--show-secrets"] if secrets else []
    done = pulumi(stack, "stack", "output", "--json", *reveal, capture_output=True, text=True)
    if "no stack named" in done.stderr:
        raise EngineError(f"stack {stack} does not exist: build it with `make up STACK={stack}`")
    if done.returncode:
        raise EngineError(f"the outputs of stack {stack} cannot be read: {done.stderr.strip()}")
    return json.loads(done.stdout)


def resources(stack: str, *, secrets: bool = False) -> list[dict]:
    """The resources in a stack's state. Raises EngineError if it cannot be read."""
    reveal = ["--show-secrets"] if secrets else []
    done = pulumi(stack, "stack", "export", *reveal, capture_output=True, text=True)
    if done.returncode:
        raise EngineError(f"the state of stack {stack} cannot be read: {done.stderr.strip()}")
    return json.loads(done.stdout)["deployment"].get("resources", [])


def cluster(stack: str) -> dict:
    """A stack's outputs, with `client` parsed. Raises EngineError if the stack has no cluster."""
    found = outputs(stack)
    if "client" not in found:
        raise EngineError(f"stack {stack} has no cluster yet, or none that works: run `make up STACK={stack}`")
    try:
        return found | {"client": client_output.parse(found["client"])}
    except ValueError as error:
        raise EngineError(f"{error}. Run `make up STACK={stack}`, or use the version that made the stack") from None


@functools.cache
def version(pulumi: str) -> tuple[int, ...]:
    """An engine's version; (0,) if it prints none."""
    environ = {**os.environ, "PULUMI_SKIP_UPDATE_CHECK": "true"}
    try:
        done = subprocess.run([pulumi, "version"], env=environ, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return (0,)
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", done.stdout)
    return tuple(map(int, match.groups())) if match else (0,)


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def digest(*parts: Path | str) -> str:
    """A short hash of strings, and of the names and contents of files."""
    hashed = hashlib.sha256()
    for part in parts:
        content = part.name.encode() + b"\0" + part.read_bytes() if isinstance(part, Path) else part.encode()
        hashed.update(content + b"\0")
    return hashed.hexdigest()[:16]


def home_folder(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or Path.home())


def _home_in_database(environ: Mapping[str, str]) -> Path:
    """The home folder in the system's user database. Pulumi uses HOME only if the user is not in it."""
    try:
        import pwd  # Windows does not have this module

        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except (ImportError, KeyError):
        return home_folder(environ)


def _folder(environ: Mapping[str, str], variable: str, default: str) -> Path:
    return Path(environ.get(variable) or home_folder(environ) / default) / "daskstack"


def _credentials(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("PULUMI_CREDENTIALS_PATH") or pulumi_home(environ)) / "credentials.json"


def _callers_backend(environ: Mapping[str, str], ours: str) -> str:
    """The URL of the caller's own backend; empty if there is none. `make env` may have set the variable to `ours`."""
    url = environ.get("PULUMI_BACKEND_URL", "")
    if url and url != ours:
        return url
    try:
        current = json.loads(_credentials(environ).read_text()).get("current")
    except (OSError, ValueError):
        current = ""
    return current or ("https://api.pulumi.com" if environ.get("PULUMI_ACCESS_TOKEN") else "")


def callers_path(environ: Mapping[str, str]) -> str:
    """PATH without the folders that `make env` puts in front."""
    folders = environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(f for f in folders if not Path(f).is_relative_to(cache_folder(environ)))
