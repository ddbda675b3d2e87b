"""Settings of stacks with `target: kubernetes`, and the chart values generated from them."""

import base64
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import settings.secret_env
from components.jupyter_password import jupyter_hash
from components.kubernetes import chart_values, dask_on_kubernetes
from components.kubernetes.tls import tls_identities
from on_this_computer.check_namespace import refusal
from on_this_computer.send_environment import sha256
from settings import lock
from settings.chart import CHARTS, KUBERNETES_OBJECTS, default_values, unknown_values
from settings.common import KEY, memory
from settings.official_values import edits

ROOT = Path(__file__).parents[2]
OWN = {"source": "gke", "project": "my-project", "location": "us-central1-a"}


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    file = tmp_path / "kubeconfig"
    file.touch()
    return file


def parse(kubeconfig: Path, **changed: Any) -> settings.KubernetesTarget:
    cluster = {"source": "existing", "kubeconfig": str(kubeconfig)}
    return settings.parse({"target": "kubernetes", "cluster": cluster} | changed, ROOT)


def problem(kubeconfig: Path, **changed: Any) -> str:
    with pytest.raises(settings.SettingsError) as raised:
        parse(kubeconfig, **changed)
    [only] = raised.value.problems
    return only.removeprefix(f"{KEY}.")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"workers": {"replicas": -1}}, "workers.replicas: -1 is too small; write 0 or more"),
    ({"workers": {"replica": 3}}, "workers.replica: unknown key; did you mean replicas?"),
    ({"workers": {"min": 1}}, "workers.max: is missing; write the largest number of workers, or remove workers.min"),
    ({"workers": {"min": 3, "max": 2}}, "workers.min: 3 is more than the maximum, 2; write 2 or less"),
    (
        {"workers": {"max": 2, "replicas": 2}},
        "workers.replicas: the running cluster sets the number of workers within workers.min and workers.max",
    ),
    (
        {"workers": {"replicas": 2, "atLeast": 3}},
        "workers.atLeast: 3 is more than the stack's 2 workers; write 2 or less",
    ),
    (
        {"workers": {"groups": [{"name": "a"}]}, "values": {"additional_worker_groups": [{"name": "gpu"}]}},
        "values.additional_worker_groups: cannot be used together with workers.groups; write all groups there, or all",
    ),
    (
        {"workers": {"groups": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}},
        "workers.groups[2].name: is the same name as that of workers.groups[0]; use each name once",
    ),
    ({"workers": {"groups": [{"name": "a.b"}]}}, 'workers.groups[0].name: "a.b" is not the name of a group'),
    (
        {"workers": {"groups": [{"name": "a", "max": 2}]}},
        'workers.groups[0].resources: is missing; write e.g. {"BIG": 1}, because only tasks that ask for resources of',
    ),
    (
        {"workers": {"groups": [{"name": "a", "min": 1}]}},
        "workers.groups[0].max: is missing; write the largest number of workers, or remove min",
    ),
    (
        {"workers": {"groups": [{"name": "a", "min": 3, "max": 2, "resources": {"A": 1}}]}},
        "workers.groups[0].min: 3 is more than max, 2; write 2 or less",
    ),
    (
        {"workers": {"groups": [{"name": "a", "replicas": 1, "max": 2, "resources": {"A": 1}}]}},
        "workers.groups[0].replicas: the running cluster sets the number within min and max; remove it",
    ),
    (
        {
            "workers": {"groups": [{"name": "a", "max": 2, "resources": {"A": 1}}]},
            "values": {"worker": {"readinessProbe": None}},
        },
        "values.worker.readinessProbe: is not available with workers.min and workers.max, or those of groups",
    ),
    (
        {"values": {"additional_worker_groups": [{"name": "a", "bounds": {"max": 2}}]}},
        "values.additional_worker_groups[0].bounds.max: is set by this program; use min and max of workers.groups",
    ),
    (
        {"workers": {"groups": [{"name": "a", "resources": {"GPU": 0}}]}},
        "workers.groups[0].resources.GPU: 0 is not allowed here; write e.g. 1",
    ),
    (
        {"workers": {"groups": [{"name": "a", "pool": {}}]}},
        "workers.groups[0].pool: is only possible with cluster.source: gke; remove it, and write the nodes' labels as",
    ),
    (
        {"workers": {"max": 2}, "values": {"worker": {"readinessProbe": {"periodSeconds": 60}}}},
        "values.worker.readinessProbe: is not available with workers.min and workers.max",
    ),
    (
        {"workers": {"max": 2}, "values": {"worker": {"image": {"dask_worker": "dask cuda worker"}}}},
        "values.worker.image.dask_worker: is not available with workers.min and workers.max",
    ),
    ({"values": {"bounds": {"max": 2}}}, "values.bounds.max: is set by this program; use workers.min and workers.max"),
    ({"workers": {"cpu": 0}}, "workers.cpu: 0.0 is not a number of CPUs; write e.g. 1 or 0.5"),
    ({"workers": {"memory": "4"}}, 'workers.memory: "4" is not an amount of memory'),
    ({"jupyter": {"storage": "10"}}, "jupyter.storage: '10' is not the size of a volume; write e.g. 10Gi"),
    ({"image": "python"}, "image: 'python' is not an image with a tag"),
    ({"packages": {"pip": ["-r x"]}}, "packages.pip[0]: '-r x' is not a requirement"),
    ({"packages": {"apt": ["libgomp1"]}}, "packages.apt: apt cannot install packages in our chart's pods"),
    ({"image": "me/dask:1", "packages": {"pip": ["shap"]}}, "packages.pip: pods with your own image install no"),
    ({"namespace": {"name": "Dask"}}, "namespace.name: 'Dask' is not a Kubernetes name"),
    ({"expose": {"scheduler": {"sources": ["0.0.0.0/0"]}}}, "expose.scheduler.sources[0]: 0.0.0.0/0 covers the whole"),
    (
        {"expose": {"jupyter": {"sources": ["0.0.0.0/2", "64.0.0.0/2"], "internal": True}}},
        "expose.jupyter.sources: these networks together cover half of the internet",
    ),
    (
        {"expose": {"jupyter": {"sources": ["10.1.0.0/24"], "internal": True}}, "jupyter": {"enabled": False}},
        "expose.jupyter: requires Jupyter, which is disabled",
    ),
    (
        {"dask": {"workerArgs": ["--nthreads", "2"]}},
        "dask.workerArgs[0]: --nthreads is set by this program; use workers",
    ),
    ({"dask": {"config": {"distributed": {"comm": {"tls": {"ciphers": "x"}}}}}}, "dask.config.distributed.comm.tls"),
    ({"dask": {"schedulerArgs": ["--jupyter"]}}, "dask.schedulerArgs[0]: --jupyter is set by this program; remove"),
    (
        {"dask": {"config": {"distributed": {"scheduler": {"http": {"routes": []}}}}}},
        "dask.config.distributed.scheduler.http.routes: is set by this program; remove it",
    ),
    (
        {"values": {"worker": {"replicaCount": 3}}},
        "values.worker.replicaCount: unknown key of the chart; did you mean",
    ),
    ({"values": {"workers": {}}}, "values.workers: unknown key of the chart; did you mean worker?"),
    (
        {"values": {"additional_worker_groups": [{"name": "gpu", "replica": 1}]}},
        "values.additional_worker_groups[0].replica: unknown key of the chart; did you mean replicas?",
    ),
    (
        {"values": {"additional_worker_groups": [{"name": "gpu", "replicas": "2"}]}},
        'values.additional_worker_groups[0].replicas: "2" does not match',
    ),
    ({"values": {"jupyter": {"storage": 5}}}, "values.jupyter.storage: 5 does not match the chart's schema"),
    ({"workers": {"nodeSelector": {"a b": "c"}}}, "workers.nodeSelector.a b: 'a b' is not a Kubernetes label's name"),
    ({"workers": {"nodeSelector": {"a": "c d"}}}, "workers.nodeSelector.a: 'c d' is not a Kubernetes label's value"),
    *(
        ({"workers": {"tolerations": [wrong]}}, f"workers.tolerations[0]: {json.dumps(wrong)} is not a toleration;")
        for wrong in (
            {"operator": "Exist"},
            {"key": "a b", "operator": "Exists"},
            {"key": "a", "effect": "NO_SCHEDULE"},
            {"key": "a", "value": True},
            {"kye": "a"},
        )
    ),
    ({"dask": {"workerArgs": ["--version"]}}, "dask.workerArgs[0]: --version is set by this program; remove it"),
    ({"dask": {"workerArgs": ["--scheduler-port=1"]}}, "dask.workerArgs[0]: --scheduler-port is set by this"),
    ({"image": "dask@sha256:1234"}, "image: 'dask@sha256:1234' is not an image with a tag"),
    ({"workers": {"cpu": True}}, "workers.cpu: true is not a number"),
    ({"workers": {"cpu": float("inf")}}, "workers.cpu: inf is not a number of CPUs"),
    ({"workers": {"memory": "0.5 B"}}, 'workers.memory: "0.5 B" is not an amount of memory'),
    ({"workers": {"memory": "1" * 400 + " GB"}}, "workers.memory: "),
    ({"jupyter": {"storage": "1" * 400 + "Gi"}}, "jupyter.storage: "),
    ({"packages": {"pip": ["dask==2020.1.0"]}}, "packages.pip[0]: dask==2020.1.0 contradicts environment.lock"),
    (
        {"environment": {"lock": "charts/official.lock", "python": "3.10"}},
        "environment.python: jupyter.lock supports Python",
    ),
    ({"image": "me/dask:1", "environment": {"system": ["libgl1"]}}, "environment.system: pods with your own image"),
    ({"data": {"size": "1Gi"}}, "data.delete: `destroy` deletes the stack's own namespace with the shared directory;"),
    ({"data": {"className": "efs"}}, "data.className: requires data.size; write it, e.g. size: 100Gi, or remove this"),
    ({"data": {"size": "1Gi", "delete": True, "path": "/opt/dask/data"}}, "data.path: /opt/dask/data is used by the"),
    ({"data": {"size": "1Gi", "delete": True, "className": "A b"}}, "data.className: 'A b' is not the name of a Stor"),
    ({"workers": {"spill": {"size": "5"}}}, "workers.spill.size: '5' is not the size of a volume; write e.g. 10Gi"),
    (
        {"values": {"worker": {"spill": {"size": "1Gi"}}}},
        "values.worker.spill.size: is set by this program; use workers",
    ),
    (
        {"dask": {"ports": {"libraries": "20000-20099"}, "workerArgs": ["--worker-port=9000"]}},
        "dask.ports.libraries: sets the ports of workers; remove --worker-port and --nanny-port from dask.workerArgs",
    ),
    ({"dask": {"ports": {"libraries": "all"}}}, "dask.ports.libraries: 'all' is not a range of ports"),
    ({"egress": ["169.254.169.254/32"]}, "egress[0]: 169.254.169.254/32 contains the metadata servers of clouds"),
    ({"egress": ["0.0.0.0/0"]}, "egress[0]: 0.0.0.0/0 covers the whole internet"),
    ({"data": {"buckets": [{"name": "mine"}]}}, "data.buckets: is only possible with cluster.source: gke; remove it"),
]


@pytest.mark.parametrize(("changed", "text"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_invalid_kubernetes_settings_are_reported_with_a_remedy(
    kubeconfig: Path, changed: dict[str, Any], text: str
) -> None:
    assert problem(kubeconfig, **changed).startswith(text)


# Each of these values once exposed a service, or disabled encryption or a login.
SIDE_DOORS: list[tuple[dict[str, Any], str]] = [
    ({"values": {"scheduler": {"serviceType": "LoadBalancer"}}}, "values.scheduler.serviceType: is set by this"),
    ({"values": {"webUI": {"serviceType": "NodePort"}}}, "values.webUI.serviceType: is set by this program; use"),
    ({"values": {"scheduler": {"sourceRanges": ["10.0.0.0/8"]}}}, "values.scheduler.sourceRanges: is set by"),
    ({"values": {"networkPolicy": {"sources": ["0.0.0.0/0"]}}}, "values.networkPolicy.sources: 0.0.0.0/0 covers the"),
    ({"values": {"networkPolicy": {"sources": ["0.0.0.0/2", "64.0.0.0/2"]}}}, "values.networkPolicy.sources: these"),
    ({"values": {"networkPolicy": {"metadata": True}}}, "values.networkPolicy.metadata: is set by this program; use"),
    ({"values": {"networkPolicy": {"sources": ["all"]}}}, "values.networkPolicy.sources: all is not a network"),
    (
        {"values": {"networkPolicy": {"egress": {"to": [{"ipBlock": {"cidr": "::/0"}}]}}}},
        "values.networkPolicy.egress.to[0].ipBlock.cidr: ::/0 covers the whole internet",
    ),
    (
        {"values": {"scheduler": {"serviceAnnotations": {"ranges": "10.0.0.0/8,0.0.0.0/0"}}}},
        "values.scheduler.serviceAnnotations.ranges: 0.0.0.0/0 covers the whole internet",
    ),
    ({"values": {"webUI": {"ingress": {"enabled": True}}}}, "values.webUI.ingress.enabled: is set by this program"),
    ({"values": {"jupyter": {"ingress": {"enabled": True}}}}, "values.jupyter.ingress: has no TLS"),
    ({"values": {"tls": {"scheduler": ""}}}, "values.tls"),
    ({"values": {"config": {"distributed": {}}}}, "values.config: is set by this program; use dask.config"),
    ({"values": {"fullnameOverride": "x"}}, "values.fullnameOverride: is set by this program; remove it"),
    ({"values": {"worker": {"replicas": 9}}}, "values.worker.replicas: is set by this program; use workers.replicas"),
    ({"values": {"worker": {"extraArgs": ["--no-x"]}}}, "values.worker.extraArgs: is set by this program; use dask"),
    (
        {"values": {"additional_worker_groups": [{"name": "a", "extraArgs": ["--tls-cert=x"]}]}},
        "values.additional_worker_groups[0].extraArgs[0]: --tls-cert is set by this program; use dask.tls",
    ),
    (
        {"values": {"scheduler": {"env": [{"name": "DASK_CONFIG", "value": "/tmp"}]}}},
        "values.scheduler.env[0].name: DASK_CONFIG is set by this program; remove it",
    ),
    (
        {"values": {"worker": {"image": {"dask_worker": "dask-worker"}}}},
        "values.worker.image.dask_worker: Dask 2026.6.0 removed this command; write dask worker",
    ),
    (
        {"values": {"worker": {"env": [{"name": "EXTRA_PIP_PACKAGES", "value": "s3fs"}]}}},
        "values.worker.env[0].name: EXTRA_PIP_PACKAGES would install nothing, or others than the lock pins; use pack",
    ),
    (
        {"values": {"jupyter": {"env": [{"name": "EXTRA_APT_PACKAGES", "value": "libgl1"}]}}},
        "values.jupyter.env[0].name: EXTRA_APT_PACKAGES would install nothing, or others than the lock pins; use env",
    ),
    (
        {"dask": {"env": {"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "False"}}},
        "dask.env.DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION: ",
    ),
    (
        {"dask": {"env": {"DASK_distributed__comm": "{}"}}},
        "dask.env.DASK_distributed__comm: DASK_distributed__comm changes",
    ),
    ({"dask": {"env": {"DASK_INTERNAL_INHERIT_CONFIG": ""}}}, "dask.env.DASK_INTERNAL_INHERIT_CONFIG: "),
    (
        {"dask": {"env": {"HTTPS_PROXY": "http://me:sesame@proxy:3128"}}},
        "dask.env.HTTPS_PROXY: contains a password, which belongs in the stack's secrets; remove it",
    ),
    ({"values": {"environment": {"authority": "x"}}}, "values.environment.authority: is set by this program; use"),
    ({"dask": {"env": {"MY VAR": "x"}}}, 'dask.env.MY VAR: "MY VAR" is not the name of a variable'),
    ({"dask": {"config": {"default-scheme": "tcp"}}}, "dask.config.default-scheme: is set by this program"),
    ({"values": {"jupyter": {"args": ["--IdentityProvider.token="]}}}, "values.jupyter.args[0]: changes Jupyter's"),
    ({"values": {"jupyter": {"extraConfig": "c.ServerApp.password = ''"}}}, "values.jupyter.extraConfig: changes"),
    ({"values": {"jupyter": {"passwordSecret": "mine"}}}, "values.jupyter.passwordSecret: is set by this program"),
    ({"expose": {"dashboard": {"sources": ["203.0.113.0/24"]}}}, "expose.dashboard: has neither a login nor TLS"),
    ({"expose": {"jupyter": {"sources": ["203.0.113.0/24"]}}}, "expose.jupyter: has no TLS, so its password would"),
    (
        {"expose": {"scheduler": {"sources": ["203.0.113.0/24"]}}, "dask": {"tls": False}},
        "expose.scheduler: has no TLS, so eavesdroppers could run code; write internal: true",
    ),
]


@pytest.mark.parametrize(("changed", "text"), SIDE_DOORS, ids=lambda value: value if isinstance(value, str) else "")
def test_values_cannot_expose_services_or_disable_encryption_or_login(
    kubeconfig: Path, changed: dict[str, Any], text: str
) -> None:
    assert problem(kubeconfig, **changed).startswith(text)


@pytest.mark.parametrize("path", ["~nosuchuser/x", "x" * 300, "none"])
def test_a_missing_kubeconfig_is_reported(path: str) -> None:
    assert problem(Path(path)).startswith("cluster.kubeconfig: ")


def test_a_requirement_with_spaces_is_not_split(kubeconfig: Path) -> None:
    wanted = ["dask-ml >= 2025.1; os_name == 'posix'", "json5"]
    assert own(parse(kubeconfig, packages={"pip": wanted}))["environment"]["extra"] == wanted


def test_kubernetes_objects_in_values_are_not_validated(kubeconfig: Path) -> None:
    assert parse(kubeconfig, values={"worker": {"affinity": {"nodeAffinity": {}}, "resources": {"x": 1}}})


LOCKS = {"environment": lock.read(ROOT / "environment.lock", "3.11")}
NAMES = chart_values.Names("s", "w", "c", "p")


def own(cluster: settings.KubernetesTarget) -> dict[str, Any]:
    return chart_values.own(cluster, NAMES, LOCKS, "uv==1", "r")


@pytest.mark.parametrize("name", ["python@sha256:" + "a" * 64, "ghcr.io/me/dask:1.4@sha256:" + "0" * 64])
def test_an_image_can_have_a_digest(kubeconfig: Path, name: str) -> None:
    """Charts join repository and tag with a colon, which must give the full name."""
    image = own(parse(kubeconfig, image=name))["worker"]["image"]
    assert f"{image['repository']}:{image['tag']}" == name


def test_every_generated_value_is_a_key_of_the_chart(kubeconfig: Path) -> None:
    exposure = {"sources": ["203.0.113.7/32"], "internal": True}
    found = own(parse(kubeconfig, expose=dict.fromkeys(("scheduler", "dashboard", "jupyter"), exposure)))
    assert not list(unknown_values(found, default_values("own"), ()))


def test_the_users_values_override_generated_ones(kubeconfig: Path) -> None:
    cluster = parse(kubeconfig, values={"worker": {"gracePeriod": 7, "strategy": {"type": "Recreate"}}})
    assert own(cluster)["worker"]["gracePeriod"] == 7
    assert own(cluster)["worker"]["image"] == {"repository": "python", "tag": "3.11-slim"}


def test_workers_stop_spilling_before_kubernetes_evicts_them(kubeconfig: Path) -> None:
    found = own(parse(kubeconfig, workers={"spill": {"size": "10Gi"}}))
    assert found["worker"]["spill"]["size"] == "10Gi"
    assert found["config"]["distributed"]["worker"]["memory"]["max-spill"] == 9 * 2**30
    config = {"distributed": {"worker": {"memory": {"max-spill": "1GB"}}}}
    assert (
        own(parse(kubeconfig, dask={"config": config}))["config"]["distributed"]["worker"]
        == config["distributed"]["worker"]
    )


def test_pods_with_a_custom_image_install_no_packages(kubeconfig: Path) -> None:
    found = own(parse(kubeconfig, image="ghcr.io/me/dask:1.4"))
    assert found["environment"]["lock"] == found["jupyter"]["lock"] == ""
    assert found["scheduler"]["image"] == {"repository": "ghcr.io/me/dask", "tag": "1.4"}


@pytest.mark.parametrize(
    ("text", "amount"), [("2 GiB", 2**31), ("1.5GB", 1_500_000_000), ("500 MB", 500_000_000), ("64k", 64_000)]
)
def test_memory_has_the_same_meaning_for_dask_and_kubernetes(text: str, amount: int) -> None:
    assert memory(text) == amount


@pytest.mark.parametrize("chart", ["own", "official"])
def test_variables_in_values_are_added_to_those_of_the_settings(kubeconfig: Path, chart: str) -> None:
    more = {"env": [{"name": "MORE", "value": "2"}]}
    values = {"worker": more, "jupyter": more}
    older = OLDER if chart == "official" else {}
    cluster = parse(kubeconfig, **older, values=values, dask={"env": {"OURS": "1"}, **older.get("dask", {})})
    secret = chart_values.SecretEnv("", [], "r")
    found = own(cluster) if chart == "own" else chart_values.official(cluster, LOCKS["environment"], "h", secret)
    for part, expected in (("worker", {"OURS", "MORE"}), ("jupyter", {"OURS", "MORE"}), ("scheduler", {"OURS"})):
        names = {each["name"] for each in found[part]["env"]}
        assert names & {"OURS", "MORE"} == expected
        assert chart == "own" or "EXTRA_PIP_PACKAGES" in names, "the lock's pins stay"


def test_the_charts_schema_has_exactly_the_charts_values() -> None:
    schema = json.loads((CHARTS / "dask" / "values.schema.json").read_text())

    def keys(known: dict[str, Any], place: str = "") -> set[str]:
        inner = known.get("properties", {})
        return {place}.union(*(keys(each, f"{place}.{name}") for name, each in inner.items()))

    def paths(found: Any, place: str = "") -> set[str]:
        free = place.rsplit(".", 1)[-1] in KUBERNETES_OBJECTS
        inner = found if isinstance(found, dict) and not free else {}
        return {place}.union(*(paths(each, f"{place}.{name}") for name, each in inner.items()))

    assert keys(schema) - {".global"} == paths(yaml.safe_load((CHARTS / "dask" / "values.yaml").read_text()))


def test_an_existing_namespace_is_not_taken_over() -> None:
    ours, theirs = ({"metadata": {"labels": {"dask-stack": name}}} for name in ("mine", "other"))
    assert refusal("n", None, True, "mine") is None
    assert refusal("n", ours, True, "mine") is None
    assert "already exists, and this stack did not create it" in (refusal("n", theirs, True, "mine") or "")
    assert refusal("n", theirs, False, "mine") is None
    assert "namespace n does not exist" in (refusal("n", None, False, "mine") or "")


def test_the_authoritys_private_key_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    generate, generated = ec.generate_private_key, []

    def record(curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
        generated.append(generate(curve))
        return generated[-1]

    monkeypatch.setattr(ec, "generate_private_key", record)
    made = tls_identities("trial", ["scheduler", "client"])
    by_public = {key.public_key().public_numbers(): key for key in generated}
    assert len(by_public) == 3

    def key_of(certificate: str) -> ec.EllipticCurvePrivateKey:
        return by_public[x509.load_pem_x509_certificate(certificate.encode()).public_key().public_numbers()]

    for subject in ("scheduler", "client"):
        kept = serialization.load_pem_private_key(made[subject]["tls.key"].encode(), None)
        assert kept.private_numbers() == key_of(made[subject]["tls.crt"]).private_numbers()
    authority = key_of(made["client"]["ca.crt"])
    assert made["scheduler"]["ca.crt"] == made["client"]["ca.crt"]
    assert held(made, key_of(made["client"]["tls.crt"])), "this test would not notice a stored key"
    assert not held(made, authority)


def held(made: Any, key: ec.EllipticCurvePrivateKey) -> bool:
    """Whether `made` contains this key's secret number as PEM, base64, hexadecimal or decimal text."""
    number = key.private_numbers().private_value
    secret, text = number.to_bytes(32, "big"), json.dumps(made, default=repr).replace("\\n", "")
    if str(number) in text or secret.hex() in text.lower():
        return True
    runs = re.findall(r"[A-Za-z0-9+/]{40,}", text)
    # Base64 can start anywhere in a run of its characters.
    decoded = [base64.b64decode(run[at : at + (len(run) - at) // 4 * 4]) for run in runs for at in range(4)]
    return any(secret in each for each in decoded)


def test_no_certificate_but_the_authoritys_can_sign_others() -> None:
    made = tls_identities("trial", ["scheduler", "client"])
    authority = x509.load_pem_x509_certificate(made["client"]["ca.crt"].encode())
    for subject in ("scheduler", "client"):
        own = x509.load_pem_x509_certificate(made[subject]["tls.crt"].encode())
        own.verify_directly_issued_by(authority)
        assert not own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert not own.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_a_passwords_hash_depends_only_on_the_password_and_the_salt() -> None:
    one, other = "00" * 16, "11" * 16
    assert jupyter_hash("secret", one) == jupyter_hash("secret", one) != jupyter_hash("secret", other)
    assert jupyter_hash("secret", one).startswith("argon2:$argon2id$")


URLS = ["https://me:sword%40fish@pypi.example:8443/a/simple/", "https://_json_key_base64:a+b=@pypi.example/simple"]
URLS += ["own=https://pypi.example https://me:swordfish@[fd00::1]:8443/", ""]
# uv would print these values in its error, or take a part of the password for the host.
NO_URLS = ["https://me:sword@fish@pypi.example/", "https://me:sword/fish@pypi.example/", "me:swordfish@pypi.example"]
NO_URLS += [
    "https://me:swordfish@pypi.example:x/",
    "https://me:sword fish@pypi.example/",
    "https://me:swörd@pypi.example",
]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"TOKEN": "x", "b_1": "y\nz"}, None),
        ({"MY VAR": "x"}, 'dask:secretEnv.MY VAR: "MY VAR" is not the name of a variable'),
        ({"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "False"}, "dask:secretEnv.DASK_DISTRIBUTED__COMM__REQUIRE"),
        ({"PATH": "x"}, "dask:secretEnv.PATH: PATH is set by this program"),
        ({"TOKEN": {"secure": "v1"}}, "dask:secretEnv.TOKEN: is not a string; set it again: pulumi config set"),
        ({"TOKEN": "a\0b"}, "dask:secretEnv.TOKEN: is longer than 100,000 bytes or contains control characters"),
        ("swordfish", "dask:secretEnv: is not a mapping; remove it"),
        *(({"UV_DEFAULT_INDEX": url}, None) for url in URLS),
        *(({"UV_DEFAULT_INDEX": url}, "dask:secretEnv.UV_DEFAULT_INDEX: is not a URL such as") for url in NO_URLS),
        *(({"https_proxy": url}, "dask:secretEnv.https_proxy: is not a URL such as") for url in NO_URLS),
    ],
)
def test_secret_variables_are_checked_and_never_repeated(value: Any, text: str | None) -> None:
    found = settings.secret_env.problems(value)
    assert len(found) == (text is not None)
    assert all(each.startswith(text) and not re.search("fish|swörd", each) for each in found)


def test_pods_trust_the_authority_of_the_settings(kubeconfig: Path) -> None:
    authority = tls_identities("trial", ["client"])["client"]["ca.crt"]
    assert own(parse(kubeconfig, environment={"authority": authority}))["environment"]["authority"] == authority
    text = problem(kubeconfig, environment={"authority": authority}, image="me/dask:1")
    assert text.startswith("environment.authority: pods with your own image install no packages; add it to the image")
    text = problem(kubeconfig, **OLDER | {"environment": OLDER["environment"] | {"authority": authority}})
    assert text.startswith("environment.authority: the official chart does not support a private authority; remove it")


OLDER = {"chart": "official", "environment": {"lock": "charts/official.lock", "python": "3.10"}}


def test_the_official_chart_gets_only_values_that_it_knows(kubeconfig: Path) -> None:
    exposure = {"sources": ["203.0.113.7/32"], "internal": True}
    workers = {"replicas": 4, "cpu": 1, "memory": "4 GB", "nodeSelector": {"pool": "dask"}, "serviceAccount": "dask"}
    cluster = parse(kubeconfig, **OLDER, workers=workers, expose={"scheduler": exposure}, image="ghcr.io/me/dask:1")
    secret = chart_values.SecretEnv("dask-env", ["TOKEN"], "r")
    found = chart_values.official(cluster, lock.read(ROOT / "charts/official.lock", "3.10"), "sha1:s:d", secret)
    for part in ("scheduler", "worker", "jupyter"):
        key = {"secretKeyRef": {"name": "dask-env", "key": "TOKEN"}}
        assert {"name": "TOKEN", "valueFrom": key} in found[part]["env"]
    assert not list(unknown_values(found, default_values("official"), ()))
    assert found["worker"]["replicas"] == 4
    assert found["worker"]["resources"]["limits"] == {"memory": "4000000000"}
    assert found["scheduler"]["serviceAnnotations"][chart_values.SOURCES] == "203.0.113.7/32"


def test_the_same_packages_are_in_all_pods_of_the_official_chart(kubeconfig: Path) -> None:
    cluster = parse(kubeconfig, **OLDER, packages={"pip": ["dask-ml"], "conda": ["shap"], "apt": ["libgomp1"]})
    none = chart_values.SecretEnv("", [], "r")
    found = chart_values.official(cluster, lock.read(ROOT / "charts/official.lock", "3.10"), "sha1:s:d", none)
    for part in ("scheduler", "worker", "jupyter"):
        variables = {each["name"]: each["value"] for each in found[part]["env"]}
        assert "dask==2024.1.0" in variables["EXTRA_PIP_PACKAGES"].split()
        assert variables["EXTRA_PIP_PACKAGES"].endswith(" dask-ml")
        assert (variables["EXTRA_CONDA_PACKAGES"], variables["EXTRA_APT_PACKAGES"]) == ("shap", "libgomp1")


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"environment": {}}, "environment.lock: pins dask 2026"),
        ({"dask": {"tls": True}}, "dask.tls: the official chart does not support TLS; remove it, or write chart: own"),
        ({"workers": {"max": 4}}, "workers.max: the official chart does not support bounds of the number of workers;"),
        ({"workers": {"groups": [{"name": "a"}]}}, "workers.groups: the official chart does not support groups of"),
        (
            {"expose": {"jupyter": {"sources": ["10.1.0.0/24"], "internal": True}}},
            "expose.jupyter: the official chart does not support source",
        ),
        ({"values": {"tls": {}}}, "values.tls: unknown key of the chart"),
        (
            {"data": {"size": "1Gi", "delete": True}},
            "data.size: the official chart does not support a shared directory",
        ),
        (
            {"cluster": OWN, "data": {"buckets": [{"name": "mine"}]}},
            "data.buckets: the official chart does not support accounts for buckets",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_features_that_the_official_chart_lacks_are_rejected(
    kubeconfig: Path, changed: dict[str, Any], text: str
) -> None:
    assert problem(kubeconfig, **(OLDER | changed)).startswith(text)


def test_the_official_charts_lock_is_suggested_together_with_its_python(kubeconfig: Path) -> None:
    assert 'such as charts/official.lock with python: "3.10"' in problem(kubeconfig, chart="official")


@pytest.mark.parametrize("file", sorted(ROOT.glob("Pulumi.*.yaml")), ids=lambda file: file.name)
def test_every_shipped_stack_file_is_accepted(kubeconfig: Path, file: Path) -> None:
    cluster = yaml.safe_load(file.read_text())["config"][KEY]
    if cluster.get("cluster", {}).get("source") == "existing":
        cluster["cluster"]["kubeconfig"] = str(kubeconfig)
    assert settings.parse(cluster, ROOT)


GPUS = {"machine": "n1-standard-4", "accelerators": {"type": "nvidia-tesla-t4"}}
WRONG_CLUSTERS: list[tuple[dict[str, Any], str]] = [
    ({"project": "My Project"}, "cluster.project: 'My Project' is not a project ID; write e.g. my-project"),
    ({"location": "iowa"}, "cluster.location: 'iowa' is not a zone or region; write e.g. us-central1-a"),
    ({"version": "v2"}, "cluster.version: 'v2' is not a version"),
    ({"admins": ["me"]}, "cluster.admins[0]: 'me' is not an e-mail address; write e.g. me@example.com"),
    ({"authorizedNetworks": ["0.0.0.0/0"]}, "cluster.authorizedNetworks[0]: 0.0.0.0/0 covers the whole internet"),
    ({"ranges": {"pods": "8.8.0.0/16"}}, "cluster.ranges.pods: 8.8.0.0/16 is not a private network"),
    ({"ranges": {"pods": "127.0.0.0/17"}}, "cluster.ranges.pods: 127.0.0.0/17 is not a private network"),
    ({"ranges": {"pods": "169.254.0.0/17"}}, "cluster.ranges.pods: 169.254.0.0/17 is not a private network"),
    ({"ranges": {"pods": "192.0.2.0/24"}}, "cluster.ranges.pods: 192.0.2.0/24 is not a private network"),
    (
        {"ranges": {"nodes": "10.8.0.0/29"}, "workers": {"maxNodes": 5}},
        "cluster.ranges.nodes: 10.8.0.0/29 is too small for 8 nodes; write a /28 or larger",
    ),
    (
        {"ranges": {"pods": "10.12.0.0/22"}, "workers": {"maxNodes": 5}},
        "cluster.ranges.pods: 10.12.0.0/22 is too small for 8 nodes; write a /21 or larger",
    ),
    ({"ranges": {"services": "10.9.0.0/29"}}, "cluster.ranges.services: 10.9.0.0/29 is too small"),
    ({"ranges": {"services": "10.8.0.0/24"}}, "cluster.ranges.services: 10.8.0.0/24 overlaps cluster.ranges.nodes"),
    (
        {"network": {"name": "n", "subnetwork": "s", "pods": "p", "services": "v"}, "ranges": {"pods": "10.1.0.0/17"}},
        "cluster.ranges: applies only to a network that the stack creates",
    ),
    ({"workers": {"minNodes": 3, "maxNodes": 2}}, "cluster.workers.maxNodes: 2 is less than minNodes, 3"),
    ({"workers": {"labels": {"a b": "c"}}}, "cluster.workers.labels.a b: 'a b' is not a Kubernetes label's name"),
    *(
        ({"workers": {"taints": [wrong]}}, f"cluster.workers.taints[0]: {json.dumps(wrong)} is not a taint of GKE;")
        for wrong in ({"key": "a"}, {"key": "a", "effect": "NoSchedule"}, {"key": "a b", "effect": "NO_SCHEDULE"})
    ),
    ({"workers": {"machine": "big"}}, "cluster.workers.machine: 'big' is not a machine type"),
    ({"hardening": {"shieldedNodes": False}}, "cluster.hardening.secureBoot: requires shielded nodes"),
    ({"hardening": {"databaseKey": "key"}}, "cluster.hardening.databaseKey: 'key' is not a Cloud KMS key; write"),
    (
        {"hardening": {"sandbox": True}, "workers": GPUS},
        "cluster.hardening.sandbox: does not support GPUs",
    ),
    ({"kubeconfig": "x"}, "cluster.kubeconfig: unknown key"),
    (
        {"workers": {"capacity": [{"zone": "us-central1-b"}, {"zone": "us-east1-c"}]}},
        "cluster.workers.capacity[1].zone: us-east1-c is not in the region of the cluster; write a zone of us-central1",
    ),
    (
        {"workers": {"capacity": [{"zone": "us-central1"}]}},
        "cluster.workers.capacity[0].zone: 'us-central1' is not a zone; write e.g. us-central1-a",
    ),
    (
        {"workers": {"capacity": [{"spot": True}, {}, {"zone": "us-central1-a", "machine": "e2-standard-4"}]}},
        "cluster.workers.capacity[2]: is the same kind of nodes as cluster.workers.capacity[1]; remove one of them",
    ),
    (
        {"workers": {"minNodes": 1, "capacity": [{}]}},
        "cluster.workers.minNodes: is not possible together with capacity",
    ),
]


def test_a_groups_pool_contradicts_neither_itself_nor_the_cluster() -> None:
    def said(pool: dict[str, Any], **cluster: Any) -> list[str]:
        groups = [{"name": "a", "pool": pool}]
        with pytest.raises(settings.SettingsError) as raised:
            settings.parse({"target": "kubernetes", "cluster": OWN | cluster, "workers": {"groups": groups}}, ROOT)
        return raised.value.problems

    [limits] = said({"minNodes": 3, "maxNodes": 2})
    assert "workers.groups[0].pool.maxNodes: 2 is less than minNodes, 3; write 3 or more" in limits
    [sandbox] = said(GPUS, hardening={"sandbox": True})
    assert "cluster.hardening.sandbox: does not support GPUs here; remove it or workers.groups[0].pool.acc" in sandbox


def test_the_shared_directory_on_gke_is_a_filestore_volume_with_a_known_cost() -> None:
    data = {"size": "1Ti", "delete": True}
    bill = settings.parse({"target": "kubernetes", "cluster": OWN, "data": data}, ROOT).bill()
    [item] = [each for each in bill if "Filestore" in each.name]
    assert item.up == pytest.approx(1024 * 0.2 / 730)
    shared = {"name": "n", "project": "our-host", "subnetwork": "s", "pods": "p", "services": "v"}
    with pytest.raises(settings.SettingsError, match=r"data\.size: is not available in a Shared VPC, where Filestore"):
        settings.parse({"target": "kubernetes", "cluster": OWN | {"network": shared}, "data": data}, ROOT)
    for wrong, text in (
        ({"size": "99Gi"}, "data.size: 99Gi is less than Filestore's smallest volume; write 100Gi or more"),
        ({"className": "x"}, "data.className: is not available with cluster.source: gke, which uses Filestore"),
    ):
        with pytest.raises(settings.SettingsError) as raised:
            settings.parse({"target": "kubernetes", "cluster": OWN, "data": data | wrong}, ROOT)
        assert raised.value.problems[0].removeprefix(f"{KEY}.").startswith(text)


def test_buckets_need_workload_identity_but_no_shared_directory() -> None:
    said = {"target": "kubernetes", "cluster": OWN, "data": {"buckets": [{"name": "mine"}]}}
    assert settings.parse(said, ROOT).data.size is None
    said["cluster"] = OWN | {"hardening": {"workloadIdentity": False}}
    with pytest.raises(settings.SettingsError) as raised:
        settings.parse(said, ROOT)
    [found] = raised.value.problems
    assert "data.buckets: requires Workload Identity; remove cluster.hardening.workloadIdentity: false" in found


def test_volumes_for_spilled_data_on_gke_have_a_known_cost() -> None:
    def said(name: str) -> dict[str, Any]:
        workers = {"replicas": 4, "spill": {"size": "100Gi", "className": name}}
        return {"target": "kubernetes", "cluster": OWN, "workers": workers, "limits": {"idle": "30m"}}

    [item] = [each for each in settings.parse(said("premium-rwo"), ROOT).bill() if "spilled" in each.name]
    assert (item.up, item.idle) == (pytest.approx(4 * 100 * 0.17 / 730), 0)
    with pytest.raises(settings.SettingsError) as raised:
        settings.parse(said("fast"), ROOT)
    assert "workers.spill.className: fast is not a StorageClass of GKE for one pod" in str(raised.value.problems)


@pytest.mark.parametrize(("changed", "text"), WRONG_CLUSTERS, ids=lambda v: v if isinstance(v, str) else "")
def test_invalid_settings_of_a_gke_cluster_are_reported(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(settings.SettingsError) as raised:
        settings.parse({"target": "kubernetes", "cluster": OWN | changed}, ROOT)
    [only] = raised.value.problems
    assert only.removeprefix(f"{KEY}.").startswith(text)


@pytest.mark.parametrize("text", ["30", "59s", "0m", "1.5h", "m"])
def test_an_invalid_duration_is_rejected(kubeconfig: Path, text: str) -> None:
    assert problem(kubeconfig, limits={"idle": text}).startswith(f"limits.idle: '{text}' is not a duration of at")


def test_workers_on_gke_run_in_their_node_pool_and_use_its_gpus() -> None:
    gpus = {"workers": GPUS}
    own = {"nodeSelector": {"team": "a"}, "tolerations": [{"operator": "Exists"}]}
    cluster = settings.parse({"target": "kubernetes", "cluster": OWN | gpus, "workers": own}, ROOT)
    names = chart_values.Names("s", "w", "c", "p")
    locks = {name: lock.read(ROOT / "environment.lock", "3.11") for name in ("environment", "jupyter")}
    found = chart_values.own(cluster, names, locks, "", "")
    assert found["worker"]["nodeSelector"] == {"team": "a", "dask-workers": "yes"}
    assert [each.get("key") for each in found["worker"]["tolerations"]] == ["dask", None]
    assert found["worker"]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert found["scheduler"]["nodeSelector"] == {"dask-system": "yes"} and not found["scheduler"]["tolerations"]


def test_workers_run_on_all_kinds_of_nodes_of_their_list_and_on_no_others() -> None:
    kinds: list[dict[str, Any]] = [{"spot": True}, {"zone": "us-central1-b"}]
    groups = [{"name": "big", "pool": {"capacity": kinds}}, {"name": "other", "pool": {}}, {"name": "also"}]
    given = {"cluster": OWN | {"workers": {"capacity": kinds}}, "workers": {"groups": groups}}
    found = own(settings.parse({"target": "kubernetes"} | given, ROOT))
    big, other, also = found["additional_worker_groups"]
    key = "cloud.google.com/compute-class"
    for section, name in ((found["worker"], "workers"), (also, "workers"), (big, "workers-big")):
        assert section["nodeSelector"] == {key: f"dask-{name}"}
        assert [(each["key"], each["value"]) for each in section["tolerations"]] == [
            ("dask", name),
            (key, f"dask-{name}"),
        ]
    assert (other["nodeSelector"], other["replaces"]) == ({"dask-workers-other": "yes"}, ["nodeSelector"])


def test_a_node_pools_name_is_short_enough_for_google() -> None:
    groups = [{"name": "a" * 30, "pool": {"capacity": [{}]}}]
    with pytest.raises(settings.SettingsError) as raised:
        settings.parse({"target": "kubernetes", "cluster": OWN, "workers": {"groups": groups}}, ROOT)
    [only] = raised.value.problems
    assert "workers.groups[0].pool.capacity[0]: its node pool's name workers-aaa" in only
    assert only.endswith("has more than 40 characters; write a shorter group name")


def test_what_a_group_does_not_say_is_like_the_main_group(kubeconfig: Path) -> None:
    workers = {
        "replicas": 2,
        "cpu": 2,
        "memory": "3 GiB",
        "nodeSelector": {"team": "a"},
        "tolerations": [{"operator": "Exists"}],
        "serviceAccount": "dask",
        "groups": [
            {"name": "same"},
            {"name": "big", "replicas": 4, "cpu": 8, "memory": "16 GiB", "nodeSelector": {"disk": "ssd"}},
            {"name": "gpu", "threads": 1, "resources": {"GPU": 1, "memory": 10}, "tolerations": []},
        ],
    }
    cluster = parse(kubeconfig, workers=workers, dask={"workerArgs": ["--no-dashboard"]})
    assert cluster.replicas == 2 + 1 + 4 + 1
    values = own(cluster)
    same, big, gpu = values["additional_worker_groups"]
    main = values["worker"]
    assert [each["name"] for each in (same, big, gpu)] == ["worker-same", "worker-big", "worker-gpu"]
    alike = same.keys() - {"name", "replicas", "replaces"}
    assert {key: same[key] for key in alike} == {key: main[key] for key in alike}
    assert same["replaces"] == gpu["replaces"] == []
    assert (same["replicas"], big["replicas"]) == (1, 4)
    assert (big["threads_per_worker"], big["resources"]["requests"]["cpu"]) == (8, "8000m")
    assert (big["nodeSelector"], big["replaces"]) == ({"disk": "ssd"}, ["nodeSelector"])
    assert gpu["extraArgs"] == ["--no-dashboard", "--resources", "GPU=1 memory=10"]
    assert (gpu["threads_per_worker"], gpu["tolerations"]) == (1, [])


def test_a_group_runs_on_its_own_nodes_or_on_those_of_the_workers_and_uses_their_gpus() -> None:
    groups = [{"name": "big", "pool": {"machine": "n2-highmem-8"}}, {"name": "also"}, {"name": "gpu", "pool": GPUS}]
    own_nodes = {"nodeSelector": {"team": "a"}, "tolerations": [{"operator": "Exists"}], "groups": groups}
    cluster = settings.parse({"target": "kubernetes", "cluster": OWN | {"workers": GPUS}, "workers": own_nodes}, ROOT)
    big, also, gpu = own(cluster)["additional_worker_groups"]
    assert big["nodeSelector"] == {"dask-workers-big": "yes"}
    [toleration] = big["tolerations"]
    assert toleration == {"key": "dask", "operator": "Equal", "value": "workers-big", "effect": "NoSchedule"}
    assert big["resources"]["limits"].keys() == {"memory"} and big["replaces"] == ["nodeSelector", "resources"]
    assert also["nodeSelector"] == {"team": "a", "dask-workers": "yes"} and len(also["tolerations"]) == 2
    assert also["resources"]["limits"]["nvidia.com/gpu"] == gpu["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_bounds_concern_the_main_group_alone(kubeconfig: Path) -> None:
    groups = [{"name": "big", "replicas": 2}]
    cluster = parse(kubeconfig, workers={"min": 1, "max": 5, "groups": groups})
    assert (cluster.replicas, cluster.grouped) == (7, (2, 2))
    assert own(cluster)["bounds"] == {"min": 1, "max": 5}
    more = {"additional_worker_groups": [{"name": "more", "replicas": 4}]}
    assert parse(kubeconfig, workers={"max": 5}, values=more).grouped == (4, 4)


def test_bounds_of_a_group_are_its_own(kubeconfig: Path) -> None:
    groups = [{"name": "gpu", "max": 4, "resources": {"GPU": 2}}, {"name": "fixed", "replicas": 2}]
    cluster = parse(kubeconfig, workers={"groups": groups})
    assert (cluster.replicas, cluster.grouped) == (3 + 4 + 2, (2, 6))
    values = own(cluster)
    gpu, fixed = values["additional_worker_groups"]
    assert gpu["bounds"] == {"min": 0, "max": 4, "resources": {"GPU": 2}}
    assert "bounds" not in fixed and values["bounds"] == {"min": None, "max": None}
    assert dask_on_kubernetes.service_accounts(cluster) == ["dask", "dask-scheduler"], (
        "the scheduler may scale the group"
    )


def test_a_git_repository_is_built_on_the_users_computer(kubeconfig: Path) -> None:
    own = {"pip": ["mypkg @ git+https://example.com/mypkg"]}
    with pytest.raises(settings.SettingsError, match=r"packages\.pip\[0\]: .* needs git, .* add it to environment.in"):
        parse(kubeconfig, packages=own)


@pytest.fixture
def own_wheels(tmp_path: Path) -> Callable[[int], dict[str, str]]:
    """Writes a lock that needs a wheel of this size, which no index has; returns the setting `environment`."""
    (tmp_path / "own.wheels").mkdir()
    file = tmp_path / "own.wheels" / "own-1-py3-none-any.whl"

    def write(size: int) -> dict[str, str]:
        file.write_bytes(bytes(size))
        pin = f"own==1 --hash=sha256:{sha256(file)}\n    # from own.wheels/{file.name}\n"
        (tmp_path / "own.lock").write_text((ROOT / "environment.lock").read_text() + pin)
        return {"lock": str(tmp_path / "own.lock")}

    return write


def test_pods_get_wheels_up_to_the_size_of_a_config_map(
    kubeconfig: Path, own_wheels: Callable[[int], dict[str, str]]
) -> None:
    assert parse(kubeconfig, environment=own_wheels(1_000_000))
    text = problem(kubeconfig, environment=own_wheels(1_000_001))
    assert "needs own-1-py3-none-any.whl with 1,000,001 bytes, but pods can get 1,000,000 bytes" in text
    assert text.endswith(
        "publish them on your index, or build an image that contains the lock's packages and write it as image"
    )
    assert parse(kubeconfig, environment=own_wheels(1_000_001), image="me/dask:1")


def test_the_official_chart_cannot_install_wheels(
    kubeconfig: Path, own_wheels: Callable[[int], dict[str, str]]
) -> None:
    with pytest.raises(settings.SettingsError, match="does not support packages that no index has: own-1-py3"):
        parse(kubeconfig, chart="official", environment=own_wheels(10))


def test_an_archive_of_wheels_changes_only_with_them(tmp_path: Path) -> None:
    file = tmp_path / "own-1.0+local-py3-none-any.whl"
    file.write_bytes(b"old")
    first = chart_values.archive([file])
    os.utime(file, (0, 0))
    assert chart_values.archive([file]) == first
    file.write_bytes(b"new")
    assert chart_values.archive([file]) != first


def copy_of_the_official_file(**changed: Any) -> dict[str, Any]:
    """The official chart's values.yaml, edited."""
    return chart_values.merged(json.loads((CHARTS / "official.json").read_text()), changed)


@pytest.mark.parametrize("chart", ["own", "official"])
def test_an_unedited_copy_of_the_official_values_changes_nothing(kubeconfig: Path, chart: str) -> None:
    older = OLDER if chart == "official" else {}
    whole = copy_of_the_official_file()
    assert parse(kubeconfig, **older, values=whole) == parse(kubeconfig, **older)
    assert edits(whole, chart)[1] == {}


def test_edits_of_the_official_values_take_effect_and_what_has_none_is_named(kubeconfig: Path) -> None:
    whole = copy_of_the_official_file(
        scheduler={"metrics": {"enabled": True}, "image": {"tag": "2023.10.1"}},
        worker={
            "image": {"repository": "registry.example.com/python", "pullSecrets": [{"name": "mine"}]},
            "annotations": {"team": "a"},
            "default_resources": {"cpu": 2},
        },
        jupyter={"password": "sha1:x", "rbac": False},
        additional_worker_groups=[{"name": "big", "default_resources": {"cpu": 9}}],
    )
    changed, notes = edits(whole, "own")
    image = {"repository": "registry.example.com/python", "tag": "2024.1.0", "pullSecrets": [{"name": "mine"}]}
    assert changed == {
        "scheduler": {"image": {}},
        "worker": {
            "image": image,
            "annotations": {"team": "a"},
        },
        "jupyter": {},
        "additional_worker_groups": [{"name": "big"}],
    }
    assert parse(kubeconfig, values=whole).values == changed
    assert {".".join(map(str, place)) for place in notes} == {
        "scheduler.metrics", "scheduler.image", "worker.image", "worker.default_resources", "jupyter.password",
        "jupyter.rbac", "additional_worker_groups.0.default_resources",
    }  # fmt: skip
    assert "dask:jupyterPassword" in notes["jupyter", "password"]
    assert problem(kubeconfig, values=copy_of_the_official_file(worker={"replicas": 9})).startswith(
        "values.worker.replicas: is set by this program; use workers.replicas"
    )


def test_a_few_values_that_equal_the_official_defaults_override_settings(kubeconfig: Path) -> None:
    everywhere, nowhere = {"tolerations": [{"operator": "Exists"}]}, {"worker": {"tolerations": []}}
    assert own(parse(kubeconfig, workers=everywhere, values=nowhere))["worker"]["tolerations"] == []
