"""Which code each stage depends on: a changed helper re-runs exactly what uses it, and nothing is imported to know it."""

from pathlib import Path

import pytest

from mulle.core.errors import SpecError
from mulle.loop.code import ProjectCode
from mulle.loop.distributions import Installed, is_standard

PROJECT = '''
"""Docs."""
import os
import mulle
import numpy as np
from helpers import bucketise, clean as tidy
import tables.lookup as lookup

project = mulle.Project("p", task="binary", target="y")
EDGES = [1, 2, 3]


@project.source
def customers():
    return tidy(lookup.load())


@project.expectations
def sound(t):
    t.min_rows(LEAST)


LEAST = 10


@project.features
def features():
    return {"a": bucketise(EDGES)}


@project.model
def forest(n: int = 3):
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n)


@project.model
def line():
    return np.zeros(3)


def nobody_uses_me():
    return 1


if __name__ == "__main__":
    print(customers())
'''
HELPERS = """
import re

def bucketise(edges):
    return _inner(edges)

def _inner(edges):
    return edges

def clean(x):
    return re.sub("a", "b", x)
"""
FILES = {
    "project.py": PROJECT,
    "helpers.py": HELPERS,
    "tables/__init__.py": "",
    "tables/lookup.py": "from .base import read\n\ndef load():\n    return read(PATH)\n\nPATH = 'x'\n",
    "tables/base.py": "def read(path):\n    return path\n\ndef other():\n    return 2\n",
}
ROLES = ("source", "expectations", "features", "model")


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def slices(folder: Path, model: str | None = "forest") -> dict[str, dict[str, str]]:
    code = ProjectCode(folder, "project:project")
    return {role: code.stage_code((role,), model=model).slices for role in ROLES}


def changed(folder: Path, name: str, old: str, new: str) -> set[str]:
    """Return the roles whose code differs after replacing a text in a file."""
    before = slices(folder)
    path = folder / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    after = slices(folder)
    return {role for role in ROLES if before[role] != after[role]}


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        pytest.param("helpers.py", "return _inner(edges)", "return edges", {"features"}, id="a helper re-runs what calls it"),
        pytest.param(
            "helpers.py", "    return edges\n\ndef clean", "    return 7\n\ndef clean", {"features"}, id="so does a helper's helper"
        ),
        pytest.param("helpers.py", '"b"', '"c"', {"source"}, id="a helper imported under another name"),
        pytest.param("project.py", "return 1", "return 2", set(), id="a function nobody uses"),
        pytest.param("project.py", "[1, 2, 3]", "[1, 2, 4]", {"features"}, id="a constant"),
        pytest.param("project.py", "LEAST = 10", "LEAST = 11", {"expectations"}, id="a constant defined below its user"),
        pytest.param("project.py", 'target="y"', 'target="z"', set(ROLES), id="the project itself"),
        pytest.param("project.py", "n: int = 3", "n: int = 4", {"model"}, id="a default argument"),
        pytest.param("project.py", "np.zeros(3)", "np.ones(3)", set(), id="a model that was not chosen"),
        pytest.param("project.py", "print(customers())", "print(1)", set(), id="what runs only as a script"),
        pytest.param(
            "project.py", '"""Docs."""', '"""Other docs."""\n# and a comment', set(), id="documentation and comments between functions"
        ),
        pytest.param("project.py", "import os\n", "import os\nos.environ['A'] = 'b'\n", set(ROLES), id="a new effect on import"),
        pytest.param("project.py", "clean as tidy", "bucketise as tidy", {"source"}, id="a name that stands for something else"),
        pytest.param("project.py", "import numpy as np", "import math as np", set(), id="an import only the unchosen model uses"),
        pytest.param("tables/base.py", "return path", "return path + 1", {"source"}, id="a relative import inside a package"),
        pytest.param("tables/base.py", "return 2", "return 3", set(), id="a neighbour in the same file"),
        pytest.param("tables/lookup.py", "'x'", "'y'", {"source"}, id="a constant of a module used by attribute"),
        pytest.param("tables/__init__.py", "", "print('hello')\n", set(ROLES), id="an effect in the package around it"),
    ],
)
def test_a_change_reaches_exactly_its_users(tmp_path, name, old, new, expected):
    """The unit is the top-level statement, followed through names, attributes and imports."""
    write(tmp_path, FILES)
    if not old:
        before = slices(tmp_path)
        (tmp_path / name).write_text(new, encoding="utf-8")
        after = slices(tmp_path)
        found = {role for role in ROLES if before[role] != after[role]}
    else:
        found = changed(tmp_path, name, old, new)

    assert expected == found


MINIMAL = """
import mulle
{imports}
project = mulle.Project("p", task="binary", target="y"{extra})

@project.source
def source():
    return 0

@project.features
def features():
    return {body}

@project.expectations
def sound(t):
    pass

@project.model
def model():
    pass
"""


def minimal(imports: str = "", body: str = "1", extra: str = "") -> str:
    return MINIMAL.format(imports=imports, body=body, extra=extra)


@pytest.mark.parametrize(
    ("imports", "body", "helper", "old", "new", "expected"),
    [
        pytest.param(
            "from lib import *", "f()", "def f(): return 1\ndef g(): return 2\n", "2", "3", {"features"}, id="a star import counts whole"
        ),
        pytest.param(
            "import lib", "vars(lib)", "def f(): return 1\ndef g(): return 2\n", "2", "3", {"features"}, id="a module passed around too"
        ),
        pytest.param(
            "import lib", "lib.f()", "def f(): return 1\ndef g(): return 2\n", "2", "3", set(), id="a module used by attribute does not"
        ),
        pytest.param(
            "import lib",
            "lib.h()",
            "def __getattr__(n): return g\ndef g(): return 2\ndef k(): return 5\n",
            "5",
            "6",
            {"features"},
            id="a module's own __getattr__",
        ),
        pytest.param(
            "import lib", "lib.f()", "def f(): return globals()['g']()\ndef g(): return 2\n", "2", "3", {"features"}, id="globals()"
        ),
        pytest.param(
            "from lib import C",
            "C().x()",
            "class C:\n    def x(self): return 1\n    def y(self): return 2\n",
            "2",
            "3",
            {"features"},
            id="a class is one unit",
        ),
        pytest.param("from lib import f", "f()", "K = 1\ndef f(K): return K\n", "K = 1", "K = 2", set(), id="a parameter hides a constant"),
        pytest.param(
            "from lib import f", "f()", "K = 1\ndef f():\n    global K\n    K = 2\n", "K = 1", "K = 3", {"features"}, id="global does not"
        ),
        pytest.param(
            "from lib import f",
            "f()",
            "K = 1\ndef f(): return [K for K in range(3)]\n",
            "K = 1",
            "K = 2",
            set(),
            id="a comprehension's variable hides it",
        ),
        pytest.param(
            "import lib",
            "1",
            "R = []\ndef reg(f):\n    R.append(f)\n    return f\n\n@reg\ndef g(): return 2\n",
            "2",
            "3",
            {"source", "features", "expectations", "model"},
            id="a decorator of the user's own registers: everybody depends on it",
        ),
        pytest.param(
            "import lib",
            "1",
            "import functools\n@functools.cache\ndef g(): return 2\n",
            "2",
            "3",
            set(),
            id="a library's decorator only wraps",
        ),
        pytest.param(
            "import lib",
            "1",
            "class B:\n    def __init_subclass__(cls): pass\n\nclass D(B):\n    x = 2\n",
            "2",
            "3",
            {"source", "features", "expectations", "model"},
            id="a base that acts when inherited from",
        ),
        pytest.param("", "__import__", "def f(): return 2\n", "2", "3", None, id="a builtin that imports is refused"),
        pytest.param("", "(lambda: lib_f())()", "def f(): return 2\n", "2", "3", set(), id="a name defined nowhere"),
    ],
)
def test_what_cannot_be_read_off_counts_whole(tmp_path, imports, body, helper, old, new, expected):
    """Where names cannot be followed, too much is counted rather than too little."""
    write(tmp_path, {"project.py": minimal(imports, body), "lib.py": helper})
    if expected is None:
        with pytest.raises(SpecError, match="cannot be read off"):
            slices(tmp_path, None)
        return
    before = slices(tmp_path, None)
    text = (tmp_path / "lib.py").read_text(encoding="utf-8")
    (tmp_path / "lib.py").write_text(text.replace(old, new), encoding="utf-8")
    after = slices(tmp_path, None)

    assert expected == {role for role in ROLES if before[role] != after[role]}


@pytest.mark.parametrize(
    ("imports", "body"),
    [
        pytest.param("import importlib", "importlib.import_module('plugins.a')", id="importlib"),
        pytest.param("from importlib import import_module as load", "load('plugins.a')", id="under another name"),
        pytest.param("import importlib.util", "importlib.util.spec_from_file_location('a', 'b')", id="by file"),
        pytest.param("import runpy", "runpy.run_path('x.py')", id="runpy"),
        pytest.param("", "eval('1')", id="eval"),
        pytest.param("", "exec('x = 1')", id="exec"),
        pytest.param("", "open('plugins/a.py').read()", id="reading a Python file"),
    ],
)
def test_undeclared_dynamic_code_is_refused_with_its_line(tmp_path, imports, body):
    """Code that cannot be seen must be declared, or its changes would go unnoticed."""
    write(tmp_path, {"project.py": minimal(imports, body), "plugins/a.py": "x = 1\n"})
    with pytest.raises(SpecError) as caught:
        slices(tmp_path, None)

    line = next(number for number, text in enumerate((tmp_path / "project.py").read_text(encoding="utf-8").split("\n"), 1) if body in text)
    assert ("code-dynamic-import", f"{tmp_path / 'project.py'}:{line}") == (caught.value.code, caught.value.where)


def test_unreached_dynamic_code_is_nobodys_business(tmp_path):
    """A helper that no stage uses may do what it likes."""
    write(
        tmp_path,
        {"project.py": minimal("import tools"), "tools.py": "import importlib\n\ndef load(n):\n    return importlib.import_module(n)\n"},
    )

    assert all("load" not in label for role in slices(tmp_path, None).values() for label in role)


def test_declared_dynamic_files_count_for_every_stage(tmp_path):
    """`dynamic` names them; a change in one re-runs everything."""
    text = minimal("import importlib", "importlib.import_module('plugins.a')", ', dynamic=["plugins/*.py"]')
    write(tmp_path, {"project.py": text, "plugins/a.py": "x = 1\n"})
    before = slices(tmp_path, None)
    (tmp_path / "plugins/a.py").write_text("x = 2\n", encoding="utf-8")
    after = slices(tmp_path, None)

    assert set(ROLES) == {role for role in ROLES if before[role] != after[role]}


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        pytest.param(', dynamic=["../*.py"]', "leaves the project", id="outside the project"),
        pytest.param(', dynamic=["nothing/*.py"]', "matches no file", id="no such file"),
        pytest.param(", dynamic=PATTERNS", "not a list of texts", id="not written out"),
        pytest.param(', dynamic=["plugins/b.py"]', "does not name", id="another file than the one imported"),
    ],
)
def test_dynamic_must_be_plain_and_inside(tmp_path, extra, words):
    """The declaration is read like everything else: as text."""
    files = {"plugins/a.py": "", "plugins/b.py": ""}
    write(tmp_path, {"project.py": minimal("import importlib", "importlib.import_module('plugins.a')", extra), **files})
    with pytest.raises(SpecError, match=words):
        slices(tmp_path, None)


def test_a_syntax_error_has_its_line(tmp_path):
    """Planning reads the files, so it finds what Python would find."""
    write(tmp_path, {"project.py": minimal("import lib"), "lib.py": "x = 1\ndef f(:\n    pass\n"})
    with pytest.raises(SpecError) as caught:
        slices(tmp_path, None)

    assert ("code-syntax", f"{tmp_path / 'lib.py'}:2") == (caught.value.code, caught.value.where)


@pytest.mark.parametrize(
    ("files", "code", "expected"),
    [
        pytest.param({}, "project:project", "project-code-missing", id="no file"),
        pytest.param({"project.py": "projet = 1\n"}, "project:project", "project-object-missing", id="no variable"),
        pytest.param(
            {"project.py": "from .. import x\nproject = 1\n"}, "project:project", "code-relative-import", id="a relative import at the top"
        ),
    ],
)
def test_a_project_that_is_not_there(tmp_path, files, code, expected):
    """The entrance is checked first."""
    write(tmp_path, files)
    with pytest.raises(SpecError) as caught:
        ProjectCode(tmp_path, code)

    assert expected == caught.value.code


def test_several_models_need_a_choice(tmp_path):
    """With two models the settings must name one; a typo gets the nearest."""
    write(tmp_path, FILES)
    code = ProjectCode(tmp_path, "project:project")
    with pytest.raises(SpecError, match="2 models"):
        code.stage_code(("model",))
    with pytest.raises(SpecError) as caught:
        code.stage_code(("model",), model="forst")

    assert ("train-model-unknown", "use 'forest'") == (caught.value.code, caught.value.fix)


def test_the_project_may_be_spread_over_modules(tmp_path):
    """Functions registered in other files than the project's own are found, Korean names included."""
    write(
        tmp_path,
        {
            "앱/__init__.py": "",
            "앱/기본.py": 'import mulle\nproject = mulle.Project("이탈", task="binary", target="해지")\n',
            "앱/특성.py": "from .기본 import project\n\n@project.features\ndef 특성():\n    return 도움()\n\ndef 도움():\n    return {}\n",
            "앱/모두.py": "from 앱.기본 import project\nfrom 앱 import 특성\n",
        },
    )
    code = ProjectCode(tmp_path, "앱.모두:project")

    found = code.stage_code(("features",)).slices
    assert {"앱/기본.py:project", "앱/특성.py:특성", "앱/특성.py:도움"} <= set(found)


def test_versions_of_what_is_imported_count(tmp_path):
    """A stage depends on the distributions its own code imports, not on its neighbours'."""
    write(tmp_path, FILES)
    code = ProjectCode(tmp_path, "project:project")

    assert "scikit-learn" in code.stage_code(("model",), model="forest").distributions
    assert "numpy" not in code.stage_code(("model",), model="forest").distributions
    assert "numpy" in code.stage_code(("model",), model="line").distributions
    assert {"polars"} == set(code.stage_code((), distributions=("polars",)).distributions)


def test_moving_lines_changes_nothing(tmp_path):
    """Blank lines, comments between statements and another order of functions leave every slice as it was."""
    write(tmp_path, FILES)
    before = slices(tmp_path)
    path = tmp_path / "project.py"
    text = path.read_text(encoding="utf-8").replace("LEAST = 10\n", "")
    path.write_text(
        "# new\n\n\n" + text.replace("@project.model\ndef line", "LEAST = 10\n\n\n@project.model\ndef line").replace("\n", "\r\n"),
        encoding="utf-8",
    )

    assert before == slices(tmp_path)


def test_planning_imports_no_user_code(tmp_path):
    """A project that would crash on import can still be planned."""
    write(tmp_path, {"project.py": minimal("raise SystemExit(3)")})

    assert slices(tmp_path, None)["source"]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        pytest.param("sklearn", ("scikit-learn",), id="another name than the module's"),
        pytest.param("polars", ("polars",), id="the same name"),
        pytest.param("attr", ("attrs",), id="found by its list of files"),
        pytest.param("no_such_module", (), id="not installed"),
    ],
)
def test_who_provides_a_module(module, expected):
    """Distributions are found without importing anything."""
    assert expected == Installed().providers(module)


def test_the_standard_library_is_nobodys_distribution():
    """Python's own modules come with Python's version."""
    assert (True, False) == (is_standard("json"), is_standard("numpy"))
