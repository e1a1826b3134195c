"""What must hold for every object of every size, Jobs and tests included."""

import pytest

from chart import RENDERED, ROOT, SIZES, by_name, hook, least, name, of_kind, one, pod_spec, size
from test_rendering import everything

ALL = [*SIZES, "everything"]


def objects(of):
    """At install and at upgrade."""
    render = everything if of == "everything" else lambda **options: size(of, **options)
    return render() + render(upgrade=True)


def pods(of):
    return [(name(object), pod_spec(object)) for object in objects(of) if pod_spec(object)]


@pytest.mark.parametrize("of", ALL)
def test_pods_keep_to_the_restricted_standard(of):
    assert len(pods(of)) >= 4
    for of, pod in pods(of):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] == 65532, of
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, of
        assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), of
        assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False, of
        assert all(set(volume) & {"configMap", "secret", "projected", "emptyDir"} for volume in pod.get("volumes", [])), of
        for container in pod["containers"] + pod.get("initContainers", []):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False and own["privileged"] is False and own["readOnlyRootFilesystem"] is True, of
            assert own["capabilities"] == {"drop": ["ALL"]}, of
            assert not any("hostPort" in port for port in container.get("ports", [])), of


@pytest.mark.parametrize("of", ALL)
def test_containers_have_a_version_and_bounds(of):
    for of, pod in pods(of):
        for container in pod["containers"]:
            assert "@sha256:" in container["image"] or container["image"].rpartition(":")[2] not in ("", "latest"), of
            resources = container["resources"]
            assert resources["requests"]["cpu"] and resources["requests"]["memory"] and resources["limits"]["memory"], of
            assert "cpu" not in resources["limits"], f"{of}: a limit of CPU delays without need"
            # The image has no shell.
            assert container["command"][0].startswith("/usr/local/bin/souk"), of


@pytest.mark.parametrize("of", ALL)
def test_deployments_start_end_and_spread_as_they_should(of):
    for deployment in of_kind(objects(of), "Deployment"):
        spec, pod = deployment["spec"], pod_spec(deployment)
        assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0 and spec["minReadySeconds"] > 0
        keys = {constraint["topologyKey"] for constraint in pod["topologySpreadConstraints"]}
        assert keys == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        for container in pod["containers"]:
            ports = {port["name"] for port in container["ports"]}
            assert all(len(port) <= 15 for port in ports)
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert container[probe]["httpGet"]["port"] in ports
            assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
            # A service that is not ready must not be killed for it.
            assert container["livenessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/livez"
            environment = {variable["name"]: variable for variable in container["env"]}
            assert environment["POD_IP"]["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
            assert environment["SOUK_process__advertise_host"]["value"] == '"$(POD_IP)"'
            drain = int(environment["SOUK_process__shutdown_grace"]["value"].removesuffix("s"))
            sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert pod["terminationGracePeriodSeconds"] >= sleep + drain + 10


@pytest.mark.parametrize("of", ALL)
def test_selectors_find_pods_and_no_pod_is_counted_twice(of):
    render = everything if of == "everything" else lambda: size(of)
    found = render()
    labels = {object["metadata"]["name"]: object["spec"]["template"]["metadata"]["labels"] for object in of_kind(found, "Deployment")}
    chosen = lambda selector: [pod for pod, has in labels.items() if selector.items() <= has.items()]
    for deployment in of_kind(found, "Deployment"):
        assert chosen(deployment["spec"]["selector"]["matchLabels"]) == [deployment["metadata"]["name"]]
    for budget in of_kind(found, "PodDisruptionBudget"):
        assert chosen(budget["spec"]["selector"]["matchLabels"]) == [budget["metadata"]["name"]]
    for service in of_kind(found, "Service"):
        pods = chosen(service["spec"]["selector"])
        assert pods, name(service)
        doors = {port["name"] for pod in pods for container in pod_spec(one(found, "Deployment", pod))["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= doors, name(service)
    policies = of_kind(found, "NetworkPolicy")
    assert all(chosen(policy["spec"]["podSelector"]["matchLabels"]) for policy in policies)


@pytest.mark.parametrize("of", ALL)
def test_all_that_a_pod_names_is_there(of):
    for found in ([everything(), everything(upgrade=True)] if of == "everything" else [size(of), size(of, upgrade=True)]):
        there = by_name(found)
        secrets_of_yours = {"souk-token-key", "souk-databases", "souk-nats", "dsn", "nats", "ca"}
        for object in found:
            pod = pod_spec(object)
            if not pod or object["kind"] == "Pod":
                continue
            assert ("ServiceAccount", pod["serviceAccountName"]) in there, name(object)
            for volume in pod["volumes"]:
                if "configMap" in volume:
                    config = there["ConfigMap", volume["configMap"]["name"]]
                    # A hook runs before all that is not of the hook.
                    assert bool(hook(config)) == bool(hook(object)), name(object)
                for source in volume.get("projected", {}).get("sources", []):
                    secret = source["secret"]["name"]
                    if secret not in secrets_of_yours:
                        texts = there["Secret", secret]
                        assert {item["key"] for item in source["secret"]["items"]} <= texts["stringData"].keys()
                        assert bool(hook(texts)) == bool(hook(object)), name(object)


def files(pod, service):
    volume = next(volume for volume in pod["volumes"] if volume["name"] == f"secrets-{service}")
    return {item["path"] for source in volume["projected"]["sources"] for item in source["secret"]["items"]}


@pytest.mark.parametrize("of", SIZES)
def test_a_query_never_sees_the_write_side_not_even_its_password(of):
    found = size(of)
    for deployment in of_kind(found, "Deployment"):
        for container in pod_spec(deployment)["containers"]:
            service = container["name"]
            sides = {"query": {"read"}, "projector": {"read"}, "command": {"write"}, "saga": {"write"}, "replicator": {"write"}, "audit": {"read", "write"}}[service]
            seen = {path.split("-")[0] for path in files(pod_spec(deployment), service)} - {"token", "nats"}
            assert seen == sides, service
            mounts = [mount["name"] for mount in container["volumeMounts"]]
            assert mounts == ["settings", f"secrets-{service}"]
            settings = one(found, "ConfigMap", "souk-settings")["data"][f"{service}.toml"]
            assert {side for side in ("read", "write") if f"[{side}]" in settings} == sides
            assert "migrate = false" in settings


def test_secrets_stand_in_no_settings_and_no_environment():
    found = everything()
    for object in of_kind(found, "ConfigMap", "Deployment", "Job"):
        assert "01" * 32 not in str(object), name(object)
    assert one(found, "Secret", "souk-secrets")["stringData"]["token-key"] == "01" * 32


def test_default_deny_and_callers_by_label():
    found = least()
    deny = one(found, "NetworkPolicy", "souk-deny")["spec"]
    assert deny["policyTypes"] == ["Ingress", "Egress"] and "ingress" not in deny and "egress" not in deny
    callers = one(found, "NetworkPolicy", "souk-query")["spec"]["ingress"][0]
    assert {"podSelector": {"matchLabels": {"souk/caller": "true"}}} in callers["from"]
    assert [port["port"] for port in callers["ports"]] == [50052]
    ours = one(found, "NetworkPolicy", "souk-command")["spec"]["ingress"][1]
    assert ours["from"][0]["podSelector"]["matchExpressions"][0]["values"] == ["command", "projector", "saga", "combined"]
    assert [port["port"] for port in ours["ports"]] == [50051, 50061]
    assert one(found, "Pod", "souk-test-order")["metadata"]["labels"]["souk/caller"] == "true"
    # The auditor is scraped and looked into, and has no other door.
    audit = one(found, "NetworkPolicy", "souk-audit")["spec"]["ingress"]
    assert [[port["port"] for port in rule["ports"]] for rule in audit] == [[50075], [50075]]
    assert not any({"podSelector": {"matchLabels": {"souk/caller": "true"}}} in rule["from"] for rule in audit)
    assert not of_kind(least({"networkPolicy": {"enabled": False}}), "NetworkPolicy")


def test_nothing_beside_the_chart_is_laxer():
    """What stands in k8s/ for a first try, and what Helm does not render."""
    import yaml

    files = [file for file in (ROOT / "k8s").rglob("*.yaml") if RENDERED not in file.parents]
    assert files
    pods = [pod_spec(document) for file in files for document in yaml.safe_load_all(file.read_text()) if document and pod_spec(document)]
    assert pods
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"]["requests"] and container["image"].rpartition(":")[2] not in ("", "latest")
