"""Small changes that each break one promise of the product, and the test that must fail for each.

`make mutants` applies them one by one to a copy of the project. A promise here protects data, doors, keys or money.
docs/proof.md shows this list as a table: after a change run `python -m tools.mutants --table`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    name: str
    promise: str  # one sentence, as it stands in README or docs
    file: str
    old: str  # is in the file exactly once
    new: str
    test: str  # of pytest; must fail in its call, not in its fixtures, once `old` is `new`


SETTINGS = [
    Mutation(
        "broad-roles",
        "Broad roles of the machines' account are refused: every task would have them.",
        "settings/compute.py",
        "if BROAD.fullmatch(text):",
        "if False:",
        "tests/unit/test_compute_settings.py::test_what_is_wrong_is_told_with_what_would_be_right",
    ),
    Mutation(
        "nobody-in",
        "Machines that nobody could reach are refused before they cost anything.",
        "settings/compute.py",
        "if not ssh and not self.iap_port:",
        "if False:",
        "tests/unit/test_compute_settings.py::test_what_is_wrong_is_told_with_what_would_be_right",
    ),
    Mutation(
        "hourly-cost-of-all-nodes",
        "A stack that can cost more than `limits.hourlyCost` with all nodes that it may start is refused.",
        "settings/cost.py",
        "(most := worst(bill)) > limits.hourly_cost",
        "(most := total(bill)[0]) > limits.hourly_cost",
        "tests/unit/test_cost.py::test_a_stack_that_costs_too_much_or_cannot_be_placed_is_refused",
    ),
    Mutation(
        "whole-world",
        "The whole world is refused as a source.",
        "settings/common.py",
        "    if is_world([network]):",
        "    if False:",
        "tests/unit/test_settings.py::test_nothing_is_open_to_the_world",
    ),
    Mutation(
        "system-folders",
        "Folders that services of the system use are refused for the shared directory.",
        "settings/vms.py",
        "_NO_DATA = _NO_FOLDER | {",
        "_NO_DATA = {",
        "tests/unit/test_settings.py::test_a_data_path_that_cannot_work_is_refused",
    ),
]

WORKFLOW = [
    Mutation(
        "fork-guard",
        "A fork's code never runs beside credentials.",
        ".github/workflows/preview.yml",
        "    if: github.event.pull_request.head.repo.full_name == github.repository && vars.PULUMI_ORGANIZATION != ''",
        "    if: vars.PULUMI_ORGANIZATION != ''",
        "tests/unit/test_touched.py::test_a_forks_code_never_runs_beside_credentials",
    ),
    Mutation(
        "previews-token",
        "The preview's Pulumi token is a team's, not the organization's.",
        ".github/workflows/preview.yml",
        "urn:pulumi:token-type:access_token:team",
        "urn:pulumi:token-type:access_token:organization",
        "tests/unit/test_touched.py::test_the_previews_token_is_a_teams",
    ),
]

MUTATIONS = [*SETTINGS, *WORKFLOW]
