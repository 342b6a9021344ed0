"""The user's project: what only Python can say, gathered from plain functions by decorators.

A decorator returns the function it was given, unchanged: it stays callable, importable and testable. Nothing here runs
a user's function; `loop` does, inside a boundary that turns their exceptions into errors with their file and line.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, overload

from mulle.core.errors import SpecError
from mulle.core.names import require_name
from mulle.core.search_space import Dimension

Task = Literal["binary", "multiclass", "regression"]
TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class ModelRecipe:
    """One function that returns an unfitted estimator, and the space its parameters may be searched in."""

    name: str
    function: Callable[..., Any]
    search: Mapping[str, Dimension] = field(default_factory=dict[str, Dimension])


class Project:
    """A project and the functions registered on it.

    Args:
        name: Also the registered model's name.
        task: `binary`, `multiclass` or `regression`.
        target: The column to predict.
        positive: For `binary`: the value of the target that counts as 1. None: the second in sorted order.
        entity: The column that names who a row is about; splitting by hash keeps each entity on one side.
        time: The column that says when a row became known; needed by a split by time.
        dynamic: Glob patterns, relative to the project's folder, of files that code reaches in ways that cannot be
            read off it (`importlib`, plugins, templates). They count as used by every stage.

    Raises:
        SpecError: an unknown task, or an unusable name.
    """

    def __init__(
        self,
        name: str,
        *,
        task: Task,
        target: str,
        positive: str | int | bool | None = None,
        entity: str | None = None,
        time: str | None = None,
        dynamic: Sequence[str] = (),
    ) -> None:
        if task not in TASKS:
            raise SpecError("project-task", f"unknown task {task!r}", fix=f"use one of {', '.join(TASKS)}")
        self.name = require_name(name, "a project")
        self.task: Task = task
        self.target = target
        self.positive = positive
        self.entity = entity
        self.time = time
        self.dynamic = tuple(dynamic)
        self.source_function: Callable[..., Any] | None = None
        self.expectations_function: Callable[..., Any] | None = None
        self.features_function: Callable[..., Any] | None = None
        self.models: dict[str, ModelRecipe] = {}

    def source(self, function: F) -> F:
        """Register the function that returns the table to learn from (a polars, pandas or Arrow table)."""
        self._require_first(self.source_function, "source", function)
        self.source_function = function
        return function

    def expectations(self, function: F) -> F:
        """Register the function that says what a sound table looks like; it is given an `Expect`."""
        self._require_first(self.expectations_function, "expectations", function)
        self.expectations_function = function
        return function

    def features(self, function: F) -> F:
        """Register the function that returns feature name to expression (`mulle.col`)."""
        self._require_first(self.features_function, "features", function)
        self.features_function = function
        return function

    @overload
    def model(self, function: F, /) -> F: ...
    @overload
    def model(self, /, *, search: Mapping[str, Dimension] | None = None) -> Callable[[F], F]: ...
    def model(self, function: F | None = None, /, *, search: Mapping[str, Dimension] | None = None) -> F | Callable[[F], F]:
        """Register a function that returns an unfitted estimator; its keyword defaults are the parameters.

        Args:
            function: The function, when used without parentheses.
            search: Parameter to dimension (`mulle.log_uniform` …), for `mulle search`.

        Raises:
            SpecError: the name is taken, or `search` names a parameter the function does not have.
        """

        def register(given: F) -> F:
            name = str(given.__name__)
            if name in self.models:
                raise SpecError("project-duplicate-model", f"two models are called {name!r}", fix="rename one of the functions")
            known = given.__code__.co_varnames[: given.__code__.co_argcount + given.__code__.co_kwonlyargcount]
            unknown = sorted(set(search or {}) - set(known))
            if unknown:
                raise SpecError(
                    "project-search-parameter",
                    f"the search space of {name!r} names {unknown[0]!r}, which the function does not take",
                    fix=f"use one of {', '.join(known) or 'no parameters: the function takes none'}",
                    where=f"{given.__code__.co_filename}:{given.__code__.co_firstlineno}",
                )
            self.models[name] = ModelRecipe(name, given, dict(search or {}))
            return given

        return register if function is None else register(function)

    def _require_first(self, present: Callable[..., Any] | None, what: str, function: Callable[..., Any]) -> None:
        if present is not None:
            raise SpecError(
                "project-duplicate-function",
                f"@project.{what} stands on both {present.__name__!r} and {function.__name__!r}",
                fix=f"keep one function under @project.{what}",
                where=f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}",
            )
