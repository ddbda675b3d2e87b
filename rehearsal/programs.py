"""Versions and locations of the programs of a rehearsal that are built from Go modules."""

import os
from collections.abc import Mapping
from pathlib import Path

from daskstack.engine import KUBERNETES_PLUGIN, PROJECT, cache_folder, digest

KUBERNETES = "1.34.2"  # these versions must match rehearsal/kubernetes/programs/go.mod
HELM = "3.19.0"
PLUGIN_MODULES = PROJECT / "rehearsal" / "plugins" / "kubernetes"
GOOGLE_MODULES = PROJECT / "rehearsal" / "google"
KUBERNETES_MODULES = PROJECT / "rehearsal" / "kubernetes" / "programs"
_MAJOR, _MINOR, _ = KUBERNETES.split(".")
# Sets the versions that the programs report, and the Kubernetes version that helm assumes without a cluster.
KUBERNETES_FLAGS = "-s -w" + "".join(
    f" -X {variable}={value}"
    for variable, value in {
        "k8s.io/component-base/version.gitVersion": f"v{KUBERNETES}",
        "k8s.io/component-base/version.gitMajor": _MAJOR,
        "k8s.io/component-base/version.gitMinor": _MINOR,
        "k8s.io/client-go/pkg/version.gitVersion": f"v{KUBERNETES}",
        "helm.sh/helm/v3/internal/version.version": f"v{HELM}",
        "helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor": _MAJOR,
        "helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor": _MINOR,
        "helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor": _MAJOR,
        "helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor": _MINOR,
    }.items()
)


def google_program(environ: Mapping[str, str] = os.environ) -> Path:
    """The program of rehearsal/google. It may not exist yet."""
    sources = [GOOGLE_MODULES / name for name in ("go.mod", "go.sum", "main.go")]
    return cache_folder(environ) / "google" / digest(*sources) / "google"


def kubernetes_programs(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of kube, coredns, pause, kubectl and helm. It may not exist yet."""
    modules = KUBERNETES_MODULES
    sources = [modules / "go.mod", modules / "go.sum", *sorted(modules.rglob("*.go"))]
    # Several files are named main.go, so their order matters.
    return cache_folder(environ) / "kubernetes" / digest(*sources, KUBERNETES_FLAGS)


def kubernetes_plugin(environ: Mapping[str, str] = os.environ) -> Path:
    """Pulumi's plugin `kubernetes`, built from its Go module. It may not exist yet."""
    sources = [PLUGIN_MODULES / name for name in ("go.mod", "go.sum", "main.go")]
    folder = cache_folder(environ) / "kubernetes-plugin" / digest(*sources, KUBERNETES_PLUGIN)
    return folder / "pulumi-resource-kubernetes"
