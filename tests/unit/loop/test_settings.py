"""`mulle.toml`: what is accepted, and what an operator is told when something is not."""

import json
import time
from pathlib import Path

import pytest

from mulle.core.errors import SpecError
from mulle.loop.settings import duration_s, load_settings
from mulle.loop.settings.positions import key_lines, line_of
from mulle.loop.settings.schema import SCHEMA_FILE, render_schema, write_schema

FULL = """
#:schema mulle.schema.json
[project]
name = "이탈"
code = "project:project"
[gates.roc_auc]
min = 0.80
no_worse_than_champion = { confidence = 0.95 }
[gates.accuracy]
no_worse_than_champion = true
[gates.fairness]
slice_by = ["female"]
max_gap = 0.10
[gates.latency_ms]
p99_max = 5.0
[serving]
workers = 2
max_batch = 64
[rollout]
strategy = "canary"
weights = [5, 25, 50, 100]
[rollout.analysis]
alpha = 0.05
error_rate = { max_increase = 0.01 }
latency = { max_ratio = 1.2, at = 0.99 }
quality = { metric = "accuracy", max_drop = 0.02 }
on_metric_outage = "hold"
[monitor]
window = "1h"
false_alarms_per_year = 4
performance = { metric = "roc_auc", max_drop = 0.05 }
[retrain]
on = ["schedule", "drift", "performance"]
schedule = "0 2 * * *"
cooldown = "6h"
[train.params]
learning_rate = 0.1
[env.local]
[env.production]
tracking = "https://mlflow.example.com"
state = "postgresql+psycopg://app:${env://DB_PASSWORD}@db/mulle"
artifacts = "s3://bucket/prefix"
secrets = "vault://kv/churn"
engine = "airflow"
"""


def write(folder: Path, text: str | bytes) -> Path:
    data = text.encode("utf-8") if isinstance(text, str) else text
    (folder / "mulle.toml").write_bytes(data)
    return folder


def refusal(folder: Path, environment: str = "local") -> SpecError:
    with pytest.raises(SpecError) as caught:
        load_settings(folder, environment)
    return caught.value


def test_a_full_file_becomes_typed_settings(tmp_path):
    """Everything the design shows in mulle.toml is accepted, and seen from the chosen environment."""
    settings = load_settings(write(tmp_path, FULL), "production")

    assert ("이탈", "이탈", "이탈") == (settings.project.name, settings.dataset, settings.deployment)
    assert settings.gates.accuracy is not None
    assert settings.gates.accuracy.no_worse_than_champion is not None
    assert 0.95 == settings.gates.accuracy.no_worse_than_champion.confidence
    assert {"learning_rate": 0.1} == settings.train.params
    assert "airflow" == settings.backends.engine
    assert tmp_path.resolve() == settings.project_dir


def test_a_name_is_enough(tmp_path):
    """A file with a project's name gets every default, and `local` exists without being written down."""
    settings = load_settings(write(tmp_path, '[project]\nname = "p"\n'))

    assert ("local", None, "hash", 0.2) == (settings.environment, settings.backends.state, settings.split.by, settings.split.holdout_share)


def test_settings_cannot_be_changed(tmp_path):
    """Settings are frozen: what a run was planned with is what it ran with."""
    settings = load_settings(write(tmp_path, '[project]\nname = "p"\n'))

    with pytest.raises(ValueError, match="frozen"):
        settings.train.seed = 3


HEAD = '[project]\nname = "p"\n'


@pytest.mark.parametrize(
    ("text", "code", "line", "words"),
    [
        pytest.param(
            HEAD + "[serving]\nworkes = 2\n", "config-unknown-key", 4, ["'workes'", "'workers'"], id="a typo in a key gets the nearest name"
        ),
        pytest.param(HEAD + "[servng]\n", "config-unknown-key", 3, ["'servng'", "'serving'"], id="a typo in a table too"),
        pytest.param(
            HEAD + "project_dir = 'x'\n", "config-unknown-key", 3, ["'project_dir'"], id="an attribute of ours is no key of theirs"
        ),
        pytest.param("environment = 'x'\n" + HEAD, "config-unknown-key", 1, ["'environment'"], id="nor is the environment"),
        pytest.param(
            HEAD + "[gates.roc_auc]\nmin = 0.8\nno_worse_than_champion = { confidense = 0.9 }\n",
            "config-unknown-key",
            5,
            ["confidense", "'confidence'"],
            id="inside an inline table",
        ),
        pytest.param(HEAD + "[gates.rocauc]\nmin = 0.8\n", "config-unknown-key", 3, ["'rocauc'", "'roc_auc'"], id="a metric nobody knows"),
        pytest.param(
            HEAD + "\n\n[split]\nholdout_share = 1.5\n", "config-value", 6, ["split.holdout_share = 1.5"], id="a number out of range"
        ),
        pytest.param(HEAD + "[split]\nby = 'random'\n", "config-value", 4, ["'hash' or 'time'"], id="a word that is none of the choices"),
        pytest.param("[project]\n", "config-missing-key", 1, ["project.name"], id="no name"),
        pytest.param("", "config-missing-key", 1, ["'project'"], id="an empty file"),
        pytest.param('[project]\nname = "../x"\n', "config-value", 2, ["'../x'"], id="a name that leaves its folder"),
        pytest.param('[project]\nname = "p\n', "config-syntax", 2, ["not TOML"], id="an open quote"),
        pytest.param(HEAD + "[gates.accuracy]\nmin = 0.9\nmax = 0.1\n", "config-value", 3, ["0.9", "0.1"], id="bounds the wrong way round"),
        pytest.param(HEAD + "[gates.accuracy]\n", "config-value", 3, ["checks nothing"], id="a gate without a bound"),
        pytest.param(HEAD + "[rollout]\nweights = [50, 5]\n", "config-value", 4, ["[50, 5]"], id="weights that fall"),
        pytest.param(HEAD + "[monitor]\nwindow = '1 hour'\n", "config-value", 4, ["6h"], id="a duration in words"),
        pytest.param(HEAD + "[retrain]\nschedule = 'daily'\n", "config-value", 4, ["cron"], id="a schedule that is none"),
        pytest.param(HEAD + "[train]\nk_folds = 1\n", "config-value", 4, ["cross-validation"], id="one fold"),
        pytest.param(HEAD + "[env.Prod]\n", "config-value", 3, ["'Prod'"], id="an environment's name in capitals"),
        pytest.param(HEAD + "[env.local]\ntrust = ['abc']\n", "config-value", 4, ["ed25519"], id="a key that is none"),
    ],
)
def test_a_wrong_file_is_told_with_line_and_fix(tmp_path, text, code, line, words):
    """Each mistake names its line, its value and what to write instead."""
    error = refusal(write(tmp_path, text))

    assert (code, f"{tmp_path / 'mulle.toml'}:{line}") == (error.code, error.where)
    assert all(word in str(error) for word in words), str(error)


@pytest.mark.parametrize("key", ["tracking", "state", "artifacts"])
def test_a_password_in_an_address_is_refused_without_showing_it(tmp_path, key):
    """A plain secret is a mistake, and the error does not repeat it."""
    error = refusal(write(tmp_path, HEAD + f'[env.local]\n{key} = "postgresql://u:geheim@h/db"\n'))

    assert ("config-plain-secret", True) == (error.code, "env://NAME" in str(error))
    assert "geheim" not in str(error)


def test_several_problems_are_told_at_once(tmp_path):
    """Nobody should have to run three times to mend three lines."""
    error = refusal(write(tmp_path, HEAD + "[serving]\nworkes = 2\nport = -1\n[split]\nby = 3\n"))

    assert "config-invalid" == error.code
    assert ["1. line 4", "2. line 5", "3. line 7"] == list(error.facts)


@pytest.mark.parametrize(
    ("data", "code", "line"),
    [
        pytest.param('[project]\nname = "가"\n'.encode("euc-kr"), "config-encoding", 2, id="a legacy Korean encoding"),
        pytest.param('[project]\nname = "p"\n'.encode("utf-16"), "config-encoding", 1, id="UTF-16"),
        pytest.param(b"#" * ((1 << 20) + 1), "config-too-large", None, id="more than a mebibyte"),
    ],
)
def test_bytes_that_are_no_settings(tmp_path, data, code, line):
    """Other encodings and huge files are named for what they are."""
    error = refusal(write(tmp_path, data))

    assert code == error.code
    assert line is None or error.where.endswith(f":{line}")


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path):
    """Editors write both; neither is the operator's mistake."""
    settings = load_settings(write(tmp_path, b"\xef\xbb\xbf" + b'[project]\r\nname = "p"\r\n'))

    assert "p" == settings.project.name


def test_no_file_points_to_init(tmp_path):
    """An empty folder is told how a project is made."""
    error = refusal(tmp_path)

    assert ("config-missing", True) == (error.code, "mulle init" in error.fix)


def test_an_unknown_environment_lists_the_known_ones(tmp_path):
    """`--env` with a typo names what there is."""
    error = refusal(write(tmp_path, HEAD + "[env.production]\n"), "prodction")

    assert ("config-environment", True) == (error.code, "local, production" in error.fix)


def test_deep_nesting_is_an_error_and_no_crash(tmp_path):
    """A hostile file cannot exhaust the stack."""
    error = refusal(write(tmp_path, "a = " + "[" * 5000 + "]" * 5000))

    assert error.code in {"config-syntax", "config-unknown-key"}


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        pytest.param('[a]\nb = """\n[c]\nd = 1\n"""\ne = 2\n', ("a", "e"), 6, id="a table inside a text is no table"),
        pytest.param("[a]\nb = [\n 1, # ]\n 2,\n]\nc = 1\n", ("a", "c"), 6, id="a bracket inside a comment closes nothing"),
        pytest.param('"가.나" = 1\n[x."y z"]\nk = 1\n', ("x", "y z", "k"), 3, id="quoted keys with blanks"),
        pytest.param("a.b.c = 1\na.b.d = { e = 1,\n", ("a", "b", "d", "e"), 2, id="dotted keys, and a text that breaks off"),
        pytest.param("[[t]]\nx = 1\n[[t]]\ny = 2\n", ("t", "y"), 4, id="arrays of tables"),
        pytest.param('k = \'C:\\x\'\nl = "a\\"b # ["\nm = 1', ("m",), 3, id="both kinds of quotes"),
        pytest.param("k = 1\n", ("zzz", "y"), 1, id="what is nowhere stands on the first line"),
    ],
)
def test_key_lines(text, path, expected):
    """The position of a key is found through texts, comments and nesting."""
    assert expected == line_of(key_lines(text), path)


def test_durations():
    """Every unit in seconds."""
    assert [30, 900, 21_600, 172_800] == [duration_s(text) for text in ("30s", "15m", "6h", "2d")]


def test_the_committed_schema_is_what_the_model_says(tmp_path):
    """Editors get the schema of this version: regenerate it with `write_schema(Path("docs"))`."""
    committed = Path(__file__).parents[3] / "docs" / SCHEMA_FILE

    assert render_schema() == committed.read_text(encoding="utf-8")
    assert "mulle.toml" == json.loads(write_schema(tmp_path).read_text(encoding="utf-8"))["title"]


def test_loading_is_quick(tmp_path):
    """A loaded module reads its file in a few milliseconds: planning must feel instant."""
    folder = write(tmp_path, FULL)
    load_settings(folder)
    started = time.process_time()
    load_settings(folder)

    assert time.process_time() - started < 0.1
