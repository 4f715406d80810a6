"""Names and entries of a program: what assignments, augmented ones and deletions do to them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import libcst as cst

from lora_doctor.limits import step
from lora_doctor.static.program.expressions import combined
from lora_doctor.static.program.values import (
    LONGEST,
    Instance,
    Items,
    Known,
    Mapping,
    Scope,
    Thing,
    Unknown,
    Value,
    same,
)

#: Under which a thing of a library's has the entries that the program has set.
ENTRIES = "[...]"


class Bindings(ABC):
    """Follows what is bound to a name, an attribute or an entry; the value of a node is left to the
    subclass."""

    scope: Scope
    #: The conditions around that are not known, and the loops of which one round stands for all.
    unsure: int
    repeated: int
    #: The ``except`` blocks around.
    handling: int

    @abstractmethod
    def value(self, node: cst.BaseExpression) -> Value: ...

    @abstractmethod
    def unknown(self, node: cst.CSTNode, advice: str = "") -> Unknown: ...

    @abstractmethod
    def note_read(
        self, owner: Thing, name: str, node: cst.CSTNode, kind: str = "attribute"
    ) -> None: ...

    def _assign(self, node: cst.Assign) -> None:
        value = self.value(node.value)
        for target in node.targets:
            self.bind(target.target, value)

    def _annassign(self, node: cst.AnnAssign) -> None:
        if node.value is not None:
            self.bind(node.target, self.value(node.value))

    def _augassign(self, node: cst.AugAssign) -> None:
        old, new = self.value(node.target), self.value(node.value)
        if self.doubted(old, node):
            if not isinstance(old, (Items, Mapping)):
                self.bind(node.target, self.unknown(node.target))
            return
        kind = type(node.operator).__name__.removesuffix("Assign")
        if isinstance(old, Items) and old.kind != "tuple":  # changed under every name
            self._augment(old, new, kind, node)
            return
        if isinstance(old, Mapping) and isinstance(new, Mapping) and kind == "BitOr":
            old.take(new)
            return
        self.bind(node.target, combined(kind, old, new) or self.unknown(node.target))

    def _augment(self, old: Items, new: Value, kind: str, node: cst.AugAssign) -> None:
        """``list += items`` and ``set |= items``; what else changes one is not followed."""
        joins = kind == {"list": "Add", "set": "BitOr"}.get(old.kind)
        fits = isinstance(new, Items) and len(old.items) + len(new.items) <= LONGEST
        if joins and fits and isinstance(new, Items):
            old.items.extend(new.items)
            old.gaps += new.gaps
        else:
            old.gaps.append(self.unknown(node.value))

    def doubted(self, value: Value, node: cst.CSTNode) -> bool:
        """Whether a change of a value that is made here may be made never, or several times: then
        nobody knows what is in it."""
        if not self.unsure and not self.repeated:
            return False
        if isinstance(value, (Items, Mapping)):
            self._lose(value, node)
        return True

    def _lose(self, value: Items | Mapping, node: cst.CSTNode) -> None:
        """Note that a change of a value is not known."""
        if isinstance(value, Mapping):
            value.lose(self.unknown(node))
        else:
            value.gaps.append(self.unknown(node))

    def bind(self, target: cst.CSTNode, value: Value) -> None:
        step()
        if isinstance(target, cst.Name):
            self.scope.names[target.value] = value
        elif isinstance(target, (cst.Tuple, cst.List)):
            if isinstance(value, Thing):
                self.note_read(value, "", target, "unpacked")
            for number, element in enumerate(target.elements):
                self.bind(element.value, self._part(value, number, element))
        elif isinstance(target, cst.Attribute):
            owner = self.value(target.value)
            if isinstance(owner, (Thing, Instance)):
                self._bind_attribute(owner, target, value)
            elif isinstance(owner, Mapping):
                owner.take(Mapping({target.attr.value: value}))
        elif isinstance(target, cst.Subscript):
            self._bind_entry(target, value)

    def _bind_attribute(self, owner: Thing | Instance, target: cst.Attribute, value: Value) -> None:
        """Set an attribute; in doubt where it is not known whether this line is reached. What an
        ``except`` block sets counts where nothing else does, as it does for names."""
        name = target.attr.value
        old = owner.attributes.get(name)
        new = old is None and (isinstance(owner, Instance) or self.handling)
        if not self.unsure or new or (old is not None and same(old, value)):
            owner.attributes[name] = value
        elif not self.handling:
            owner.attributes[name] = self.unknown(target)

    def _bind_entry(self, target: cst.Subscript, value: Value) -> None:
        owner = self.value(target.value)
        index = target.slice[0].slice if len(target.slice) == 1 else None
        key = self.value(index.value) if isinstance(index, cst.Index) else None
        if isinstance(owner, Thing):  # only its library knows what is in it now
            owner.attributes[ENTRIES] = self.unknown(target)
        elif isinstance(owner, Mapping) and isinstance(key, Known):
            known = not self.unsure and not self.repeated
            owner.entries[str(key.value)] = value if known else self.unknown(target)
            owner.spans.pop(str(key.value), None)
        elif isinstance(owner, (Items, Mapping)) and not self.doubted(owner, target):
            place = key.value if isinstance(key, Known) else None
            if isinstance(owner, Items) and type(place) is int and -1 < place < len(owner.items):
                owner.items[place] = value
            else:
                self._lose(owner, target)

    def _del(self, node: cst.Del) -> None:
        targets = (
            [element.value for element in node.target.elements]
            if isinstance(node.target, cst.Tuple)
            else [node.target]
        )
        for target in targets:
            if isinstance(target, cst.Subscript):
                self._remove_entry(target)

    def _remove_entry(self, target: cst.Subscript) -> None:
        owner = self.value(target.value)
        if not isinstance(owner, (Items, Mapping)) or self.doubted(owner, target):
            return
        index = target.slice[0].slice if len(target.slice) == 1 else None
        key = self.value(index.value) if isinstance(index, cst.Index) else None
        if isinstance(owner, Mapping) and isinstance(key, Known) and owner.open is None:
            owner.entries.pop(str(key.value), None)
        else:
            self._lose(owner, target)

    def _part(self, value: Value, number: int, node: cst.CSTNode) -> Value:
        """What is unpacked at a place: of a loader that returns a pair the model comes first."""
        if isinstance(value, Items) and number < len(value.items):
            return value.items[number]
        if isinstance(value, Thing) and number == 0:
            return value
        return self.unknown(node)
