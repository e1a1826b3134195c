"""The pages about installing: their commands stand in scripts, and what Helm can render of them without a cluster it renders."""

import re
import shlex
import subprocess

import pytest
import yaml

from chart import CHART, LEAST, ROOT, name, pod_spec, render
from chart import NEWEST, OLDEST
from test_plan import plan
from test_rendering import validate

PAGES = [CHART / "README.md", CHART / "GROWING.md", CHART / "UPGRADING.md", CHART / "REGIONS.md", ROOT / "k8s/README.md"]
SCRIPTS = [ROOT / "k8s/install.sh", ROOT / "k8s/dev/kind.sh", ROOT / "k8s/cnpg/secrets.sh"]


def commands(page):
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


ALL = [(page.name, line) for page in PAGES for line in commands(page)]


@pytest.mark.parametrize("page, line", ALL)
def test_every_command_stands_in_a_script(page, line):
    scripts = "\n".join(script.read_text() for script in SCRIPTS)
    is_script = (ROOT / line.split()[0]).is_file()
    assert is_script or line.strip() in scripts, f"{page}: {line}"


@pytest.mark.parametrize("page, line", [(page, line) for page, line in ALL if re.match(r"helm (upgrade|template)\b", line)])
def test_helm_renders_them(page, line, tmp_path):
    words = shlex.split(line.split(" > ")[0])
    files = [word for flag, word in zip(words, words[1:]) if flag == "--values"]
    sets = tuple(word for flag, word in zip(words, words[1:]) if flag == "--set")
    # What the reader keeps in files of their own.
    (tmp_path / "connections.yaml").write_text(yaml.safe_dump(LEAST))
    if "planned.yaml" in files:
        planning = next(line for _, line in ALL if line.endswith(" > planned.yaml"))
        (tmp_path / "planned.yaml").write_text(plan(*shlex.split(planning.split(" > ")[0].removeprefix("just souk plan"))))
    paths = [tmp_path / file if (tmp_path / file).exists() else ROOT / file for file in files]
    assert render(*paths, sets=sets, upgrade="--install" not in words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_say_which_commands_no_test_ran(page):
    assert re.search(r"[Nn]o\s+test\s+ran", page.read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_sound_and_say_that_no_test_ran_them(script):
    assert subprocess.run(["sh", "-n", str(script)]).returncode == 0
    assert re.search(r"[Nn]o test\s+(#\s+)?ran", script.read_text())
    assert script.stat().st_mode & 0o111


@pytest.mark.parametrize("kube", [OLDEST, NEWEST])
def test_servers_know_every_key_of_what_stands_around_the_chart(kube):
    files = [file for folder in ("dev", "cnpg", "namespace") for file in (ROOT / "k8s" / folder).glob("*.yaml")]
    seen = 0
    for file in files:
        if file.name in ("kustomization.yaml", "values.yaml", "kind.yaml"):
            continue
        for object in yaml.safe_load_all(file.read_text()):
            validate(object, kube)
            seen += 1
    assert seen >= 12


def test_the_values_over_cloudnativepg_name_what_stands_beside_them():
    folder = ROOT / "k8s/cnpg"
    there = {name(object) for file in ("clusters.yaml", "poolers.yaml") for object in yaml.safe_load_all((folder / file).read_text())}
    values = yaml.safe_load((folder / "values.yaml").read_text())
    cluster = values["write"]["databases"][0]["urlSecret"]["name"].removesuffix("-app")
    assert ("Cluster", cluster) in there
    script = (folder / "secrets.sh").read_text()
    for pooler in ("souk-write-1-pooler", "souk-read-1-pooler", "souk-read-1-replicas"):
        assert ("Pooler", pooler) in there and pooler in script
    keys = re.findall(r"--from-literal=([a-z0-9-]+)=", script)
    named = [database for side in ("write", "read") for database in values[side]["databases"]]
    wanted = [database[key]["key"] for database in named for key in ("urlSecret", "pooledUrlSecret") if database.get(key, {}).get("name") == "souk-databases"]
    wanted += [replica["urlSecret"]["key"] for database in named for replica in database.get("replicas", [])]
    assert sorted(keys) == sorted(wanted)
    found = render(CHART / "values-1m.yaml", folder / "values.yaml")
    assert any(pod_spec(object) for object in found)


def test_poolers_are_such_that_the_services_bear_them():
    poolers = yaml.safe_load_all((ROOT / "k8s/cnpg/poolers.yaml").read_text())
    for pooler in poolers:
        bouncer = pooler["spec"]["pgbouncer"]
        assert bouncer["poolMode"] == "transaction" and int(bouncer["parameters"]["max_prepared_statements"]) > 0
        assert bouncer["parameters"]["ignore_startup_parameters"].split(",") == ["options", "extra_float_digits"]


def test_links_between_the_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
