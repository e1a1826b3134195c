"""Makes values.schema.json and the table in README.md from values.yaml: docs.py [--check]

Every key of values.yaml has a comment `# -- …`, which becomes its description. `# @schema {…}` adds to what is inferred from the default, `# @like
SECTION` gives a section the keys of another, beside its own. Objects know no other keys than those named, unless they are `{}` or say `additionalProperties`.

Well-kept generators were looked at: helm-docs makes the table alone, and helm-schema has no release that the module proxy carries. One reading of
one file that makes both cannot make them disagree.
"""

import json
import pathlib
import sys

import yaml

CHART = pathlib.Path(__file__).parent.parent / "souk"
BEGIN, END = "<!-- values: made by `just chart-docs` -->", "<!-- /values -->"

SECRET = {
    "type": "object",
    "description": "A key of a secret",
    "properties": {"name": {"type": "string", "minLength": 1}, "key": {"type": "string", "minLength": 1}},
    "required": ["name", "key"],
    "additionalProperties": False,
}
URL = {"type": "string", "pattern": "^postgres(ql)?://"}
DATABASE = {
    "name": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$", "description": "Name in the placement, for ever"},
    "url": URL,
    "urlSecret": SECRET,
    "maxConnections": {"type": "integer", "minimum": 1, "maximum": 1000},
}
DEFINITIONS = {
    "writeDatabase": {
        "type": "object",
        "properties": DATABASE | {"pooledUrl": URL, "pooledUrlSecret": SECRET},
        "required": ["name"],
        "additionalProperties": False,
    },
    "region": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": "^[a-z][a-z0-9-]{0,31}$", "description": "As the topology has it"},
            "endpoints": {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "^https?://[^,\\s]+$"}},
            "cidrs": {"type": "array", "items": {"type": "string", "pattern": "^[0-9a-fA-F.:]+/[0-9]{1,3}$"}},
            "peers": {"type": "array", "items": {"type": "object"}},
        },
        "required": ["name"],
        "additionalProperties": False,
    },
    "readDatabase": {
        "type": "object",
        "properties": DATABASE
        | {
            "replicas": {
                "type": "array",
                "items": {"type": "object", "properties": {"url": URL, "urlSecret": SECRET}, "additionalProperties": False},
            }
        },
        "required": ["name"],
        "additionalProperties": False,
    },
}
TYPES = {"tag:yaml.org,2002:bool": "boolean", "tag:yaml.org,2002:int": "integer", "tag:yaml.org,2002:float": "number", "tag:yaml.org,2002:str": "string"}


class Values:
    def __init__(self, text):
        self.lines = text.splitlines()
        self.rows = []
        self.definitions = dict(DEFINITIONS)
        self.schema = self.object(yaml.compose(text), "")

    def comment(self, line, key):
        """Description and directives in the comment lines right above a key."""
        above = []
        while line > 0 and self.lines[line - 1].lstrip().startswith("#"):
            line -= 1
            above.insert(0, self.lines[line].lstrip()[1:].strip())
        text = [part[2:].strip() for part in above if part.startswith("--")]
        if len(text) != 1:
            sys.exit(f"values.yaml: {key}: wants one comment line that begins with '# --', has {len(text)}")
        extra = {}
        for part in above:
            if part.startswith("@schema"):
                extra |= yaml.safe_load(part.removeprefix("@schema"))
            elif part.startswith("@like"):
                extra["like"] = part.removeprefix("@like").strip()
        return text[0], extra

    def object(self, node, path):
        properties = {}
        for key, value in node.value:
            name = f"{path}.{key.value}" if path else key.value
            description, extra = self.comment(key.start_mark.line, name)
            properties[key.value] = self.value(value, name, description, extra)
        return {"type": "object", "properties": properties, "additionalProperties": False}

    def value(self, node, path, description, extra):
        like = extra.pop("like", None)
        if like and node.flow_style:
            self.rows.append((path, "{}", f"{description}; keys as in `{like}`"))
        if isinstance(node, yaml.MappingNode) and not node.flow_style:
            self.rows.append((path, None, f"{description}; keys as in `{like}`" if like else description))
            schema = self.object(node, path) if not extra.get("additionalProperties") or self.documented(node) else {"type": "object"}
        elif isinstance(node, yaml.MappingNode):
            schema = {"type": "object"}
        elif isinstance(node, yaml.SequenceNode):
            schema = {"type": "array"}
        else:
            schema = {"type": TYPES[node.tag]} if node.tag in TYPES else {}
        if not like and (not isinstance(node, yaml.MappingNode) or node.flow_style or "properties" not in schema):
            self.rows.append((path, json.dumps(self.plain(node)), description))
        if like or path == "defaults":
            if path == "defaults":
                self.definitions["workload"] = schema
            if own := schema.get("properties", {}).keys() - self.definitions["workload"]["properties"].keys():
                # Keys of its own beside those, which a reference alone would refuse.
                shared = {key: {"$ref": f"#/definitions/workload/properties/{key}"} for key in self.definitions["workload"]["properties"]}
                own = {key: value for key, value in schema["properties"].items() if key in own}
                return {"type": "object", "properties": shared | own, "additionalProperties": False, "description": description}
            return {"allOf": [{"$ref": "#/definitions/workload"}], "description": description}
        return schema | extra | {"description": description}

    def documented(self, node):
        return all(self.lines[key.start_mark.line - 1].lstrip().startswith("#") for key, _ in node.value)

    @staticmethod
    def plain(node):
        return yaml.safe_load(yaml.serialize(node))


def schema(values):
    renamed = yaml.safe_load((CHART / "renamed.yaml").read_text())
    top = values.schema
    # Let through here, so that the chart can say what they are called.
    top["properties"] |= {name: {"deprecated": True, "description": f"Is called {new} here"} for name, new in renamed.items()}
    whole = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the Souk chart"} | top | {"definitions": values.definitions}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def table(values):
    rows = ["| Key | Default | What it is |", "|---|---|---|"]
    for path, default, description in values.rows:
        text = description.replace("|", "\\|")
        if default is None:
            rows.append(f"| **`{path}`** | | **{text}** |")
        else:
            default = default if len(default) < 60 else "see values.yaml"
            rows.append(f"| `{path}` | `{default}` | {text} |".replace("`see values.yaml`", "see values.yaml"))
    return "\n".join(rows)


def outputs():
    values = Values((CHART / "values.yaml").read_text())
    readme = (CHART / "README.md").read_text()
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return {"values.schema.json": schema(values), "README.md": f"{before}{BEGIN}\n{table(values)}\n{END}{after}"}


def main():
    stale = [name for name, text in outputs().items() if not (CHART / name).exists() or (CHART / name).read_text() != text]
    if "--check" in sys.argv:
        if stale:
            sys.exit(f"{', '.join(stale)}: not what values.yaml says; run `just chart-docs`")
        return
    for name, text in outputs().items():
        (CHART / name).write_text(text)


if __name__ == "__main__":
    main()
