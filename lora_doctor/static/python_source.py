"""Python of other people as a syntax tree, within limits: parsed, walked, written out again.

`ast` cannot be interrupted and takes some 500 bytes for each node, so tokens are counted before.
The walks count their steps: what a reader does for each node it may do for many nodes of others.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import deque
from collections.abc import Iterator

from lora_doctor.errors import NotPythonError
from lora_doctor.limits import PYTHON_TOKENS, check_items, step

_TOKEN = re.compile(rb"\w+|[^\w\s]")

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def count_tokens(content: str | bytes) -> int:
    """About as many as Python's tokenizer finds, those in comments and texts included."""
    if isinstance(content, str):
        content = content.encode("utf-8", "replace")
    return sum(1 for _ in _TOKEN.finditer(content))


def parse_python(content: str | bytes, name: str) -> ast.Module:
    """The syntax tree of a file that is called `name` in messages; nothing in it is run.

    Raises:
        NotPythonError: it is none.
        LimitError: it has more tokens than are read.
    """
    check_items(count_tokens(content), PYTHON_TOKENS, name, "tokens")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in somebody's code is not our user's concern
            return ast.parse(content)
    except SyntaxError as error:
        line = f" at line {error.lineno}" if error.lineno else ""
        raise NotPythonError(f"not Python: {error.msg}{line}", remedy="file") from None
    except (ValueError, UnicodeError):
        raise NotPythonError(
            "not Python: it holds bytes that are not text", remedy="file"
        ) from None
    except (RecursionError, MemoryError):
        raise NotPythonError("nested too deeply to be read") from None


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """`ast.walk`, with a step for each node."""
    todo = deque([node])
    step()
    while todo:
        each = todo.popleft()
        children = list(ast.iter_child_nodes(each))
        step(len(children))  # a caller that stops at the first still pays for the whole level
        todo.extend(children)
        yield each


def unparse(node: ast.AST) -> str:
    """`ast.unparse`, with a step for each node."""
    for _ in walk(node):
        pass
    return ast.unparse(node)


def dump(node: ast.AST) -> str:
    """`ast.dump`, with a step for each node."""
    for _ in walk(node):
        pass
    return ast.dump(node)


def last_name(function: ast.expr) -> str:
    """``step`` of ``self.optimizer.step`` and of ``step``; empty for what has no name."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def short_text(node: ast.AST) -> str:
    """The code on one line, its first 80 characters."""
    text = " ".join(unparse(node).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
