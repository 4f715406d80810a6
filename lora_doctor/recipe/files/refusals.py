"""What every framework refuses: settings that exclude each other, and values that are none of those
which an argument can have."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_doctor.recipe.files.remark import Remark
from lora_doctor.static.installed.framework_fields import Fields

#: The values that trainers know of an argument.
Known = Callable[[str], tuple[str, ...]]
#: What a command line writes for values that are no strings.
_NO_STRINGS = frozenset({"", "true", "false", "none", "null"})
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(r"[+-]?\d+")
#: How alike a mistyped value and the one that was meant are.
_NEAR = 0.8
#: Characters of a message by which it is the same.
_SAME = 40
#: How alike a mistyped name of an open list is: users may have names of their own.
_NEARER = 0.85
#: Choices that are named where as many are equally near.
_NAMED = 3


def both_on(pairs: Iterable[tuple[str, str]]) -> Iterator[Remark]:
    """Of two entries the training arguments allow one to be on."""
    for names in pairs:
        yield Remark(
            "refused", names, "raises ValueError, as at most one of them can be on",
            "the class of its training arguments", f"Keep {names[0]} or {names[1]}.",
        )  # fmt: skip


def not_together(
    fields: Fields | None, entries: Mapping[str, Any], told: Iterable[Remark]
) -> Iterator[Remark]:
    """What the framework's own checks refuse of these entries. ``told``: what is said already, and
    with the change that mends it."""
    for check in fields.checks if fields is not None else ():
        written = tuple(name for name in check.names if name in entries)
        known = any(check.message[:_SAME] in remark.what for remark in told)
        if written and not known and check.applies(entries, fields.defaults if fields else {}):
            yield Remark(
                "refused", written, f"raises {check.message.rstrip('.')}", check.source,
                f"Change {' or '.join(written)}, as the message says.",
            )  # fmt: skip


def none_of_the_choices(
    fields: Fields | None,
    entries: Mapping[str, Any],
    extended: bool = False,
    known: Known = lambda name: (),
) -> Iterator[Remark]:
    """Entries with a value that their argument does not have. ``extended``: whether code of the
    user's may register further names. ``known``: the values of an argument that the trainers know,
    beside which those of the user's own may have others."""
    for name, given in entries.items() if fields is not None else ():
        assert fields is not None
        several = isinstance(given, list)
        for value in given if several else [given]:
            if not isinstance(value, str) or value.lower() in _NO_STRINGS:
                continue
            found = _refused(fields, name, value, extended, known)
            if found is not None and several:
                found = _in_list(found, value, given)
            if found is not None:
                yield found


def _refused(fields: Fields, name: str, value: str, extended: bool, known: Known) -> Remark | None:
    if name in fields.choices:
        return _closed(name, value, fields.choices[name], fields.origin)
    registered = () if extended else fields.registered.get(name, ())
    if registered and fields.installed:  # in this release, nothing else is one
        return _closed(name, value, registered, fields.origin)
    asked = fields.installed and name in fields.names and value != fields.defaults.get(name)
    listed = registered or (known(name) if asked else ())
    return _mistyped(name, value, listed, fields.origin)


def _in_list(remark: Remark, wrong: str, given: list[Any]) -> Remark | None:
    """The remark on a value of a list, which is written anew as a whole; of lists, nothing is said
    where no other value was meant."""
    if not remark.entries:
        return None
    ((name, near),) = remark.entries
    return replace(remark, entries=((name, [near if one == wrong else one for one in given]),))


def texts_for_others(
    fields: Fields | None, entries: Mapping[str, Any], in_file: Collection[str]
) -> Iterator[Remark]:
    """Numbers and switches in quotes, of a framework that takes the values of a file as they are.
    ``in_file``: the entries that a file has; a command line's are texts, and converted."""
    for name, value in entries.items() if fields is not None else ():
        assert fields is not None
        kind = fields.kinds.get(name, "")
        if not fields.installed:  # a table has no annotations
            kind = type(fields.defaults.get(name)).__name__
        if name not in in_file or not isinstance(value, str):
            continue
        if kind in ("int", "float") and _NUMBER.fullmatch(value):
            number = int(value) if kind == "int" and _WHOLE.fullmatch(value) else float(value)
            yield Remark(
                "refused", (name,),
                f"takes {value!r} as the text that it is, and raises where it counts with it",
                f"{fields.origin}: {name} is a number", "Write it without quotes.",
                ((name, number),), safe=True,
            )  # fmt: skip
        elif kind == "bool" and value.lower() == "false":
            yield Remark(
                "unread", (name,), f"takes {value!r} as the text that it is, which counts as true",
                f"{fields.origin}: {name} is a switch", "Write it without quotes.",
                ((name, False),),
            )  # fmt: skip


def _closed(name: str, value: str, choices: tuple[str, ...], origin: str) -> Remark | None:
    if _is_one(value, choices):
        return None
    near = nearest(value, choices, _NEAR)
    return _remark(name, f"takes {_listed(choices)}, not {value}", near, origin)


def _mistyped(name: str, value: str, choices: tuple[str, ...], origin: str) -> Remark | None:
    """Of a list that releases and plugins add to: only what is nearly one of its names, and differs
    in more than a number (a template of the next generation of a model is no mistake)."""
    if not choices or _is_one(value, choices):
        return None
    near = nearest(value, choices, _NEARER)
    if not near or _letters(near[0]) == _letters(value):
        return None
    return _remark(name, f"has no {name} {value}; the nearest is {' or '.join(near)}", near, origin)


def nearest(value: str, choices: Collection[str], cutoff: float) -> list[str]:
    """The choices that may have been meant; several where none is nearer than the others.

    One with the same letters comes first: difflib takes two that are swapped for two mistakes, and
    would rather have `chatglm4` for `chatlm` than `chatml`.
    """
    swapped = [one for one in choices if sorted(one) == sorted(value)]
    if swapped:
        return swapped
    near = difflib.get_close_matches(value, choices, n=_NAMED, cutoff=cutoff)
    ratios = [difflib.SequenceMatcher(None, one, value).ratio() for one in near]
    return [one for one, ratio in zip(near, ratios, strict=True) if ratio == max(ratios)]


def _remark(name: str, what: str, near: Sequence[str], origin: str) -> Remark:
    if len(near) == 1:
        return Remark(
            "refused", (name,), what, origin, f"Write {near[0]}.", ((name, near[0]),), safe=True
        )
    words = f"Write the one that is meant: {' or '.join(near)}." if near else "Write one of these."
    return Remark("refused", (name,), what, origin, words)


def _is_one(value: str, choices: tuple[str, ...]) -> bool:
    return value in choices or any(
        one.startswith("^") and re.match(one, value) is not None for one in choices
    )


def _listed(choices: tuple[str, ...]) -> str:
    shown = [one for one in choices if not one.startswith("^")]
    more = f" or {len(shown) - 12} others" if len(shown) > 12 else ""
    return ", ".join(shown[:12]) + more


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())
