"""What would run, and why, in words: reads records and the user's source, imports none of it, writes nothing.

A stage's key is the digest of its *ingredients*: its name and version, the slices of user code it runs, the versions of
the distributions it imports, its parameters and options, and the digests of what its inputs put out. Because inputs
count by digest and not by key, a stage that was run again and put out the same cuts the work short behind it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from mulle.core.canonical import canonical_json
from mulle.core.errors import SpecError
from mulle.loop.cache import StageCache, stage_key
from mulle.loop.code import ProjectCode, StageCode
from mulle.loop.record import StageRecord
from mulle.loop.settings import Settings
from mulle.loop.stage import Stage

_SHOWN_CHANGES = 3
_SHOWN_VALUE = 40

TokenCheck = Callable[[Mapping[str, Any]], str | None]
"""What a source looks like now, given its recorded freshness; None when nobody can tell."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a person asked of one run.

    Attributes:
        force: Run every stage.
        from_stage: Run this stage and those after it.
        override: Who registers in spite of a gate, and why; stages that ask for `override` are given it.
    """

    force: bool = False
    from_stage: str | None = None
    override: Mapping[str, str] | None = None

    def values(self) -> dict[str, Any]:
        """Return the options stages may ask for by name."""
        return {"override": None if self.override is None else dict(self.override)}


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to one stage.

    Attributes:
        stage: The stage.
        status: `cached`, `run`, or `depends` when a stage before it has to run first.
        why: The reason in words.
        key: The key; empty when it depends on outputs that are not known yet.
        ingredients: What the key was made of.
        record: The finished stage, when cached.
    """

    stage: Stage
    status: Literal["cached", "run", "depends"]
    why: str
    key: str = ""
    ingredients: dict[str, Any] = field(default_factory=dict[str, Any])
    record: StageRecord | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do."""

    steps: tuple[Step, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {"stages": [{"stage": step.stage.name, "status": step.status, "why": step.why, "key": step.key} for step in self.steps]}


class Planner:
    """Decides stage by stage; one per run.

    Args:
        settings: The project's settings.
        stages: All stages in order.
        cache: The finished stages.
        options: What was asked for.
        check_token: How a source is looked at; by default `data/freshness.py`.

    Raises:
        SpecError: unknown stages, or the user's code cannot be read (see `ProjectCode`).
    """

    def __init__(
        self, settings: Settings, stages: Sequence[Stage], cache: StageCache, options: RunOptions, *, check_token: TokenCheck | None = None
    ) -> None:
        names = [stage.name for stage in stages]
        for at, stage in enumerate(stages):
            unknown = set(stage.inputs) - set(names[:at])
            if unknown:
                raise ValueError(f"stage {stage.name!r} reads {sorted(unknown)}, which do not come before it")
        if options.from_stage is not None and options.from_stage not in names:
            raise SpecError("run-unknown-stage", f"there is no stage {options.from_stage[:80]!r}", fix=f"use one of {', '.join(names)}")
        self._forced_from = 0 if options.force else names.index(options.from_stage) if options.from_stage else len(names)
        self._names = names
        self._settings = settings
        self._cache = cache
        self._options = options
        self._check_token = check_token or _token_now(settings.project_dir)
        self._code: dict[str, StageCode] = {}
        project = ProjectCode(settings.project_dir, settings.project.code) if any(stage.roots for stage in stages) else None
        for stage in stages:
            self._code[stage.name] = (
                StageCode({}, {})
                if project is None
                else project.stage_code(stage.roots, model=settings.train.model, distributions=stage.distributions)
            )

    def decide(self, stage: Stage, outputs: Mapping[str, Mapping[str, str]]) -> Step:
        """Return what is to happen to `stage`.

        Args:
            stage: The stage.
            outputs: The output digests of the stages before it, as far as they are known.
        """
        last = self._cache.last(stage.name)
        unknown = [name for name in stage.inputs if name not in outputs]
        ingredients = self._ingredients(stage, outputs)
        forced = self._names.index(stage.name) >= self._forced_from
        if unknown:
            why = self._forced_reason() if forced else explain(last, ingredients, stage, ignore_inputs=True)
            known = f"depends on {', '.join(f'`{name}`' for name in unknown)}"
            return Step(stage, "run" if why else "depends", why or known)
        key = stage_key(ingredients)
        if forced:
            return Step(stage, "run", self._forced_reason(), key, ingredients)
        record = self._cache.find(stage.name, key)
        if record is None:
            why = explain(last, ingredients, stage) or "its last result is not whole"
            return Step(stage, "run", why, key, ingredients)
        stale = self._stale(stage, record)
        if stale:
            return Step(stage, "run", stale, key, ingredients)
        return Step(stage, "cached", "nothing changed" if last is not None and last.key == key else "done before", key, ingredients, record)

    def _ingredients(self, stage: Stage, outputs: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
        code = self._code[stage.name]
        options = self._options.values()
        made = {
            "stage": stage.name,
            "version": stage.version,
            "code": code.slices,
            "distributions": code.distributions,
            "parameters": stage.settings(self._settings),
            "options": {name: options[name] for name in stage.options if options.get(name) is not None},
            "inputs": {name: dict(outputs[name]) for name in stage.inputs if name in outputs},
        }
        if stage.situation is not None:
            made["situation"] = stage.situation(self._settings, outputs)
        # Through JSON, so that a tuple of today equals the list read back from a record tomorrow.
        return dict(msgspec.json.decode(canonical_json(made)))

    def _forced_reason(self) -> str:
        return "--force" if self._options.force else f"--from {self._options.from_stage}"

    def _stale(self, stage: Stage, record: StageRecord) -> str:
        if not stage.source:
            return ""
        if not record.freshness:
            return "the source gives no freshness token"
        for item in record.freshness:
            location = str(item.get("location", "source"))
            if item.get("token") is None:
                return f"{location} gives no freshness token"
            now = self._check_token(item)
            if now is None:
                return f"{location} does not say whether it changed"
            if now != item["token"]:
                return f"{location} changed"
        return ""


def plan_run(planner: Planner, stages: Sequence[Stage]) -> Plan:
    """Return what a run would do now; nothing is run or written."""
    outputs: dict[str, Mapping[str, str]] = {}
    steps: list[Step] = []
    for stage in stages:
        step = planner.decide(stage, outputs)
        steps.append(step)
        if step.record is not None:
            outputs[stage.name] = step.record.outputs
    return Plan(tuple(steps))


def explain(last: StageRecord | None, ingredients: Mapping[str, Any], stage: Stage, *, ignore_inputs: bool = False) -> str:
    """Return what changed since `last`, in words; empty when nothing did."""
    if last is None:
        return "first run"
    before, now = last.ingredients, ingredients
    parts: list[str] = []
    if before.get("version") != now["version"]:
        parts.append(f"Mulle's own `{stage.name}` changed")
    code = _changed(before.get("code", {}), now["code"])
    if code:
        parts.append(f"code of {', '.join(f'`{root}`' for root in stage.roots) or f'`{stage.name}`'} changed: {_listed(code)}")
    versions = {
        name: (before.get("distributions", {}).get(name), now["distributions"].get(name))
        for name in _changed(before.get("distributions", {}), now["distributions"])
    }
    parts += [f"{name} {old or 'absent'} → {new or 'absent'}" for name, (old, new) in list(versions.items())[:_SHOWN_CHANGES]]
    flat_before, flat_now = _flat(before.get("parameters")), _flat(now["parameters"])
    for name in _changed(flat_before, flat_now)[:_SHOWN_CHANGES]:
        parts.append(f"parameter {name} {_shown(flat_before, name)} → {_shown(flat_now, name)}".replace("parameter  ", "parameters "))
    options = _changed(before.get("options", {}), now["options"])
    parts += [f"option {name} changed" for name in options]
    if before.get("situation") != now.get("situation"):
        parts.append(f"what `{stage.name}` is compared with changed")
    if not ignore_inputs:
        parts += [f"output of `{name}` changed" for name in _changed(before.get("inputs", {}), now["inputs"])]
    return "; ".join(parts)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    missing = object()
    return [name for name in sorted({*before, *now}) if before.get(name, missing) != now.get(name, missing)]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_CHANGES} more" if len(names) > _SHOWN_CHANGES else ""
    return ", ".join(names[:_SHOWN_CHANGES]) + more


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        found: dict[str, Any] = {}
        for key, inner in cast("dict[str, Any]", value).items():
            found.update(_flat(inner, f"{prefix}.{key}" if prefix else str(key)))
        return found
    return {prefix: value}


def _shown(values: Mapping[str, Any], name: str) -> str:
    text = repr(values[name]) if name in values else "absent"
    return text if len(text) <= _SHOWN_VALUE else text[: _SHOWN_VALUE - 1] + "…"


def _token_now(project_dir: Path) -> TokenCheck:
    def check(item: Mapping[str, Any]) -> str | None:
        from mulle.data.freshness import Freshness, current_token, project_folder

        with project_folder(project_dir):
            return current_token(Freshness.from_dict(item))

    return check
