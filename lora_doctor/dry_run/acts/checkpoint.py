"""What the user's checkpoint lacks of the class that is loaded: in the small model every weight is
random, so its names say it, or the class that it was saved from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting


def lacking(acting: Acting, model: Any, loading: Mapping[str, Any], recipe: Any) -> Any:
    """Tell what loading makes of the names in the checkpoint; returns the weights that it lacks.

    Args:
        model: with its adapters, as it trains.
        loading: the record of its loading, with the folder of its config.
        recipe: :class:`Recipe` as it was captured.
    """
    from lora_doctor.errors import LoraDoctorError

    try:
        found = _loading(loading, recipe)
    except LoraDoctorError as error:
        acting.journal.tell("no_names", reason=str(error))
        return ()
    found = _as_it_trains(found, model)
    acting.journal.tell("loading", loading=asdict(found))
    return found.missing


def _loading(loading: Mapping[str, Any], recipe: Any) -> Any:
    """A :class:`Loading` of the class at full size.

    Raises:
        LoraDoctorError: the names cannot be had, or the class not be asked.
    """
    from lora_doctor.errors import EvidenceError
    from lora_doctor.evidence.loading import gather
    from lora_doctor.results.from_json import from_json
    from lora_doctor.results.loading import Loading
    from lora_doctor.static.folder.checkpoint_files import stored_shapes
    from lora_doctor.static.model_files import gather_static
    from lora_doctor.static.model_source import ModelSource

    folder = loading["folder"]
    if folder is None or not loading["name"]:
        raise EvidenceError("the files of the checkpoint are not here")
    static = gather_static(Path(folder), source=loading["name"])
    source = ModelSource(
        "folder", folder, trust_remote_code=loading["trust_remote_code"], folder=folder
    )
    shapes, saved = None, ""
    try:
        shapes = stored_shapes(static)
    except EvidenceError:
        saved = next(iter(static.architectures), "")
        if saved in ("", loading["model_class"]):
            raise
    told = gather(source.for_child(), recipe.to_json(), shapes, saved_class=saved)
    return from_json(Loading, told)


def _as_it_trains(found: Any, model: Any) -> Any:
    """With what of it the user's own code trains, which another rule follows, left out."""
    from lora_doctor.contract.random_weights import RandomWeights, parameters_of_base
    from lora_doctor.model.random_weights import missing_among
    from lora_doctor.results.loading import Unsaved

    names = missing_among(parameters_of_base(model), found.missing)
    here = RandomWeights(model, names).unsaved(model)
    if not here.modules and not here.others:
        return replace(found, unsaved=Unsaved())
    return replace(found, unsaved=replace(found.unsaved, modules=here.modules, others=here.others))
