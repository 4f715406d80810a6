"""Where the model comes from: a MODEL argument made into a source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_doctor.errors import InputError

if TYPE_CHECKING:
    from lora_doctor.static.hub.snapshot import HubSnapshot

SourceKind = Literal["hub", "folder", "arch", "factory", "module", "script", "environment"]

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


@dataclass(frozen=True)
class ModelSource:
    """Where the model comes from."""

    #: ``hub``: an id of the model hub. ``folder``: a local folder. ``arch``: the default config of
    #: an architecture of the installed transformers. ``factory``: a callable of the user's.
    #: ``module``: a loaded ``nn.Module``. ``script``: a training script or notebook, which is
    #: only read. ``environment``: no model at all; what is installed is looked at.
    kind: SourceKind
    #: Hub id, folder, architecture, ``package.module:factory``, class name of a loaded module, or
    #: path of the script.
    name: str
    #: Revision on the hub.
    revision: str | None = None
    #: Whether Python of the repository may be run.
    trust_remote_code: bool = False
    #: Local folder with its small files.
    folder: str | None = None
    #: Class that a saved adapter was trained on: taken where the model has it and nobody chose.
    preferred_class: str = ""
    #: Folder of a saved adapter that training goes on from; empty without one.
    adapter: str = ""
    #: Rows to which a script resizes the embeddings before it loads that adapter; 0 where it leaves
    #: them as they are.
    rows: int = 0
    #: What a script sets by name when it loads the model for that adapter (``num_labels=5``); the
    #: config takes what it has.
    entries: Mapping[str, Any] = field(default_factory=dict, hash=False)
    #: Names that it sets likewise, to what its text does not tell.
    unknown_entries: tuple[str, ...] = ()
    #: The script or notebook that names it; empty where the user did.
    script: str = ""
    #: Why the small files of a hub id could not be had, where what names the model is looked at
    #: without them; empty otherwise.
    out_of_reach: str = ""
    #: The loaded module.
    module: Any = field(default=None, compare=False, repr=False)
    #: What the hub said about the files in ``folder``: a ``HubSnapshot``. The annotations of this
    #: class are looked up when a stored diagnosis is read, and that module is not imported for it.
    snapshot: Any = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"arch:{self.name}" if self.kind == "arch" else self.name

    def fetched(self, snapshot: HubSnapshot) -> ModelSource:
        """The source of a hub id whose small files are here now."""
        return replace(
            self, folder=str(snapshot.folder), revision=snapshot.commit, snapshot=snapshot
        )

    def to_json(self) -> dict[str, Any]:
        """What a child process needs to find the model; a loaded module stays here."""
        return {
            "kind": self.kind,
            "name": self.name,
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
            "folder": self.folder,
        }

    def for_child(self) -> dict[str, Any]:
        """The same with what only decides how the model is loaded."""
        return {
            **self.to_json(),
            "preferred_class": self.preferred_class,
            "adapter": self.adapter,
            "rows": self.rows,
            "entries": dict(self.entries),
            "unknown_entries": list(self.unknown_entries),
        }


def parse_model(
    model: Any, *, revision: str | None = None, trust_remote_code: bool = False
) -> ModelSource:
    """A source out of a MODEL argument: a string, a path, a loaded ``nn.Module``, or a source.

    Raises:
        InputError: the string has none of the forms, or the folder does not exist.
    """
    if isinstance(model, ModelSource):
        return model
    if isinstance(model, Path):
        return _folder(model, trust_remote_code)
    if isinstance(model, str):
        return _named(model.strip(), revision, trust_remote_code)
    if callable(getattr(model, "named_modules", None)):
        return ModelSource("module", type(model).__name__, module=model)
    raise InputError(f"MODEL: expected a string or an nn.Module, got {type(model).__name__}")


def _named(text: str, revision: str | None, trust_remote_code: bool) -> ModelSource:
    """The source that a MODEL on the command line names."""
    if text.startswith("arch:"):
        name = text.removeprefix("arch:")
        if not re.fullmatch(r"[\w.-]+", name):
            raise InputError(
                f"MODEL {text!r}: write arch:NAME with a model_type, such as arch:llama"
            )
        return ModelSource("arch", name)
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # too long, or below the home of nobody
        raise InputError(
            f"MODEL {text[:80]!r}: {getattr(error, 'strerror', None) or error}"
        ) from None
    if text.endswith((".py", ".ipynb")) and not path.exists():
        raise InputError(f"MODEL {text!r}: no such file; check the path of the training script")
    if text.startswith((".", "/", "~")) or text.endswith("/") or path.exists():
        return _folder(path, trust_remote_code)
    if _FACTORY.fullmatch(text):
        return ModelSource("factory", text, trust_remote_code=True)
    if is_hub_id(text):
        return ModelSource("hub", text, revision, trust_remote_code)
    raise InputError(
        f"MODEL {text!r}: not a folder, and not of the form org/name, arch:NAME or "
        "package.module:factory"
    )


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id."""
    return bool(_HUB_ID.fullmatch(text)) and ".." not in text and "--" not in text


def _folder(path: Path, trust_remote_code: bool) -> ModelSource:
    if not path.exists():
        raise InputError(f"MODEL {str(path)!r}: no such folder; check the path")
    if path.is_file() and path.suffix in (".py", ".ipynb"):
        return ModelSource("script", str(path))
    if not path.is_dir():
        raise InputError(
            f"MODEL {str(path)!r}: is a file; give the folder with config.json, or a script "
            "(.py, .ipynb)"
        )
    return ModelSource(
        "folder", str(path), trust_remote_code=trust_remote_code, folder=str(path.resolve())
    )
