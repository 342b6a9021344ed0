"""A small wheel of four real stages in a folder, for tests of the engine."""

from collections.abc import Sequence
from pathlib import Path

from mulle.loop.plan import RunOptions
from mulle.loop.progress import Progress, SilentProgress
from mulle.loop.run import Runner, RunReport
from mulle.loop.settings import load_settings
from mulle.loop.stage import Stage
from mulle.loop.wiring import SystemClock

BODIES = str(Path(__file__).parent / "stage_bodies")
PROJECT = """import mulle
from helpers import widen

project = mulle.Project("말", task="binary", target="y")


@project.source
def source():
    return 1


@project.features
def features():
    return widen(2)


@project.model
def model():
    return 3
"""
HELPERS = "def widen(x):\n    return x\n\n\ndef unused():\n    return 1\n"

STAGES = (
    Stage("snapshot", 1, "bodies:snapshot", roots=("source",), source=True),
    Stage("split", 1, "bodies:count", inputs=("snapshot",), settings=lambda s: s.split.model_dump(mode="json")),
    Stage("train", 1, "bodies:count", roots=("features", "model"), inputs=("split",), settings=lambda s: {"seed": s.train.seed}),
    Stage("register", 1, "bodies:count", inputs=("train",), options=("override",), effects=True),
)


class Wheel:
    """A project folder and everything done to it in a test."""

    def __init__(self, folder: Path, stages: Sequence[Stage] = STAGES) -> None:
        self.folder = folder
        self.stages = stages
        self.write("mulle.toml", '[project]\nname = "말"\n')
        self.write("project.py", PROJECT)
        self.write("helpers.py", HELPERS)
        self.write("data.txt", "하나 둘 셋")

    @classmethod
    def again(cls, folder: Path) -> "Wheel":
        """Return the wheel in a folder as it is, nothing written."""
        wheel = cls.__new__(cls)
        wheel.folder, wheel.stages = folder, STAGES
        return wheel

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text(encoding="utf-8")
        assert old in text
        self.write(name, text.replace(old, new))

    def fault(self, stage: str, kind: str) -> None:
        self.write(f"fault.{stage}", kind)

    def mend(self) -> None:
        for path in self.folder.glob("fault.*"):
            path.unlink()

    def runner(self, progress: Progress | None = None) -> Runner:
        def token(item):
            path = self.folder / item["location"]
            return str(path.stat().st_mtime_ns) if path.exists() else None

        settings = load_settings(self.folder)
        return Runner(settings, self.stages, SystemClock(), progress or SilentProgress(), python_path=[BODIES], check_token=token)

    def run(self, **options) -> RunReport:
        return self.runner().run(RunOptions(**options))

    def plan(self, **options) -> dict[str, tuple[str, str]]:
        return {step.stage.name: (step.status, step.why) for step in self.runner().plan(RunOptions(**options)).steps}

    def calls(self) -> list[str]:
        """Return which bodies ran since the last question."""
        path = self.folder / "calls.txt"
        found = path.read_text(encoding="utf-8").split() if path.exists() else []
        path.unlink(missing_ok=True)
        return found

    def drafts(self) -> list[str]:
        folder = self.folder / ".mulle/stages/.draft"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
