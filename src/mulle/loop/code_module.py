"""One first-party Python file as a planner sees it: who defines what, what runs on import, who refers to whom.

Only read, never imported. The unit is the *top-level statement*: its exact source bytes (line ends unified), the names
it binds, and the module-level names it refers to, with local variables and parameters taken out.
"""

import ast
import builtins
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mulle.core.canonical import digest_bytes
from mulle.core.errors import SpecError

MAX_SOURCE_BYTES = 8 << 20
_BUILTINS = frozenset(dir(builtins))
_PURE_DECORATORS = frozenset({"staticmethod", "classmethod", "property"})
_SCOPE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSION = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, slots=True)
class Import:
    """What an import statement binds.

    Attributes:
        module: Absolute dotted name of the module imported.
        symbol: The name taken from it; None for the module itself, `*` for all.
        line: Where it stands.
    """

    module: str
    symbol: str | None
    line: int


@dataclass(frozen=True, slots=True)
class Reference:
    """A use of a module-level name, with the attributes that follow: `helpers.table.x` is `("helpers", ("table", "x"))`."""

    name: str
    attributes: tuple[str, ...] = ()


@dataclass(slots=True)
class Statement:
    """One top-level statement.

    Attributes:
        label: How it is called in keys and reasons: the names it defines, or `statement 2`, counted so that lines may move.
        line: Where it starts, from 1.
        digest: SHA-256 of its source bytes.
        binds: Module-level names it defines.
        imports: Name bound by an import in it (also inside functions) to what it stands for.
        references: Names it may look up in the module, each with the line of its first use.
        dynamic: Every construct that reaches code in ways that cannot be read off it: line, text, file it names.
        literals: First argument of the calls in it, where that is a text, by line.
        effect: Whether running it may do more than bind its names.
        node: The statement itself.
    """

    label: str
    line: int
    digest: str
    binds: frozenset[str]
    imports: dict[str, Import]
    references: dict[Reference, int]
    dynamic: tuple[tuple[int, str, str | None], ...]
    literals: dict[int, str]
    effect: bool
    node: ast.stmt


@dataclass(slots=True)
class Module:
    """One first-party file."""

    name: str
    path: Path
    label: str
    digest: str
    statements: list[Statement] = field(default_factory=list[Statement])
    by_name: dict[str, list[Statement]] = field(default_factory=dict[str, list[Statement]])
    used: frozenset[str] = frozenset()

    @property
    def star_imports(self) -> list[Import]:
        """Modules whose names are poured into this one."""
        return [found for statement in self.statements for found in statement.imports.values() if found.symbol == "*"]


def read_module(name: str, path: Path, label: str, *, is_package: bool) -> Module:
    """Return the module at `path`, parsed.

    Args:
        name: Its absolute dotted name.
        path: The file.
        label: How it is shown: the path relative to the project.
        is_package: Whether it is an `__init__.py`; relative imports start from it then.

    Raises:
        SpecError: the file cannot be read or decoded, is too large, or is not Python.
    """
    text = _decode(path)
    data = text.encode("utf-8")
    try:
        tree = ast.parse(text, filename=str(path))
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None) or 1
        shown = getattr(error, "text", None)
        raise SpecError(
            "code-syntax",
            f"{label} is not Python: {getattr(error, 'msg', error)}",
            fix="mend that line",
            where=f"{path}:{line}",
            facts={"line": shown.strip()[:120]} if shown else None,
        ) from error
    module = Module(name, path, label, digest_bytes(data))
    starts = [0]
    for line_bytes in data.split(b"\n"):
        starts.append(starts[-1] + len(line_bytes) + 1)
    package = name if is_package else name.rpartition(".")[0]
    bodies = [node for node in tree.body if not _is_docstring(node) and not _is_main_guard(node)]
    seen: dict[str, int] = {}
    for node in bodies:
        statement = _statement(node, data, starts, package, path)
        seen[statement.label] = number = seen.get(statement.label, 0) + 1
        if number > 1 or statement.label == "statement":
            statement.label = f"{statement.label} {number}"
        module.statements.append(statement)
    for statement in module.statements:
        for bound in statement.binds:
            module.by_name.setdefault(bound, []).append(statement)
    module.used = frozenset(reference.name for statement in module.statements for reference in statement.references)
    return module


def decorator_roots(node: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """Yield the name every decorator of a definition starts with, and the decorator: `project` for `@project.model(…)`."""
    for decorator in getattr(node, "decorator_list", ()):
        current = decorator
        while isinstance(current, (ast.Call, ast.Attribute, ast.Subscript)):
            current = current.func if isinstance(current, ast.Call) else current.value
        if isinstance(current, ast.Name):
            yield current.id, decorator


def is_definition(node: ast.stmt) -> bool:
    """Return whether a statement is a function or a class."""
    return isinstance(node, _DEFINITION)


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpecError(
            "code-unreadable", f"{path.name!r} cannot be read: {error.strerror}", fix="check its permissions", where=str(path)
        ) from error
    if len(data) > MAX_SOURCE_BYTES:
        raise SpecError("code-unreadable", f"{path.name!r} has {len(data):,} bytes", fix="keep data out of Python files", where=str(path))
    try:
        if b"coding" in b"\n".join(data.split(b"\n", 2)[:2]):
            import tokenize

            with tokenize.open(path) as file:
                return file.read()
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (UnicodeDecodeError, SyntaxError, LookupError) as error:
        raise SpecError("code-syntax", f"{path.name!r} is not UTF-8: {error}"[:200], fix="save it as UTF-8", where=f"{path}:1") from error


def _statement(node: ast.stmt, data: bytes, starts: list[int], package: str, path: Path) -> Statement:
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
    begin = starts[first - 1] + (node.col_offset if first == node.lineno else 0)
    end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
    binds = frozenset(_bound_names(node))
    visitor = _Visitor(package, path)
    visitor.statement(node)
    name = getattr(node, "name", None)
    label = str(name) if isinstance(name, str) else ", ".join(sorted(binds)) or "statement"
    return Statement(
        label=label,
        line=first,
        digest=digest_bytes(data[begin:end]),
        binds=binds,
        imports=visitor.imports,
        references=visitor.references,
        dynamic=tuple(visitor.dynamic),
        literals=visitor.literals,
        effect=_has_effect(node, binds),
        node=node,
    )


def _has_effect(node: ast.stmt, binds: frozenset[str]) -> bool:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return False
    if isinstance(node, _DEFINITION):
        return False  # decorators are judged by the closure, which knows what their names stand for
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        plain = all(isinstance(leaf, (ast.Name, ast.Tuple, ast.List, ast.Starred)) for target in targets for leaf in _leaves(target))
        return not plain or binds <= {"_"}
    return not isinstance(node, ast.Pass) and not _is_type_checking(node)


def _leaves(target: ast.expr) -> Iterator[ast.expr]:
    if isinstance(target, (ast.Tuple, ast.List)):
        for part in target.elts:
            yield from _leaves(part)
    elif isinstance(target, ast.Starred):
        yield from _leaves(target.value)
    else:
        yield target


def _bound_names(node: ast.AST) -> Iterator[str]:
    """Yield the names a statement binds in the scope it stands in; function and class bodies are scopes of their own."""
    if isinstance(node, _DEFINITION):
        yield node.name
        return
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        for alias in node.names:
            yield alias.asname or (alias.name.partition(".")[0] if isinstance(node, ast.Import) else alias.name)
        return
    if isinstance(node, _COMPREHENSION):
        yield from (walrus.target.id for walrus in ast.walk(node) if isinstance(walrus, ast.NamedExpr))
    elif not isinstance(node, ast.Lambda):
        name = _own_name(node)
        if name:
            yield name
        for child in ast.iter_child_nodes(node):
            yield from _bound_names(child)


def _own_name(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id if isinstance(node.ctx, (ast.Store, ast.Del)) else None
    if isinstance(node, ast.MatchMapping):
        return node.rest
    return node.name if isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) else None


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_main_guard(node: ast.stmt) -> bool:
    """Return whether the statement is `if __name__ == "__main__":` without an else: it never runs on import."""
    if not isinstance(node, ast.If) or node.orelse or not isinstance(node.test, ast.Compare):
        return False
    sides = [node.test.left, *node.test.comparators]
    names = {side.id for side in sides if isinstance(side, ast.Name)}
    values = {side.value for side in sides if isinstance(side, ast.Constant)}
    return isinstance(node.test.ops[0], ast.Eq) and names == {"__name__"} and values == {"__main__"}


def _is_type_checking(node: ast.stmt) -> bool:
    """Return whether the statement is `if TYPE_CHECKING:`: it binds names for annotations and never runs."""
    if not isinstance(node, ast.If) or node.orelse:
        return False
    return (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING") or (
        isinstance(node.test, ast.Attribute) and node.test.attr == "TYPE_CHECKING"
    )


class _Visitor:
    """Gathers references, imports and dynamic constructs of one top-level statement, scope by scope."""

    def __init__(self, package: str, path: Path) -> None:
        self.package = package
        self.path = path
        self.references: dict[Reference, int] = {}
        self.literals: dict[int, str] = {}
        self.imports: dict[str, Import] = {}
        self.dynamic: list[tuple[int, str, str | None]] = []

    def statement(self, node: ast.stmt) -> None:
        self._visit(node, frozenset())

    def _visit(self, node: ast.AST, local: frozenset[str]) -> None:
        if isinstance(node, _SCOPE):
            self._function(node, local)
        elif isinstance(node, ast.ClassDef):
            # A class body sees its own names only after they are bound: keep what the module may give.
            for part in [*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords), *node.body]:
                self._visit(part, local)
        elif isinstance(node, _COMPREHENSION):
            bound = {leaf.id for generator in node.generators for leaf in ast.walk(generator.target) if isinstance(leaf, ast.Name)}
            self._children(node, local | bound)
            self._visit(node.generators[0].iter, local)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            self._import(node)
        elif isinstance(node, ast.Attribute):
            self._attribute(node, local)
        elif isinstance(node, ast.Name):
            self._name(node, local)
        else:
            self._call(node, local)
            self._children(node, local)

    def _children(self, node: ast.AST, local: frozenset[str]) -> None:
        for child in ast.iter_child_nodes(node):
            self._visit(child, local)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, local: frozenset[str]) -> None:
        arguments = node.args
        names = {argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        names |= {argument.arg for argument in (arguments.vararg, arguments.kwarg) if argument is not None}
        outside: list[ast.AST] = [*arguments.defaults, *(default for default in arguments.kw_defaults if default is not None)]
        body: list[ast.AST]
        if isinstance(node, ast.Lambda):
            body = [node.body]
        else:
            body = [*node.body]
            outside += [*node.decorator_list, *([node.returns] if node.returns else [])]
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            outside += [argument.annotation for argument in every if argument is not None and argument.annotation is not None]
        for part in outside:
            self._visit(part, local)
        shared = {name for part in _own_scope(body) if isinstance(part, (ast.Global, ast.Nonlocal)) for name in part.names}
        imported = {bound for part in _own_scope(body) if isinstance(part, (ast.Import, ast.ImportFrom)) for bound in _bound_names(part)}
        bound = {name for part in body for name in _bound_names(part)}
        inner = (local | names | bound) - shared - imported
        for part in body:
            self._visit(part, inner)
        for name in shared:
            self.references.setdefault(Reference(name), node.lineno)

    def _name(self, node: ast.Name, local: frozenset[str]) -> None:
        if node.id in local:
            return
        self.references.setdefault(Reference(node.id), node.lineno)
        if node.id in {"eval", "exec", "__import__"}:
            self.dynamic.append((node.lineno, f"{node.id}(…)", None))
        elif node.id == "globals":
            self.references.setdefault(Reference("*"), node.lineno)

    def _attribute(self, node: ast.Attribute, local: frozenset[str]) -> None:
        names: list[str] = []
        current: ast.expr = node
        while isinstance(current, ast.Attribute):
            names.append(current.attr)
            current = current.value
        if isinstance(current, ast.Name):
            if current.id not in local:
                self.references.setdefault(Reference(current.id, tuple(reversed(names))), node.lineno)
        else:
            self._visit(current, local)

    def _call(self, node: ast.AST, local: frozenset[str]) -> None:
        if not isinstance(node, ast.Call):
            return
        first = node.args[0] if node.args else None
        text = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
        if text is not None:
            self.literals.setdefault(node.lineno, text)
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if (
            name in {"open", "Path", "read_text", "exec_module", "SourceFileLoader"}
            and text is not None
            and text.endswith(".py")
            and name not in local
        ):
            self.dynamic.append((node.lineno, f"{name}({text!r})", text))

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    self.imports[alias.asname] = Import(alias.name, None, node.lineno)
                else:
                    top = alias.name.partition(".")[0]
                    self.imports.setdefault(top, Import(top, None, node.lineno))
                    if alias.name != top:  # `import a.b` binds `a` and loads `a.b`
                        self.imports[f"{alias.name}"] = Import(alias.name, None, node.lineno)
            return
        base = self._base(node)
        for alias in node.names:
            if alias.name == "*":
                self.imports[f"*{base}"] = Import(base, "*", node.lineno)
            else:
                self.imports[alias.asname or alias.name] = Import(base, alias.name, node.lineno)

    def _base(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.package.split(".") if self.package else []
        if node.level - 1 > len(parts) or not self.package:
            raise SpecError(
                "code-relative-import",
                "a relative import leaves the project's packages",
                fix="import the module by its full name",
                where=f"{self.path}:{node.lineno}",
            )
        kept = parts[: len(parts) - (node.level - 1)]
        return ".".join([*kept, *([node.module] if node.module else [])])


def _own_scope(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield every node of a function body without entering functions and classes inside it."""
    for node in body:
        yield node
        if not isinstance(node, (*_DEFINITION, ast.Lambda)):
            yield from _own_scope(ast.iter_child_nodes(node))


def is_builtin(name: str) -> bool:
    """Return whether a name is one of Python's own."""
    return name in _BUILTINS


def pure_decorator(name: str) -> bool:
    """Return whether a builtin decorator only wraps what it is given."""
    return name in _PURE_DECORATORS
