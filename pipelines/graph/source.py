"""The source of a module: what it defines and imports, what that uses, and a digest of it all."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import resolve_name
from pathlib import Path

OTHER_LANGUAGES = {".cpp", ".h", ".j2"}
Import = ast.Import | ast.ImportFrom
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Uses:
    """What a piece of source uses, as names a.b.c.

    Attributes:
        names: What the names in it stand for, with the attributes that are taken of them.
        imported: What the imports in it bring in.
    """

    names: frozenset[str]
    imported: frozenset[str]


class Module:
    """The source of one module.

    Attributes:
        imports: Names that imports bind, and the a.b.c they stand for.
        definitions: Names that other statements bind, and what these use.
        effects: What is used whenever the module is imported.
    """

    def __init__(self, name: str, file: Path, content: bytes) -> None:
        self.name, self.file = name, file
        self._tree = ast.parse(content, file)
        self._package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        self.imports: dict[str, str] = {}
        self._binding: dict[str, list[ast.AST]] = {}
        self._acting: list[ast.AST] = []
        self._mentioned: set[str] = set()
        self._sort(self._tree.body)
        self.definitions = {name: self._uses(nodes) for name, nodes in self._binding.items()}
        effects = self._uses(self._acting)
        self.effects = Uses(effects.names, effects.imported | self._unused_imports())

    def _sort(self, nodes: Iterable[ast.stmt]) -> None:
        """Tell statements that bind names from those that act."""
        for node in nodes:
            if isinstance(node, Import):
                self.imports |= dict(_bound_by(node, self._package))
            elif isinstance(node, Function | ast.ClassDef):
                self._binding.setdefault(node.name, []).append(node)
                if isinstance(node, Function) and node.decorator_list:
                    self._acting.append(node)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for name in _assigned_by(node):
                    self._binding.setdefault(name, []).append(node)
            elif not _is_for_types(node):
                self._acting.append(node)
                self._sort(_statements_in(node))

    def _uses(self, nodes: Iterable[ast.AST]) -> Uses:
        used: set[tuple[str, ...]] = set()
        imports: dict[str, str] = {}
        todo = list(nodes)
        while todo:
            node = todo.pop()
            if _is_for_types(node):
                continue
            if isinstance(node, Import):
                imports |= dict(_bound_by(node, self._package))
            attributes: list[str] = []
            while isinstance(node, ast.Attribute):
                attributes.insert(0, node.attr)
                node = node.value
            if isinstance(node, ast.Name):
                used.add((node.id, *attributes))
                self._mentioned.add(node.id)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                self._mentioned.add(node.value)  # As in `__all__`.
            todo += ast.iter_child_nodes(node)
        own = {name: f"{self.name}.{name}" for name in (*self._binding, *self.imports)}
        known = own | imports
        names = {".".join([known[name], *rest]) for name, *rest in used if name in known}
        return Uses(frozenset(names), frozenset(imports.values()))

    def _unused_imports(self) -> set[str]:
        """Imports of which no name is mentioned: they are there for what they do."""
        return {target for name, target in self.imports.items() if name not in self._mentioned}

    @property
    def digest(self) -> str:
        """Of what the module does; of a package, of its sources in other languages, too."""
        total = hashlib.sha256(self._normalised)
        for file in self.other_sources:
            total.update(f"\0{file.name}\0".encode() + file.read_bytes())
        return total.hexdigest()

    @cached_property
    def _normalised(self) -> bytes:
        return normalised(self._tree).encode()

    @property
    def other_sources(self) -> list[Path]:
        """Of a package: what lies in its folder, and in folders below that hold no modules."""
        if self.file.name != "__init__.py":
            return []
        home = self.file.parent
        below = [each for each in home.iterdir() if each.is_dir() and not any(each.glob("*.py"))]
        files = (file for folder in (home, *below) for file in folder.iterdir())
        return sorted(file for file in files if file.suffix in OTHER_LANGUAGES)


def normalised(node: ast.AST) -> str:
    """A text that comments, layout and docstrings do not change.

    `ast.dump` writes fields that are empty, too, of which newer Pythons have more: with it an
    upgrade of Python would change every key.
    """
    fields = [
        f"{name}={_text_of(value)}"
        for name, value in ast.iter_fields(node)
        if name not in ("ctx", "kind", "type_comment") and value not in (None, [])
    ]
    return f"{type(node).__name__}({','.join(fields)})"


def _text_of(value: object) -> str:
    if isinstance(value, ast.AST):
        return normalised(value)
    if isinstance(value, list):
        return f"[{','.join(_text_of(each) for each in value if not _is_docstring(each))}]"
    return repr(value)


def _is_docstring(node: object) -> bool:
    """Of a module, a class or a function, or below a field."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _bound_by(node: Import, package: str) -> Iterator[tuple[str, str]]:
    """The names that an import binds, and what they stand for."""
    for each in node.names:
        if isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            yield each.asname or each.name, f"{origin}.{each.name}"
        elif each.asname:
            yield each.asname, each.name
        else:  # import a.b binds a, from which a.b is reached; both are imported.
            top = each.name.partition(".")[0]
            yield from ((top, top), (each.name, each.name))


def _assigned_by(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            yield each.id


def _statements_in(node: ast.stmt) -> Iterator[ast.stmt]:
    """Those one level below: of `if`, `try`, `with`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        elif isinstance(child, ast.ExceptHandler):
            yield from child.body


def _is_for_types(node: ast.AST) -> bool:
    """Whether it is `if TYPE_CHECKING`, which never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
