"""What code each stage depends on, read off the user's files without importing them.

The unit is the top-level statement (see `code_module.py`). A stage depends on

- the functions it runs (`@project.features` …) and the statement that makes the project object;
- every function, class, constant and module those refer to, directly or through others, in every first-party file: as
  slices, so that changing one helper re-runs exactly the stages that use it;
- every statement which *runs something* when the user's modules are imported (calls, assignments into other objects, `if`
  and `try` blocks, decorators of the user's own): such statements count for every user of the module;
- the whole file where a name cannot be resolved: `from x import *`, a module handed around as a value, `globals()`,
  a module's own `__getattr__`;
- the versions of the installed distributions it imports; the files `dynamic=[…]` of the project declares.

A slice is the statement's source bytes with line ends unified, so a comment inside a function counts and one beside it
does not: exact, and no judgement about what is harmless. A plain assignment (`X = load()`) counts for those who use
`X`, even though the call runs for everybody; put effects into statements of their own.
"""

import ast
import difflib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mulle.core.canonical import digest_file
from mulle.core.errors import SpecError
from mulle.loop.code_module import (
    Import,
    Module,
    Reference,
    Statement,
    decorator_roots,
    is_builtin,
    is_definition,
    pure_decorator,
    read_module,
)
from mulle.loop.distributions import Installed, is_standard
from mulle.loop.stage import Root

_ROLES = ("source", "expectations", "features", "model")
_DYNAMIC_MODULES = frozenset({"runpy", "imp"})
_DYNAMIC_NAMES = frozenset(
    {
        "import_module",
        "reload",
        "__import__",
        "spec_from_file_location",
        "spec_from_loader",
        "module_from_spec",
        "SourceFileLoader",
        "SourcelessFileLoader",
    }
)
_DYNAMIC_PARENTS = ("importlib", "pkgutil", "imp")
_HARMLESS_METACLASSES = frozenset({"ABCMeta", "EnumMeta", "EnumType", "type"})


@dataclass(frozen=True, slots=True)
class StageCode:
    """The code a stage depends on.

    Attributes:
        slices: `file:symbol` to the SHA-256 of its bytes; `file:import x` to what the name stands for.
        distributions: Installed distribution to version.
    """

    slices: dict[str, str]
    distributions: dict[str, str]


@dataclass(slots=True)
class _Walk:
    """One closure under construction."""

    slices: dict[str, str] = field(default_factory=dict[str, str])
    distributions: dict[str, str] = field(default_factory=dict[str, str])
    done: set[int] = field(default_factory=set[int])
    resolved: set[tuple[str, Reference, int]] = field(default_factory=set[tuple[str, Reference, int]])
    loaded: set[str] = field(default_factory=set[str])
    whole: set[str] = field(default_factory=set[str])
    queue: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])


class ProjectCode:
    """The first-party code of a project.

    Args:
        project_dir: The project's folder: what is found there is first-party.
        code: `module:variable` of the project object.
        installed: The distributions of this environment.

    Raises:
        SpecError: the module or the project object is missing, a file is not Python, `dynamic` is not a literal.
    """

    def __init__(self, project_dir: Path, code: str, *, installed: Installed | None = None) -> None:
        self.project_dir = project_dir.resolve()
        self.installed = Installed() if installed is None else installed
        self._modules: dict[str, Module | None] = {}
        module_name, variable = code.split(":")
        entry = self._module(module_name)
        if entry is None:
            raise SpecError(
                "project-code-missing",
                f"there is no module {module_name!r} in the project",
                fix='add project.py, or set code = "module:variable" in [project]',
                where=str(self.project_dir),
            )
        self.entry = entry
        origin = self._origin(entry, variable)
        if origin is None:
            names = sorted(entry.by_name)
            close = difflib.get_close_matches(variable, names, n=1)
            raise SpecError(
                "project-object-missing",
                f"{entry.label} has no variable {variable!r}",
                fix=f"write `{variable} = mulle.Project(…)`" + (f", or set code = '{module_name}:{close[0]}'" if close else ""),
                where=f"{entry.path}:1",
            )
        self.project_module, self.project_statement = origin
        self.modules = self._import_closure(entry)
        self._hooks = any(_has_subclass_hook(statement.node) for module in self.modules.values() for statement in module.statements)
        self.functions = self._decorated()
        self.dynamic_files = self._dynamic_files()

    def stage_code(self, roots: Iterable[Root], *, model: str | None = None, distributions: Iterable[str] = ()) -> StageCode:
        """Return the code of a stage which runs the functions under `roots`.

        Args:
            roots: Roles; with none of them the stage runs no user code, and only `distributions` count.
            model: Which function under `@project.model`; the only one by default.
            distributions: Further distributions the stage's own body depends on.

        Raises:
            SpecError: an undeclared dynamic import, an unknown or ambiguous model, a file that is not Python.
        """
        walk = _Walk()
        for name in distributions:
            walk.distributions[name] = self.installed.version(name) or "not installed"
        wanted = tuple(roots)
        if wanted:
            self._statement(walk, self.project_module, self.project_statement)
            self._load(walk, self.entry.name)
            for role in wanted:
                for module, statement in self._role(role, model):
                    self._statement(walk, module, statement)
            while walk.queue:
                walk.queue.pop()()
            for path in self.dynamic_files:
                walk.slices[f"{path.relative_to(self.project_dir)} (dynamic)"] = digest_file(path)
            walk.distributions["python"] = f"{sys.version_info.major}.{sys.version_info.minor}"
        return StageCode(dict(sorted(walk.slices.items())), dict(sorted(walk.distributions.items())))

    def _role(self, role: str, model: str | None) -> list[tuple[Module, Statement]]:
        found = self.functions.get(role, {})
        if role != "model" or not found:
            return list(found.values())
        if model is None and len(found) > 1:
            raise SpecError(
                "train-model-choice",
                f"the project has {len(found)} models: {', '.join(found)}",
                fix=f'choose one: model = "{next(iter(found))}" in [train]',
                where="mulle.toml",
            )
        if model is not None and model not in found:
            close = difflib.get_close_matches(model, list(found), n=1)
            raise SpecError(
                "train-model-unknown",
                f"there is no model {model!r} in the project",
                fix=f"use {close[0]!r}" if close else f"use one of {', '.join(found)}",
                where="mulle.toml",
            )
        return [found[model] if model is not None else next(iter(found.values()))]

    # -- finding files ----------------------------------------------------------------------------------------------

    def _locate(self, name: str) -> Path | None:
        """Return the file of a first-party module, the folder of a namespace package, or None."""
        base = self.project_dir.joinpath(*name.split("."))
        if (base / "__init__.py").is_file():
            return base / "__init__.py"
        if base.with_name(base.name + ".py").is_file():
            return base.with_name(base.name + ".py")
        return base if base.is_dir() and any(base.glob("*.py")) else None

    def _module(self, name: str) -> Module | None:
        if name not in self._modules:
            path = self._locate(name) if name else None
            if path is None or path.is_dir():
                self._modules[name] = None
            else:
                label = str(path.relative_to(self.project_dir))
                self._modules[name] = read_module(name, path, label, is_package=path.name == "__init__.py")
        return self._modules[name]

    def _is_ours(self, name: str) -> bool:
        top = name.partition(".")[0]
        return bool(top) and self._locate(top) is not None

    def _origin(self, module: Module, name: str, depth: int = 0) -> tuple[Module, Statement] | None:
        """Return where a name of a module is really defined, through imports between first-party files."""
        for statement in module.by_name.get(name, ()):
            found = statement.imports.get(name)
            if found is None or not isinstance(statement.node, (ast.Import, ast.ImportFrom)):
                return module, statement
            target = self._module(found.module) if found.symbol and self._is_ours(found.module) else None
            if target is not None and found.symbol and depth < len(self._modules) + 50:
                return self._origin(target, found.symbol, depth + 1)
        return None

    def _import_closure(self, entry: Module) -> dict[str, Module]:
        found: dict[str, Module] = {}
        queue = [entry.name]
        while queue:
            name = queue.pop()
            for part in _parents(name):
                module = self._module(part)
                if module is not None and part not in found:
                    found[part] = module
                    for statement in module.statements:
                        if isinstance(statement.node, (ast.Import, ast.ImportFrom)) or statement.effect:
                            queue += [target for bound in statement.imports.values() for target in self._targets(bound)]
        return found

    def _targets(self, found: Import) -> list[str]:
        """Return the first-party modules an import loads."""
        if not self._is_ours(found.module):
            return []
        targets = [found.module]
        if found.symbol not in {None, "*"}:
            module = self._module(found.module)
            submodule = f"{found.module}.{found.symbol}"
            if (module is None or found.symbol not in module.by_name) and self._locate(submodule) is not None:
                targets.append(submodule)
        return targets

    # -- what the project declares ----------------------------------------------------------------------------------

    def _decorated(self) -> dict[str, dict[str, tuple[Module, Statement]]]:
        roles: dict[str, dict[str, tuple[Module, Statement]]] = {}
        for module in self.modules.values():
            for statement in module.statements:
                for root, decorator in decorator_roots(statement.node):
                    role = self._project_role(module, root, decorator)
                    if role is not None:
                        roles.setdefault(role, {})[statement.label] = (module, statement)
        return roles

    def _project_role(self, module: Module, root: str, decorator: ast.expr) -> str | None:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        if not isinstance(target, ast.Attribute) or not isinstance(target.value, ast.Name) or target.attr not in _ROLES:
            return None
        origin = self._origin(module, root)
        return target.attr if origin is not None and origin[1] is self.project_statement else None

    def _dynamic_files(self) -> list[Path]:
        value = getattr(self.project_statement.node, "value", None)
        keywords = value.keywords if isinstance(value, ast.Call) else []
        given = next((keyword.value for keyword in keywords if keyword.arg == "dynamic"), None)
        if given is None:
            self.dynamic: tuple[str, ...] = ()
            return []
        where = f"{self.project_module.path}:{given.lineno}"
        try:
            patterns = ast.literal_eval(given)
            self.dynamic = (patterns,) if isinstance(patterns, str) else tuple(str(pattern) for pattern in patterns)
        except (ValueError, TypeError) as error:
            raise SpecError(
                "project-dynamic", "`dynamic` is not a list of texts", fix='write it out: dynamic=["plugins/*.py"]', where=where
            ) from error
        files: set[Path] = set()
        for pattern in self.dynamic:
            if not pattern or pattern.startswith(("/", "~")) or ".." in Path(pattern).parts:
                raise SpecError(
                    "project-dynamic",
                    f"dynamic pattern {pattern[:80]!r} leaves the project",
                    fix="use a path inside the project",
                    where=where,
                )
            matched = [path for path in self.project_dir.glob(pattern) if path.is_file() and "__pycache__" not in path.parts]
            if not matched:
                raise SpecError(
                    "project-dynamic", f"dynamic pattern {pattern[:80]!r} matches no file", fix="correct or remove it", where=where
                )
            files.update(matched)
        return sorted(files)

    # -- the closure ------------------------------------------------------------------------------------------------

    def _load(self, walk: _Walk, name: str) -> None:
        """Count what importing a module runs, in it, in the packages around it and in what it imports."""
        for part in _parents(name):
            module = self._module(part)
            if module is None or part in walk.loaded:
                continue
            walk.loaded.add(part)
            for statement in module.statements:
                if isinstance(statement.node, (ast.Import, ast.ImportFrom)):
                    unused = not statement.binds & module.used
                    for found in statement.imports.values():
                        for target in self._targets(found):
                            self._load(walk, target)
                        if unused and not self._is_ours(found.module):
                            walk.slices[f"{module.label}:import {found.module}.{found.symbol or ''}"] = "for its effect"
                            self._third_party(walk, module, found, (), found.line, None)
                elif statement.effect or self._registers(module, statement):
                    self._statement(walk, module, statement)

    def _registers(self, module: Module, statement: Statement) -> bool:
        """Return whether defining a function or class may do more than define it."""
        node = statement.node
        if not is_definition(node):
            return False
        if self._hooks and isinstance(node, ast.ClassDef) and node.bases:
            return True
        decorators = getattr(node, "decorator_list", ())
        roots = list(decorator_roots(node))
        if len(roots) != len(decorators):
            return True
        for root, decorator in roots:
            imported = next((s.imports[root] for s in module.by_name.get(root, ()) if root in s.imports), None)
            foreign = imported is not None and not self._is_ours(imported.module)
            known = root not in module.by_name and pure_decorator(root)
            if not foreign and not known and self._project_role(module, root, decorator) is None:
                return True
        return False

    def _statement(self, walk: _Walk, module: Module, statement: Statement) -> None:
        if id(statement) in walk.done:
            return
        walk.done.add(id(statement))
        walk.slices[f"{module.label}:{statement.label}"] = statement.digest
        walk.queue.append(lambda: self._follow_statement(walk, module, statement))

    def _follow_statement(self, walk: _Walk, module: Module, statement: Statement) -> None:
        self._load(walk, module.name)
        for line, text, literal in statement.dynamic:
            self._require_declared(module, line, text, literal)
        for found in statement.imports.values():
            for target in self._targets(found):
                self._load(walk, target)
        for reference, line in statement.references.items():
            local = statement.imports.get(reference.name)
            if local is not None:
                self._import(walk, module, local, reference.attributes, line, statement)
            else:
                self._name(walk, module, reference, line, statement)

    def _name(self, walk: _Walk, module: Module, reference: Reference, line: int, user: Statement | None) -> None:
        if (module.name, reference, line) in walk.resolved:
            return
        walk.resolved.add((module.name, reference, line))
        name = reference.name
        found = module.by_name.get(name, ())
        for statement in found:
            imported = statement.imports.get(name)
            if imported is not None:
                label = f"{module.label}:import {name}"
                target = f"{imported.module}.{imported.symbol or ''}"
                walk.slices[label] = ", ".join(sorted({*walk.slices.get(label, target).split(", "), target}))
                self._import(walk, module, imported, reference.attributes, line, user)
                if isinstance(statement.node, (ast.Import, ast.ImportFrom)):
                    continue
            self._statement(walk, module, statement)
        if not found and not (name.startswith("__") and name.endswith("__")):
            self._undefined(walk, module, name)

    def _undefined(self, walk: _Walk, module: Module, name: str) -> None:
        """Follow a name the module does not define: poured in by a star, Python's own, or out of sight."""
        if name == "*":
            self._whole(walk, module.name)
        elif module.star_imports:
            for star in module.star_imports:
                if self._is_ours(star.module):
                    self._whole(walk, star.module)
                else:
                    self._third_party(walk, module, star, (), star.line, None)
        elif not is_builtin(name):
            self._whole(walk, module.name)

    def _import(self, walk: _Walk, module: Module, found: Import, attributes: tuple[str, ...], line: int, user: Statement | None) -> None:
        if not self._is_ours(found.module):
            self._third_party(walk, module, found, attributes, line, user)
            return
        target = found.module
        path = [*([found.symbol] if found.symbol is not None and found.symbol != "*" else []), *attributes]
        while path:
            inner = self._module(target)
            if (inner is not None and path[0] in inner.by_name) or self._locate(f"{target}.{path[0]}") is None:
                break
            target = f"{target}.{path.pop(0)}"
        self._load(walk, target)
        inner = self._module(target)
        if inner is None:
            return
        if not path or path[0] not in inner.by_name:
            self._whole(walk, target)
        else:
            self._name(walk, inner, Reference(path[0], tuple(path[1:])), line, None)

    def _third_party(
        self, walk: _Walk, module: Module, found: Import, attributes: tuple[str, ...], line: int, user: Statement | None
    ) -> None:
        top = found.module.partition(".")[0]
        names = [*found.module.split(".")[1:], *([found.symbol] if found.symbol else []), *attributes]
        if top in _DYNAMIC_MODULES or (top in _DYNAMIC_PARENTS and _DYNAMIC_NAMES.intersection(names)):
            literal = user.literals.get(line) if user is not None else None
            self._require_declared(module, line, ".".join([top, *names]), literal)
        if top == "mulle" or is_standard(top):
            return
        for name in self.installed.providers(top) or (top,):
            walk.distributions[name] = self.installed.version(name) or "not installed"

    def _whole(self, walk: _Walk, name: str) -> None:
        module = self._module(name)
        if module is None or name in walk.whole:
            return
        walk.whole.add(name)
        walk.slices[module.label] = module.digest
        self._load(walk, name)
        for star in module.star_imports:
            if self._is_ours(star.module):
                self._whole(walk, star.module)
        for statement in module.statements:
            walk.queue.append(lambda statement=statement: self._follow_statement(walk, module, statement))
            if isinstance(statement.node, (ast.Import, ast.ImportFrom)):
                for bound, found in statement.imports.items():
                    if found.symbol != "*" and bound in statement.binds:
                        self._import(walk, module, found, (), found.line, None)

    def _require_declared(self, module: Module, line: int, text: str, literal: str | None) -> None:
        """Raise unless `dynamic` of the project declares what this line may reach."""
        if self.dynamic:
            if literal is None:
                return
            path = self._locate(literal) if not literal.endswith(".py") else self.project_dir / literal
            if path is None or path in self.dynamic_files or not path.is_file():
                return
            what = f"{text} reaches {literal!r}, which `dynamic` does not name"
        else:
            what = f"{text[:80]} reaches code that cannot be read off the file"
        raise SpecError(
            "code-dynamic-import",
            what,
            fix=f'use a plain import, or declare the files: mulle.Project(…, dynamic=["{_suggest(literal)}"])',
            where=f"{module.path}:{line}",
        )


def _suggest(literal: str | None) -> str:
    if literal is None:
        return "plugins/*.py"
    return literal if literal.endswith(".py") else literal.replace(".", "/") + ".py"


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _has_subclass_hook(node: ast.stmt) -> bool:
    """Return whether a statement defines a class that acts when it is inherited from: every subclass then registers itself."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init_subclass__":
            return True
        if isinstance(inner, ast.ClassDef):
            for keyword in inner.keywords:
                name = getattr(keyword.value, "attr", getattr(keyword.value, "id", ""))
                if keyword.arg == "metaclass" and name not in _HARMLESS_METACLASSES:
                    return True
    return False
