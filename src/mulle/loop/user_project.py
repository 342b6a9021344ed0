"""Importing the user's project object: only ever in a child process, and inside the boundary for user code."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from mulle.core.errors import SpecError, UserCodeError
from mulle.core.project import Project
from mulle.core.user_code import user_code


def load_project(project_dir: Path, code: str) -> Project:
    """Return the project object `code` (`module:variable`) names, imported from `project_dir`.

    Raises:
        UserCodeError: importing raised; `where` is the user's file and line.
        SpecError: there is no such module or variable, or it is something else.
    """
    module_name, variable = code.split(":")
    folder = str(project_dir.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        with user_code(f"importing {module_name!r}", root=project_dir):
            module = import_module(module_name)
    except UserCodeError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name == module_name:
            raise SpecError(
                "project-code-missing", f"there is no module {module_name!r}", fix='set code = "module:variable" in [project]', where=folder
            ) from error
        raise
    found: Any = getattr(module, variable, None)
    if not isinstance(found, Project):
        raise SpecError(
            "project-object-missing",
            f"{variable!r} in {module_name!r} is {'missing' if found is None else f'a {type(found).__name__}'}, not a mulle.Project",
            fix=f"write `{variable} = mulle.Project(…)`, or name another variable as code in [project]",
            where=str(getattr(module, "__file__", folder)),
        )
    return found
