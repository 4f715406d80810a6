"""Call a function when a module has been imported, or import it within a context."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import ModuleType
from typing import Any

Act = Callable[[ModuleType], None]
Context = Callable[[], AbstractContextManager[object]]


class ImportHooks(importlib.abc.MetaPathFinder):
    """Acts by module name. What is imported already is acted on at once."""

    def __init__(self) -> None:
        self._acts: dict[str, list[Act]] = {}
        self._contexts: dict[str, list[Context]] = {}
        self._finding: set[str] = set()

    def after(self, module: str, act: Act) -> None:
        """Call ``act`` with the module once it has been executed."""
        self._acts.setdefault(module, []).append(act)
        loaded = sys.modules.get(module)
        if loaded is not None and not getattr(loaded.__spec__, "_initializing", False):
            act(loaded)

    def within(self, module: str, context: Context) -> None:
        """Execute the module, when it is imported, within what ``context`` returns."""
        self._contexts.setdefault(module, []).append(context)

    def install(self) -> None:
        """Be asked for every import from now on."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Be asked no more; what was done stays done."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not (name in self._acts or name in self._contexts) or name in self._finding:
            return None
        self._finding.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._finding.discard(name)
        if spec is None or spec.loader is None or not hasattr(spec.loader, "exec_module"):
            return spec
        # The list itself: what is added until the module is executed counts.
        acts = self._acts.setdefault(name, [])
        spec.loader = _Acting(spec.loader, acts, self._contexts.get(name, ()))
        return spec


class _Acting(importlib.abc.Loader):
    """The loader of a module within its contexts, and then its acts. Everything else is the
    loader's own."""

    def __init__(self, inner: Any, acts: Sequence[Act], contexts: Sequence[Context]) -> None:
        self._inner = inner
        self._acts = acts
        self._contexts = contexts

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._inner.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._inner
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        with ExitStack() as around:
            for context in self._contexts:
                around.enter_context(context())
            self._inner.exec_module(module)
        for act in self._acts:
            act(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
