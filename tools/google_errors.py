"""Says what to do about Google's errors: python -m tools.google_errors EVENTS

`up` and `destroy` of a stack in Google Cloud run it after a failure. EVENTS is Pulumi's log of events, one JSON object
in each line. Google's messages are in the tests.
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from daskstack.wake_machines import STOCKOUT

QUOTAS = "https://console.cloud.google.com/iam-admin/quotas"
QUOTA = {
    "ADDRESSES": "set machines.iapPort, or on GKE remove cluster.hardening.privateNodes: false, to need fewer of them",
    "TOTAL_GB": "write smaller disks",
    "GPUS": "new projects have a quota of 0 GPUs",
    "CPUS": "write fewer or smaller machines",
}
# Google's message, and what to do. A text can contain the message's groups.
ERRORS = [
    (
        r"Quota '(?P<quota>\w+)' exceeded\.\s+Limit: (?P<limit>[\d.]+) (?P<where>in region [\w-]+|globally)",
        "the project's quota {quota} {where} is {limit}: {smaller}, or ask for more on " + QUOTAS,
    ),
    (
        r'quota to satisfy request[^"\n]*"(?P<quota>\w+)"[^\n]*? is short \'(?P<short>[\d.]+)\'',
        "the project's quota {quota} is too small by {short}: {smaller}, or ask for more on " + QUOTAS,
    ),
    (
        r"Machine type with name '(?P<machine>[\w-]+)' does not exist in zone '(?P<zone>[\w-]+)'",
        "zone {zone} has no {machine}: write another machine type or zone;"
        " `gcloud compute machine-types list --filter=name={machine}` lists the zones that have it",
    ),
    (
        STOCKOUT,
        "Google has no such machines left in this zone now: run `up` again later, write another zone or machine, or"
        " list others as `capacity`",
    ),
    (
        r"constraints/compute\.requireOsLogin",
        "the organization's policy compute.requireOsLogin forbids machines with SSH keys in their metadata, which"
        " machines.source: compute needs: ask its administrators for an exception of your project, or use"
        " cluster.source: gke",
    ),
    (
        r"constraints/compute\.vmExternalIpAccess",
        "the organization's policy compute.vmExternalIpAccess forbids external addresses: set machines.iapPort: 2222,"
        " or on GKE remove cluster.hardening.privateNodes: false",
    ),
    (
        r"customConstraints/(?P<name>[\w.-]+)",
        "the organization's own policy {name} forbids this: if it asks for labels, write them as machines.labels or"
        " cluster.labels; otherwise ask its administrators",
    ),
    (
        r"[Cc]onstraint `?(?P<name>constraints/[\w.]+)`?[^\n]*violated",
        "the organization's policy {name} forbids this: ask its administrators for an exception of your project",
    ),
    (
        r"Required '(?P<right>compute\.firewalls\.\w+)' permission for 'projects/(?P<project>[\w-]+)/",
        "you may not change firewall rules of project {project}: in a Shared VPC you need roles/compute.securityAdmin"
        " in the host project",
    ),
    (
        r"Required '(?P<right>compute\.(?:sub)?networks\.use\w*)' permission for '(?P<resource>[^']+)'",
        "you may not use {resource}: in a Shared VPC you need roles/compute.networkUser on the host's subnetwork",
    ),
    (
        r"Required '(?P<right>[\w.]+)' permission for '(?P<resource>[^']+)'",
        "you lack the permission {right} on {resource}: ask for a role that contains it",
    ),
    (
        r"requires billing to be enabled",
        "the project has no billing account: https://console.cloud.google.com/billing/projects",
    ),
]


def explanations(messages: Iterable[str]) -> list[str]:
    """One sentence for each cause, without repetition."""
    found: dict[str, None] = {}
    for message in messages:
        for pattern, text in ERRORS:
            if match := re.search(pattern, message):
                groups = match.groupdict()
                smaller = next((each for key, each in QUOTA.items() if key in groups.get("quota", "")), QUOTA["CPUS"])
                found[text.format(**groups, smaller=smaller)] = None
                break
    return list(found)


def messages(events: str) -> list[str]:
    """The errors in Pulumi's log of events."""
    return [message for _, message in errors(events)]


def errors(events: str) -> list[tuple[str, str]]:
    """The errors in Pulumi's log of events, whose last line may be incomplete: the resource's name, and the message."""
    found = []
    for line in events.splitlines():
        try:
            event = json.loads(line).get("diagnosticEvent") or {}
        except ValueError:
            continue
        if event.get("severity") == "error":
            found.append((str(event.get("urn", "")).rpartition("::")[2], str(event.get("message", ""))))
    return found


def main(path: str) -> None:
    file = Path(path)
    for each in explanations(messages(file.read_text())) if file.exists() else []:
        print(f"Google Cloud: {each}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
