"""A real API server takes every size and every step: defaults, validation, admission and fields that never change, as in a cluster. No pod runs.

`just chart-test-api` builds the server (Go; a quarter of an hour the first time) from the published modules of Kubernetes, etcd included.
"""

import json
import os
import pathlib
import secrets
import socket
import subprocess
import sys
import time

import pytest
import yaml

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from chart import CHART, RENDERED, ROOT, SIZES, TOOLS, hook, render, tool
from test_growth import STEPS, named

CRDS = {
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": (
        "example/prometheus-operator-crd",
        ["monitoring.coreos.com_servicemonitors", "monitoring.coreos.com_prometheusrules"],
    ),
    "github.com/kedacore/keda/v2@v2.21.0": ("config/crd/bases", ["keda.sh_scaledobjects"]),
    "github.com/cloudnative-pg/cloudnative-pg@v1.28.0": (
        "config/crd/bases",
        ["postgresql.cnpg.io_clusters", "postgresql.cnpg.io_poolers", "postgresql.cnpg.io_scheduledbackups"],
    ),
}


def free_port():
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


class Server:
    def __init__(self, folder):
        self.folder, self.port, self.token = folder, free_port(), secrets.token_hex(16)
        self.log = folder / "apiserver.log"
        key = folder / "service-account.key"
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
        (folder / "tokens.csv").write_text(f"{self.token},admin,1,system:masters\n")
        etcd, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        environment = os.environ | {"ETCD_DATA": str(folder / "etcd"), "ETCD_CLIENT_URL": etcd, "ETCD_PEER_URL": peer}
        command = [str(TOOLS / "apiserver/bin/apiserver"), f"--etcd-servers={etcd}", "--bind-address=127.0.0.1", f"--secure-port={self.port}"]
        command += [f"--cert-dir={folder / 'certificates'}", f"--token-auth-file={folder / 'tokens.csv'}", "--authorization-mode=AlwaysAllow"]
        command += ["--service-account-issuer=https://souk.test", f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}"]
        # Accounts are made by a controller, and there is none.
        command += ["--service-cluster-ip-range=10.0.0.0/16", "--disable-admission-plugins=ServiceAccount"]
        self.process = subprocess.Popen(command, env=environment, stdout=self.log.open("w"), stderr=subprocess.STDOUT)
        self.until(lambda: self.kubectl("get", "--raw", "/readyz", check=False).returncode == 0, 120)

    def until(self, condition, seconds):
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.2)

    def kubectl(self, *arguments, check=True, input=None):
        command = [tool("kubectl", "helm4"), f"--server=https://127.0.0.1:{self.port}", f"--token={self.token}", "--insecure-skip-tls-verify"]
        command += ["--kubeconfig=/dev/null", *arguments]
        done = subprocess.run(command, input=input, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stderr
        return done

    def kubeconfig(self):
        file = self.folder / "kubeconfig"
        cluster = {"server": f"https://127.0.0.1:{self.port}", "insecure-skip-tls-verify": True}
        config = {"clusters": [{"name": "a", "cluster": cluster}], "users": [{"name": "a", "user": {"token": self.token}}]}
        config |= {"contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}], "current-context": "a"}
        file.write_text(yaml.safe_dump(config))
        return file

    def helm(self, version, *arguments, values=None, check=True):
        """`helm upgrade --install` and the like; migrations are ordinary Jobs, since no pod runs that a hook could wait for."""
        home = self.folder / f"helm{version}"
        environment = os.environ | {f"HELM_{name}_HOME": str(home / name) for name in ("CACHE", "CONFIG", "DATA")}
        command = [tool("helm", f"helm{version}"), "--kubeconfig", str(self.kubeconfig()), *arguments]
        if values is not False:
            command += ["--values", "-"]
        done = subprocess.run(command, input=json.dumps((values or {}) | {"migrations": {"mode": "job"}}), capture_output=True, text=True, env=environment)
        assert not check or done.returncode == 0, done.stderr
        return done

    def apply(self, objects, *options, check=True):
        """As one that owns every field, with strict validation; warnings are errors."""
        documents = yaml.safe_dump_all([object for object in objects if not hook(object) or hook(object) == "pre-upgrade"])
        done = self.kubectl("apply", "--server-side", "--force-conflicts", "--validate=strict", *options, "--filename=-", input=documents, check=check)
        assert not check or "Warning" not in done.stderr, done.stderr
        return done

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("api"))
    version = json.loads(server.kubectl("version", "--output=json").stdout)["serverVersion"]["gitVersion"]
    print(f"\nAPI server {version}")
    for module, (folder, names) in CRDS.items():
        source = json.loads(subprocess.run(["go", "mod", "download", "-json", module], check=True, capture_output=True).stdout)["Dir"]
        for crd in names:
            server.kubectl("apply", "--server-side", "--filename", f"{source}/{folder}/{crd}.yaml")
    crds = lambda: json.loads(server.kubectl("get", "customresourcedefinitions", "--output=json").stdout)["items"]
    established = lambda crd: any(state["type"] == "Established" and state["status"] == "True" for state in crd["status"]["conditions"])
    server.until(lambda: all(map(established, crds())), 30)
    server.kubectl("apply", "--filename", str(ROOT / "k8s/namespace/namespace.yaml"))
    yield server
    server.stop()


@pytest.mark.parametrize("of", SIZES)
def test_it_takes_every_size(server, of):
    said = server.apply(render(CHART / f"values-{of}.yaml"), "--dry-run=server").stdout
    assert said.count("(server dry run)") > 15


@pytest.mark.parametrize("of", SIZES)
def test_it_takes_what_is_rendered_for_kubectl(server, of):
    done = server.kubectl("apply", "-k", str(RENDERED / of), "--dry-run=server", "--validate=strict")
    assert "Warning" not in done.stderr and done.stdout.count("(server dry run)") > 15


@pytest.mark.parametrize("folder", ["dev", "cnpg"])
def test_it_takes_what_stands_around_the_chart(server, folder):
    done = server.kubectl("apply", "-k", str(ROOT / "k8s" / folder), "--dry-run=server", "--validate=strict")
    assert "Warning" not in done.stderr


def test_the_pod_of_helm_test_is_admitted_under_the_restricted_standard(server):
    pod = next(object for object in render(CHART / "values-10k.yaml") if object["kind"] == "Pod")
    server.kubectl("apply", "--server-side", "--dry-run=server", "--filename=-", input=yaml.safe_dump(pod))
    pod["spec"]["containers"][0]["securityContext"] = {}
    refused = server.kubectl("apply", "--server-side", "--dry-run=server", "--filename=-", input=yaml.safe_dump(pod), check=False)
    assert refused.returncode != 0 and "violates PodSecurity" in refused.stderr


@pytest.mark.parametrize("back", [False, True], ids=["up", "back"])
def test_it_takes_every_step(server, back):
    """One after the other, really applied: what never changes is refused by the server itself."""
    way = [STEPS[0][0], *(after for _, after in STEPS)]
    way = way[::-1] if back else way
    for position, step in enumerate(way):
        objects = render(CHART / f"values-{step[0]}.yaml", values=step[1] | {"migrations": {"mode": "job"}}, upgrade=position > 0)
        server.apply(objects, "--dry-run=server")
        server.apply(objects)
        print(f"{named(step)}: {len(objects)} objects")


def test_it_would_refuse_what_never_changes(server):
    objects = render(CHART / "values-10k.yaml")
    server.apply(objects)
    deployment = next(object for object in objects if object["kind"] == "Deployment")
    deployment["spec"]["selector"]["matchLabels"]["other"] = "label"
    deployment["spec"]["template"]["metadata"]["labels"]["other"] = "label"
    refused = server.apply([deployment], "--dry-run=server", check=False)
    assert refused.returncode != 0 and "immutable" in refused.stderr


@pytest.mark.parametrize("version", "34")
class TestHelm:
    """Both Helms in earnest, each in a namespace of its own."""

    def upgrade(self, server, version, *files, values=None, check=True):
        arguments = ["upgrade", "--install", "souk", str(CHART), "--namespace", f"helm{version}", "--create-namespace"]
        arguments += [word for file in files for word in ("--values", str(CHART / f"values-{file}.yaml"))]
        return server.helm(version, *arguments, values=values, check=check)

    def replicas(self, server, version):
        return server.kubectl(f"--namespace=helm{version}", "get", "deployment/souk-command", "--output=jsonpath={.spec.replicas}").stdout

    def test_it_goes_every_step_and_rolls_back(self, server, version):
        for step in [STEPS[0][0], *(after for _, after in STEPS)]:
            self.upgrade(server, version, step[0], values=step[1])
        server.helm(version, "rollback", "souk", "--namespace", f"helm{version}", values=False)

    def test_another_partition_count_is_refused_where_one_is_installed(self, server, version):
        self.upgrade(server, version, "10k")
        refused = self.upgrade(server, version, "10k", values={"installation": {"partitions": 32}}, check=False)
        assert refused.returncode != 0 and "installation.partitions: this installation has 64 for ever" in refused.stderr

    def test_what_an_autoscaler_made_of_replicas_survives_upgrades(self, server, version):
        self.upgrade(server, version, "10k")
        server.kubectl(f"--namespace=helm{version}", "scale", "deployment/souk-command", "--replicas=3")
        self.upgrade(server, version, "1m")
        assert self.replicas(server, version) == "3"

    def test_an_autoscaler_for_fixed_replicas_is_what_growing_says_it_is(self, server, version):
        fixed = {"command": {"replicas": 4, "autoscaling": {"kind": ""}}}
        rendered = {"command": {"replicas": 4, "autoscaling": {"kind": "hpa", "preserveReplicas": False}}}
        alone = {"command": {"replicas": 4, "autoscaling": {"kind": "hpa"}}}
        self.upgrade(server, version, "10k", values=fixed)
        assert self.replicas(server, version) == "4"
        self.upgrade(server, version, "10k", values=rendered)
        assert self.replicas(server, version) == "4"
        # The autoscaler changes it, as one that owns the field from then on.
        server.kubectl(f"--namespace=helm{version}", "scale", "deployment/souk-command", "--replicas=3")
        self.upgrade(server, version, "10k", values=alone)
        assert self.replicas(server, version) == {"3": "1", "4": "3"}[version]


def test_replicas_of_an_autoscaler_survive_an_upgrade(server):
    objects = render(CHART / "values-10k.yaml")
    server.apply(objects)
    server.kubectl("--namespace=souk", "scale", "deployment/souk-command", "--replicas=3")
    server.apply(render(CHART / "values-1m.yaml", upgrade=True))
    replicas = server.kubectl("--namespace=souk", "get", "deployment/souk-command", "--output=jsonpath={.spec.replicas}").stdout
    assert replicas == "3"
