"""`mulle gc`: give back what retention lets go; says what first."""

from pathlib import Path

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_SHOWN = 40


@app.command(epilog="Example: mulle gc  (shows what would go; mulle gc --yes removes it)")
def gc(
    project: Path = typer.Option(Path(), "--project", "-p", metavar="DIR", help="The project's folder."),
    environment: str = typer.Option("local", "--env", metavar="NAME", help="One of the environments in mulle.toml."),
    yes: bool = typer.Option(False, "--yes", help="Remove it. Without this nothing is touched."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would go; this is the default."),
    json_wanted: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Remove results, logs and datasets that nothing needs any more.

    Everything a registered version, a champion, a deployment or a kept run refers to stays.
    """
    from mulle.apps.cli.output import note, print_json, print_table, say
    from mulle.core.errors import SpecError
    from mulle.loop.gc import collect, plan_gc
    from mulle.loop.lock import run_lock
    from mulle.loop.progress import mebibytes
    from mulle.loop.wiring import SystemClock, open_project, open_state

    if yes and dry_run:
        raise SpecError("gc-options", "--yes and --dry-run contradict each other", fix="give one of them")
    settings, paths = open_project(project, environment)
    clock = SystemClock()

    def made() -> "tuple[object, ...]":
        if settings.backends.state is None and not paths.state_db.exists():
            return ()
        store = open_state(settings)
        try:
            return tuple(store.events())
        finally:
            store.close()

    if yes:
        with run_lock(paths.ensure().lock, now_ns=clock.now_ns(), what="mulle gc"):
            plan = plan_gc(settings, paths, events=made(), now_ns=clock.now_ns())
            freed = collect(plan, paths)
    else:
        plan, freed = plan_gc(settings, paths, events=made(), now_ns=clock.now_ns()), 0
    if json_wanted:
        print_json({**plan.to_dict(paths.root), "removed": yes, "freed_bytes": freed})
        return
    if plan.candidates:
        rows = [(c.kind, mebibytes(c.n_bytes), str(c.path.relative_to(paths.root)), c.reason) for c in plan.candidates[:_SHOWN]]
        print_table(("what", "size", "where under .mulle", "why"), rows)
        if len(plan.candidates) > _SHOWN:
            say(f"… and {len(plan.candidates) - _SHOWN} more")
    if yes:
        say(f"removed {len(plan.candidates)} entries, {mebibytes(freed)} ({freed:,} bytes)")
    elif plan.candidates:
        say(f"{len(plan.candidates)} entries, {mebibytes(plan.n_bytes)} ({plan.n_bytes:,} bytes) would be removed")
        note("remove them with: mulle gc --yes")
    else:
        say("nothing to remove")
