"""What renders, under which Helm and Kubernetes, and that servers would take it."""

import functools
import json
import subprocess

import jsonschema
import kubernetes_validate
import pytest
from kubernetes_validate import utils

import docs
import golden
from chart import LEAST, NEWEST, OLDEST, RENDERED, ROOT, SIZES, Refused, least, name, size, tool

CRDS = {(crd["apiVersion"], crd["kind"]): crd for crd in map(json.loads, (file.read_text() for file in (ROOT / "helm/tests/crds").glob("*.json")))}

# It reads the same megabytes for every object.
utils.schema_contents = functools.cache(utils.schema_contents)
SEEN = set()


def validate(object, kube):
    """Strictly: a key that the server does not know is an error."""
    crd = CRDS.get((object["apiVersion"], object["kind"]))
    # Many objects of one size are those of the next.
    content = (kube, json.dumps(object, sort_keys=True))
    if content in SEEN:
        return
    if crd:
        jsonschema.validate(object, crd["schema"])
    else:
        kubernetes_validate.validate(object, kube, strict=True)
    SEEN.add(content)


# Every switch at once, so that no line of the templates goes unseen.
EVERYTHING = {
    "layout": "both",
    "commonLabels": {"team": "shop"},
    "commonAnnotations": {"note": "n"},
    "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": ["pull"]},
    "installation": {"tokenKey": "01" * 32, "tokenKeySecret": {"name": ""}},
    "migrations": {"mode": "job", "ttlSecondsAfterFinished": 600},
    "defaults": {
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname"}]}},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"operator": "Exists"}],
        "priorityClassName": "high",
        "podLabels": {"a": "b"},
        "podAnnotations": {"c": "d"},
        "extraEnv": [{"name": "SOUK_grpc__default_deadline", "value": "5s"}],
        "extraEnvFrom": [{"configMapRef": {"name": "more"}}],
        "extraVolumes": [{"name": "ca", "secret": {"secretName": "ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ssl/certs"}],
        "serviceAccount": {"annotations": {"e": "f"}},
        "service": {"annotations": {"g": "h"}, "trafficDistribution": "PreferClose"},
        "autoscaling": {"kind": "hpa", "memory": 80, "preserveReplicas": False},
    },
    "query": {"autoscaling": {"kind": "keda", "extra": [{"type": "cron", "metadata": {"timezone": "UTC", "start": "0 8 * * *", "end": "0 9 * * *", "desiredReplicas": "3"}}]}},
    "combined": {"replicas": 2, "service": {"type": "ClusterIP"}},
    "regions": {
        "others": [{"name": "us", "cidrs": ["10.2.0.0/16"], "endpoints": ["http://10.2.0.1:50061"]}, {"name": "ap", "peers": [{"namespaceSelector": {}}]}],
        "service": {"type": "LoadBalancer", "annotations": {"i": "j"}},
    },
    "keda": {"prometheus": "http://prometheus:9090"},
    "networkPolicy": {"callers": [{"namespaceSelector": {}}], "egress": {"extra": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}},
    "monitoring": {"serviceMonitor": {"enabled": True, "labels": {"release": "p"}}, "rules": {"enabled": True}, "dashboards": {"enabled": True}},
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-more"}}, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: text}"],
}


def everything(**options):
    return least(EVERYTHING, **options)


@pytest.mark.parametrize("of", [*SIZES, "everything"])
@pytest.mark.parametrize("upgrade", [False, True])
def test_both_helms_render_the_same(of, upgrade):
    rendered = [everything(helm=helm, upgrade=upgrade) if of == "everything" else size(of, helm=helm, upgrade=upgrade) for helm in "34"]
    assert rendered[0] == rendered[1]
    assert len(rendered[0]) > 15


@pytest.mark.parametrize("kube", [OLDEST, "1.30.0", NEWEST])
@pytest.mark.parametrize("of", [*SIZES, "everything"])
def test_servers_old_and_new_know_every_key(of, kube):
    for upgrade in (False, True):
        objects = everything(kube=kube, upgrade=upgrade) if of == "everything" else size(of, kube=kube, upgrade=upgrade)
        for object in objects:
            if kube == OLDEST and object["kind"] == "Service":
                # Came with 1.30; values set it only where somebody asked for it.
                object["spec"].pop("trafficDistribution", None)
            validate(object, kube)


def test_the_validation_can_fail():
    objects = size("1m")
    for kind, change in [("Deployment", {"spec": {"replics": 1}}), ("ScaledObject", {"spec": {"maxReplicas": 1}}), ("ServiceMonitor", {"spec": {"endpoint": []}})]:
        object = next(object for object in objects if object["kind"] == kind)
        with pytest.raises(jsonschema.ValidationError):
            validate(object | {"spec": object["spec"] | change["spec"]}, NEWEST)


def test_an_older_kubernetes_is_refused():
    with pytest.raises(Refused, match="kubeVersion: >=1.29"):
        least(kube="1.28.0")


@pytest.mark.parametrize("of", SIZES)
def test_what_is_in_k8s_rendered_is_what_the_chart_renders(of):
    assert golden.stale(of) == []


@pytest.mark.parametrize("of", SIZES)
def test_kustomize_builds_what_is_rendered(of):
    built = subprocess.run([tool("kubectl", "helm4"), "kustomize", str(RENDERED / of)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert built.stdout.count("\nkind: ") + built.stdout.startswith("kind: ") == len(list((RENDERED / of).glob("*.yaml")))


def test_readme_and_schema_are_what_values_say():
    for file, text in docs.outputs().items():
        assert (docs.CHART / file).read_text() == text, f"{file}: run `just chart-docs`"


def test_every_object_has_the_labels_and_its_namespace():
    for object in everything():
        if object["metadata"]["name"] in ("souk-more", "text"):
            continue
        labels = object["metadata"]["labels"]
        assert labels["team"] == "shop" and labels["app.kubernetes.io/instance"] == "souk", name(object)
        assert object["metadata"]["namespace"] == "souk"
        assert object["metadata"]["annotations"]["note"] == "n"


def test_names_stay_within_their_bounds():
    long = "a-release-name-that-is-as-long-as-helm-allows-it-to-be"
    for object in least({"fullnameOverride": long[:40], "nameOverride": long[:40]}):
        assert len(object["metadata"]["name"]) <= 63, name(object)
        assert all(len(str(value)) <= 63 for value in object["metadata"]["labels"].values())


def test_under_a_parent_chart_it_takes_what_helm_passes_down():
    assert least({"global": {"anything": 1}, "enabled": True})


@pytest.mark.parametrize("section", ["image", "installation", "write", "nats", "migrations", "defaults", "query", "audit", "regions", "replicator", "keda", "networkPolicy", "monitoring"])
@pytest.mark.parametrize("helm", "34")
def test_an_unknown_key_is_refused(section, helm):
    changed = LEAST | {section: LEAST.get(section, {}) | {"unknwon": 1}}
    with pytest.raises(Refused, match="unknwon"):
        least(changed, helm=helm)
