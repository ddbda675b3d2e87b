"""The environment variables of a rehearsal."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from daskstack import engine
from rehearsal.programs import kubernetes_programs


def environment(state: Path, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """A complete environment in which no cloud account is reachable. State is in this folder.

    Plugins, kubectl and helm are those that `tools.install rehearsal kubernetes` installs.
    """
    found = engine.engine(environ)
    if found is None:
        raise engine.EngineError("the Pulumi engine is missing; `make rehearse` installs it")
    cloud = re.compile(r"GOOGLE_|GCLOUD_|CLOUDSDK_|GCE_|GKE_|KUBE|HELM_|PULUMI_|XDG_CONFIG_HOME$|SSH_AUTH_SOCK$")
    result = {name: value for name, value in environ.items() if not cloud.match(name)}
    # gcloud, Google's libraries, kubectl and helm would find the caller's credentials in the home directory.
    home = state / "home"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    state.chmod(0o700)
    pip = [engine.home_folder(environ) / place for place in (".config/pip/pip.conf", ".pip/pip.conf")]
    for settings in filter(Path.exists, pip):  # the package index may be configured only there
        result.setdefault("PIP_CONFIG_FILE", str(settings))
    return result | {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(engine.cache_folder(environ).parent),
        "PULUMI_IGNORE_AMBIENT_PLUGINS": "true",  # ignore official plugins on PATH
        "PATH": os.pathsep.join([str(kubernetes_programs(environ)), str(found.parent), engine.callers_path(environ)]),
        "PULUMI_HOME": str(engine.standins(found, environ) / "rehearsal"),
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_BACKEND_URL": state.as_uri(),
        # Stack files may contain secrets.
        "PULUMI_CONFIG_PASSPHRASE": environ.get("PULUMI_CONFIG_PASSPHRASE", ""),
        "PULUMI_PARALLEL": "64",
    }
