"""Several regions: what runs, and who reaches whom."""

import tomllib

from chart import SIZES, least, merge, name, of_kind, one, pod_spec, size

US = {"name": "us", "cidrs": ["10.2.0.0/16"], "endpoints": ["http://10.2.9.9:50061", "http://10.2.9.8:50061"]}
AP = {"name": "ap", "peers": [{"namespaceSelector": {"matchLabels": {"region": "ap"}}}]}
BOTH = {"regions": {"others": [US, AP]}}
OTHERS = [{"ipBlock": {"cidr": "10.2.0.0/16"}}, AP["peers"][0]]


def regions(changes=None):
    return least(merge(BOTH, changes or {}))


def settings(found, service):
    return tomllib.loads(one(found, "ConfigMap", "souk-settings")["data"][f"{service}.toml"])


def test_a_region_that_is_alone_has_none_of_it():
    for found in (least(), *(size(of) for of in SIZES[:-1])):
        assert not [named for _, named in map(name, found) if "replicator" in named or "regions" in named]
        assert "replicator.toml" not in one(found, "ConfigMap", "souk-settings")["data"]


def test_the_largest_size_is_one_of_several():
    assert "souk-replicator" in {named for _, named in map(name, of_kind(size("100m"), "Deployment"))}


def test_a_replicator_runs_in_every_layout():
    for layout in ("apart", "both", "combined"):
        found = regions({"layout": layout})
        container = pod_spec(one(found, "Deployment", "souk-replicator"))["containers"][0]
        assert container["command"] == ["/usr/local/bin/souk-replicator"]
        assert [port["containerPort"] for port in container["ports"]] == [50065, 50075]
        assert {named for kind, named in map(name, found) if kind == "Service" and "replicator" in named} == {"souk-replicator", "souk-replicator-headless"}


def test_replicas_are_two_that_a_budget_keeps_and_no_autoscaler_unless_its_own():
    keda = {"keda": {"prometheus": "http://p:9090"}, "defaults": {"autoscaling": {"kind": "keda", "min": 3}}}
    found = regions(keda)
    assert one(found, "Deployment", "souk-replicator")["spec"]["replicas"] == 2
    assert one(found, "PodDisruptionBudget", "souk-replicator")
    scaled = lambda found: {named for _, named in map(name, of_kind(found, "ScaledObject"))}
    assert "souk-replicator" not in scaled(found)
    own = regions(merge(keda, {"replicator": {"autoscaling": {"kind": "keda"}}}))
    assert "souk-replicator" in scaled(own)
    assert [trigger["type"] for trigger in one(own, "ScaledObject", "souk-replicator")["spec"]["triggers"]] == ["cpu"]


def test_it_sees_the_write_side_and_asks_the_command_service():
    read = settings(regions({"settings": {"replicator": {"retry_backoff": "1s"}, "command": {"relay_window": 64, "queue_length": 9}}}), "replicator")
    assert "read" not in read and read["write"]["databases"][0]["name"] == "write-1"
    assert read["peers"]["command_internal"] == "http://souk-command:50061"
    # The relay's, and nothing that only commands need.
    assert read["replicator"] == {"retry_backoff": "1s"} and read["command"] == {"relay_window": 64}


def test_ways_of_its_own_go_to_those_who_take_them():
    found = regions()
    for service in ("command", "replicator"):
        assert settings(found, service)["peers"]["regions"] == {"us": "http://10.2.9.9:50061,http://10.2.9.8:50061"}
    assert all("regions" not in settings(found, service).get("peers", {}) for service in ("query", "projector", "saga"))


def test_regions_reach_each_others_internal_port_and_nothing_else():
    found = regions()
    out = one(found, "NetworkPolicy", "souk-regions")["spec"]
    assert out["podSelector"]["matchExpressions"][0]["values"] == ["command", "replicator", "combined"]
    assert out["egress"] == [{"to": OTHERS, "ports": [{"port": 50061, "protocol": "TCP"}]}]
    admitted = [(policy["metadata"]["name"], rule["ports"]) for policy in of_kind(found, "NetworkPolicy") for rule in policy["spec"].get("ingress", []) if rule["from"] == OTHERS]
    assert admitted == [("souk-command", [{"port": 50061, "protocol": "TCP"}])]
    ours = one(found, "NetworkPolicy", "souk-command")["spec"]["ingress"][1]
    assert "replicator" in ours["from"][0]["podSelector"]["matchExpressions"][0]["values"]
    assert not [named for _, named in map(name, regions({"networkPolicy": {"egress": {"enabled": False}}})) if named == "souk-regions"]


def test_a_door_for_the_others_is_the_internal_port_for_their_addresses_alone():
    assert not [named for _, named in map(name, regions()) if named == "souk-command-regions"]
    service = one(regions({"regions": {"service": {"type": "LoadBalancer", "annotations": {"a": "b"}}}}), "Service", "souk-command-regions")
    assert [port["port"] for port in service["spec"]["ports"]] == [50061] and service["metadata"]["annotations"] == {"a": "b"}
    assert service["spec"]["loadBalancerSourceRanges"] == ["10.2.0.0/16"] and service["spec"]["externalTrafficPolicy"] == "Local"
    inside = one(regions({"regions": {"service": {"type": "ClusterIP"}}}), "Service", "souk-command-regions")["spec"]
    assert "externalTrafficPolicy" not in inside and "loadBalancerSourceRanges" not in inside


def test_it_is_scraped():
    assert one(regions(), "Service", "souk-replicator-headless")["metadata"]["labels"]["souk/headless"] == "replicator"
