"""What an expression of the user's program stands for, as far as its text says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from lora_doctor.static.place import Place
from lora_doctor.static.program.units import Span, Unit

if TYPE_CHECKING:
    import libcst as cst


@dataclass(frozen=True)
class Known:
    """A plain value: text, number, truth value or ``None``. ``span``: the literal; ``None`` where
    it was computed. ``via``: the names that it was read through, the last one last."""

    value: Any
    span: Span | None = None
    via: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """``owner["name"]``, or ``owner.name``, of what a library made."""

    owner: Value
    name: Any
    attribute: bool


@dataclass(frozen=True)
class Unknown:
    """What the text does not say. ``code``: the expression. ``advice``: how to say it. ``part``: of
    what a library made it is a part, where it is one."""

    code: str
    place: Place
    advice: str = ""
    span: Span | None = None
    via: tuple[str, ...] = ()
    part: Part | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"`{self.code}`, {self.place.inside}" + (f": {self.advice}" if self.advice else "")


@dataclass
class Items:
    """A list, tuple or set."""

    items: list[Value]
    kind: str = "list"
    span: Span | None = None
    via: tuple[str, ...] = ()
    #: What changed it in a way that is not known; one list for every name that it is read by.
    gaps: list[Unknown] = field(default_factory=list)
    #: The text that was split into it (``"q_proj,v_proj".split(",")``), and what stands between.
    joined: tuple[Known, str] | None = None

    @property
    def open(self) -> Unknown | None:
        return self.gaps[0] if self.gaps else None


@dataclass
class Mapping:
    """A dictionary with texts as its keys."""

    entries: dict[str, Value]
    span: Span | None = None
    via: tuple[str, ...] = ()
    #: What else may be in it; one list for every name that it is read by.
    gaps: list[Unknown] = field(default_factory=list)
    #: Where entries are written out: the value, and the whole entry.
    spans: dict[str, tuple[Span, Span]] = field(default_factory=dict)

    @property
    def open(self) -> Unknown | None:
        return self.gaps[0] if self.gaps else None

    def lose(self, gap: Unknown) -> None:
        """Note a change that is not known: any entry may be another one now."""
        self.entries.update(dict.fromkeys(self.entries, gap))
        self.spans.clear()
        self.gaps.append(gap)

    def take(self, other: Mapping) -> None:
        """The entries of another dictionary, in the place of those of the same name."""
        for name in other.entries:
            self.spans.pop(name, None)
        self.entries.update(other.entries)
        self.spans.update(other.spans)
        self.gaps += other.gaps


@dataclass(frozen=True)
class Reference:
    """An imported thing by its dotted name, such as ``torch.bfloat16``."""

    name: str
    span: Span | None = None
    via: tuple[str, ...] = ()


@dataclass
class Thing:
    """What a call of code that is not the user's returned."""

    call: Call
    #: Attributes that the program has set on it, the newest last.
    attributes: dict[str, Value] = field(default_factory=dict)
    span: Span | None = None
    via: tuple[str, ...] = ()

    @property
    def made_by(self) -> str:
        return self.call.name


@dataclass
class Function:
    """A function of the user's. ``owner``: the object that it is a method of."""

    node: cst.FunctionDef | cst.Lambda
    unit: Unit
    scope: Scope
    owner: Value | None = None
    name: str = ""
    span: Span | None = None
    via: tuple[str, ...] = ()


@dataclass
class Class:
    """A class of the user's. ``fields``: of a dataclass, with their defaults."""

    name: str
    names: dict[str, Value]
    bases: list[Value]
    fields: dict[str, Value] | None = None
    span: Span | None = None
    via: tuple[str, ...] = ()


@dataclass
class Instance:
    """An object of a class of the user's, or a namespace of arguments. ``made``: what its
    constructor was given, where the class has one."""

    of: Class | None
    attributes: dict[str, Value]
    span: Span | None = None
    via: tuple[str, ...] = ()
    made: tuple[Sequence[Argument], dict[str, Argument]] | None = field(
        default=None, compare=False, repr=False
    )


@dataclass
class ModuleValue:
    """A file of the user's beside the program, imported."""

    scope: Scope
    span: Span | None = None
    via: tuple[str, ...] = ()


Value: TypeAlias = (
    "Known | Unknown | Items | Mapping | Reference | Thing | Function | Class | Instance | "
    "ModuleValue"
)


@dataclass
class Scope:
    """Names of a file or of a function that is being followed."""

    names: dict[str, Value]
    outer: Scope | None = None
    #: Modules of which everything was imported, in order.
    stars: list[str] = field(default_factory=list)

    def find(self, name: str) -> Value | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return None

    def starred(self) -> Iterator[str]:
        """The star-imported modules that are visible here, the newest first."""
        scope: Scope | None = self
        while scope is not None:
            yield from reversed(scope.stars)
            scope = scope.outer


@dataclass(frozen=True)
class Argument:
    """An argument of a call. ``span``: its expression, in the call or in the dictionary that was
    unpacked there; ``whole``: with its name. ``unpacked``: it stands in such a dictionary."""

    name: str
    value: Value
    span: Span
    whole: Span
    unpacked: bool = False


@dataclass(frozen=True)
class ImportedName:
    """A name that the program imports from a library, or a module (``name`` empty). ``certain``:
    the import runs, and nothing is ready for its failure."""

    module: str
    name: str
    span: Span
    certain: bool


@dataclass(frozen=True, eq=False)
class AttributeRead:
    """What is read off a library's object, and not called. ``certain``, ``guarded``: as of a
    :class:`Call`. ``kind``: an ``attribute``, one that is ``indexed`` (an item of it is taken), or
    an ``item`` of the object itself, whose key ``name`` is, or the whole that is ``unpacked`` into
    several names."""

    owner: Thing
    name: str
    span: Span
    certain: bool
    guarded: bool
    kind: str = "attribute"


@dataclass(eq=False)
class Call:
    """One call, in the order in which the program makes them."""

    #: Dotted name of what is called, such as ``peft.get_peft_model``; of a method the name of its
    #: receiver's maker and its own: ``transformers.AutoModel.from_pretrained().add_adapter``.
    name: str
    #: The method's object.
    receiver: Value | None
    positional: tuple[Argument, ...]
    keywords: dict[str, Argument]
    span: Span
    #: Whether it is made whatever the conditions around it are.
    certain: bool
    number: int
    #: A ``**`` or ``*`` whose content is not known.
    open: Unknown | None = None
    #: The statement that it stands in, and the block of it.
    statement: Span | None = None
    block: int = 0
    result: Value | None = None
    node: cst.Call | None = None
    #: Whether a ``try`` around it is ready for a name that is not there.
    guarded: bool = False
    #: The class of the user's that is made, where that is an heir of the library's class.
    heir: Class | None = None

    @property
    def place(self) -> Place:
        return self.span.place

    @property
    def method(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]

    def argument(self, name: str, position: int | None = None) -> Argument | None:
        """The argument of this name or at this position."""
        if name in self.keywords:
            return self.keywords[name]
        if position is not None and position < len(self.positional):
            return self.positional[position]
        return None

    def value(self, name: str, position: int | None = None) -> Value | None:
        found = self.argument(name, position)
        return found.value if found is not None else None


#: Begins the name that stands in ``via`` for an option of the command line: the value is its
#: default.
OPTION = "--"


def through(value: Value, name: str) -> Value:
    """The value, read through a name."""
    if isinstance(value, Known):  # most are; `replace` takes ten times as long
        return Known(value.value, value.span, (*value.via, name))
    if isinstance(value, (Unknown, Reference)):
        return replace(value, via=(*value.via, name))
    if isinstance(value, Items):
        via = (*value.via, name)
        return Items(value.items, value.kind, value.span, via, value.gaps, value.joined)
    if isinstance(value, Mapping):
        via = (*value.via, name)
        return Mapping(value.entries, value.span, via, value.gaps, value.spans)
    return value  # objects are the same object under every name


def plain(value: Value | None) -> Any:
    """The Python value.

    Raises:
        NotPlainError: it, or a part of it, is not known or nothing that a text can hold.
    """
    if isinstance(value, Known):
        return value.value
    if isinstance(value, Items) and value.open is None:
        found = [plain(item) for item in value.items]
        return found if value.kind == "list" else tuple(found)
    if isinstance(value, Mapping) and value.open is None:
        return {key: plain(item) for key, item in value.entries.items()}
    if isinstance(value, Reference):
        return ReferenceName(value.name)
    raise NotPlainError(value)


def constant(value: Value | None) -> Any:
    """The Python value of what holds no imported thing: a name tells nothing of its value.

    Raises:
        NotPlainError: as :func:`plain`, or an imported thing is in it.
    """
    found = plain(value)
    if any(isinstance(leaf, ReferenceName) for leaf in leaves(found)):
        raise NotPlainError(value)
    return found


def leaves(found: Any) -> Iterator[Any]:
    """The single values in what :func:`plain` made."""
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, (list, tuple)):
        for item in found:
            yield from leaves(item)
    else:
        yield found


class ReferenceName(str):
    """The dotted name of an imported thing as a plain value: ``torch.bfloat16``."""


#: Items of a list and characters of a text beyond which a value is not followed.
LONGEST = 100_000


class NotPlainError(Exception):
    """A value that the text does not say."""

    def __init__(self, value: Value | None) -> None:
        super().__init__()
        self.value = value

    @property
    def unknown(self) -> Unknown | None:
        """The part that is not known, where it is one."""
        if isinstance(self.value, Unknown):
            return self.value
        return self.value.open if isinstance(self.value, (Items, Mapping)) else None


def same(one: Value, other: Value) -> bool:
    """Whether two values are known to be equal."""
    if one is other:
        return True
    if isinstance(one, Known) and isinstance(other, Known):
        return type(one.value) is type(other.value) and bool(one.value == other.value)
    if isinstance(one, Reference) and isinstance(other, Reference):
        return one.name == other.name
    if isinstance(one, Items) and isinstance(other, Items):
        if one.open or other.open:
            return False
        return len(one.items) == len(other.items) and all(map(same, one.items, other.items))
    return False
