"""Which of our modules decide what a function computes: found by reading sources.

The search goes from a definition to the names that stand in it, and through imports (those inside
functions, too) to definitions of other modules. So a module drags in what is used of it, not all
that it imports: evaluation builds its classifier by `pipelines.stages.finetune` and has nothing of
the training loop in its closure. With any use of a module goes what happens when it is imported:
statements that define nothing, functions that a decorator may register, imports of which no name
is used, and the same of the packages around it.
"""

from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path

from pipelines.graph.source import Module, Uses


class Sources:
    """The modules below some packages, as they are when they are first asked for.

    Args:
        packages: Names of top-level packages, with their folders.
    """

    def __init__(self, packages: Mapping[str, Path]) -> None:
        self._packages = packages
        self._modules: dict[str, Module | None] = {}

    def find(self, name: str) -> Module | None:
        """The module a.b.c; None where there is no such module of ours."""
        if name not in self._modules:
            around, _, own = name.rpartition(".")
            package = self.find(around) if around else None
            if package is not None and package.file.name == "__init__.py":
                folder = package.file.parent / own
            elif name in self._packages:
                folder = self._packages[name]
            else:
                folder = None
            self._modules[name] = None if folder is None else _read(name, folder)
        return self._modules[name]

    def split(self, dotted: str) -> tuple[Module | None, list[str]]:
        """The module that a.b.c.d is, or is in, and the rest of the name."""
        parts = dotted.split(".")
        module = None
        for length in range(1, len(parts) + 1):
            found = self.find(".".join(parts[:length]))
            if found is None:
                return module, parts[length - 1 :]
            module = found
        return module, []

    def defines(self, dotted: str) -> bool:
        """Whether a.b.c is a definition of a module."""
        module, rest = self.split(dotted)
        return module is not None and len(rest) == 1 and rest[0] in module.definitions

    def closure(self, functions: Iterable[str], exempt: Collection[str] = ()) -> dict[str, Module]:
        """The modules, by name, that functions a.b.c use, and use through others.

        Nothing counts of what has a name in `exempt`, or is below one: packages, modules,
        definitions. `a.b.__init__` is a package's own file.
        """
        search = _Search(self, exempt, list(functions))
        while search.todo:
            search.follow(search.todo.pop())
        return dict(sorted(search.modules.items()))


class _Search:
    """A search under way: `todo` are names a.b.c that are yet to be followed."""

    def __init__(self, sources: Sources, exempt: Collection[str], todo: list[str]) -> None:
        self.sources, self.exempt, self.todo = sources, exempt, todo
        self.modules: dict[str, Module] = {}
        self._seen: set[str] = set()

    def follow(self, dotted: str) -> None:
        """Count the module that a name is in, and what stands behind the name."""
        if dotted in self._seen or self._is_exempt(dotted):
            return
        self._seen.add(dotted)
        module, rest = self.sources.split(dotted)
        if module is None:
            return
        self._enter(module)
        if not rest:  # The module is handed on whole: anything of it may be used.
            self.todo += [
                f"{module.name}.{name}" for name in (*module.definitions, *module.imports)
            ]
            return
        name, *attributes = rest
        if name in module.imports:
            self.todo.append(".".join([module.imports[name], *attributes]))
        if name in module.definitions:
            self._add(module.definitions[name])

    def _enter(self, module: Module) -> None:
        """Count a module and the packages around it."""
        parts = module.name.split(".")
        for length in range(1, len(parts) + 1):
            name = ".".join(parts[:length])
            each = self.sources.find(name)
            if each is None or name in self.modules or self._is_exempt(f"{name}.__init__"):
                continue
            self.modules[name] = each
            self._add(each.effects)

    def _add(self, uses: Uses) -> None:
        self.todo += uses.names
        for dotted in uses.imported:
            module, _ = self.sources.split(dotted)
            if module is not None and not self._is_exempt(module.name):
                self._enter(module)

    def _is_exempt(self, dotted: str) -> bool:
        parts = dotted.split(".")
        return any(".".join(parts[:length]) in self.exempt for length in range(1, len(parts) + 1))


def _read(name: str, folder: Path) -> Module | None:
    """The package in a folder, or the module beside it."""
    for file in (folder / "__init__.py", folder.with_name(f"{folder.name}.py")):
        if file.is_file():
            return _parsed(name, file, file.read_bytes())
    return None


@cache
def _parsed(name: str, file: Path, content: bytes) -> Module:
    return Module(name, file, content)
