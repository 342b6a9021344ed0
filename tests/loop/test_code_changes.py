"""A real project is changed in one place, and exactly what depends on that place is run again.

`unit/loop/test_code_reach.py` and `property/test_cache_keys.py` show the rules one by one; here they meet real stages.
"""

import pytest

from mulle.loop.stages import STAGES
from support.projects import finished

pytestmark = pytest.mark.slow

NAMES = [stage.name for stage in STAGES]
FROM_TRAIN = NAMES[NAMES.index("train") :]


@pytest.fixture
def tiny(tmp_path, own_key_folder, monkeypatch):
    """Return a project whose wheel has turned once."""
    return finished(tmp_path / "tiny", monkeypatch)


def would_run(project, capsys, *arguments):
    """Return the stages a dry run says it would run, or would have to look at again."""
    answer = project.call(capsys, "run", "--dry-run", "--json", *arguments)
    assert answer.code == 0, answer.out + answer.err
    return [step["stage"] for step in answer.json["stages"] if step["status"] != "cached"]


CHANGES = [
    pytest.param("helpers.py", "amount / (time + 1)", "amount / (time + 2)", FROM_TRAIN, id="a helper the features call"),
    pytest.param("helpers.py", "def nobody_calls_this(x):", "def nobody_calls_this(x, y=1):", [], id="a helper nobody calls"),
    pytest.param("helpers.py", "def per(", "# how much of it\ndef per(", [], id="a comment"),
    pytest.param("project.py", "strength=1.0", "strength=0.5", FROM_TRAIN, id="a default of the model function"),
    pytest.param("project.py", ".not_null().unique()", ".not_null()", ["check"], id="an expectation that holds either way"),
    pytest.param(
        "project.py", 'read_parquet("data/rows.parquet")', 'read_parquet("./data/rows.parquet")', NAMES[:1], id="the source's code"
    ),
    pytest.param("mulle.toml", "bootstrap = 50", "bootstrap = 51", NAMES[NAMES.index("evaluate") :], id="an evaluation setting"),
    pytest.param("mulle.toml", "[gates]", "[gates.roc_auc]\nmin = 0.5", NAMES[NAMES.index("gate") :], id="a gate"),
    pytest.param("mulle.toml", "[gates]", "[serving]\nport = 8081\n[gates]", [], id="a serving setting"),
    pytest.param("mulle.toml", "k_folds = 0", "k_folds = 0\nseed = 1", FROM_TRAIN, id="the seed"),
    pytest.param("mulle.toml", "k_folds = 0", 'k_folds = 0\n[split]\nsalt = "other"', NAMES[2:], id="the salt of the split"),
]


@pytest.mark.parametrize(("file", "old", "new", "expected"), CHANGES)
def test_a_dry_run_names_what_a_change_reaches(tiny, capsys, file, old, new, expected):
    """The first stage to run is the one whose code or settings changed; those before it are kept; nothing is done."""
    before = sorted(str(path) for path in tiny.folder.rglob("*"))
    tiny.change(file, old, new)
    found = would_run(tiny, capsys)

    assert expected[:1] == found[:1]
    assert set(expected) <= set(found)
    assert before == sorted(str(path) for path in tiny.folder.rglob("*"))


def test_only_what_changed_is_really_run(tiny, capsys):
    """Changes one after the other in one project: what ran each time, and that the work is cut short where nothing came of it."""
    ran = [tiny.ran(capsys)]
    tiny.change("helpers.py", "def nobody_calls_this(x):\n    return x", "def nobody_calls_this(x):\n    return x + 1  # more")
    ran.append(tiny.ran(capsys))
    tiny.change("project.py", ".not_null().unique()", ".not_null()")
    ran.append(tiny.ran(capsys))
    tiny.change("helpers.py", "amount / (time + 1)", "amount * 1 / (time + 1)")
    ran.append(tiny.ran(capsys))
    tiny.change("helpers.py", "amount * 1 / (time + 1)", "amount / (time + 1)")
    ran.append(tiny.ran(capsys))

    # One rule fewer is another report of the checks, which the split waits for; its sides are the same, and that ends it.
    assert [[], [], ["check", "split"], FROM_TRAIN, []] == ran


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"compression": "uncompressed"}, id="another compression"),
        pytest.param({"row_group_size": 7, "compression": "gzip", "statistics": False}, id="tiny row groups"),
    ],
)
def test_the_same_rows_in_another_file_are_the_same_version(tiny, capsys, options):
    """A dataset's digest is over values: the snapshot is taken again, finds nothing new, and nothing follows."""
    before = tiny.call(capsys, "models", "show", "1", "--json").json["dataset_digest"]
    old = (tiny.folder / "data/rows.parquet").read_bytes()
    tiny.write_table(tiny.table(), **options)
    ran = tiny.ran(capsys)
    datasets = [path.name for path in (tiny.folder / ".mulle/datasets/tiny").iterdir()]

    assert old != (tiny.folder / "data/rows.parquet").read_bytes()
    assert (["snapshot"], [before]) == (ran, datasets)


def test_from_force_and_what_is_not_a_stage(tiny, capsys):
    """`--from` keeps what lies before; `--force` plans everything; a misspelt stage is named with those there are."""
    wrong = tiny.call(capsys, "run", "--from", "trian", "--json")

    assert would_run(tiny, capsys, "--from", "export") == NAMES[NAMES.index("export") :]
    assert would_run(tiny, capsys, "--force") == NAMES
    assert (2, "run-unknown-stage") == (wrong.code, wrong.error["code"])
    assert "train" in wrong.error["fix"]
    assert tiny.ran(capsys, "--from", "gate") == NAMES[NAMES.index("gate") :]
    assert [(1, ("champion",))] == tiny.versions(capsys)
