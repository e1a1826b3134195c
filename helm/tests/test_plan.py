"""The files of the four sizes against the planner: what `souk plan` works out for the load a file promises, the file has."""

import json
import os
import shutil
import subprocess

import pytest
import yaml

from chart import CHART, ROOT, SIZES, merge, of_kind, one, render

# The load contract at the head of each file, as arguments. The region of 100 million users has larger machines.
CONTRACTS = {
    "100": ["--users", "100", "--requests", "10", "--write-share", "20%"],
    "10k": ["--users", "10k", "--requests", "100"],
    "1m": ["--users", "1M", "--requests", "10k"],
    "100m": ["--requests", "100k", "--disk", "32TB", "--capacity", "read-replica=8k"],
}
SERVICES = ["command", "query", "projector", "saga"]


def plan(*arguments):
    """What the planner prints, by its own stated capacities: a benchmark of this machine says nothing of a cluster."""
    program = os.environ.get("SOUK", ROOT / "target/debug/souk")
    assert shutil.which(program), f"{program} is missing: `cargo build --bin souk`"
    record = [] if "--record" in arguments else ["--record", "/nowhere"]
    command = [str(program), "plan", *record, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def counts(size):
    return {need["part"]: need["count"] for need in json.loads(plan("--json", *CONTRACTS[size]))["needs"]}


def values(size):
    return merge(yaml.safe_load((CHART / "values.yaml").read_text()), yaml.safe_load((CHART / f"values-{size}.yaml").read_text()))


def test_every_size_has_a_contract():
    assert list(CONTRACTS) == SIZES


@pytest.mark.parametrize("size", SIZES)
def test_a_size_has_the_databases_of_its_plan(size):
    planned, file = counts(size), values(size)
    read = file["read"]["databases"]
    found = {
        "write-database": len(file["write"]["databases"]),
        "read-database": len(read),
        "read-replica": sum(len(database.get("replicas", [])) for database in read),
    }
    assert found == {part: planned[part] for part in found}
    assert len({len(database.get("replicas", [])) for database in read}) == 1, "replicas are spread evenly"


@pytest.mark.parametrize("size", SIZES)
def test_a_size_has_the_streams_of_its_plan(size):
    planned, nats = counts(size), values(size)["nats"]
    assert nats["streamReplicas"] == planned["nats"]
    assert nats["streamMaxBytes"] >= planned["jet-stream"] << 20


@pytest.mark.parametrize("size", SIZES)
def test_a_size_scales_as_far_as_its_plan(size):
    planned, file = counts(size), values(size)
    if file["layout"] == "combined":
        assert [planned[service] for service in SERVICES] == [1, 1, 1, 1]
        return
    for service in SERVICES:
        scaling = merge(file["defaults"]["autoscaling"], file[service].get("autoscaling", {}))
        assert planned[service] <= scaling["max"], service
        # What is left when one is away carries the load before the autoscaler has looked.
        assert scaling["min"] >= 2, service


@pytest.mark.parametrize("size", SIZES)
def test_a_size_has_the_cache_of_its_plan(size):
    cache = values(size)["settings"].get("query", {}).get("cache_bytes", 256 << 20)
    assert cache >= counts(size)["cache"] << 20


@pytest.mark.parametrize("size", SIZES[1:])
def test_the_auditor_looks_at_each_event_and_has_the_memory_for_it(size):
    file, rates = values(size), json.loads(plan("--json", *CONTRACTS[size]))["rates"]
    audit = merge(file["defaults"], file["audit"])
    seconds = int(audit["every"][:-1]) * {"m": 60, "h": 3600}[audit["every"][-1]]
    # An event at least for each command.
    assert audit["lastEvents"] >= 1.5 * rates["commands"] * seconds / file["installation"]["partitions"]
    # As measured (README), and half as much again for payloads.
    unit = {"Mi": 1 << 20, "Gi": 1 << 30}
    limit = audit["resources"]["limits"]["memory"]
    assert int(limit[:-2]) * unit[limit[-2:]] >= (32 << 20) + 1.5 * 1600 * audit["lastEvents"] * audit["parallel"]


def test_the_alert_on_capacity_goes_by_what_the_planner_reckons_with(tmp_path):
    stated = json.loads(plan("--json"))["capacities"]["write_database"]
    rules = yaml.safe_load((CHART / "values.yaml").read_text())["monitoring"]["rules"]
    assert stated == {"per_second": rules["writeCapacityPerDatabase"], "source": "stated"}
    record = tmp_path / "summary.json"
    record.write_text(json.dumps({"B4": {"ratio": 1.2, "figures": {"commands_per_second": 7654.3}}}))
    written = yaml.safe_load(plan("--record", str(record), "--values", "--requests", "10k"))
    found = one(render(values=merge(written, {"monitoring": {"rules": {"enabled": True}}})), "PrometheusRule", "souk")
    rules = {rule.get("alert"): rule for group in found["spec"]["groups"] for rule in group["rules"]}
    assert "/ 7654 > 0.7" in rules["SoukWriteCapacity"]["expr"]


@pytest.mark.parametrize("size", SIZES)
def test_the_chart_accepts_what_the_planner_writes(size):
    written = yaml.safe_load(plan("--values", *CONTRACTS[size]))
    deployments = [object["metadata"]["name"] for object in of_kind(render(values=written), "Deployment")]
    apart = [f"souk-{service}" for service in [*SERVICES, "audit"]]
    assert sorted(deployments) == (["souk-combined"] if written["layout"] == "combined" else sorted(apart))
