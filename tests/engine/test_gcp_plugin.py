"""Previews with the plugin `gcp`, with Pulumi's own and with the stand-in; neither contacts Google for them.

test_gcp_standin.py tests the stand-in's cloud. The stand-in reads its knowledge of arguments from Pulumi's own package.
"""

import re
from pathlib import Path

import pytest

from daskstack import engine
from rehearsal.environment import environment as rehearsal_environment
from tests.engine.support import Cloud, Project, with_official


@pytest.fixture(params=["stand-in", "official"])
def pulumi_environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """A rehearsal's environment with one of the plugins."""
    environ = rehearsal_environment(tmp_path / "state") | {
        "DASKSTACK_REHEARSAL": str(tmp_path / "rehearsal"),
        "GOOGLE_OAUTH_ACCESS_TOKEN": "none",
    }
    if request.param == "stand-in":
        return environ
    official = with_official(environ, tmp_path, "gcp", engine.GCP_PLUGIN)
    if official == environ:
        pytest.skip("Pulumi's own plugin gcp is not installed")
    return official


@pytest.fixture
def cloud(project: Project, tmp_path: Path) -> Cloud:
    return Cloud(project, tmp_path / "rehearsal")


def test_a_preview_knows_arguments_but_not_computed_values(cloud):
    output = cloud.preview("""
network = make("compute/network:Network", "network", name="net", autoCreateSubnetworks=False)
make("compute/subnetwork:Subnetwork", "nodes", name="nodes", network=network.id, ipCidrRange="10.8.0.0/22")
for output in (network.id, network.selfLink, network.name):
    output.apply(lambda value: print(f"known: {value}"))
""")
    assert set(re.findall("known: .*", output)) == {"known: net"}
    assert "+ 4 to create" in output


@pytest.mark.parametrize(
    ("program", "named"),
    [
        ('make("compute/network:Network", "it", routingMode="LOCAL")', "routing_?mode"),
        ('make("compute/subnetwork:Subnetwork", "it", ipCidrRange="10.8.0.0/22")', "network"),
        ('make("container/nodePool:NodePool", "it", cluster="c", name="a", namePrefix="b")', "name_?prefix"),
    ],
    ids=["invalid value", "required", "conflict"],
)
def test_a_wrong_argument_is_rejected_before_anything_is_created(cloud, program, named):
    cloud.project.write(cloud.program(program))
    output = cloud.project.run("preview", succeeds=False)
    assert re.search(named, output[output.index("Diagnostics:") :], re.IGNORECASE)
