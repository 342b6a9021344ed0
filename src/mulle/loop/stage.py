"""What a stage of the wheel is: its description for the planner, and what its body is given and gives back.

The description is read in the parent process and must stay cheap: `run` names the body as text, and only the child
process imports it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mulle.loop.settings.model import Settings

if TYPE_CHECKING:
    from mulle.core.project import Project

Root = Literal["project", "source", "expectations", "features", "model"]


Outputs = Mapping[str, Mapping[str, str]]
"""Stage to output name to digest."""


def _no_parameters(settings: Settings) -> Any:
    del settings
    return None


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the wheel.

    Attributes:
        name: Unique, a folder's name.
        version: Raised by hand whenever the body's meaning changes; part of the key.
        run: `module:function` of the body, which takes a `StageContext` and returns a `StageResult`.
        roots: Which of the user's functions the body runs; their code becomes part of the key. `project` is the
            statement that makes the project object, and comes with every other root.
        inputs: Names of earlier stages whose outputs it reads.
        settings: Picks from the settings what the body depends on, as a JSON value; part of the key.
        options: Names of run options (such as `override`) the body is given; part of the key when set.
        situation: Reads, cheaply, what in the project's own state the body depends on (such as the champion it has to face),
            given the settings and the outputs of the stages before it as far as they are known; part of the key.
        distributions: Installed distributions whose versions the body depends on, beside those the user's code imports.
        source: Whether the body reads the world outside: it must return freshness, or is run every time.
        effects: Whether the body changes the world outside its folder; it must be idempotent.
    """

    name: str
    version: int
    run: str
    roots: tuple[Root, ...] = ()
    inputs: tuple[str, ...] = ()
    settings: Callable[[Settings], Any] = _no_parameters
    options: tuple[str, ...] = ()
    situation: Callable[[Settings, Outputs], Any] | None = None
    distributions: tuple[str, ...] = ()
    source: bool = False
    effects: bool = False


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a body gives back.

    Attributes:
        outputs: Output name to digest (64 hexadecimal digits, or another stable text): what later keys are made of.
        facts: Small JSON values worth showing in the summary and keeping in the record.
        freshness: One `{"kind", "location", "token"}` per read of the world outside (or objects with these attributes).
    """

    outputs: Mapping[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    freshness: tuple[Any, ...] | list[Any] = ()


class Report(Protocol):
    """How a body says what it is doing."""

    def __call__(self, message: str, done: float | None = None, total: float | None = None) -> None:
        """Show `message` in the progress view; `done` of `total` where it can be counted."""
        ...


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a body is given.

    Attributes:
        stage: The stage's own name.
        project_dir: The project's folder; also the working folder of the process.
        settings: The whole settings.
        parameters: What `Stage.settings` picked.
        options: The run options the stage asked for.
        situation: What `Stage.situation` read; None without it.
        inputs: Earlier stage to the folder with its files; never write there.
        input_outputs: Earlier stage to its output digests.
        output: The folder to fill; it becomes visible to others only when the body has returned.
        state_dir: The project's `.mulle`.
        run_id: The run this happens in.
        report: Says what is going on.
    """

    stage: str
    project_dir: Path
    settings: Settings
    parameters: Any
    options: Mapping[str, Any]
    situation: Any
    inputs: Mapping[str, Path]
    input_outputs: Outputs
    output: Path
    state_dir: Path
    run_id: str
    report: Report

    def load_project(self) -> "Project":
        """Return the user's project object; their modules are imported here, in the child process.

        Raises:
            UserCodeError: an import of theirs raised; the error names their file and line.
            SpecError: the module has no such variable, or it is no `mulle.Project`.
        """
        from mulle.loop.user_project import load_project

        return load_project(self.project_dir, self.settings.project.code)
