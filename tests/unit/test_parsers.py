"""Parsers of text that the project did not write: they return a valid result or raise their own error."""

import ipaddress
import json
import subprocess
import unicodedata
from pathlib import Path

import pulumi
import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from components.machines.sources.existing import usable
from daskstack import kubeconfig
from daskstack.printable import printable
from daskstack.status_and_logs import RemoteError, Status, Worker, parse_status
from on_this_computer.send_scripts import step_text
from settings import common, existing, gke, lock
from tools.test import read

TEXT = st.text(max_size=60)
PLAIN = st.none() | st.booleans() | st.integers() | TEXT
VALUE = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=8)
ADDRESS = st.ip_addresses()
NETWORK = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(2, 32)), st.tuples(st.ip_addresses(v=6), st.integers(5, 128))
).map(lambda parts: ipaddress.ip_network(f"{parts[0]}/{parts[1]}", strict=False))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for a parser to read, which each example overwrites."""
    return tmp_path_factory.mktemp("parsers") / "file"


# Text for terminals.


@given(TEXT)
def test_printable_text_keeps_its_length_and_has_no_control_characters(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text) and printable(shown) == shown
    assert not [each for each in shown if unicodedata.category(each).startswith("C") and each not in "\n\t"]
    assert [a for a, b in zip(text, shown, strict=True) if a != b and not unicodedata.category(a).startswith("C")] == []


@given(st.binary(min_size=1, max_size=500))
@settings(max_examples=10)
def test_printable_output_of_a_step_is_plain_ascii(said: bytes) -> None:
    [function] = [line for line in step_text("common").splitlines() if line.startswith("printable()")]
    shown = subprocess.run(["bash", "-c", f"{function}\nprintable"], input=said, capture_output=True, check=True).stdout
    assert shown == bytes(each for each in said if each in b"\t\n" or 32 <= each <= 126)


# Status reports of a scheduler.

WORKER = st.builds(
    Worker,
    name=st.text(max_size=200),
    status=st.text(max_size=50),
    threads=st.integers(0, 999_999),
    used=st.floats(0, 1e17),
    limit=st.floats(0, 1e17),
    cpu=st.floats(0, 1e8),
)


@given(st.lists(WORKER, max_size=3), TEXT)
@settings(max_examples=25)
def test_a_status_report_is_read_whatever_is_printed_before_it(workers: list[Worker], before: str) -> None:
    report = Status(workers=workers)
    assert parse_status(f"{before}\n{report.model_dump_json()}\n") == report


@given(TEXT | VALUE)
def test_any_other_answer_than_a_status_report_is_rejected(said: object) -> None:
    text = said if isinstance(said, str) else json.dumps(said)
    with pytest.raises(RemoteError, match="not with a status report"):
        parse_status(text)


# Locks.


def lock_of(file: Path, content: bytes) -> lock.Lock:
    file.write_bytes(content)
    return lock.read(file, "3.11")


NAMES = st.from_regex(r"[a-z]{1,8}(-[a-z]{1,4})?", fullmatch=True)
VERSIONS = st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,2}){0,2}", fullmatch=True)
HASH = "--hash=sha256:" + "0" * 64


@given(st.dictionaries(NAMES, VERSIONS, max_size=5), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_a_lock_is_read_as_it_was_written(file: Path, packages: dict[str, str], end: str, has_mark: bool) -> None:
    pins = packages | {"dask": "2026.1.0", "distributed": "2026.1.0"}
    lines = [f"{name}=={version} \\{end}    {HASH}{end}    # via dask{end}" for name, version in pins.items()]
    text = f"# a comment{end}{''.join(lines)}"
    assert lock_of(file, text.encode("utf-8-sig" if has_mark else "utf-8")).packages == pins


PARTS = ["dask==1", HASH, "\\\n", "\n", " ", ";", "os_name ~= 'x'", "#", "@", "[", "*"]


@given(st.lists(st.sampled_from(PARTS) | TEXT))
@example(["dask==1 ; os_name ~= 'posix'"])
def test_any_other_text_than_a_lock_is_rejected(file: Path, parts: list[str]) -> None:
    with pytest.raises(lock.LockError):
        lock_of(file, "".join(parts).encode(errors="replace"))


@given(st.binary(max_size=60))
def test_bytes_that_are_not_a_lock_are_rejected(file: Path, content: bytes) -> None:
    with pytest.raises(lock.LockError):
        lock_of(file, content)


# The private SSH key of a stack.


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("key") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path.read_text()


@given(place=st.integers(0, 386), length=st.integers(0, 5), new=TEXT)
def test_a_damaged_key_is_used_or_rejected_without_its_text(key: str, place: int, length: int, new: str) -> None:
    damaged = key[:place] + new + key[place + length :]
    try:
        assert usable(damaged).strip() == damaged.replace("\r\n", "\n").strip()
    except pulumi.RunError as error:
        assert not [line for line in key.splitlines() if line in str(error)]


# Addresses, networks and ranges.


@given(NETWORK)
def test_a_network_in_standard_form_is_accepted(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
    assert common.valid_network(str(network)) == str(network)


@example("fe80::1%eth0/128")
@given(TEXT | st.from_regex(r"[0-9a-f:.]{1,12}(%[a-z0-9]{0,3})?/?[0-9]{0,3}", fullmatch=True))
def test_only_networks_in_standard_form_are_accepted(text: str) -> None:
    try:
        common.valid_network(text)
    except ValueError:
        return
    assert text == str(ipaddress.ip_network(text)) and "%" not in text


@given(st.tuples(st.ip_addresses(v=4), st.integers(2, 31)))
def test_the_correction_of_a_network_is_accepted(parts: tuple[ipaddress.IPv4Address, int]) -> None:
    text = f"{parts[0]}/{parts[1]}"
    assume(text != str(ipaddress.ip_network(text, strict=False)))
    with pytest.raises(ValueError, match="not in standard form; write ") as error:
        common.valid_network(text)
    first, _, second = str(error.value).partition("; write ")[2].partition(", or ")
    assert common.valid_network(first) and (not second or common.valid_network(second.split()[0]))


@given(st.tuples(st.sampled_from(gke.PRIVATE), st.integers(0, 2**24), st.integers(0, 14)))
def test_ranges_within_private_networks_are_accepted(parts: tuple[ipaddress.IPv4Network, int, int]) -> None:
    private, offset, bits = parts
    address = private[offset % private.num_addresses]
    network = ipaddress.ip_network(f"{address}/{private.prefixlen + bits}", strict=False)
    assert gke.valid_private(str(network)) == str(network)


@given(NETWORK)
def test_ranges_outside_private_networks_are_rejected(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
    assume(network.version == 6 or not any(network.subnet_of(private) for private in gke.PRIVATE))
    with pytest.raises(ValueError, match="is not a private network"):
        gke.valid_private(str(network))


@example("-oProxyCommand=x")
@example("-x")
@example("a b")
@given(TEXT | ADDRESS.map(str) | st.from_regex(r"[-a-z0-9.:%_@ ]{1,20}", fullmatch=True))
def test_an_accepted_address_is_one_word_that_ssh_takes_for_a_host(text: str) -> None:
    try:
        existing.valid_address(text)
    except ValueError:
        return
    assert text.isascii() and len(text.split()) == 1 and not text.startswith("-") and not set(text) & set("@/$`'\"\\;")


@given(st.ip_addresses(v=4))
def test_internal_addresses_are_those_that_other_machines_can_reach(address: ipaddress.IPv4Address) -> None:
    wrong = address.is_loopback or address.is_unspecified or address.is_multicast or address.is_link_local
    assume(not wrong)
    assert existing.valid_internal_address(str(address)) == str(address)


@given(TEXT)
def test_any_other_text_than_a_host_key_is_rejected(text: str) -> None:
    for said in (text, f"ssh-ed25519 {text}"):
        with pytest.raises(ValueError, match="is not an ed25519 host key"):
            existing.valid_host_key(said)


# Amounts and durations.


@given(st.integers(1, 999), st.sampled_from("MGT"), st.booleans(), st.sampled_from(["", " "]))
def test_memory_is_counted_in_its_unit(number: int, unit: str, binary: bool, blank: str) -> None:
    text = f"{number}{blank}{unit}{'iB' if binary else 'B'}"
    base = 1024 if binary else 1000
    assume(number * base ** (" MGT".index(unit) + 1) <= 2**50)
    assert common.memory(common.valid_memory(text)) == number * base ** (" MGT".index(unit) + 1)


@given(st.integers(1, 99_999), st.sampled_from("smhd"))
def test_a_duration_is_counted_in_its_unit(number: int, unit: str) -> None:
    assume(unit != "s" or number >= 60)
    length = {"s": 1, "m": 60, "h": 60 * 60, "d": 24 * 60 * 60}[unit]
    assert common.seconds(common.valid_duration(f"{number}{unit}")) == number * length


@given(TEXT)
def test_any_other_text_than_an_amount_or_a_duration_is_rejected(text: str) -> None:
    assume(not any(each.isdigit() for each in text))
    for check in (common.valid_memory, common.valid_duration):
        with pytest.raises(ValueError, match="; write e"):
            check(text)


# A kubeconfig.

KUBECONFIG = (VALUE | st.fixed_dictionaries({"current-context": VALUE})).map(yaml.safe_dump).map(str.encode)


@given(st.binary(max_size=60) | KUBECONFIG)
@example(b"\0")
@example(b"a: &a [*a]")
@example(b"contexts: [{name: a, context: 1}]\ncurrent-context: a")
def test_the_current_context_of_any_file_is_text(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    found, context = kubeconfig.locate([file])
    assert (found, type(context)) == (file, str)
    assert all(isinstance(each, str) for each in kubeconfig.cluster(str(file), context))


@given(TEXT.filter(str.strip))
def test_the_current_context_of_a_kubeconfig_is_read(file: Path, name: str) -> None:
    file.write_text(yaml.safe_dump({"apiVersion": "v1", "current-context": name, "contexts": []}))
    assert kubeconfig.locate([file]) == (file, name)


# Reports of pytest, which a killed run may not finish.

REPORT = """<testsuites><testsuite><testcase file="tests/a.py" name="test_a" time="0.5"><failure>é</failure></testcase>
<testcase file="tests/a.py" name="test_b" time="1"/></testsuite></testsuites>"""


@given(st.integers(0, len(REPORT.encode())))
def test_a_truncated_report_counts_as_a_failure(file: Path, end: int) -> None:
    file.write_bytes(REPORT.encode()[:end])
    counts = read("tests/a.py", file, 1).counts
    assert counts["failed"] + counts["error"] == 1 and counts["passed"] <= 1
