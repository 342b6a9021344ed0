# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""LightGBM and XGBoost for skl2onnx: onnxmltools' converters, registered, with LightGBM's splits made exact.

LightGBM puts a split midway between two neighbouring values, in double precision. Rounded to the nearest float32 it
may land on the larger of the two, and every row with that value changes sides (seen on prices that differ in the last
bit). A float32 `x` satisfies `x <= t` exactly when it satisfies it for the largest float32 not above `t`.
"""

import contextlib
import io
import sys
import warnings
from collections.abc import Generator
from typing import Any

import numpy as np

_registered: set[str] = set()


def register_boosters() -> None:
    """Teach skl2onnx the boosters this process has imported: no other can be inside an estimator. Idempotent."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes, calculate_linear_regressor_output_shapes

    for name in {"lightgbm", "xgboost"} & set(sys.modules) - _registered:
        convert, classifiers, regressors = _booster(name)
        for kind in classifiers:
            update_registered_converter(
                kind,
                f"Mulle{kind.__name__}",
                calculate_linear_classifier_output_shapes,
                convert,
                options={"nocl": [True, False], "zipmap": [True, False, "columns"], "raw_scores": [True, False]},
            )
        for kind in regressors:
            update_registered_converter(kind, f"Mulle{kind.__name__}", calculate_linear_regressor_output_shapes, convert)
        _registered.add(name)


@contextlib.contextmanager
def quiet_converters() -> Generator[None]:
    """Silence the converters for the block: their deprecation warnings and prints say nothing a user could act on."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def floor_float32(value: float) -> float:
    """Return the largest float32 that is not above `value`."""
    nearest = np.float32(value)
    return float(np.nextafter(nearest, np.float32(-np.inf))) if float(nearest) > value else float(nearest)


def _booster(name: str) -> tuple[Any, list[Any], list[Any]]:
    if name == "lightgbm":
        import lightgbm

        return _convert_lightgbm, [lightgbm.LGBMClassifier], [lightgbm.LGBMRegressor]
    import xgboost
    from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost

    return convert_xgboost, [xgboost.XGBClassifier, xgboost.XGBRFClassifier], [xgboost.XGBRegressor, xgboost.XGBRFRegressor]


def _convert_lightgbm(scope: Any, operator: Any, container: Any) -> None:
    """Convert with every split rounded down to float32, and missing values sent where LightGBM sends them.

    Told that the booster stands for another (`is_mock`), the converter reads it through `dump_model` instead of the C
    interface; that method is wrapped while it runs, on this one booster: a copy made for the export.
    """
    from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm

    booster = operator.raw_operator.booster_
    plain = booster.dump_model

    def exact(*arguments: Any, **options: Any) -> Any:
        model = plain(*arguments, **options)
        for tree in model["tree_info"]:
            _mend(tree["tree_structure"])
        return model

    booster.dump_model, booster.is_mock = exact, True
    try:
        convert_lightgbm(scope, operator, container)
    finally:
        del booster.dump_model, booster.is_mock


def _mend(root: dict[str, Any]) -> None:
    stack = [root]
    while stack:
        node = stack.pop()
        if "split_feature" not in node:
            continue
        if node["decision_type"] == "<=":
            threshold = float(node["threshold"])
            if node["missing_type"] == "None":
                # Where training saw nothing missing, LightGBM reads a missing value as zero.
                node["default_left"] = threshold >= 0.0
            node["threshold"] = floor_float32(threshold)
        stack += [node["left_child"], node["right_child"]]
