"""The manifests that helm renders from the chart; test_node.py sends them to an API server."""

import contextlib
import functools
import ipaddress
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import settings
from components.kubernetes import chart_values
from components.kubernetes.dask_on_kubernetes import OFFICIAL
from daskstack.engine import PROJECT
from on_this_computer import check_release
from rehearsal.programs import kubernetes_programs
from settings import lock
from settings.chart import KUBERNETES_OBJECTS, default_values
from tests.kubernetes.chart import CHART, LOCKS, NAMES, helm, rendered

GOOGLE = {"source": "gke", "project": "my-project", "location": "us-central1-a"}


def test_the_chart_passes_helm_lint() -> None:
    done = helm("lint", str(CHART), "--strict", given={"jupyter": {"passwordSecret": "p"}}, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"worker": {"replicaCount": 3}}, "'replicaCount' not allowed"),
        ({"jupyter": {"enabled": True}}, "jupyter.passwordSecret is missing"),
        ({"bounds": {"max": 8}}, "bounds.max is set, but bounds.min is not; write both"),
        ({"additional_worker_groups": [{"name": "worker"}]}, "additional_worker_groups[0].name is missing or equal to"),
        ({"webUI": {"serviceType": "LoadBalancer"}}, "webUI.serviceType is LoadBalancer, but sourceRanges is empty"),
    ],
)
def test_the_chart_rejects_values_that_cannot_work(given: dict[str, Any], text: str) -> None:
    password = {} if "jupyter" in given else {"jupyter": {"passwordSecret": "p"}}
    done = helm("template", "dask", str(CHART), given=password | given, check=False)
    assert done.returncode and text in done.stderr


def test_null_removes_every_default_that_can_be_empty() -> None:
    def paths(value: Any, place: tuple = ()) -> Iterator[tuple]:
        if isinstance(value, dict) and (not place or place[-1] not in KUBERNETES_OBJECTS):
            for key, inner in value.items():
                yield from paths(inner, (*place, key))
        else:
            yield place

    values: dict[str, Any] = {}
    for place in paths(default_values("own")):
        null = functools.reduce(lambda inner, key: {key: inner}, reversed(place), None)
        with contextlib.suppress(settings.SettingsError):
            settings.parse({"target": "kubernetes", "cluster": GOOGLE, "values": null}, PROJECT)
            values = chart_values.merged(values, null)
    cluster = settings.parse({"target": "kubernetes", "cluster": GOOGLE, "values": values}, PROJECT)
    found = of_kind("Deployment", rendered(**chart_values.own(cluster, NAMES, LOCKS, "uv==1", "r")))
    [worker] = found["dask-worker"]["template"]["spec"]["containers"]
    assert not worker.keys() & {"livenessProbe", "readinessProbe", "startupProbe", "resources"}
    assert worker["command"][:2] == ["dask", "worker"]


def of_kind(kind: str, manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each["spec"] for each in manifests if each["kind"] == kind}


def reached(policies: dict[str, dict], component: str, address: str, port: int, protocol: str = "TCP") -> bool:
    """Whether the policies let a pod of the release send to this pod, or to this address outside of the cluster."""
    where = ipaddress.ip_address(address)

    def inside(block: dict[str, Any]) -> bool:
        excepted = any(where in ipaddress.ip_network(each) for each in block.get("except", []))
        return where in ipaddress.ip_network(block["cidr"]) and not excepted

    def ports(rule: dict[str, Any]) -> bool:
        wanted = rule.get("ports")
        return not wanted or any((each["port"], each.get("protocol", "TCP")) == (port, protocol) for each in wanted)

    rules = [
        rule
        for policy in policies.values()
        if "Egress" in policy["policyTypes"]
        and policy["podSelector"]["matchLabels"].get("component", component) == component
        for rule in policy["egress"]
    ]
    return any(
        ports(rule) and ("to" not in rule or any(inside(each["ipBlock"]) for each in rule["to"] if "ipBlock" in each))
        for rule in rules
    )


METADATA = [("169.254.169.254", 80), ("169.254.169.252", 988), ("fd20:ce::254", 80), ("fd00:ec2::254", 80)]
WIRE_SERVER = ("168.63.129.16", 80)  # Azure's


def test_pods_reach_dns_and_the_internet_but_not_metadata_servers_or_private_networks() -> None:
    policies = of_kind("NetworkPolicy", rendered())
    for component in ("scheduler", "worker", "jupyter", "check"):
        for address, port in (*METADATA, WIRE_SERVER, ("10.0.0.1", 443), ("192.168.1.1", 80), ("100.64.0.1", 8786)):
            assert not reached(policies, component, address, port), address
        assert reached(policies, component, "151.101.0.223", 443)
        assert reached(policies, component, "2a04:4e42::223", 443)
        for server in ("169.254.20.10", "10.96.0.10"):
            assert reached(policies, component, server, 53, "UDP") and reached(policies, component, server, 53)
        [own] = [
            peer["podSelector"]["matchLabels"] for peer in policies["dask"]["egress"][0]["to"] if "podSelector" in peer
        ]
        assert own == policies["dask"]["podSelector"]["matchLabels"]


def test_pods_reach_private_networks_that_egress_lists() -> None:
    said = {"egress": ["10.2.0.0/24"], "target": "kubernetes", "cluster": GOOGLE, "limits": {"idle": "30m"}}
    given = chart_values.own(settings.parse(said, PROJECT), NAMES, LOCKS, "uv==1", "r")
    policies = of_kind("NetworkPolicy", rendered(**given))
    assert reached(policies, "worker", "10.2.0.7", 3141)
    assert not reached(policies, "worker", "10.3.0.7", 3141)


def test_only_a_scheduler_that_scales_workers_reaches_the_api_server() -> None:
    policies = of_kind("NetworkPolicy", rendered(idleTimeout=60))
    assert reached(policies, "scheduler", "10.96.0.1", 443) and reached(policies, "scheduler", "172.16.0.2", 6443)
    assert not reached(policies, "scheduler", "10.96.0.1", 80)
    assert not reached(policies, "worker", "10.96.0.1", 443)
    assert not reached(of_kind("NetworkPolicy", rendered()), "scheduler", "10.96.0.1", 443)


def test_only_pods_with_their_own_account_reach_the_metadata_server() -> None:
    policies = of_kind("NetworkPolicy", rendered(worker={"serviceAccountName": "mine"}, idleTimeout=60))
    assert reached(policies, "worker", "169.254.169.254", 80) and reached(policies, "worker", "169.254.169.252", 988)
    assert not any(reached(policies, "scheduler", *each) or reached(policies, "jupyter", *each) for each in METADATA)


def test_with_buckets_all_pods_reach_the_metadata_server_but_get_no_token_of_kubernetes() -> None:
    said = {"target": "kubernetes", "cluster": GOOGLE, "data": {"buckets": [{"name": "mine"}]}}
    given = chart_values.own(settings.parse(said, PROJECT), NAMES, LOCKS, "uv==1", "r")
    policies, deployments = (of_kind(kind, rendered(**given)) for kind in ("NetworkPolicy", "Deployment"))
    for component in ("scheduler", "worker", "jupyter"):
        assert reached(policies, component, "169.254.169.254", 80), component
        pod = deployments[f"dask-{component}"]["template"]["spec"]
        assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("dask", False)


def test_tasks_cannot_change_the_environment_and_their_storage_is_limited() -> None:
    given = INSTALLING | {"secretEnv": "variables"}
    for name, deployment in of_kind("Deployment", rendered(**given)).items():
        pod = deployment["template"]["spec"]
        container, *others = pod["containers"]
        for mount in [each for other in others for each in other["volumeMounts"]]:
            assert mount["readOnly"], f"{name}: {mount}"
        mounts = {each["mountPath"]: each.get("readOnly", False) for each in container["volumeMounts"]}
        spill = {"/spill"} if name == "dask-worker" else set()
        assert {path for path, only_read in mounts.items() if not only_read} == {"/home/dask", "/tmp"} | spill, name
        assert all(each["emptyDir"].get("sizeLimit") for each in pod["volumes"] if "emptyDir" in each), name
        assert container["envFrom"] == [{"secretRef": {"name": "variables"}}]
        assert all(each["secret"]["defaultMode"] == 0o440 for each in pod["volumes"] if "secret" in each)


def test_variables_of_dask_and_secret_ones_reach_the_installation_of_packages() -> None:
    said = {"target": "kubernetes", "cluster": GOOGLE, "dask": {"env": {"HTTPS_PROXY": "http://proxy:3128"}}}
    given = chart_values.own(settings.parse(said, PROJECT), NAMES, LOCKS, "uv==1", "r") | {"secretEnv": "variables"}
    for deployment in of_kind("Deployment", rendered(**given)).values():
        [install] = deployment["template"]["spec"]["initContainers"]
        assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in install["env"]
        assert install["envFrom"] == [{"secretRef": {"name": "variables"}}]


LIMITED = {"limits": {"cpu": "2", "memory": "3Gi"}, "requests": {"cpu": "1", "memory": "3Gi"}}
SECURE = {"tls": {"scheduler": "s", "worker": "w", "client": "c"}}
INSTALLING: dict[str, Any] = {"environment": {"lock": "x==1", "uv": "uv==1"}} | SECURE


def test_every_container_has_the_limits_that_a_quota_wants() -> None:
    parts: dict[str, Any] = {part: {"resources": LIMITED} for part in ("scheduler", "worker")}
    parts["jupyter"] = {"resources": LIMITED, "passwordSecret": "p"}
    for name, deployment in of_kind("Deployment", rendered(**INSTALLING, **parts)).items():
        pod = deployment["template"]["spec"]
        for container in pod["initContainers"] + pod["containers"]:
            found = container["resources"]
            assert {*found["limits"], *found["requests"]} == {"cpu", "memory"}, f"{name}: {container['name']}"
    own = {"environment": INSTALLING["environment"] | {"resources": {"limits": {"memory": "9Gi"}}}}
    for deployment in of_kind("Deployment", rendered(**INSTALLING | own, **parts)).values():
        assert deployment["template"]["spec"]["initContainers"][0]["resources"] == {"limits": {"memory": "9Gi"}}


def test_workers_get_packages_only_from_the_scheduler_of_the_same_environment_and_only_with_tls() -> None:
    def keys(given: dict[str, Any]) -> list[str | None]:
        """The keys of the packages that the scheduler's pod sends, and that a worker wants."""
        pods = {name: each["template"]["spec"] for name, each in of_kind("Deployment", rendered(**given)).items()}
        found = [pods["dask-scheduler"]["containers"][-1], pods["dask-worker"]["initContainers"][0]]
        return [{each["name"]: each.get("value") for each in container["env"]}.get("KEY") for container in found]

    sent, wanted = keys(INSTALLING)
    assert sent and sent == wanted
    other, new = keys(INSTALLING | {"environment": {"lock": "x==2", "uv": "uv==1"}})
    assert other == new != sent, "pods with a new lock would run the old packages"
    image = {"image": {"repository": "mine"}}
    sent, wanted = keys(INSTALLING | {"worker": image})
    assert sent != wanted, "the packages of another image's Python"
    assert keys({"environment": INSTALLING["environment"]}) == [None, None], "without TLS, anybody could send packages"


def test_pods_pull_private_images_with_the_secrets_of_the_values() -> None:
    given = {part: {"image": {"pullSecrets": [{"name": "mine"}]}} for part in ("scheduler", "worker")}
    deployments = of_kind("Deployment", rendered(**INSTALLING, **given))
    for part in given:
        deployment = deployments[f"dask-{part}"]
        assert deployment["template"]["spec"]["imagePullSecrets"] == [{"name": "mine"}]
        like = {"spec": {"template": {"metadata": {"labels": {}}, "spec": deployment["template"]["spec"]}}}
        job = check_release.manifest(like, "", "")["spec"]["template"]["spec"]
        assert job["imagePullSecrets"] == [{"name": "mine"}], "the check's job"


def test_workers_that_are_replaced_at_once_have_no_settings_of_rolling_updates() -> None:
    found = of_kind("Deployment", rendered(worker={"strategy": {"type": "Recreate"}}))
    assert found["dask-worker"]["strategy"] == {"type": "Recreate"}, "Kubernetes would refuse more"


def test_new_wheels_replace_the_pods_that_install_them() -> None:
    def pods(digest: str) -> dict[str, dict]:
        lock = f"own==1 --hash=sha256:{digest}"
        return of_kind("Deployment", rendered(environment={"lock": lock, "uv": "uv==1", "wheels": "dask-wheels-1"}))

    old, new = pods("a"), pods("b")
    for name, deployment in new.items():
        assert deployment["template"]["metadata"] != old[name]["template"]["metadata"]
        [install] = deployment["template"]["spec"]["initContainers"]
        assert {"name": "wheels", "mountPath": "/etc/dask-wheels", "readOnly": True} in install["volumeMounts"]
        assert {"name": "wheels", "configMap": {"name": "dask-wheels-1"}} in deployment["template"]["spec"]["volumes"]


def test_stopping_workers_get_the_grace_period_to_hand_over_their_data() -> None:
    """A stopping worker hands over its results; a stopping scheduler waits until computations end."""
    for name, done in {"dask-worker": "$POD_NAME", "dask-scheduler": "--until-idle"}.items():
        pod = of_kind("Deployment", rendered())[name]["template"]["spec"]
        command = " ".join(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"])
        assert "python" in command and "/etc/dask/drain.py" in command and done in command
        [seconds] = re.findall(r"timeout (\d+) | (\d+)$", command)
        assert 0 < int("".join(seconds)) < pod["terminationGracePeriodSeconds"]


def test_only_a_scheduler_that_scales_workers_gets_a_token_with_no_other_permission() -> None:
    tokens = {
        name: each["template"]["spec"]["automountServiceAccountToken"]
        for name, each in of_kind("Deployment", rendered(idleTimeout=60)).items()
    }
    assert tokens == {"dask-scheduler": True, "dask-worker": False, "dask-jupyter": False}
    assert not any(
        each["template"]["spec"]["automountServiceAccountToken"] for each in of_kind("Deployment", rendered()).values()
    )

    def rule(group: str, kind: str, name: str, *verbs: str) -> dict[str, list[str]]:
        return {"apiGroups": [group], "resources": [kind], "resourceNames": [name], "verbs": list(verbs)}

    groups = [{"name": "gpu"}]
    for given in ({"idleTimeout": 60}, {"bounds": {"min": 0, "max": 8}, "additional_worker_groups": groups}):
        roles = [each for each in rendered(**given) if each["kind"] in ("Role", "ClusterRole")]
        assert [role["rules"] for role in roles] == [
            [
                rule("apps", "deployments", "dask-worker", "get"),
                rule("apps", "deployments/scale", "dask-worker", "patch"),
                rule("", "configmaps", "dask-scaling", "get", "patch"),
            ]
        ]


def test_bounds_reach_the_scheduler_without_a_change_of_its_pod() -> None:
    made = rendered(bounds={"min": 0, "max": 8})
    assert of_kind("Deployment", made)["dask-worker"]["replicas"] == 0
    [config] = [each for each in made if each["metadata"]["name"] == "dask-scaling"]
    settings = {"bounds": [0, 8], "deployments": ["dask-worker"], "idle": None, "groups": {}}
    assert json.loads(config["data"]["settings"]) == settings
    other = rendered(bounds={"min": 1, "max": 9})
    assert of_kind("Deployment", made)["dask-scheduler"] == of_kind("Deployment", other)["dask-scheduler"]


def test_bounds_leave_other_groups_alone_and_idle_stops_them() -> None:
    def scaled(**given: Any) -> tuple[list[str], dict[str, tuple[int, str]]]:
        groups = [{"name": "worker-big", "replicas": 2}]
        made = rendered(bounds={"min": 0, "max": 8}, additional_worker_groups=groups, **given)
        [config] = [each for each in made if each["metadata"]["name"] == "dask-scaling"]
        workers = {
            each["metadata"]["name"]: (each["spec"]["replicas"], each["metadata"]["annotations"]["dask/replicas"])
            for each in made
            if each["kind"] == "Deployment" and "dask/replicas" in each["metadata"].get("annotations", {})
        }
        return json.loads(config["data"]["settings"])["deployments"], workers

    replicas = {"dask-worker": (0, "1"), "dask-worker-big": (2, "2")}
    assert scaled() == (["dask-worker"], replicas)
    assert scaled(idleTimeout=60) == (["dask-worker", "dask-worker-big"], replicas)


def test_the_scheduler_can_scale_a_group_with_bounds_and_no_other_without_them() -> None:
    bounds = {"min": 0, "max": 4, "resources": {"GPU": 0.5}}
    groups = [{"name": "worker-gpu", "bounds": bounds}, {"name": "worker-big", "replicas": 2}]
    made = rendered(additional_worker_groups=groups)
    [config] = [each for each in made if each["metadata"]["name"] == "dask-scaling"]
    known = json.loads(config["data"]["settings"])
    assert known == {
        "deployments": ["dask-worker", "dask-worker-gpu"],
        "bounds": None,
        "idle": None,
        "groups": {"dask-worker-gpu": bounds},
    }
    [role] = [each for each in made if each["kind"] == "Role"]
    assert role["rules"][1]["resourceNames"] == ["dask-worker", "dask-worker-gpu"]
    deployments = {each["metadata"]["name"]: each for each in made if each["kind"] == "Deployment"}
    gpu, big = deployments["dask-worker-gpu"], deployments["dask-worker-big"]
    assert (gpu["spec"]["replicas"], gpu["metadata"]["annotations"]["dask/replicas"]) == (0, "0")
    assert big["spec"]["replicas"] == 2


def test_a_group_of_the_settings_has_its_own_pods_policies_and_budget() -> None:
    pool = {"machine": "n2-highmem-8"}
    big = {"name": "big", "replicas": 2, "cpu": 4, "memory": "16 GiB", "resources": {"BIG": 1}, "pool": pool}
    workers = {"nodeSelector": {"team": "a"}, "serviceAccount": "mine", "groups": [big, {"name": "small"}]}
    gpus = {"machine": "n1-standard-4", "accelerators": {"type": "nvidia-tesla-t4"}}
    said = {"target": "kubernetes", "cluster": GOOGLE | {"workers": gpus}, "workers": workers}
    said["dask"] = {"ports": {"libraries": "none"}}
    made = rendered(**chart_values.own(settings.parse(said, PROJECT), NAMES, LOCKS, "uv==1", "r"))
    deployments, policies, budgets = (
        of_kind(kind, made) for kind in ("Deployment", "NetworkPolicy", "PodDisruptionBudget")
    )
    main, found = (deployments[name]["template"] for name in ("dask-worker", "dask-worker-big"))
    [container] = found["spec"]["containers"]
    assert deployments["dask-worker-big"]["replicas"] == 2
    assert found["spec"]["nodeSelector"] == {"dask-workers-big": "yes"}
    assert container["resources"]["limits"] == {"memory": str(16 * 2**30)}, "the main group's GPU is not its own"
    assert container["args"] == ["--resources", "BIG=1"] and "args" not in main["spec"]["containers"][0]
    assert container["command"][container["command"].index("--nthreads") + 1] == "4"
    assert container["lifecycle"] == main["spec"]["containers"][0]["lifecycle"], "it hands over its results"
    assert container["env"] == main["spec"]["containers"][0]["env"]
    small = deployments["dask-worker-small"]["template"]["spec"]
    assert small["nodeSelector"] == {"team": "a", "dask-workers": "yes"}
    assert small["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    labels = found["metadata"]["labels"]
    assert labels == policies["dask"]["podSelector"]["matchLabels"] | {"component": "worker-big"}
    assert budgets["dask-worker-big"]["selector"]["matchLabels"] == labels
    assert reached(policies, "worker-big", "169.254.169.254", 80), "it has the main group's ServiceAccount"
    ports = {each["port"] for each in policies["dask"]["ingress"][0]["ports"]}
    assert {9000, 9001, 8790} <= ports


def test_a_scheduler_with_tls_knows_people_and_the_list_of_revoked_ones() -> None:
    def knows(name: str, **given: Any) -> tuple[bool, bool]:
        pod = of_kind("Deployment", rendered(**given))[f"dask-{name}"]["template"]["spec"]
        main = pod["containers"][0]
        listed = {"name": "revoked", "configMap": {"name": "dask-revoked", "optional": True}} in pod["volumes"]
        mounted = {"name": "revoked", "mountPath": "/etc/dask-revoked", "readOnly": True} in main["volumeMounts"]
        return "--preload /etc/dask/people.py" in " ".join(main["command"]), listed and mounted

    assert knows("scheduler", **SECURE) == (True, True)
    assert knows("worker", **SECURE) == (False, False)
    assert not knows("scheduler")[0], "without TLS nobody has a name"


def test_a_load_balancer_admits_only_its_source_networks_and_preserves_client_addresses() -> None:
    networks = ["203.0.113.0/24"]
    made = rendered(scheduler={"serviceType": "LoadBalancer", "sourceRanges": networks})
    service = of_kind("Service", made)["dask-scheduler"]
    assert (service["loadBalancerSourceRanges"], service["externalTrafficPolicy"]) == (networks, "Local")
    policies = of_kind("NetworkPolicy", made)
    assert policies["dask-scheduler"]["ingress"] == [
        {"from": [{"ipBlock": {"cidr": networks[0]}}], "ports": [{"port": "tcp-comm"}]}
    ]
    assert [list(peer) for rule in policies["dask"]["ingress"] for peer in rule["from"]] == [["podSelector"]]


def test_the_official_chart_renders_our_values(tmp_path: Path) -> None:
    place = ["--repo", "https://helm.dask.org", "--version", OFFICIAL, "--destination", str(tmp_path)]
    command = [str(kubernetes_programs() / "helm"), "pull", "dask", *place]
    environ = os.environ | {"HELM_CACHE_HOME": str(tmp_path / "cache")}
    try:
        subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=20)
    except subprocess.TimeoutExpired:
        pytest.skip("the official chart cannot be fetched: helm.dask.org did not answer within 20 s")
    except subprocess.CalledProcessError as error:
        assert "cannot be reached" in error.stderr, error.stderr
        pytest.skip(f"the official chart cannot be fetched: {error.stderr.strip()}")
    environment = {"lock": "charts/official.lock", "python": "3.10"}
    cluster = settings.parse(
        {
            "target": "kubernetes",
            "cluster": GOOGLE,
            "chart": "official",
            "environment": environment,
            "image": "ghcr.io/me/dask:1",
            "workers": {"replicas": 4, "memory": "4 GB"},
            "expose": {"scheduler": {"sources": ["203.0.113.7/32"], "internal": True}},
        },
        PROJECT,
    )
    secret = chart_values.SecretEnv("dask-env", ["TOKEN"], "r")
    packages = lock.read(PROJECT / "charts/official.lock", "3.10")
    values = chart_values.official(cluster, packages, "sha1:s:d", secret)
    done = helm("template", "dask", str(tmp_path / f"dask-{OFFICIAL}.tgz"), given=values)
    manifests = [each for each in yaml.safe_load_all(done.stdout) if each]
    found = of_kind("Deployment", manifests)
    assert found["dask-worker"]["replicas"] == 4
    token = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "dask-env", "key": "TOKEN"}}}
    for part in ("scheduler", "worker", "jupyter"):
        [container] = found[f"dask-{part}"]["template"]["spec"]["containers"]
        assert token in container["env"]
        if part != "jupyter":
            assert container["image"] == "ghcr.io/me/dask:1"
    assert "sha1:s:d" in done.stdout
    assert of_kind("Service", manifests)["dask-scheduler"]["type"] == "LoadBalancer"
    assert done.stdout.count("203.0.113.7/32") == 1
