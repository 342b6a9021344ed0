"""Install the lock file and this package into the running interpreter's environment.

uv is quick but does not read pip's configuration; what pip knows about certificates and indexes is handed to it.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PIP_TO_UV = {
    "global.index-url": "UV_DEFAULT_INDEX",
    "global.extra-index-url": "UV_INDEX",
    "global.find-links": "UV_FIND_LINKS",
    "global.cert": "SSL_CERT_FILE",
}


def pip_settings() -> dict[str, str]:
    """Return pip's own configuration, from its files and from `PIP_*` variables, as uv's variables."""
    listing = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False).stdout
    found: dict[str, str] = {}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        key = key.replace(":env:.", "global.")
        if key in PIP_TO_UV:
            found[PIP_TO_UV[key]] = " ".join(value.strip("'\"").replace("\\n", " ").split())
    return found


def uv_environment() -> dict[str, str]:
    """Return the environment uv is run in."""
    environment = {**pip_settings(), **os.environ}
    # Indexes that are folders may be empty for a package: look on in the next one.
    environment.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return environment


def install_lowest(folder: str) -> int:
    """Make an environment in `folder` with the lowest versions that are allowed, and today's test tools."""
    uv = [sys.executable, "-m", "uv"]
    tools = [
        "pytest>=8.3",
        "hypothesis>=6.120",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "moto[server]>=5.1",
        "openapi-spec-validator>=0.7",
    ]
    python = str(Path(folder) / "bin" / "python")
    lowest = ["--resolution", "lowest-direct", "--only-binary", ":all:", "--no-binary", "mulle"]
    steps = [
        [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder],
        [*uv, "pip", "install", "--quiet", "--python", python, *lowest, f"{HERE.parent}[all]", *tools],
    ]
    return next((code for step in steps if (code := subprocess.run(step, env=uv_environment(), check=False).returncode)), 0)


def main() -> int:
    """Install; fall back to pip, slower, where uv finds no way to the index."""
    if sys.argv[1:2] == ["--lowest"]:
        return install_lowest(sys.argv[2])
    environment = uv_environment() | {"VIRTUAL_ENV": sys.prefix}
    lock, root = str(HERE / "lock.txt"), str(HERE.parent)
    uv = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, "--quiet"]
    steps = [[*uv, "-r", lock], [*uv, "--no-deps", "-e", root]]
    if all(subprocess.run(step, env=environment, check=False).returncode == 0 for step in steps):
        return 0
    print("uv did not get through; trying pip", file=sys.stderr)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return max(subprocess.run(step, check=False).returncode for step in [[*pip, "-r", lock], [*pip, "--no-deps", "-e", root]])


if __name__ == "__main__":
    sys.exit(main())
