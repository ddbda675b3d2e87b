import pytest

from tools.touched import touched

STACKS = ["vms", "dev", "gke"]


def test_a_changed_stack_file_previews_that_stack_alone():
    assert touched(["Pulumi.gke.yaml", "README.md"], STACKS) == ["gke"]


PROGRAM = ["__main__.py", "settings.py", "components/vms/steps/data.sh", "charts/dask/values.yaml"]


@pytest.mark.parametrize("path", [*PROGRAM, "Pulumi.yaml", "requirements.txt", "environment.lock"])
def test_a_change_of_the_program_previews_every_stack_but_dev(path):
    assert touched([path], STACKS) == ["gke", "vms"]


@pytest.mark.parametrize("path", ["Pulumi.dev.yaml", "README.md", "tests/unit/test_settings.py", "Pulumi.old.yaml"])
def test_other_changes_preview_nothing(path):
    assert touched([path], STACKS) == []
