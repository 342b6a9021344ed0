# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""What a recipe may ask for and must give back, checked before any training time is spent."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mulle.core.errors import SpecError
from mulle.core.project import ModelRecipe, Task
from mulle.core.user_code import bounded, user_code

_SEED_NAMES = ("seed", "random_state")


def function_line(function: Callable[..., Any]) -> str:
    """Return `file:line` of where `function` was defined, or an empty string."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return "" if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def recipe_parameters(recipe: ModelRecipe, params: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """Return every keyword the recipe's function is to be called with, its own defaults filled in.

    A parameter called `seed` or `random_state` gets `seed` unless `params` gives it: one setting then seeds the run.

    Raises:
        SpecError: a name the function does not take (the nearest one is named), or a parameter without any value.
    """
    where = function_line(recipe.function)
    parameters = inspect.signature(recipe.function).parameters
    named = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in params:
        if name not in named and not open_ended:
            near = difflib.get_close_matches(name, named, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SpecError(
                "model-parameter-unknown",
                f"the model {recipe.name!r} takes no parameter {name!r}",
                fix=f"{hint}it takes {', '.join(named) or 'no parameters'}",
                where=where,
            )
    values = {p.name: p.default for p in parameters.values() if p.name in named and p.default is not p.empty}
    values.update({name: seed for name in _SEED_NAMES if name in named})
    values.update(params)
    missing = [name for name in named if name not in values]
    if missing:
        raise SpecError(
            "model-parameter-missing",
            f"the model {recipe.name!r} needs a value for {missing[0]!r}",
            fix=f"give it a default in the function, or a value under [train.params] in mulle.toml: {missing[0]} = …",
            where=where,
        )
    return values


def build_estimator(recipe: ModelRecipe, params: Mapping[str, Any], *, seed: int = 0, task: Task | None = None) -> Any:
    """Return the unfitted estimator the user's function makes, every unset `random_state` inside it seeded.

    Args:
        recipe: The function under `@project.model`.
        params: Values that replace the function's defaults.
        seed: Goes to a parameter called `seed` or `random_state`, and to every nested `random_state` left at None.
        task: When given, the estimator must be able to do it.

    Raises:
        SpecError: an unknown parameter, or something that is not an unfitted estimator for the task.
        UserCodeError: the function raised.
    """
    values = recipe_parameters(recipe, params, seed=seed)
    with user_code(f"the model {recipe.name!r}"):
        made = recipe.function(**values)
    where = function_line(recipe.function)
    if isinstance(made, type):
        raise SpecError(
            "model-not-estimator",
            f"the model {recipe.name!r} returned the class {made.__name__!r}",
            fix=f"return {made.__name__}()",
            where=where,
        )
    if not (hasattr(made, "fit") and hasattr(made, "predict") and hasattr(made, "get_params")):
        raise SpecError(
            "model-not-estimator",
            f"the model {recipe.name!r} returned {bounded(repr(made), 80)}, which is not an estimator",
            fix="return an unfitted sklearn, LightGBM or XGBoost estimator (or a Pipeline that ends in one)",
            where=where,
        )
    if task is not None:
        require_task(made, task, where=where)
    return seeded(made, seed)


def seeded(estimator: Any, seed: int) -> Any:
    """Return an unfitted copy of `estimator` with every `random_state` that is None set to `seed`, nested ones too."""
    from sklearn.base import clone

    copy: Any = clone(estimator)
    known = copy.get_params(deep=True)
    unset = {name: seed for name, value in known.items() if value is None and name.rpartition("__")[2] == "random_state"}
    # Both settings change what is printed or laid out, never what is predicted; the second has no export.
    quiet = dict.fromkeys(_quiet_names(copy, known), -1)
    flat = {name: False for name, value in known.items() if value is True and name.rpartition("__")[2] == "flatten_transform"}
    return copy.set_params(**unset, **quiet, **flat)


def require_task(estimator: Any, task: Task, *, where: str = "") -> None:
    """Return if `estimator` is of the task's kind and, for classification, gives probabilities.

    Raises:
        SpecError: the wrong kind, or no `predict_proba`; the fix names the way out for this estimator.
    """
    from sklearn.base import is_classifier, is_regressor

    name = type(_last_step(estimator)).__name__
    if task == "regression":
        if is_classifier(estimator):
            raise SpecError(
                "model-wrong-task",
                f"{name} classifies, and the project's task is 'regression'",
                fix=f"return {name.replace('Classifier', 'Regressor')}, or change the task in mulle.Project(…)",
                where=where,
            )
        return
    if is_regressor(estimator):
        raise SpecError(
            "model-wrong-task",
            f"{name} predicts numbers, and the project's task is {task!r}",
            fix=f"return {name.replace('Regressor', 'Classifier')}, or change the task in mulle.Project(…)",
            where=where,
        )
    if not hasattr(estimator, "predict_proba"):
        ways = {
            "SVC": "set probability=True",
            "NuSVC": "set probability=True",
            "SGDClassifier": "set loss='log_loss'",
            "VotingClassifier": "set voting='soft'",
        }
        raise SpecError(
            "model-no-probabilities",
            f"{name} as it is set up gives no probabilities",
            fix=f"{ways.get(name, '')}{', or ' if name in ways else ''}wrap it: CalibratedClassifierCV({name}(…))",
            where=where,
        )


def _last_step(estimator: Any) -> Any:
    steps = getattr(estimator, "steps", None)
    return _last_step(steps[-1][1]) if steps else estimator


def _quiet_names(estimator: Any, known: Mapping[str, Any]) -> list[str]:
    """Return the full parameter names that silence LightGBM, which otherwise prints to standard output."""
    places = {"": estimator, **{f"{name}__": value for name, value in known.items() if hasattr(value, "get_params")}}
    quiet: list[str] = []
    for prefix, part in places.items():
        if type(part).__module__.startswith("lightgbm") and not {"verbose", "verbosity"} & set(part.get_params(deep=False)):
            quiet.append(f"{prefix}verbosity")
    return quiet
