"""Renders the chart as both Helms do, and finds things in what comes out."""

import functools
import json
import os
import pathlib
import shutil
import subprocess

import yaml

ROOT = pathlib.Path(__file__).parent.parent.parent
CHART = ROOT / "helm/souk"
RENDERED = ROOT / "k8s/rendered"
TOOLS = pathlib.Path(os.environ.get("SOUK_TOOLS", ROOT / ".souk/tools"))
SIZES = ["100", "10k", "1m", "100m"]
# What kubeVersion of Chart.yaml promises, and the newest there are schemas of.
OLDEST, NEWEST = "1.29.0", "1.37.0"


# As safe as the other, and ten times as fast.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Refused(Exception):
    """Helm did not render; the message says why."""


def tool(name, folder):
    """What was fetched, else what the machine has."""
    fetched = TOOLS / folder / "bin" / name
    found = str(fetched) if fetched.exists() else shutil.which(name)
    if not found:
        raise SystemExit(f"{name} is missing: `just setup-chart` fetches it for Linux on x86_64; install it elsewhere")
    return found


@functools.cache
def text(*files, helm="4", kube=NEWEST, upgrade=False, sets=(), values="{}", tests=True):
    """What `helm template` prints with these values files, then `values` (JSON), then `sets`."""
    command = [tool("helm", f"helm{helm}"), "template", "souk", str(CHART), "--namespace", "souk", "--kube-version", kube]
    command += ["--is-upgrade"] if upgrade else []
    command += [] if tests else ["--skip-tests"]
    for file in files:
        command += ["--values", str(file)]
    command += ["--values", "-"]
    for setting in sets:
        command += ["--set", setting]
    done = subprocess.run(command, input=values, capture_output=True, text=True)
    if done.returncode != 0:
        raise Refused(done.stderr)
    return done.stdout


def render(*files, values=None, **options):
    """The objects, as a list of maps."""
    printed = text(*files, values=json.dumps(values or {}), **options)
    return [document for document in yaml.load_all(printed, Loader=LOADER) if document]


def size(name, **options):
    return render(CHART / f"values-{name}.yaml", **options)


# The least that renders.
LEAST = {
    "installation": {"tokenKeySecret": {"name": "key"}},
    "write": {"databases": [{"name": "write-1", "urlSecret": {"name": "dsn", "key": "w"}}]},
    "read": {"databases": [{"name": "read-1", "urlSecret": {"name": "dsn", "key": "r"}}]},
    "nats": {"urlSecret": {"name": "nats"}},
}


def least(changes=None, **options):
    return render(values=merge(LEAST, changes or {}), **options)


def merge(base, over):
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: merge(base[key], value) if key in base else value for key, value in over.items()}


def name(object):
    return object["kind"], object["metadata"]["name"]


def by_name(objects):
    return {name(object): object for object in objects}


def one(objects, kind, named):
    return by_name(objects)[kind, named]


def of_kind(objects, *kinds):
    return [object for object in objects if object["kind"] in kinds]


def pod_spec(object):
    """The spec of an object's pods, if it has any."""
    match object.get("kind"):
        case "Pod":
            return object["spec"]
        case "Deployment" | "StatefulSet" | "DaemonSet" | "Job":
            return object["spec"]["template"]["spec"]
        case "CronJob":
            return object["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return None


def hook(object):
    return object["metadata"].get("annotations", {}).get("helm.sh/hook")
