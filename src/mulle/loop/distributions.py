"""Which installed distribution provides a module, and in which version, without importing anything.

`importlib.metadata.packages_distributions()` reads every distribution's file list (a second and more in a large
environment); planning needs a handful of names, so only folder names are listed, and file lists are read for names that
nothing explains.
"""

import os
import re
import sys
from pathlib import Path

_FOLDER = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+?)(?:-py[\d.]+)?\.(?:dist|egg)-info$")
# Modules whose distribution has another name; checked before file lists are read.
_KNOWN = {
    "sklearn": ("scikit-learn",),
    "xgboost": ("xgboost", "xgboost-cpu"),
    "yaml": ("pyyaml",),
    "PIL": ("pillow",),
    "cv2": ("opencv-python", "opencv-python-headless"),
    "dateutil": ("python-dateutil",),
    "skimage": ("scikit-image",),
    "bs4": ("beautifulsoup4",),
}


class Installed:
    """The distributions that can be imported from here.

    Args:
        path: Folders to look into; `sys.path` by default.
    """

    def __init__(self, path: list[str] | None = None) -> None:
        self._path = list(sys.path) if path is None else path
        self._folders: dict[str, tuple[str, Path]] | None = None
        self._providers: dict[str, tuple[str, ...]] = {}
        self._by_module: dict[str, set[str]] | None = None

    def version(self, distribution: str) -> str | None:
        """Return the installed version of a distribution, or None."""
        found = self._listed().get(_normal(distribution))
        return None if found is None else found[0]

    def providers(self, module: str) -> tuple[str, ...]:
        """Return the distributions that install the top-level `module`; empty when none here does.

        A namespace shared by several (`google`) gives all of them.
        """
        if module not in self._providers:
            self._providers[module] = self._find(module)
        return self._providers[module]

    def _find(self, module: str) -> tuple[str, ...]:
        listed = self._listed()
        for name in (*_KNOWN.get(module, ()), module):
            found = listed.get(_normal(name))
            if found is not None and module in _top_level(found[1]):
                return (_normal(name),)
        if self._by_module is None:
            self._by_module = {}
            for name, (_, folder) in listed.items():
                for provided in _top_level(folder):
                    self._by_module.setdefault(provided, set()).add(name)
        return tuple(sorted(self._by_module.get(module, ())))

    def _listed(self) -> dict[str, tuple[str, Path]]:
        if self._folders is None:
            self._folders = {}
            for entry in self._path:
                try:
                    names = os.listdir(entry or ".")  # noqa: PTH208 - three times as quick as Path.iterdir on a thousand entries
                except OSError:
                    continue
                for name in names:
                    match = _FOLDER.match(name) if name.endswith("-info") else None
                    if match is not None:
                        self._folders.setdefault(_normal(match["name"]), (match["version"], Path(entry) / name))
        return self._folders


def is_standard(module: str) -> bool:
    """Return whether the top-level `module` is part of Python itself."""
    return module in sys.stdlib_module_names


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _top_level(folder: Path) -> set[str]:
    """Return the top-level modules a distribution says it installs."""
    try:
        declared = (folder / "top_level.txt").read_text(encoding="utf-8").split()
        if declared:
            return set(declared)
    except (OSError, UnicodeDecodeError):
        pass  # wheels of newer builders have no such file: their list of files says it
    try:
        record = (folder / "RECORD").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return set()
    tops: set[str] = set()
    for line in record.splitlines():
        path = line.split(",", 1)[0].strip('"')
        top, slash, _ = path.partition("/")
        if slash and not top.endswith("-info") and top != "..":
            tops.add(top)
        elif not slash and path.endswith((".py", ".so", ".pth")):
            tops.add(path.split(".", 1)[0].removeprefix("__editable__").strip("_"))
    return tops
