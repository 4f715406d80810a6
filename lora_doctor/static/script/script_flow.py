"""One function of a training script, followed from top to bottom: what replaces bad numbers."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from lora_doctor.static.python_source import unparse, walk
from lora_doctor.static.script.script_sinks import (
    Sinks,
    is_append,
    is_backward,
    is_copy_to,
    is_lost,
    own_nodes,
)
from lora_doctor.static.script.script_values import Called, Kind, Scope, called, same

How = Literal["nan_to_num", "constant", "clamp"]
#: Functions of such a name look at the model and do not train it.
_EVALUATION = re.compile(
    r"_*(eval|valid|test|predict|infer|generat|compute_metric|metric|sample|visuali|plot|log|"
    r"report|preprocess_logits|preprocess|collate|load|__repr__)"
)
_IN_PLACE = re.compile(r"[a-z]\w*[^_]_")
_LEAVES = (ast.Raise, ast.Continue, ast.Break)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True)
class Replacement:
    """A place where a value that may not be finite is replaced."""

    #: What is replaced.
    what: Kind
    #: The value that is replaced, as it is written.
    value: str
    #: How it is replaced.
    how: How
    #: What replaces it, as it is written.
    by: str
    #: The line of the script, from 1.
    line: int
    #: The statement as it is written.
    code: str
    #: The function that it stands in; empty at the top of the file.
    function: str
    #: Whether it is replaced only where a test found it not finite.
    guarded: bool = False


class Flow:
    """Follows one function from top to bottom, once."""

    def __init__(
        self,
        code: Callable[[ast.AST], str],
        scope: Scope,
        name: str,
        body: list[ast.stmt],
        is_module: bool,
        *,
        quiet: bool,
    ) -> None:
        self.code = code
        self.scope = scope
        self.name = name
        self.body = body
        own = list(own_nodes(body))
        trains = any(is_backward(node) for node in own)
        self.evaluates = not trains and bool(_EVALUATION.match(name))
        self.sinks = Sinks(own, returns=not is_module)
        self.quiet = int(quiet)  # inside torch.no_grad()

    def run(self) -> Iterator[Replacement]:
        yield from self._block(self.body)

    def _block(self, body: list[ast.stmt]) -> Iterator[Replacement]:
        for statement in body:
            yield from self._statement(statement)

    def _statement(self, node: ast.stmt) -> Iterator[Replacement]:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            return
        if isinstance(node, ast.If):
            yield from self._guard(node)
            yield from self._block(node.body)
            yield from self._block(node.orelse)
            return
        if isinstance(node, (ast.With, ast.AsyncWith)):
            silent = any(without_gradients(item.context_expr, self.scope) for item in node.items)
            self.quiet += silent
            yield from self._block(node.body)
            self.quiet -= silent
            return
        if isinstance(node, (ast.For, ast.AsyncFor)):
            self._loop_variable(node)
        for inner in _blocks(node):
            yield from self._block(inner)
        if not hasattr(node, "body"):
            yield from self._simple(node)
            self._assign(node)

    def _assign(self, node: ast.stmt) -> None:
        """Remember what the names stand for that this statement sets."""
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self.scope.assign(target, node.value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self.scope.assign(node.target, node.value)

    def _loop_variable(self, node: ast.For | ast.AsyncFor) -> None:
        """``for p in model.parameters()`` and ``for name, p in model.named_parameters()``."""
        part = called(node.iter, self.scope.names)
        if part is None or part.name not in ("parameters", "named_parameters"):
            return
        target = node.target
        if part.name == "named_parameters" and isinstance(target, ast.Tuple) and target.elts:
            target = target.elts[-1]
        if isinstance(target, ast.Name):
            self.scope.kinds[target.id] = "weight"

    # -- one statement ----------------------------------------------------------------------------

    def _simple(self, node: ast.stmt) -> Iterator[Replacement]:
        """Replacements inside a statement without a body."""
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            yield from self._masked(node, node.targets[0], node.value)
        for expression in _expressions(node):
            found = self._replacement(expression)
            if found is None:
                continue
            value, how, by, guarded = found
            kind = self._counts(value)
            if kind is not None and self._goes_on(node, expression, value, kind):
                yield self._made(node, kind, value, how, by, guarded)

    def _masked(self, node: ast.stmt, target: ast.expr, value: ast.expr) -> Iterator[Replacement]:
        """``x[torch.isnan(x)] = 0``."""
        if not isinstance(target, ast.Subscript) or not self.scope.constant(value):
            return
        tested = self.scope.non_finite(target.slice)
        if not any(bad and self._is(subject, target.value) for subject, bad in tested):
            return
        kind = self._counts(target.value)
        if kind is not None and self.sinks.takes(target.value, kind):
            yield self._made(node, kind, target.value, "constant", unparse(value), True)

    def _replacement(self, node: ast.expr) -> tuple[ast.expr, How, str, bool] | None:
        """``(value, how, by what, guarded)`` where this expression replaces bad numbers."""
        if isinstance(node, ast.IfExp):
            return self._conditional(node)
        part = called(node, self.scope.names)
        if part is None:
            return None
        name = part.name.rstrip("_")
        if name == "nan_to_num" and part.value is not None:
            given = part.keywords.get("nan") or (part.rest[0] if part.rest else None)
            by = unparse(given) if given is not None else "0"
            return part.value, "nan_to_num", by, False
        if name == "where":
            return self._where(part)
        if name == "masked_fill" and part.value is not None and len(part.rest) == 2:
            tested = self.scope.non_finite(part.rest[0])
            if any(bad and self._is(subject, part.value) for subject, bad in tested):
                return part.value, "constant", unparse(part.rest[1]), True
        if name in ("clamp", "clip") and part.value is not None:
            bounds = [
                bound
                for bound in (*part.rest[:2], part.keywords.get("min"), part.keywords.get("max"))
                if bound is not None
            ]
            upper = part.keywords.get("max") or (part.rest[1] if len(part.rest) > 1 else None)
            if self.scope.is_large(upper) and all(self.scope.is_large(item) for item in bounds):
                by = " and ".join(unparse(item) for item in bounds)
                return part.value, "clamp", by, False
        return None

    def _where(self, part: Called) -> tuple[ast.expr, How, str, bool] | None:
        """``torch.where(bad, constant, x)``, ``torch.where(good, x, constant)`` and
        ``x.where(good, constant)``."""
        if part.method:
            if part.value is None or len(part.rest) != 2:
                return None
            test, if_true, if_false = part.rest[0], part.value, part.rest[1]
        else:
            if part.value is None or len(part.rest) != 2:
                return None
            test, if_true, if_false = part.value, part.rest[0], part.rest[1]
        for subject, bad in self.scope.non_finite(test):
            kept, put = (if_false, if_true) if bad else (if_true, if_false)
            if self._is(subject, kept) and self.scope.constant(put):
                return kept, "constant", unparse(put), True
        return None

    def _conditional(self, node: ast.IfExp) -> tuple[ast.expr, How, str, bool] | None:
        """``loss if torch.isfinite(loss) else torch.zeros_like(loss)``."""
        for subject, bad in self.scope.non_finite(node.test):
            kept, put = (node.orelse, node.body) if bad else (node.body, node.orelse)
            if self._is(subject, kept) and self.scope.constant(put):
                return kept, "constant", unparse(put), True
        return None

    # -- a guard and what it does -----------------------------------------------------------------

    def _guard(self, node: ast.If) -> Iterator[Replacement]:
        """``if torch.isnan(loss): loss = torch.tensor(0.0)``."""
        for subject, bad in self.scope.non_finite(node.test):
            branch = node.body if bad else node.orelse
            kind = self._counts(self.scope.stem(subject))
            if kind is None or not branch or _leaves(branch[-1]):
                continue
            for statement in branch:
                found = self._put(statement, self.scope.stem(subject))
                if found is None:
                    continue
                how, by = found
                subject_value = self.scope.stem(subject)
                if isinstance(statement, ast.Return) or self.sinks.takes(subject_value, kind):
                    yield self._made(statement, kind, subject_value, how, by, True)

    def _put(self, node: ast.stmt, subject: ast.expr) -> tuple[How, str] | None:
        """What this statement puts in the place of ``subject``."""
        scope = self.scope
        if isinstance(node, ast.Return) and node.value is not None:
            # None is how Lightning is told to skip a step.
            made = called(node.value, scope.names) is not None and scope.constant(node.value)
            return ("constant", unparse(node.value)) if made else None
        if isinstance(node, ast.Assign) and any(self._is(subject, t) for t in node.targets):
            if scope.constant(node.value):
                return "constant", unparse(node.value)
            part = called(node.value, scope.names)
            if part is not None and part.value is not None and self._is(subject, part.value):
                if part.name in ("clamp", "clip"):
                    return "clamp", " and ".join(
                        unparse(item) for item in (*part.rest, *part.keywords.values())
                    )
                if part.name == "nan_to_num":
                    return "nan_to_num", "0"
            return None
        if isinstance(node, ast.Expr):
            part = called(node.value, scope.names)
            if part is None or part.value is None or not self._is(subject, part.value):
                return None
            if part.name in ("zero_", "fill_", "clamp_", "nan_to_num_"):
                by = ", ".join(unparse(item) for item in part.rest) or "0"
                return ("clamp" if part.name == "clamp_" else "constant"), by
        return None

    # -- questions --------------------------------------------------------------------------------

    def _is(self, one: ast.expr, other: ast.expr) -> bool:
        return same(self.scope.stem(one), self.scope.stem(other))

    def _counts(self, value: ast.expr) -> Kind | None:
        """The kind of a value that is a part of training here; ``None`` for others."""
        kind = self.scope.kind(value)
        if kind in ("gradient", "weight"):
            return kind
        return None if self.evaluates or self.quiet else kind

    def _goes_on(self, node: ast.stmt, at: ast.expr, value: ast.expr, kind: Kind) -> bool:
        """Whether the replaced value is used to train."""
        part = called(at, self.scope.names)
        in_place = part is not None and (
            (part.method and bool(_IN_PLACE.fullmatch(part.name)))
            or part.name.endswith("_")
            or "out" in part.keywords
        )
        if in_place and isinstance(node, ast.Expr):
            return self.sinks.takes(value, kind)
        if _thrown_away(node, at):
            return False
        if isinstance(node, ast.Return):
            return not self.evaluates
        if isinstance(node, ast.Expr):
            if is_append(node.value):
                return self.sinks.takes(node.value.func.value, kind)  # type: ignore[attr-defined]
            return any(is_backward(item) or is_copy_to(item) for item in walk(node))
        if kind == "weight":
            return isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Attribute) and target.attr == "data"
                for target in node.targets
            )
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        return any(target is not None and self.sinks.takes(target, kind) for target in targets)

    def _made(
        self, node: ast.stmt, kind: Kind, value: ast.expr, how: How, by: str, guarded: bool
    ) -> Replacement:
        return Replacement(
            what=kind,
            value=_short(unparse(value)),
            how=how,
            by=_short(by),
            line=node.lineno,
            code=self.code(node),
            function=self.name,
            guarded=guarded,
        )


def _blocks(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The blocks of a loop or a ``try``, each of which may run."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        if isinstance(block, list):
            yield block
    for handler in getattr(node, "handlers", ()):
        yield handler.body


def _thrown_away(node: ast.stmt, at: ast.expr) -> bool:
    """Whether the value is only looked at: it stands inside ``….item()`` or ``….detach()``."""
    return any(
        isinstance(item, ast.Call) and is_lost(item) and any(sub is at for sub in walk(item))
        for item in walk(node)
    )


def _leaves(node: ast.stmt) -> bool:
    """Whether a branch that ends so skips the step or stops the run."""
    if isinstance(node, _LEAVES):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return unparse(node.value.func) in ("sys.exit", "exit", "quit", "os._exit", "os.abort")
    return False


def without_gradients(node: ast.expr, scope: Scope) -> bool:
    """``torch.no_grad()`` of a ``with``, or ``@torch.no_grad`` of a function."""
    function = node.func if isinstance(node, ast.Call) else node
    return scope.names.numeric(function) in ("no_grad", "inference_mode")


def _expressions(node: ast.stmt) -> Iterator[ast.expr]:
    """Expressions of a statement, the bodies of lambdas included."""
    for item in walk(node):
        if isinstance(item, (ast.Call, ast.IfExp)):
            yield item


def _short(text: str, limit: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
