"""Writes the chart as it renders into k8s/rendered/SIZE, for `kubectl apply -k` and for the eye of whoever reviews a change: golden.py [--check]"""

import re
import shutil
import sys

import yaml

from chart import CHART, RENDERED, SIZES, hook, name, text

# The oldest release whose pods may sleep before they stop; what is newer takes the same.
KUBE = "1.30.0"
HEAD = "# Made by `just chart-golden` from helm/souk with values-{size}.yaml. Changes belong there.\n"


def files(size):
    """File name → text, for one size."""
    printed = text(CHART / f"values-{size}.yaml", kube=KUBE, tests=False)
    documents = {}
    for part in re.split(r"^---$", printed, flags=re.MULTILINE):
        object = yaml.safe_load(part)
        if object:
            kind, named = name(object)
            assert not hook(object), f"{kind} {named} is a hook, which kubectl does not know"
            lines = [line.rstrip() for line in part.splitlines() if line.strip() and not line.startswith("# Source:")]
            # The name of the migration tells its content apart, which here git does.
            named = re.sub(r"^(souk-migrate)-[0-9a-f]{8}$", r"\1", named)
            documents[f"{kind.lower()}-{named}.yaml"] = "\n".join(lines) + "\n"
    kustomization = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": "souk"}
    kustomization["resources"] = ["../../namespace", *sorted(documents)]
    documents["kustomization.yaml"] = HEAD.format(size=size) + yaml.safe_dump(kustomization, sort_keys=False)
    return documents


def stale(size):
    """Files of a size that are not as the chart renders them."""
    wanted, folder = files(size), RENDERED / size
    there = {file.name: file.read_text() for file in folder.glob("*")} if folder.exists() else {}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def main():
    for size in SIZES:
        if "--check" in sys.argv:
            if changed := stale(size):
                sys.exit(f"k8s/rendered/{size}: {', '.join(changed)}: not what the chart renders; run `just chart-golden` and look at the difference")
            continue
        folder = RENDERED / size
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file, content in files(size).items():
            (folder / file).write_text(content)


if __name__ == "__main__":
    main()
