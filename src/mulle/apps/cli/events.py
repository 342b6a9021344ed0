"""`mulle events`: the audit log: who did what, when, before and after."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from mulle.apps.cli.output import note, print_json, print_table, say

if TYPE_CHECKING:
    from mulle.formats.events import Event

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="The audit log: who did what, when, before and after."
)

PROJECT = typer.Option(Path(), "--project", "-p", metavar="DIR", help="The project's folder.")
ENVIRONMENT = typer.Option("local", "--env", metavar="NAME", help="The environment.")
AS_JSON = typer.Option(False, "--json", help="Print one JSON document.")


@app.command(epilog="Example: mulle events show --last 20 --kind champion-set")
def show(
    last: int = typer.Option(50, "--last", "-n", min=1, metavar="N", help="Only the newest N."),
    kind: str | None = typer.Option(None, "--kind", metavar="KIND", help="Only events of this kind."),
    project: Path = PROJECT,
    environment: str = ENVIRONMENT,
    as_json: bool = AS_JSON,
) -> None:
    """Show the newest events, oldest of them first."""
    from collections import deque

    from mulle.core.errors import SpecError
    from mulle.formats.events import EVENT_KINDS
    from mulle.loop.wiring import open_project, open_state

    if kind is not None and kind not in EVENT_KINDS:
        raise SpecError(
            "event-kind", f"there is no kind of event called {kind[:80]!r}", fix=f"use one of {', '.join(EVENT_KINDS)}", where="--kind"
        )
    settings, _ = open_project(project, environment)
    store = open_state(settings)
    try:
        chosen = deque((event for event in store.events() if kind is None or event.kind == kind), maxlen=last)
        total = store.head()[0]
    finally:
        store.close()
    if as_json:
        import msgspec

        print_json({"events": [msgspec.to_builtins(event) for event in chosen], "total": total})
        return
    if not chosen:
        say("the event log is empty" if kind is None else f"there is no event of kind {kind!r}")
        return
    print_table(
        ["seq", "when (UTC)", "who", "what", "on", "details"],
        [[e.seq, _time(e.time_ns), e.actor, e.kind, e.subject, _details(e)] for e in chosen],
    )
    if total > len(chosen):
        note(f"{len(chosen)} of {total} events; more with --last {total}")


@app.command(epilog="Example: mulle events verify   (exit code 0: whole, 1: changed)")
def verify(project: Path = PROJECT, environment: str = ENVIRONMENT, as_json: bool = AS_JSON) -> None:
    """Check that no event was changed, removed or reordered, and that together they make sense.

    A log whose newest events were cut off still verifies: keep the printed hash elsewhere to see that too.
    """
    from mulle.formats.events import verify_chain
    from mulle.loop.release import load_state
    from mulle.loop.wiring import open_project, open_state

    settings, _ = open_project(project, environment)
    store = open_state(settings)
    try:
        count, head = verify_chain(store.events())
        load_state(store)
    finally:
        store.close()
    if as_json:
        print_json({"ok": True, "events": count, "head": head})
    else:
        say(f"{count} event{'' if count == 1 else 's'}, whole; the last hash is {head}")


@app.command(epilog="Example: mulle events rebuild")
def rebuild(project: Path = PROJECT, environment: str = ENVIRONMENT, as_json: bool = AS_JSON) -> None:
    """Throw away what is derived from the log (deployment specs, tables, aliases in MLflow) and write it again."""
    from mulle.loop.release import rebuild_projections
    from mulle.loop.wiring import open_outbox, open_project, open_state

    settings, _ = open_project(project, environment)
    store = open_state(settings)
    try:
        report = rebuild_projections(store, open_outbox(settings, store))
    finally:
        store.close()
    if as_json:
        print_json(report.to_dict())
        return
    say(f"specs written: {', '.join(report.specs) or 'none'}; MLflow was told: {', '.join(report.projected) or 'nothing new'}")
    for line in (*report.drifts, *report.warnings):
        note(f"warning: {line}")


def _details(event: "Event") -> str:
    """Return one line about what changed."""
    new: object = event.after
    old: object = event.before
    after = cast("dict[str, Any]", new) if isinstance(new, dict) else {}
    before = cast("dict[str, Any]", old) if isinstance(old, dict) else {}
    match event.kind:
        case "version-registered":
            return f"version {after.get('number')}, verdict {after.get('outcome')}, bundle {str(after.get('bundle_digest', ''))[:12]}"
        case "champion-set" | "rolled-back":
            line = f"champion {before.get('champion') or 'none'} → {after.get('champion')}, generation {after.get('generation')}"
        case "challenger-set":
            line = f"challenger {before.get('challenger') or 'none'} → {after.get('challenger') or 'none'}"
        case "gate-overridden":
            line = f"version {after.get('version')} registered although the verdict was {after.get('outcome')}"
        case "projection-drift":
            edits = cast("list[dict[str, Any]]", new) if isinstance(new, list) else []
            return "; ".join(f"{edit.get('what')}: {edit.get('expected')} → {edit.get('found')}" for edit in edits)
        case _:
            import json

            text = json.dumps(new, ensure_ascii=False)
            return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    reason = after.get("reason")
    return f"{line}: {reason}" if reason else line


_LONGEST = 100


def _time(time_ns: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")
