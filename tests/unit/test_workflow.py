"""The workflow that previews a pull request: what it may do, read from its parsed YAML, not from its text.

`problems` names every guard that is missing; each change below takes one away, and has to be noticed.
"""

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from daskstack.engine import PROJECT, VERSION

FOLDER = PROJECT / ".github/workflows"
TEXT = (FOLDER / "preview.yml").read_text()
WORKFLOW: dict[Any, Any] = yaml.safe_load(TEXT)
ON = True  # how YAML reads the key `on`
FORK = "github.event.pull_request.head.repo.full_name == github.repository"
# Of each job: what it waits for, when it runs, its environment, the rights of its token, and the actions that it uses.
JOBS: dict[str, dict[str, Any]] = {
    "stacks": {
        "needs": None,
        "if": f"{FORK} && vars.PULUMI_ORGANIZATION != ''",
        "environment": None,
        "permissions": {"contents": "read"},
        "actions": ["actions/checkout"],
    },
    "preview": {
        "needs": "stacks",
        # Neither always() nor !cancelled(): it is skipped where `stacks` is.
        "if": "needs.stacks.outputs.names != '[]'",
        "environment": "preview",
        "permissions": {"contents": "read", "id-token": "write"},
        "actions": [
            *("actions/checkout", "astral-sh/setup-uv", "google-github-actions/auth", "pulumi/auth-actions"),
            *("pulumi/actions", "actions/upload-artifact"),
        ],
    },
    "comment": {
        "needs": "preview",
        "if": """always() && contains(fromJSON('["success", "failure"]'), needs.preview.result)""",
        "environment": None,
        "permissions": {"pull-requests": "write"},
        "actions": ["actions/download-artifact"],
    },
}
# Who may ask for a token, and for which: each by its action.
LOGINS = {
    "google-github-actions/auth": {
        "workload_identity_provider": "${{ vars.GCP_IDENTITY_PROVIDER }}",
        "service_account": "${{ vars.GCP_SERVICE_ACCOUNT }}",
    },
    "pulumi/auth-actions": {
        "organization": "${{ vars.PULUMI_ORGANIZATION }}",
        "requested-token-type": "urn:pulumi:token-type:access_token:team",
        "scope": "team:previews",
    },
}
COMMENT = {"GH_TOKEN": "${{ github.token }}", "NUMBER": "${{ github.event.pull_request.number }}"}
SECRET = re.compile(r"\bsecrets\b|\bgithub\.token\b")
KEYS = {"if", "needs", "environment", "permissions", "runs-on", "timeout-minutes", "outputs", "strategy"}
DELETED = object()


def texts(value: Any) -> Iterator[str]:
    """Every key and text in it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    else:
        yield str(value)


def action(step: dict[str, Any]) -> str:
    return step.get("uses", "").partition("@")[0]


def problems(workflow: dict[Any, Any]) -> list[str]:
    """Which guards are not there as they have to be."""
    found = []
    if workflow.get(ON) != {"pull_request": None}:
        found.append("it starts at pull requests alone, with the rights of one: not pull_request_target")
    if workflow.get("permissions") != {}:
        found.append("no job has rights by default")
    if "env" in workflow or "defaults" in workflow:
        found.append("nothing is set for all jobs")
    if workflow["jobs"].keys() != JOBS.keys():
        found.append(f"the jobs are {', '.join(JOBS)}")
    for name, expected in JOBS.items():
        job = workflow["jobs"].get(name, {})
        steps = job.get("steps", [])
        is_so = {key: job.get(key) for key in expected} | {"actions": [action(step) for step in steps if action(step)]}
        found += [f"{name}: {key} is {expected[key]!r}" for key in expected if is_so[key] != expected[key]]
        if job.get("runs-on") != "ubuntu-24.04":
            found.append(f"{name}: runs on a machine of GitHub's, which is new for each run")
        rest = {key: value for key, value in job.items() if key != "steps"}
        if unknown := rest.keys() - KEYS:
            found.append(f"{name}: {', '.join(unknown)} could bring in anything")
        if any(SECRET.search(text) for text in texts(rest)):
            found.append(f"{name}: no secret is for a whole job")
        if not isinstance(job.get("timeout-minutes"), int):
            found.append(f"{name}: ends by itself")
        for step in steps:
            found += [f"{name}: {problem}" for problem in of_step(step, allowed=COMMENT if name == "comment" else {})]
    return found


def of_step(step: dict[str, Any], allowed: dict[str, str]) -> Iterator[str]:
    if step.get("uses") and not re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", step["uses"]):
        yield f"{step['uses']}: an action is pinned by its commit"
    if action(step) == "actions/checkout" and (
        step.get("with", {}).get("persist-credentials") is not False or step["with"].keys() & {"ref", "repository"}
    ):
        yield "the pull request's own merge is checked out, and its token is not kept in a file"
    if action(step) in LOGINS and step.get("with") != LOGINS[action(step)]:
        yield f"{action(step)} gets {LOGINS[action(step)]}"
    if "${{" in step.get("run", ""):
        yield "nothing of a pull request becomes part of a command: it is passed in a variable"
    if "continue-on-error" in step:
        yield "what fails is not passed over"
    if any(SECRET.search(text) for text in texts(step)) and step.get("env") != allowed:
        yield "no step has a secret, and one alone has a token of GitHub's"


def test_the_workflow_has_all_guards() -> None:
    assert problems(WORKFLOW) == []


def step(job: str, name: str) -> tuple[Any, ...]:
    """Where a step is, by its action or the beginning of its command."""
    for number, each in enumerate(WORKFLOW["jobs"][job]["steps"]):
        if name in (action(each), each.get("run", "")[: len(name)]):
            return ("jobs", job, "steps", number)
    raise LookupError(name)


CHECKOUT, GOOGLE = step("preview", "actions/checkout"), step("preview", "google-github-actions/auth")
PULUMI, PREVIEW = step("preview", "pulumi/auth-actions"), step("preview", "pulumi preview")
GH = step("comment", "[ -d previews ]")
CHANGES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "no fork guard": (("jobs", "stacks", "if"), "vars.PULUMI_ORGANIZATION != ''"),
    "no condition at all": (("jobs", "stacks", "if"), DELETED),
    "a fork guard or something else": (("jobs", "stacks", "if"), f"{FORK} || vars.PULUMI_ORGANIZATION != ''"),
    "a fork guard in a comment of the condition": (("jobs", "stacks", "if"), f"true || ({FORK})"),
    "the repository's own rights": ((ON,), {"pull_request_target": None}),
    "another start": ((ON, "workflow_dispatch"), None),
    "a preview that waits for nothing": (("jobs", "preview", "needs"), DELETED),
    "a preview also where its condition was skipped": (
        ("jobs", "preview", "if"),
        "always() && needs.stacks.outputs.names != '[]'",
    ),
    "a preview that nobody lets run": (("jobs", "preview", "environment"), DELETED),
    "another environment": (("jobs", "preview", "environment"), "production"),
    "rights by default": (("permissions",), DELETED),
    "all rights": (("permissions",), "write-all"),
    "more rights of the preview": (("jobs", "preview", "permissions", "contents"), "write"),
    "the default's rights of the preview": (("jobs", "preview", "permissions"), DELETED),
    "tokens for the job that nobody lets run": (("jobs", "stacks", "permissions", "id-token"), "write"),
    "tokens for the comment": (("jobs", "comment", "permissions", "id-token"), "write"),
    "the pull request's code beside the right to comment": (
        ("jobs", "comment", "steps", 0),
        WORKFLOW["jobs"]["preview"]["steps"][0],
    ),
    "a comment for what did not run": (("jobs", "comment", "if"), "always()"),
    "a comment that waits for nothing": (("jobs", "comment", "needs"), DELETED),
    "a fourth job": (("jobs", "more"), {"runs-on": "ubuntu-24.04", "steps": []}),
    "a token of the organization": (
        (*PULUMI, "with", "requested-token-type"),
        "urn:pulumi:token-type:access_token:org",
    ),
    "a token of another team": ((*PULUMI, "with", "scope"), "team:admins"),
    "a token without a scope": ((*PULUMI, "with", "scope"), DELETED),
    "a key of an account": ((*GOOGLE, "with", "credentials_json"), "${{ vars.KEY }}"),
    "a secret of the repository": ((*PREVIEW, "env", "TOKEN"), "${{ secrets.PULUMI_ACCESS_TOKEN }}"),
    "a secret by another spelling": ((*PREVIEW, "env", "TOKEN"), "${{ secrets['PULUMI_ACCESS_TOKEN'] }}"),
    "a secret in a command": ((*PREVIEW, "run"), "pulumi login ${{ secrets.X }}"),
    "secrets of all jobs": (("env",), {"TOKEN": "${{ secrets.X }}"}),
    "secrets of a job": (("jobs", "stacks", "env"), {"TOKEN": "${{ secrets.X }}"}),
    "a secret as an output": (("jobs", "stacks", "outputs", "more"), "${{ secrets.X }}"),
    "somebody's image": (("jobs", "preview", "container"), "somebody/image"),
    "GitHub's token for the program": ((*PREVIEW, "env", "GH_TOKEN"), "${{ github.token }}"),
    "more for who comments": ((*GH, "env", "MORE"), "${{ secrets.X }}"),
    "the branch's name in a command": ((*PREVIEW, "run"), "echo ${{ github.head_ref }}"),
    "a token that stays in a file": ((*CHECKOUT, "with", "persist-credentials"), DELETED),
    "another checkout": ((*CHECKOUT, "with", "ref"), "${{ github.head_ref }}"),
    "an action by its tag": ((*CHECKOUT, "uses"), "actions/checkout@v7"),
    "an action of somebody else": ((*CHECKOUT, "uses"), f"somebody/checkout@{'0' * 40}"),
    "an action from a registry": ((*CHECKOUT, "uses"), "docker://alpine:3"),
    "a machine that is kept": (("jobs", "preview", "runs-on"), "self-hosted"),
    "a job without an end": (("jobs", "preview", "timeout-minutes"), DELETED),
    "a login that may fail": ((*PULUMI, "continue-on-error"), True),
}


@pytest.mark.parametrize(("place", "value"), CHANGES.values(), ids=CHANGES)
def test_a_missing_guard_of_the_workflow_is_detected(place: tuple[Any, ...], value: Any) -> None:
    changed = copy.deepcopy(WORKFLOW)
    section = changed
    for key in place[:-1]:
        section = section[key]
    if value is DELETED:
        del section[place[-1]]
    else:
        section[place[-1]] = value
    assert changed != WORKFLOW
    assert problems(changed), "nobody would notice"


def test_the_setup_page_restricts_tokens_to_the_protected_environment() -> None:
    assert "repo:ORGANIZATION/REPOSITORY:environment:preview" in TEXT


def test_actions_of_every_workflow_are_pinned_by_commit() -> None:
    workflows = [yaml.safe_load(path.read_text()) for path in FOLDER.glob("*.y*ml")]
    steps = [each for workflow in workflows for job in workflow["jobs"].values() for each in job["steps"]]
    uses = [each["uses"] for each in steps if "uses" in each]
    assert len(uses) >= 8
    assert [each for each in uses if not re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", each)] == []


def test_everything_the_workflow_installs_is_pinned() -> None:
    given = {action(each): each.get("with", {}) for each in WORKFLOW["jobs"]["preview"]["steps"]}
    assert f"uv=={given['astral-sh/setup-uv']['version']} " in (PROJECT / "tools/uv.txt").read_text()
    assert given["pulumi/actions"]["pulumi-version"] == VERSION
