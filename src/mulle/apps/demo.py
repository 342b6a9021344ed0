"""`make demo`: the whole wheel on 7,043 real telecom customers, each step checked; exits non-zero if one is not as it should be.

Everything goes through the doors a user has: the command line and HTTP.
"""

import http.client
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

N_CUSTOMERS = 2000
PRICE_RISE = 1.15
RAISED_COLUMN = "monthly_charges"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


class DemoError(Exception):
    """A step did not do what it should."""


@dataclass(slots=True)
class Story:
    """What happened so far, for the table at the end."""

    rows: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def step(self, title: str) -> Generator[list[str]]:
        """Time a step; what is appended to the list becomes its line in the table."""
        say(f"\n── {title}")
        before, told = time.perf_counter(), list[str]()
        yield told
        self.rows.append((title, "; ".join(told), f"{time.perf_counter() - before:.1f} s"))


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def require(condition: object, what: str) -> None:
    """Raise `DemoError` unless the condition holds."""
    if not condition:
        raise DemoError(what)


def mulle(arguments: Sequence[str], *, folder: Path, expect: int = 0, quiet: bool = False) -> str:
    """Run a command as a user would and return what it printed.

    Raises:
        DemoError: another exit code than expected.
    """
    say(f"$ mulle {' '.join(arguments)}")
    done = subprocess.run(
        [sys.executable, "-m", "mulle.apps.cli.main", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if not quiet:
        say(done.stdout.rstrip())
    require(done.returncode == expect, f"`mulle {' '.join(arguments)}` exited with {done.returncode}, not {expect}")
    return done.stdout


@contextmanager
def server(folder: Path) -> Generator[tuple[str, int]]:
    """Start `mulle serve` on a free port and yield its address; stop it with SIGTERM and require a clean exit."""
    say("$ mulle serve --port 0")
    process = subprocess.Popen(
        [sys.executable, "-m", "mulle.apps.cli.main", "serve", "--port", "0", "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        yield _address(process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = -signal.SIGKILL
    require(code == 0, f"the server ended with {code}, not 0, after SIGTERM")


def _address(process: "subprocess.Popen[str]") -> tuple[str, int]:
    require(process.stdout is not None, "the server has no output")
    text, deadline = "", time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        line = process.stdout.readline() if process.stdout else ""
        require(line, f"the server ended with {process.poll()} before it listened")
        text += line
        if line.rstrip() == "}":
            started = json.loads(text)
            return str(started["host"]), int(started["port"])
    raise DemoError(f"the server did not listen within {START_TIMEOUT_S:.0f} s")


class Client:
    """One keep-alive connection to the server."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.connection = http.client.HTTPConnection(*address, timeout=30)

    def post(self, path: str, body: Any) -> dict[str, Any]:
        """Send JSON and return the JSON answer; anything but 200 is a `DemoError`."""
        data = json.dumps(body, ensure_ascii=False).encode("utf-8")
        self.connection.request("POST", path, data, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        content = answer.read()
        require(answer.status == http.HTTPStatus.OK, f"POST {path} answered {answer.status}: {content[:300]!r}")
        return json.loads(content)

    def get(self, path: str) -> bytes:
        """Return the body of a page that must be there."""
        self.connection.request("GET", path)
        answer = self.connection.getresponse()
        content = answer.read()
        require(answer.status == http.HTTPStatus.OK, f"GET {path} answered {answer.status}")
        return content


def held_back(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the customers that were never shown to training, without what the model does not read, and their labels."""
    import polars as pl

    rows = pl.read_parquet(folder / "data" / "new_customers.parquet")
    labels = pl.read_parquet(folder / "data" / "new_labels.parquet")
    joined = rows.join(labels, on="customer_id", how="inner", maintain_order="left")
    require(joined.height == N_CUSTOMERS, f"{joined.height} held-back customers, not {N_CUSTOMERS}")
    target = joined.get_column("churn").to_list()
    return joined.drop("churn").to_dicts(), target


def score_all(client: Client, customers: Sequence[dict[str, Any]]) -> list[str]:
    """Send one request per customer and return the prediction ids."""
    before = time.perf_counter()
    ids = [str(client.post("/predict", customer)["prediction_ids"][0]) for customer in customers]
    seconds = time.perf_counter() - before
    say(f"{len(ids):,} predictions over HTTP, one by one on one connection: {seconds:.1f} s ({len(ids) / seconds:,.0f}/s)")
    require(len(set(ids)) == len(customers), "prediction ids are not unique")
    return ids


def raised(customers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the same customers after a price rise."""
    return [{**customer, RAISED_COLUMN: round(customer[RAISED_COLUMN] * PRICE_RISE, 2)} for customer in customers]


def turn_the_wheel(home: Path, story: Story) -> None:
    """Run every step.

    Raises:
        DemoError: a step did not do what it should.
    """
    folder = home / "churn"
    with story.step("init: a project on real customers") as told:
        home.mkdir(parents=True, exist_ok=True)
        mulle(["init", "churn", str(folder)], folder=home)
        told.append("5,043 customers to learn from, 2,000 held back")
    with story.step("run: data → train → evaluate → gate → bundle → register") as told:
        mulle(["run"], folder=folder)
        record = json.loads(mulle(["models", "show", "1", "--json"], folder=folder, quiet=True))
        version = record.get("version", record)
        require(version["outcome"] == "pass", f"the verdict is {version['outcome']}")
        told.append(f"version 1 is champion, ROC-AUC {version['metrics']['roc_auc']:.3f} on the holdout")
    with story.step("run again: nothing changed, nothing runs") as told:
        before = time.perf_counter()
        again = json.loads(mulle(["run", "--json"], folder=folder, quiet=True))
        require(all(stage["status"] == "cached" for stage in again["stages"]), "a stage ran although nothing changed")
        told.append(f"{len(again['stages'])} stages cached, {time.perf_counter() - before:.2f} s")
    customers, labels = held_back(folder)
    with story.step("serve: 2,000 held-back customers over HTTP, then their labels") as told, server(folder) as address:
        client = Client(address)
        ids = score_all(client, customers)
        feedback = [{"prediction_id": one, "label": label} for one, label in zip(ids, labels, strict=True)]
        accepted = client.post("/feedback", {"feedback": feedback})
        require(accepted["accepted"] == N_CUSTOMERS and accepted["unknown"] == 0, f"feedback: {accepted}")
        require(b"mulle_" in client.get("/metrics"), "no metrics")
        told.append(f"{len(ids):,} predictions, {accepted['accepted']:,} labels")
    with story.step("monitor: healthy customers are no alarm") as told:
        report = json.loads(mulle(["monitor", "check", "--last", str(N_CUSTOMERS), "--json"], folder=folder, quiet=True))
        require(report["verdict"] == "ok", f"the verdict is {report['verdict']}: {report['summary']}")
        say(report["summary"])
        told.append("verdict ok")
    with story.step(f"monitor: the same customers after a price rise of {PRICE_RISE - 1:.0%}") as told:
        with server(folder) as address:
            traced = score_all(Client(address), raised(customers))
        report = json.loads(mulle(["monitor", "check", "--last", str(N_CUSTOMERS), "--json"], folder=folder, expect=1, quiet=True))
        drifted = [column["name"] for column in report["columns"] if column["drifted"]]
        say(report["summary"])
        require(report["verdict"] == "drift", f"the verdict is {report['verdict']}")
        require(RAISED_COLUMN in drifted, f"the price rise was not found; drifted: {drifted}")
        told.append(f"verdict drift, in {', '.join(drifted)}")
    with story.step("trace: from one prediction back to its data") as told:
        mulle(["trace", traced[0]], folder=folder)
        chain = json.loads(mulle(["trace", traced[0], "--json"], folder=folder, quiet=True))
        require(chain, "no trace")
        told.append(f"prediction {traced[0]}")
    with story.step("verify: every digest, signature and event") as told:
        mulle(["models", "verify", "1"], folder=folder)
        mulle(["events", "verify"], folder=folder)
        told.append("bundle and audit log are whole")


def summary(home: Path, story: Story) -> str:
    """Return the table at the end: what happened, where it lies, what to open, what to type next."""
    folder, activate = home / "churn", Path(sys.prefix) / "bin" / "activate"
    width = max(len(title) for title, _, _ in story.rows)
    lines = ["", "═" * 100, "The wheel turned once.", ""]
    lines += [f"  {title:<{width}}  {took:>7}  {told}" for title, told, took in story.rows]
    page = max((folder / ".mulle" / "reports" / "evaluation").glob("*.html"), default=None)
    drift = max((folder / ".mulle" / "reports" / "monitor").glob("*.html"), default=None)
    lines += [
        "",
        f"  total                {time.perf_counter() - story.started:.1f} s",
        f"  project              {folder}",
        f"  evaluation           {page}",
        f"  drift report         {drift}",
        f"  bundles              {folder / '.mulle' / 'bundles'}",
        "",
        "  next:",
        *([f"    source {activate}"] if activate.exists() else []),
        f"    cd {folder}",
        "    mulle up             # http://127.0.0.1:8080/docs (predict), http://127.0.0.1:5000 (runs)",
        "    mulle models list",
        "    edit project.py, then: mulle run --dry-run",
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo in `demo/`, or in the folder given, and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    home = Path(given[0] if given else "demo").resolve()
    marker = home / ".mulle-demo"
    if home.exists():
        if not marker.exists() and any(home.iterdir()):
            say(f"error: {home} is not empty and was not made by the demo; name another folder: python -m mulle.apps.demo DIR")
            return 2
        shutil.rmtree(home)
    home.mkdir(parents=True)
    marker.touch()
    story = Story()
    try:
        turn_the_wheel(home, story)
    except DemoError as error:
        say(f"\nerror: the demo failed: {error}")
        return 1
    say(summary(home, story))
    return 0


if __name__ == "__main__":
    sys.exit(main())
