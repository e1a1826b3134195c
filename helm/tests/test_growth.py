"""Every step up is an upgrade: no field that never changes is changed, no partition moved, nothing that holds data removed."""

import tomllib

import pytest
import yaml

from chart import CHART, SIZES, by_name, hook, name, of_kind, one, render, size

# As GROWING.md says it: the first step passes through both layouts.
WAY = [("100", {}), ("10k", {"layout": "both"}), ("10k", {}), ("1m", {}), ("100m", {})]
STEPS = list(zip(WAY, WAY[1:]))
named = lambda way: "+".join([way[0], *way[1].values()])


def rendered(way, **options):
    return render(CHART / f"values-{way[0]}.yaml", values=way[1], **options)


# What a server refuses to change, by kind.
IMMUTABLE = {
    "Deployment": lambda object: object["spec"]["selector"],
    "StatefulSet": lambda object: {key: value for key, value in object["spec"].items() if key not in ("replicas", "template", "updateStrategy")},
    "Service": lambda object: object["spec"].get("clusterIP"),
    "Job": lambda object: object["spec"]["template"],
    "PersistentVolumeClaim": lambda object: object["spec"],
    "ScaledObject": lambda object: object["spec"]["scaleTargetRef"],
}


def partitions(found):
    return {line for text in one(found, "ConfigMap", "souk-settings")["data"].values() for line in text.splitlines() if line.startswith("partitions")}


@pytest.mark.parametrize("before, after", STEPS, ids=lambda way: named(way))
@pytest.mark.parametrize("back", [False, True], ids=["up", "back"])
def test_no_step_changes_what_never_changes(before, after, back):
    if back:
        before, after = after, before
    # The Jobs of `job` are ordinary ones: they must bear being applied over one another.
    for mode in ("hook", "job"):
        old = by_name(rendered((before[0], before[1] | {"migrations": {"mode": mode}}), upgrade=mode == "job"))
        new = by_name(rendered((after[0], after[1] | {"migrations": {"mode": mode}}), upgrade=True))
        common = [key for key in old.keys() & new.keys() if key[0] in IMMUTABLE and not hook(new[key])]
        assert len(common) >= 8
        for key in common:
            assert IMMUTABLE[key[0]](old[key]) == IMMUTABLE[key[0]](new[key]), key
        assert partitions(old.values()) == partitions(new.values()) == {"partitions = 64"}


def test_the_check_of_steps_can_fail():
    old, new = by_name(size("10k")), by_name(render(CHART / "values-10k.yaml", values={"nameOverride": "other", "fullnameOverride": "souk"}))
    key = ("Deployment", "souk-command")
    assert IMMUTABLE["Deployment"](old[key]) != IMMUTABLE["Deployment"](new[key])
    assert partitions(size("10k", values={"installation": {"partitions": 32}})) == {"partitions = 32"}


@pytest.mark.parametrize("before, after", STEPS, ids=lambda way: named(way))
def test_no_step_up_takes_replicas_away(before, after):
    """Helm 3 sets a `replicas` that is rendered no more to 1, whatever runs."""
    old, new = by_name(rendered(before)), by_name(rendered(after, upgrade=True))
    for key in old.keys() & new.keys():
        if key[0] == "Deployment":
            assert "replicas" not in old[key]["spec"] or "replicas" in new[key]["spec"], key


@pytest.mark.parametrize("before, after", STEPS, ids=lambda way: named(way))
def test_databases_are_only_added_and_keep_names_and_secrets(before, after):
    def databases(way, side):
        import yaml

        return yaml.safe_load((CHART / f"values-{way[0]}.yaml").read_text())[side]["databases"]

    for side in ("write", "read"):
        old, new = databases(before, side), databases(after, side)
        assert [database["name"] for database in new[: len(old)]] == [database["name"] for database in old]
        assert [database["urlSecret"] for database in new[: len(old)]] == [database["urlSecret"] for database in old]


def test_callers_find_the_same_doors_at_every_size():
    # The auditor, the replicator and other regions' door have none for them.
    others = ("audit", "replicator", "regions")
    mine = lambda service: not any(other in name(service)[1] for other in others)
    doors = lambda of: {name(service): service["spec"]["ports"] for service in filter(mine, of_kind(size(of), "Service"))}
    assert all(doors(of) == doors("100") for of in SIZES)


def test_between_the_layouts_both_serve():
    found = rendered(WAY[1])
    assert {named for _, named in map(name, of_kind(found, "Deployment"))} == {"souk-combined", "souk-command", "souk-query", "souk-projector", "souk-saga", "souk-audit"}
    for service in ("command", "query"):
        selector = one(found, "Service", f"souk-{service}")["spec"]["selector"]
        serving = [
            name(deployment)[1]
            for deployment in of_kind(found, "Deployment")
            if selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert sorted(serving) == ["souk-combined", f"souk-{service}"]


@pytest.mark.parametrize("of", SIZES)
def test_each_header_states_its_contract(of):
    head = (CHART / f"values-{of}.yaml").read_text().split("\nlayout:")[0].replace("\n# ", " ")
    for wanted in ("Load contract", "requests/s", "commands", "queries", "of log", "a day", "behind", "Turns on", "Secrets it wants"):
        assert wanted in head, wanted
    settings = tomllib.loads(one(size(of), "ConfigMap", "souk-settings")["data"]["command.toml"])
    aside = settings["installation"]["partitions"] * settings["nats"]["stream_max_bytes"] >> 30
    # Copies of other regions' logs have streams of their own.
    others = yaml.safe_load((CHART / f"values-{of}.yaml").read_text()).get("regions", {}).get("others", [])
    per = " and each of 3 regions" if others else ""
    assert f"of 64 partitions{per}: {aside * (1 + len(others))} GiB" in head
    assert bool(others) == (of == "100m")
