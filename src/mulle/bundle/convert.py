# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""Fitted estimators to ONNX: one input `features`, one output, nothing executed, nothing pickled.

sklearn goes through skl2onnx; LightGBM and XGBoost through onnxmltools' converters, registered with skl2onnx, so that
they also work inside pipelines, votes and stacks. Both converters are thinly kept and some of their translations are
wrong (seen: linear discriminants with two classes, calibrated LightGBM): that is what the parity check is for.
"""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from mulle.bundle.boosters import quiet_converters, register_boosters
from mulle.bundle.onnx_file import prune
from mulle.core.errors import SpecError
from mulle.core.project import Task
from mulle.core.user_code import bounded

INPUT = "features"
TARGET_OPSET: dict[str, int] = {"": 18, "ai.onnx.ml": 3}
_BATCH = 16_384
_WORKS = (
    "linear and logistic models, trees, forests, (histogram) gradient boosting, SVM, nearest neighbours, naive Bayes, "
    "multi-layer perceptrons, calibrated, voting and stacking ensembles, LightGBM, XGBoost"
)
_WAYS_OUT = {
    "FunctionTransformer": "write it as a feature expression (`col(…).log1p()` …) in @project.features instead",
    "SplineTransformer": "use trees, or bucket the column with `col(…).bucket([…])`",
    "TransformedTargetRegressor": "transform the target in the source, or use a regressor with a fitting loss (poisson, gamma)",
    "KBinsDiscretizer": "use KBinsDiscretizer(encode='onehot-dense')",
    "OneHotEncoder": "use OneHotEncoder(sparse_output=False)",
    "GaussianProcessClassifier": "use a calibrated SVC",
}


def estimator_to_onnx(estimator: Any, n_features: int, task: Task) -> bytes:
    """Return `estimator` as an ONNX model: `features` float32 (n, D) to `probabilities` (n, k) or `prediction` (n, 1), float32.

    Args:
        estimator: Fitted sklearn, LightGBM or XGBoost estimator, or a pipeline of them.
        n_features: D.
        task: Decides which output is kept.

    Raises:
        SpecError: not fitted, or a step without a translation (named, with the way out).
    """
    from skl2onnx.common.data_types import FloatTensorType

    return convert_fitted(estimator, [(INPUT, FloatTensorType([None, n_features]))], task)


def convert_fitted(estimator: Any, initial_types: Sequence[tuple[str, Any]], task: Task) -> bytes:
    """Return `estimator` as an ONNX model with the inputs given and the one output of the task (see `estimator_to_onnx`).

    Args:
        estimator: Fitted.
        initial_types: Input name to skl2onnx type.
        task: Decides which output is kept.

    Raises:
        SpecError: as `estimator_to_onnx`.
    """
    require_fitted(estimator)
    ready = _prepared(estimator)
    options = None if task == "regression" else {id(ready): {"zipmap": False}}
    model = _convert(ready, initial_types, options)
    names = [output.name for output in model.graph.output]
    source = names[0] if task == "regression" else names[-1]
    if task == "regression" and _needs_exponential(ready):
        exponential = f"{source}_exp"
        model.graph.node.append(helper.make_node("Exp", [source], [exponential], name="mulle_link"))
        source = exponential
    return single_output(model, source, task)


def export_transform(transformers: Any, n_features: int) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return the function the exported graph of fitted transformers computes: (n, n_features) to (n, m), float32.

    Handed to `train/fit.py`, so that a pipeline's last step learns from the numbers it will be served.

    Args:
        transformers: A fitted pipeline of transformers.
        n_features: Columns of the matrix they were fitted on.

    Raises:
        SpecError: a transformer has no translation (named, with the way out).
    """
    from skl2onnx.common.data_types import FloatTensorType

    from mulle.bundle.onnx_file import quiet_session

    model = _convert(_prepared(transformers), [(INPUT, FloatTensorType([None, n_features]))], None)
    output = model.graph.output[0].name
    session = quiet_session(model.SerializeToString())

    def transform(x: NDArray[np.float32]) -> NDArray[np.float32]:
        pieces = (x[i : i + _BATCH] for i in range(0, max(len(x), 1), _BATCH))
        parts = [np.asarray(session.run([output], {INPUT: piece})[0], dtype=np.float32) for piece in pieces]
        return np.concatenate(parts).reshape(len(x), -1)

    return transform


def _convert(estimator: Any, initial_types: Sequence[tuple[str, Any]], options: Mapping[int, Any] | None) -> Any:
    with quiet_converters():
        register_boosters()
    from skl2onnx import convert_sklearn

    try:
        with quiet_converters():
            model: Any = convert_sklearn(estimator, initial_types=list(initial_types), target_opset=dict(TARGET_OPSET), options=options)
    # Converters raise whatever their depths raise: a dozen classes, some of their own, most of them plain.
    except Exception as error:
        culprit = _culprit(estimator, str(error))
        raise SpecError(
            "export-unsupported",
            f"{culprit} cannot be exported to ONNX: {bounded(str(error), 200)}",
            fix=_WAYS_OUT.get(culprit, f"use an estimator that can be exported: {_WORKS}"),
        ) from error
    foreign = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx", "ai.onnx.ml"})
    if foreign:
        culprit = _culprit(estimator, "")
        raise SpecError(
            "export-unsupported",
            f"{culprit} cannot be exported to standard ONNX: its translation needs operators of {foreign[0]!r}",
            fix=_WAYS_OUT.get(culprit, f"use an estimator that can be exported: {_WORKS}"),
        )
    return model


def _fresh(text: str, taken: set[str]) -> str:
    """Return `text`, with a number behind it where it is taken."""
    return next(name for name in itertools.chain([text], (f"{text}_{i}" for i in itertools.count(2))) if name not in taken)


def single_output(model: Any, source: str, task: Task) -> bytes:
    """Keep one output, as float32 of two dimensions under the task's name, and drop what no longer leads to it."""
    graph = model.graph
    name: Literal["prediction", "probabilities"] = "prediction" if task == "regression" else "probabilities"
    # The graph may have been through here before (an adopted bundle): nothing that is added may carry a name it knows.
    taken = {text for node in graph.node for text in (node.name, *node.input, *node.output)} | {item.name for item in graph.initializer}
    inner, casted, cast, shape, last = (
        _fresh(text, taken) for text in (f"{name}_inner", f"{name}_float", "mulle_cast", "mulle_column", "mulle_name")
    )
    if name in taken:
        for node in graph.node:
            _replace(node.input, name, inner)
            _replace(node.output, name, inner)
        source = inner if source == name else source
    graph.node.append(helper.make_node("Cast", [source], [casted], to=TensorProto.FLOAT, name=cast))
    if task == "regression":
        graph.initializer.append(helper.make_tensor(shape, TensorProto.INT64, [2], [-1, 1]))
        graph.node.append(helper.make_node("Reshape", [casted, shape], [name], name=last))
    else:
        graph.node.append(helper.make_node("Identity", [casted], [name], name=last))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1 if task == "regression" else None]))
    prune(model)
    _one_version(model)
    # skl2onnx names the graph by chance; a digest must not depend on it.
    graph.name = "model"
    model.producer_name = "mulle"
    model.producer_version = ""
    model.doc_string = ""
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _one_version(model: Any) -> None:
    """Keep the newest of several versions of one operator set: skl2onnx may list a domain twice, and graphs are merged by it."""
    newest: dict[str, int] = {}
    for entry in model.opset_import:
        newest[entry.domain] = max(entry.version, newest.get(entry.domain, 0))
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in newest.items())


def _replace(names: Any, old: str, new: str) -> None:
    for i, text in enumerate(names):
        if text == old:
            names[i] = new


def _prepared(estimator: Any) -> Any:
    """Return a copy the converters understand: no idle steps, and votes laid out class by class."""
    from sklearn.pipeline import Pipeline

    ready = copy.deepcopy(estimator)
    if isinstance(ready, Pipeline):
        steps = [(name, step) for name, step in ready.steps if step is not None and step != "passthrough"]
        ready = steps[0][1] if len(steps) == 1 else Pipeline(steps)
    for part in _parts(ready):
        if getattr(part, "flatten_transform", False):
            part.flatten_transform = False
    return ready


def _parts(estimator: Any) -> list[Any]:
    """Return the estimator and the fitted ones inside it: steps of pipelines, members of votes and stacks."""
    children = [step for _, step in getattr(estimator, "steps", None) or []]
    members = getattr(estimator, "estimators_", None)
    children += members if isinstance(members, list) else []
    return [estimator, *(part for child in children if hasattr(child, "get_params") for part in _parts(child))]


def _needs_exponential(estimator: Any) -> bool:
    """Return whether skl2onnx forgets the log link of this regressor (histogram boosting with a Poisson or gamma loss)."""
    steps = getattr(estimator, "steps", None)
    last = steps[-1][1] if steps else estimator
    return type(last).__name__ == "HistGradientBoostingRegressor" and getattr(last, "loss", "") in {"poisson", "gamma"}


def require_fitted(estimator: Any) -> None:
    """Return if `estimator` is fitted; raise a SpecError otherwise."""
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise SpecError("export-not-fitted", f"{type(estimator).__name__} is not fitted", fix="call fit before exporting it") from error
    except TypeError as error:
        raise SpecError(
            "export-unsupported",
            f"{bounded(repr(estimator), 80)} is not an estimator",
            fix="pass a fitted sklearn, LightGBM or XGBoost estimator, or a Pipeline",
        ) from error


def _culprit(estimator: Any, message: str) -> str:
    """Return the class name of the step the converter tripped over: one it names, else one known to fail, else the last."""
    names: list[str] = []

    def walk(part: Any) -> None:
        for _, step in getattr(part, "steps", None) or []:
            walk(step)
        for row in getattr(part, "transformers", None) or []:
            walk(row[1])
        if not getattr(part, "steps", None) and hasattr(part, "get_params"):
            names.append(type(part).__name__)

    walk(estimator)
    named = [name for name in names if name in message]
    known = [name for name in names if name in _WAYS_OUT]
    return (named or known or names or [type(estimator).__name__])[-1 if not (named or known) else 0]
