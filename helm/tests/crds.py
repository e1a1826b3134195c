"""Makes crds/*.json anew: the schemas of the custom resources that chart and k8s/ use, from the Go modules of their makers.

Wants Go and the module proxy; Go checks the modules against the hashes below. The tests read the JSON and want neither. Descriptions are left out,
which are nine tenths of it.
"""

import json
import pathlib
import subprocess
import sys

import yaml

SOURCES = {
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": (
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
        "example/prometheus-operator-crd",
        ["monitoring.coreos.com_servicemonitors", "monitoring.coreos.com_prometheusrules"],
    ),
    "github.com/kedacore/keda/v2@v2.21.0": (
        "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=",
        "config/crd/bases",
        ["keda.sh_scaledobjects"],
    ),
    "github.com/cloudnative-pg/cloudnative-pg@v1.28.0": (
        "h1:vkv0a0ewDSfJOPJrsyUr4uczsxheReAWf/k171V0Dm0=",
        "config/crd/bases",
        ["postgresql.cnpg.io_clusters", "postgresql.cnpg.io_poolers", "postgresql.cnpg.io_scheduledbackups"],
    ),
}
FOLDER = pathlib.Path(__file__).parent / "crds"


def strict(schema):
    """Without descriptions, and with no other keys than those named, as a server that validates strictly reads it."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {}
    for key, value in schema.items():
        if key == "description" and isinstance(value, str) or key.startswith("x-kubernetes-"):
            continue
        result[key] = {name: strict(item) for name, item in value.items()} if key == "properties" else strict(value)
    if schema.get("x-kubernetes-int-or-string"):
        result = {"type": ["integer", "string"]} | {key: value for key, value in result.items() if key == "pattern"}
    elif "pattern" in result and isinstance(result["pattern"], str):
        # Go reads flags anywhere, Python at the beginning alone.
        result["pattern"] = result["pattern"].replace("^(?i)", "(?i)^")
    elif "properties" in result and "additionalProperties" not in result and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
    return result


def main():
    FOLDER.mkdir(exist_ok=True)
    for module, (wanted, folder, names) in SOURCES.items():
        found = json.loads(subprocess.run(["go", "mod", "download", "-json", module], check=True, capture_output=True).stdout)
        if found["Sum"] != wanted:
            sys.exit(f"{module}: {found['Sum']}, want {wanted}")
        for name in names:
            crd = yaml.safe_load((pathlib.Path(found["Dir"]) / folder / f"{name}.yaml").read_text())
            for version in crd["spec"]["versions"]:
                schema = strict(version["schema"]["openAPIV3Schema"])
                # What every object has, and the server checks by itself.
                schema["properties"]["metadata"] = {"type": "object"}
                kind = crd["spec"]["names"]["kind"]
                file = {"source": module, "apiVersion": f"{crd['spec']['group']}/{version['name']}", "kind": kind, "schema": schema}
                (FOLDER / f"{kind}.json").write_text(json.dumps(file, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
