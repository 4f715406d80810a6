"""What the order of a program's calls proves, each with the change of the text that mends it."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.recipe.edit import Rewrite
from lora_doctor.recipe.program.caught import is_caught
from lora_doctor.recipe.program.objects import (
    is_adding,
    is_none,
    is_optimizer,
    is_preparation,
    is_saved_adapter,
    is_trainer,
    is_wrap,
    loader_of,
    makers,
    trainer_with,
    wrappers,
)
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.recipe.program.splices import Splice, added, removed
from lora_doctor.static.place import Place
from lora_doctor.static.program.units import Span
from lora_doctor.static.program.values import Call, Items, Known, Thing, Value

_UNDO = ("unload", "merge_and_unload", "get_base_model", "delete_adapter")
_MERGE = ("merge_and_unload", "merge_adapter")


@dataclass(frozen=True)
class Slip:
    """Two calls of which the later one undoes or misses what the earlier one made."""

    #: Where the call is that has to change.
    place: Place
    #: Its text, on one line.
    code: str
    #: Where the other call is.
    other_place: Place
    #: Its text, on one line.
    other_code: str
    #: The changes of the text that mend it; empty where it has to be done by hand.
    rewrites: tuple[Rewrite, ...] = ()


def prepared_after_adapters(setup: Setup) -> Iterator[Slip]:
    """``prepare_model_for_kbit_training`` on a model that has its adapters."""
    calls = setup.program.calls
    for call in calls:
        if not is_preparation(call) or not call.certain:
            continue
        model = call.value("model", 0)
        wrap = adapted_by(setup, model, call)
        again = any(
            later.number > call.number
            and (is_wrap(later) or is_adding(later) or later.method in ("set_adapter", *_UNDO))
            and _same_model(later, model)
            for later in calls
        )
        if wrap is not None and not again:
            yield slip(call, wrap, _moved_before(call, wrap))


def loaded_frozen(setup: Setup) -> Iterator[Slip]:
    """A saved adapter that is loaded for inference and then trained."""
    if any("requires_grad" in unit.text for unit in setup.program.units):
        return  # the program may unfreeze it by itself
    for call in setup.program.calls:
        if not is_saved_adapter(call) or not call.certain or call.open is not None:
            continue
        wanted = call.value("is_trainable", 3)
        if wanted is not None and not (isinstance(wanted, Known) and wanted.value is False):
            continue
        user = _trained_by(setup, call)
        if user is None:
            continue
        argument = call.argument("is_trainable", 3)
        if argument is not None:
            change: Splice | None = (argument.span, "True")
        else:
            change = added(call, "is_trainable", "True")
        yield slip(call, user, [change] if change else [])


def merged_after_wrapping(setup: Setup) -> Iterator[Slip]:
    """``merge_and_unload`` or ``merge_adapter`` of the model that was adapted and trained."""
    for call in setup.program.calls:
        if call.method in _MERGE and call.certain:
            wrap = _adapts_what_trains(setup, call)
            if wrap is not None:
                yield slip(call, wrap, [])


def merges(setup: Setup, error: type[BaseException]) -> Iterator[Slip]:
    """``merge_and_unload`` or ``merge_adapter``, and what put the adapters on: the model that was
    trained, or a saved adapter on the model that is loaded, where nothing is trained. Not where
    the program goes on if that raises ``error``."""
    loaded = setup.saved_adapter is not None and not setup.saved_adapter.trained
    for call in setup.program.calls:
        if call.method not in _MERGE or not call.certain or is_caught(call, error):
            continue
        wrap = _adapts_what_trains(setup, call)
        if wrap is None and loaded and loader_of(call.receiver) is setup.roles.loader:
            wrap = next(iter(wrappers(call.receiver)), None)
        if wrap is not None:
            yield slip(call, wrap, [])


def _adapts_what_trains(setup: Setup, merge: Call) -> Call | None:
    """What puts the adapters on that are merged, where that model is the one that was trained;
    others may be loaded anew, without quantization, to be merged into."""
    trainer = trainer_with(merge.receiver)
    if trainer is not None and not is_none(trainer.value("peft_config")):
        return trainer if trainer is setup.roles.trainer else None
    trained = loader_of(merge.receiver) is setup.roles.loader
    return adapted_by(setup, merge.receiver, merge) if trained else None


def adapted_twice(setup: Setup) -> Iterator[Slip]:
    """``get_peft_model`` on a model that has adapters."""
    for call in setup.program.calls:
        if call.certain and is_wrap(call) and is_none(call.value("mixed", 3)):
            wrap = adapted_by(setup, call.value("model", 0), call)
            if wrap is not None:
                yield slip(call, wrap, [])


def adapted_by_the_trainer_too(setup: Setup) -> Iterator[Slip]:
    """A trainer with ``peft_config`` and a model that has adapters."""
    for call in setup.program.calls:
        argument = call.argument("peft_config")
        if not (call.certain and is_trainer(call)) or argument is None or is_none(argument.value):
            continue
        wrap = adapted_by(setup, call.value("model", 0), call)
        if wrap is not None:
            change = None if argument.unpacked else removed(call, argument)
            yield slip(call, wrap, [change] if change else [])


def optimizer_too_early(setup: Setup) -> Iterator[Slip]:
    """An optimizer over a model's parameters that is made before the adapters are put on, and is
    the one that steps."""
    calls = setup.program.calls
    for call in calls:
        if not is_optimizer(call) or not call.certain:
            continue
        loader = _optimized(setup, call)
        if loader is None or not _is_used(setup, call):
            continue
        if any(_loader_of_wrap(one) is loader and one.number < call.number for one in calls):
            continue
        wrap = next((one for one in calls if one.number > call.number and one.certain
                     and _loader_of_wrap(one) is loader), None)  # fmt: skip
        if wrap is not None:
            yield slip(call, wrap, _moved_behind(call, wrap))


def adapted_by(setup: Setup, value: Value | None, before: Call) -> Call | None:
    """The call that has put adapters on this model earlier and was not undone."""
    loader = loader_of(value)
    if loader is None:
        return None
    found: Call | None = None
    for call in setup.program.calls:
        if call.number >= before.number:
            break
        if _loader_of_wrap(call) is loader and call.certain:
            found = call
        elif call.method in _UNDO and loader_of(call.receiver) is loader:
            found = None
    return found


def _loader_of_wrap(call: Call) -> Call | None:
    """The loader of the model that a call puts adapters on; ``None`` for every other call."""
    if is_wrap(call) or (is_saved_adapter(call) and call.value("model", 0) is not None):
        return loader_of(call.value("model", 0))
    return loader_of(call.receiver) if is_adding(call) else None


def _same_model(call: Call, model: Value | None) -> bool:
    owner = call.receiver if call.receiver is not None else call.value("model", 0)
    return loader_of(owner) is loader_of(model)


def _trained_by(setup: Setup, adapter: Call) -> Call | None:
    """The trainer that trains the model with this adapter, or the optimizer that steps it."""
    for call in setup.program.calls:
        if not call.certain or call.number < adapter.number:
            continue
        trains = is_trainer(call) and is_none(call.value("peft_config"))
        if trains and _is_as_loaded(call.value("model", 0), adapter) and _is_started(setup, call):
            return call
    return None


def _is_as_loaded(value: Value | None, adapter: Call) -> bool:
    """Whether a model is what this call loaded, and nothing was put on or taken off since."""
    for call in makers(value):
        if call is adapter:
            return True
        if is_wrap(call) or call.method in (*_UNDO, "set_adapter", "train_adapter"):
            return False
    return False


def _is_started(setup: Setup, trainer: Call) -> bool:
    return any(
        call.method == "train"
        and isinstance(call.receiver, Thing)
        and call.receiver.call is trainer
        for call in setup.program.calls
    )


def _optimized(setup: Setup, optimizer: Call) -> Call | None:
    """The loader of the model whose parameters an optimizer is given."""
    for call in setup.program.calls:
        if call.method not in ("parameters", "named_parameters"):
            continue
        inside = (
            call.span.unit is optimizer.span.unit
            and optimizer.span.start <= call.span.start
            and call.span.end <= optimizer.span.end
        )
        if inside:
            return loader_of(call.receiver)
    return None


def _is_used(setup: Setup, optimizer: Call) -> bool:
    """Whether this optimizer steps, or a trainer is given it; not where groups are added later."""
    used = False
    for call in setup.program.calls:
        own = isinstance(call.receiver, Thing) and call.receiver.call is optimizer
        if own and call.method == "add_param_group":
            return False
        used = used or (own and call.method == "step")
        used = used or (is_trainer(call) and _holds(call.value("optimizers"), optimizer))
    return used


def _holds(value: Value | None, call: Call) -> bool:
    if isinstance(value, Items):
        return any(_holds(item, call) for item in value.items)
    return isinstance(value, Thing) and value.call is call


def slip(call: Call, other: Call, changes: list[Splice]) -> Slip:
    """Of two calls the first has to change, and the changes of the text that do it."""
    editable = all(span.unit.editable for span, _ in changes)
    rewrites = tuple(rewrite_of(change) for change in changes) if editable else ()
    return Slip(call.place, one_line(call), other.place, one_line(other), rewrites)


def rewrite_of(change: Splice) -> Rewrite:
    """A change of a piece of text as a fix carries it."""
    span, new = change
    return Rewrite(span.start, span.end, span.text, new, span.unit.cell)


def one_line(call: Call) -> str:
    """The call as it is written, on one line and not too long."""
    text = " ".join(call.span.text.split())
    return text if len(text) <= 120 else f"{text[:117]}..."


# --- moving a statement --------------------------------------------------------------------


def _moved_before(call: Call, other: Call) -> list[Splice]:
    """The statement of ``call`` on a line before that of ``other``."""
    if not _can_move(call, other) or target_of(call) != _first_argument(other):
        return []
    assert call.statement is not None and other.statement is not None
    lines = _lines(call.statement)
    start, _ = other.statement.unit.line_bounds(other.statement.start)
    return [(lines, ""), (Span(other.statement.unit, start, start), _whole(lines))]


def _moved_behind(call: Call, other: Call) -> list[Splice]:
    """The statement of ``call`` on a line after that of ``other``."""
    if not _can_move(call, other):
        return []
    assert call.statement is not None and other.statement is not None
    target = target_of(call)
    between = call.statement.unit.text[call.statement.end : other.statement.start]
    if call.statement.unit is not other.statement.unit or (target and target in between):
        return []
    lines = _lines(call.statement)
    _, end = other.statement.unit.line_bounds(max(other.statement.end - 1, 0))
    text = _whole(lines)
    if not other.statement.unit.text[:end].endswith(("\n", "\r")):
        text = lines.unit.newline + text.rstrip("\r\n")
    return [(lines, ""), (Span(other.statement.unit, end, end), text)]


def _can_move(call: Call, other: Call) -> bool:
    """Whether both stand alone on the lines of one block."""
    if call.statement is None or other.statement is None:
        return False
    same = call.block == other.block or (
        call.statement.unit.cell is not None and _is_at_margin(call) and _is_at_margin(other)
    )
    return same and _is_alone(call.statement) and _is_alone(other.statement)


def _is_at_margin(call: Call) -> bool:
    assert call.statement is not None
    start, _ = call.statement.unit.line_bounds(call.statement.start)
    return start == call.statement.start


def _is_alone(statement: Span) -> bool:
    """Whether the lines of a statement hold nothing else."""
    try:
        tree = ast.parse(textwrap.dedent(_lines(statement).text))
    except (SyntaxError, ValueError):
        return False
    return len(tree.body) == 1


def _lines(statement: Span) -> Span:
    unit = statement.unit
    start, _ = unit.line_bounds(statement.start)
    _, end = unit.line_bounds(max(statement.end - 1, 0))
    return Span(unit, start, end)


def _whole(lines: Span) -> str:
    """The lines, ended by a line break."""
    text = lines.text
    return text if text.endswith(("\n", "\r")) else text + lines.unit.newline


def target_of(call: Call) -> str:
    """``model`` of ``model = ...``; empty for anything else."""
    assert call.statement is not None
    head, equal, _ = call.statement.text.partition("=")
    return head.strip() if equal and head.strip().isidentifier() else ""


def _first_argument(call: Call) -> str:
    found = call.argument("model", 0)
    return found.span.text if found is not None else ""
