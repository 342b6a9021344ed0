"""Tiny real projects: a folder with a table that can be learnt, its `project.py` and `mulle.toml`, and the real commands."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mulle.apps.cli.main import main
from support.http_client import RawClient

LIGHT = {
    "train": {"k_folds": 0},
    "evaluate": {"bootstrap": 50, "importance_repeats": 0, "latency_samples": 100},
    "gates": {},
}
"""Settings that keep a run of the whole wheel to seconds."""

ESTIMATORS = {
    "logistic": ("from sklearn.linear_model import LogisticRegression", "LogisticRegression(C=strength, max_iter=500, random_state=seed)"),
    "ridge": ("from sklearn.linear_model import Ridge", "Ridge(alpha=1 / strength, random_state=seed)"),
    "tree": (
        "from sklearn.ensemble import HistGradientBoostingClassifier",
        "HistGradientBoostingClassifier(max_iter=20, max_leaf_nodes=8, random_state=seed)",
    ),
    "net": (
        "from sklearn import neural_network as nn, pipeline, preprocessing",
        "pipeline.make_pipeline(preprocessing.StandardScaler(), nn.MLPClassifier((16,), early_stopping=True, random_state=seed))",
    ),
    "pipeline": (
        "from sklearn import linear_model, pipeline, preprocessing",
        "pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression(C=strength, random_state=seed))",
    ),
}


@dataclass(frozen=True, slots=True)
class Words:
    """What a project calls its things."""

    project: str
    entity: str
    number: str
    gappy: str
    category: str
    flag: str
    when: str
    target: str
    levels: tuple[str, str, str]
    classes: tuple[str, ...]
    feature: str


ENGLISH = Words(
    "tiny", "visitor", "minutes", "spend", "channel", "member", "since", "bought", ("search", "mail", "friend"), ("no", "yes"), "per_minute"
)
KOREAN = Words(
    "고객-이탈",
    "고객번호",
    "이용 시간",
    "월 요금(원)",
    "가입 경로",
    "회원 여부",
    "가입일",
    "이탈",
    ("검색", "전자 우편", "친구 추천"),
    ("아니오", "예"),
    "시간당 요금",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A project that can be written: everything a test may want to be different.

    Attributes:
        words: How everything is called.
        task: `binary`, `multiclass` or `regression`.
        estimator: A key of `ESTIMATORS`.
        n_rows: Rows of the table.
        seed: Of the table, not of the model.
        settings: `mulle.toml` beside the name: table to key to value, put over `LIGHT`.
    """

    words: Words = ENGLISH
    task: str = "binary"
    estimator: str = "logistic"
    n_rows: int = 300
    seed: int = 7
    settings: Mapping[str, Any] | None = None

    def table(self) -> pl.DataFrame:
        """Return the table: a number, a number with gaps, a category, a boolean, a date, and a target that follows from them."""
        w, n = self.words, self.n_rows
        rng = np.random.default_rng(self.seed)
        minutes, spend = rng.gamma(2.0, 10.0, n).round(2), rng.normal(30_000, 9_000, n).round()
        channel, member = rng.integers(0, 3, n), rng.random(n) < 0.4
        signal = (minutes - 20) / 12 - (spend - 30_000) / 9_000 + 1.5 * (channel == 1) + 0.8 * member + rng.normal(0, 0.6, n)
        gaps = rng.random(n) < 0.08
        since = np.datetime64("2024-01-01T00:00:00", "us") + rng.integers(0, 500, n) * np.timedelta64(1, "D")
        return pl.DataFrame(
            {
                w.entity: [f"{w.entity}-{i:04d}" for i in range(n)],
                w.number: minutes,
                w.gappy: [None if gap else float(value) for gap, value in zip(gaps, spend, strict=True)],
                w.category: [w.levels[i] for i in channel],
                w.flag: member,
                w.when: since,
                w.target: self._target(signal),
            }
        )

    def _target(self, signal: np.ndarray) -> list[Any]:
        if self.task == "regression":
            return [float(value) for value in (100 + 10 * signal).round(3)]
        if self.task == "binary":
            return [self.words.classes[int(value > 0.5)] for value in signal]
        names = (*self.words.classes, "기타" if self.words is KOREAN else "later")
        return [names[int(i)] for i in np.digitize(signal, [-0.5, 1.2])]

    def code(self) -> str:
        """Return `project.py`."""
        w = self.words
        imports, expression = ESTIMATORS[self.estimator]
        positive = f", positive={w.classes[1]!r}" if self.task == "binary" else ""
        return f"""import mulle
from mulle import col

from helpers import per

project = mulle.Project({w.project!r}, task={self.task!r}, target={w.target!r}{positive}, entity={w.entity!r})


@project.source
def source():
    return mulle.read_parquet("data/rows.parquet")


@project.expectations
def sound(t):
    t.column({w.entity!r}).not_null().unique()
    t.column({w.category!r}).isin({list(w.levels)!r})


@project.features
def features():
    return {{
        {w.number!r}: col({w.number!r}),
        {w.feature!r}: per(col({w.gappy!r}), col({w.number!r})),
        {w.gappy!r}: col({w.gappy!r}) / 1000,
        {w.category!r}: col({w.category!r}).category(),
        {w.flag!r}: col({w.flag!r}),
    }}


@project.model
def model(strength=1.0, seed=0):
    {imports}

    return {expression}
"""

    def write(self, folder: Path) -> "TinyProject":
        """Write the project into `folder` and return it."""
        (folder / "data").mkdir(parents=True)
        project = TinyProject(folder, self)
        project.write_table(self.table())
        project.write("project.py", self.code())
        project.write("helpers.py", HELPERS)
        project.write_settings(self.settings or {})
        return project


HELPERS = """def per(amount, time):
    return amount / (time + 1)


def nobody_calls_this(x):
    return x
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command did: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Return standard output as JSON."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """Return the error a command gave with `--json`."""
        return self.json["error"]


@dataclass(frozen=True, slots=True)
class TinyProject:
    """A project folder and what a person can do with it."""

    folder: Path
    sample: Sample

    def copy(self, target: Path) -> "TinyProject":
        """Return a copy, state and all; versions refer to their bundles relative to the state folder."""
        shutil.copytree(self.folder, target, symlinks=True)
        return replace(self, folder=target)

    def write(self, name: str, text: str) -> None:
        """Write a file of the project."""
        (self.folder / name).write_text(text, encoding="utf-8")

    def change(self, name: str, old: str, new: str) -> None:
        """Replace a text that must be there."""
        text = (self.folder / name).read_text(encoding="utf-8")
        assert old in text
        self.write(name, text.replace(old, new))

    def write_table(self, table: pl.DataFrame, **options: Any) -> None:
        """Write the table the source reads."""
        table.write_parquet(self.folder / "data" / "rows.parquet", **options)

    def table(self) -> pl.DataFrame:
        """Return the table the source reads."""
        return pl.read_parquet(self.folder / "data" / "rows.parquet")

    def write_settings(self, settings: Mapping[str, Any], **more: Mapping[str, Any]) -> None:
        """Write `mulle.toml`: the light settings with `settings` put over them."""
        tables: dict[str, dict[str, Any]] = {"project": {"name": self.sample.words.project}}
        for layer in (LIGHT, settings, more):
            for name, values in layer.items():
                tables.setdefault(name, {}).update(values)
        lines = [line for name, values in tables.items() for line in (f"[{name}]", *(f"{k} = {_toml(v)}" for k, v in values.items()), "")]
        self.write("mulle.toml", "\n".join(lines))

    def call(self, capsys: Any, *arguments: str) -> Answer:
        """Run a command in this process, with this project."""
        capsys.readouterr()
        code = main([*arguments, "-p", str(self.folder)])
        printed = capsys.readouterr()
        return Answer(code, printed.out, printed.err)

    def stages(self, capsys: Any, *arguments: str) -> dict[str, str]:
        """Run the wheel and return stage to `done` or `cached`."""
        answer = self.call(capsys, "run", "--json", *arguments)
        assert answer.code == 0, answer.out + answer.err
        return {stage["stage"]: stage["status"] for stage in answer.json["stages"]}

    def ran(self, capsys: Any, *arguments: str) -> list[str]:
        """Run the wheel and return the stages that were really run."""
        return [stage for stage, status in self.stages(capsys, *arguments).items() if status == "done"]

    def versions(self, capsys: Any) -> list[tuple[int, tuple[str, ...]]]:
        """Return the registered versions with their roles."""
        answer = self.call(capsys, "models", "list", "--json")
        assert answer.code == 0, answer.out + answer.err
        return [(version["number"], tuple(version["roles"])) for version in answer.json["versions"]]

    def drafts(self) -> list[str]:
        """Return what a stage left half-written."""
        folder = self.folder / ".mulle" / "stages" / ".draft"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k, ensure_ascii=False)} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


@cache
def _finished(words: Words, task: str, estimator: str) -> tuple[TinyProject, Path]:
    folder = Path(tempfile.mkdtemp(prefix="mulle-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    home = folder / "home"
    project = Sample(words, task, estimator).write(folder / "project")
    environment = {**os.environ, "MULLE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-m", "mulle.apps.cli.main", "run", "-p", str(project.folder)],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return project, home


def finished(target: Path, monkeypatch: Any, *, words: Words = ENGLISH, task: str = "binary", estimator: str = "logistic") -> TinyProject:
    """Return a copy, in `target`, of a project whose wheel has turned once, and use the key it was signed with.

    The wheel is turned once per process and kind of project.
    """
    project, home = _finished(words, task, estimator)
    monkeypatch.setenv("MULLE_HOME", str(home))
    return project.copy(target)


@contextmanager
def serving(project: TinyProject) -> Iterator[RawClient]:
    """Serve the project's deployment with the real command on a free port, and give a client."""
    command = [sys.executable, "-m", "mulle.apps.cli.main", "serve", "--port", "0", "--json", "-p", str(project.folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
    assert server.stdout is not None
    try:
        text = ""
        while not text.endswith("}\n"):
            line = server.stdout.readline()
            assert line, f"the server ended: {text}"
            text += line
        listening = json.loads(text)
        with RawClient(listening["host"], listening["port"], timeout_s=30) as client:
            yield client
    finally:
        server.terminate()
        server.wait(30)
        server.stdout.close()


def json_rows(table: pl.DataFrame, names: list[str]) -> list[dict[str, Any]]:
    """Return rows as a client would send them: dates as ISO text, nothing for what is missing."""
    return [
        {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in row.items()}
        for row in table.select(names).to_dicts()
    ]
