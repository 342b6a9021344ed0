"""The stations of the wheel, in the order a run passes them.

Each stage is described here for the planner, cheaply, and has its body in the module of its name. A body joins stations
(`data`, `train`, `bundle`, `evaluate`, `release`, `monitor`), reads the folders of earlier stages and fills its own.
"""

from typing import Any

from mulle.loop.settings.model import Settings
from mulle.loop.stage import Stage
from mulle.loop.stages.champion import champion_of

__all__ = ["STAGES"]


def _dataset(settings: Settings) -> Any:
    return settings.dataset


def _split(settings: Settings) -> Any:
    return settings.split.model_dump(mode="json")


def _train(settings: Settings) -> Any:
    return {**settings.train.model_dump(mode="json"), "threshold": settings.evaluate.threshold}


def _export(settings: Settings) -> Any:
    return {**settings.export.model_dump(mode="json"), "threshold": settings.evaluate.threshold, "model": settings.project.name}


def _evaluate(settings: Settings) -> Any:
    fairness = settings.gates.fairness
    return {**settings.evaluate.model_dump(mode="json"), "fairness": list(fairness.slice_by) if fairness else []}


def _gates(settings: Settings) -> Any:
    return settings.gates.model_dump(mode="json", exclude_none=True)


def _registry(settings: Settings) -> Any:
    return {"deployment": settings.deployment, "environment": settings.environment, "model": settings.project.name}


_TABLES = ("polars",)
_ONNX = ("onnx", "onnxruntime", "skl2onnx")

STAGES: tuple[Stage, ...] = (
    Stage("snapshot", 1, "mulle.loop.stages.snapshot:run", roots=("source",), settings=_dataset, distributions=_TABLES, source=True),
    Stage("check", 1, "mulle.loop.stages.check:run", roots=("expectations",), inputs=("snapshot",), distributions=(*_TABLES, "pandera")),
    Stage(
        "split", 1, "mulle.loop.stages.split:run", roots=("project",), inputs=("snapshot", "check"), settings=_split, distributions=_TABLES
    ),
    Stage(
        "train",
        1,
        "mulle.loop.stages.train:run",
        roots=("features", "model"),
        inputs=("snapshot", "split"),
        settings=_train,
        distributions=(*_TABLES, *_ONNX, "scikit-learn", "numpy"),
    ),
    Stage("export", 1, "mulle.loop.stages.export:run", inputs=("snapshot", "split", "train"), settings=_export, distributions=_ONNX),
    Stage(
        "evaluate",
        1,
        "mulle.loop.stages.evaluate:run",
        inputs=("snapshot", "split", "train", "export"),
        settings=_evaluate,
        situation=champion_of,
        distributions=("numpy", "onnxruntime"),
    ),
    Stage("gate", 1, "mulle.loop.stages.gate:run", inputs=("snapshot", "train", "evaluate"), settings=_gates, options=("override",)),
    Stage("seal", 1, "mulle.loop.stages.seal:run", inputs=("snapshot", "split", "train", "export", "evaluate", "gate")),
    Stage(
        "register",
        1,
        "mulle.loop.stages.register:run",
        inputs=("snapshot", "train", "evaluate", "gate", "seal"),
        settings=_registry,
        options=("override",),
        effects=True,
    ),
)
"""What `mulle run` does, in order."""
