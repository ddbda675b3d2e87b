"""People with access files of their own use stack dev; the owner takes access back."""

import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import daskstack
from daskstack import access_file, people
from daskstack.access_file import Access
from daskstack.engine import PROJECT
from daskstack.tunnel import TunnelError
from rehearsal.machines import Machine, run, until
from tests import access
from tests.checkout import Checkout
from tests.tls import accepts
from tests.work import Work, tunnels

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(autouse=True)
def nobody_has_access(checkout: Checkout) -> Iterator[None]:
    """After each test."""
    yield
    for line in access.command(checkout, "list").splitlines():
        access.command(checkout, "revoke", line.split()[0])


def service_pids(machines: Mapping[str, Machine]) -> list[str]:
    show = "systemctl show -p MainPID ssh 'dask-scheduler*' 'dask-worker*'"
    return [machine.ssh(show).stdout for machine in machines.values()]


def busy(checkout: Checkout) -> set[str]:
    """The people with one connection and unfinished tasks, as `status` shows them."""
    said = run([".venv/bin/daskstack", "status"], cwd=checkout.folder, env=checkout.environ, seconds=300).stdout
    found = re.findall(r"^(\w+) +connections: 1, tasks: (\d+) running, (\d+) waiting$", said, re.MULTILINE)
    return {name for name, running, waiting in found if int(running) + int(waiting)}


def test_a_revoked_person_is_cut_off_while_computing_and_the_others_work_on(
    checkout: Checkout, machines: Mapping[str, Machine], tmp_path: Path
) -> None:
    files = access.give(checkout, tmp_path, "alice", "bob", "carol")
    before = tunnels()
    alice, bob, carol = working = [Work(daskstack.connect(str(file)), starts=False) for file in files]
    try:
        for each in working:
            each.thread.start()
        for each in working:
            each.check_progress()
        until(lambda: busy(checkout) == {"alice", "bob", "carol"})
        listed = access.command(checkout, "list")
        assert [line.split()[0] for line in listed.splitlines()] == ["alice", "bob", "carol"]
        assert listed.count("SSH connections: 1\n") == 3

        services = service_pids(machines)
        opened = tunnels() - before
        assert len(opened) == 3
        ids = [each.client.id for each in (alice, bob)]
        assert access.command(checkout, "revoke", "carol") == "carol has no access any more; SSH connections ended: 1\n"
        until(lambda: carol.client.status != "running")
        until(lambda: "Permission denied" in carol.client._way.fault())
        for each in (alice, bob):
            each.check_progress()
            assert each.client.status == "running" and each.client._way.fault() == ""
        assert [each.is_running() for each in opened].count(False) == 1, "hers alone"
        clients = alice.client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.clients))
        assert set(clients) >= set(ids) and carol.client.id not in clients
        assert service_pids(machines) == services

        with pytest.raises(TunnelError, match=r"Permission denied.*access was revoked"):
            daskstack.connect(str(files[2]))
        his, hers = (access_file.read(file).client for file in files[1:])
        until(lambda: not accepts(hers.scheduler, hers.tls.certificate, hers.tls.key))
        assert accepts(his.scheduler, his.tls.certificate, his.tls.key)
        for each in (alice, bob):
            each.check_progress()
    finally:
        for each in working:
            each.end()
    assert "alice" in access.command(checkout, "list") and "carol" not in access.command(checkout, "list")
    assert "carol has no access any more" in access.command(checkout, "revoke", "carol"), "as after an interruption"
    refused = access.command(checkout, "revoke", "carl", succeeds=False)
    assert "carl has no access; access has: alice, bob" in refused


def test_an_interrupted_add_can_be_repeated_and_a_renewed_file_replaces_the_former(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, lost = tmp_path / "dave.json", tmp_path / "lost.json"
    write = access_file.write

    def interrupted(path: Path, access: Access) -> None:
        write(lost, access)
        raise KeyboardInterrupt

    monkeypatch.setattr(access_file, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        people.add("dev", "dave", str(file))
    monkeypatch.undo()
    assert access.command(checkout, "list") == "dave         incomplete: run `daskstack access add dave` again\n"
    access.give(checkout, tmp_path, "dave")

    def works(path: Path) -> bool:
        try:
            with daskstack.connect(str(path)) as client:
                return client.submit(sum, [1, 2], pure=False).result(60) == 3
        except TunnelError as error:
            assert "Permission denied" in str(error)
            return False

    assert (works(file), works(lost)) == (True, False)
    again = access.command(checkout, "add", "dave", "--output", str(tmp_path / "other.json"), succeeds=False)
    assert "dave already has access; `daskstack access renew dave` replaces the access file" in again
    assert not (tmp_path / "other.json").exists()

    former = shutil.copy(file, tmp_path / "former.json")
    access.command(checkout, "renew", "dave", "--output", str(file))
    assert (works(file), works(former)) == (True, False)

    assert "unchanged\n" in checkout.make("up")
    assert works(file), "a second up keeps the people"
    assert "has no access" in access.command(
        checkout, "renew", "erin", "--output", str(tmp_path / "erin.json"), succeeds=False
    )
    assert "not a name for a person" in access.command(checkout, "add", "er in", succeeds=False)


def test_an_access_file_needs_neither_pulumi_nor_the_project_nor_its_state(checkout: Checkout, tmp_path: Path) -> None:
    [file] = access.give(checkout, tmp_path, "frank")
    home = tmp_path / "home"
    config = home / ".config/daskstack"
    config.mkdir(parents=True)
    shutil.copy(file, config / "team.json")
    shutil.copytree(PROJECT / "daskstack", tmp_path / "installed/daskstack")
    path = "/usr/bin:/bin"
    assert shutil.which("pulumi", path=path) is None
    environ = {"PATH": path, "HOME": str(home), "PYTHONPATH": str(tmp_path / "installed")}
    program = """
        import sys, urllib.request
        import daskstack

        def main():
            with daskstack.connect("team") as client:
                print(client.submit(sum, [1, 2, 3]).result(60), urllib.request.urlopen(client.dashboard_link).status)
            with daskstack.StackCluster("../frank.json") as cluster, cluster.get_client() as client:
                print(client.submit(sum, [4, 5]).result(60), cluster.name, daskstack.__file__, "pulumi" in sys.modules)

        if __name__ == "__main__":
            main()
    """

    def said(*words: str) -> subprocess.CompletedProcess[str]:
        return run([sys.executable, *words], cwd=home, env=environ, seconds=300, check=False)

    done = said("-c", textwrap.dedent(program))
    assert done.stdout == f"6 200\n9 dev {tmp_path}/installed/daskstack/__init__.py False\n", done.stderr
    done = said("-m", "daskstack", "status", "--stack", "team")
    assert re.search(r"^scheduler .*, 2 workers\nworker-1-1 .*\nworker-2-1 .*\n\Z", done.stdout), done.stderr
    for words in (["up"], ["put", "x", "y"], ["ssh"]):
        refused = said("-m", "daskstack", *words[:1], "--stack", "team", *words[1:])
        assert refused.returncode == 1
        assert "team.json is an access file, which does not permit this" in refused.stderr
    assert [each.relative_to(home) for each in home.rglob("*.json")] == [Path(".config/daskstack/team.json")]
