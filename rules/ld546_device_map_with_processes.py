"""LD546: each of several processes distributes the model over all GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    SpreadTwice,
    Symptom,
    spread_twice,
)
from lora_doctor.rules._dry_run_script import DDP_LOOP, MODEL
from lora_doctor.rules._processes import SOURCE, at, together

_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
_SAVED = """
import json, os, pathlib, sys
folder = pathlib.Path("base")
folder.mkdir(exist_ok=True)
config.architectures = ["LlamaForCausalLM"]
(folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
"""
_LOADED = MODEL.replace("model = get_peft_model(", f"{_SAVED}\nmodel = get_peft_model(").replace(
    "AutoModelForCausalLM.from_config(config)",
    'AutoModelForCausalLM.from_pretrained("base", device_map=DEVICES)',
)


class DeviceMapWithProcesses(Rule):
    """The model is loaded with `device_map="auto"` in each of several processes.

    ## What happens
    `ValueError: You can't train a model that has been loaded with device_map='auto' in any
    distributed mode`; with ZeRO-3 `DeepSpeed Zero-3 is not compatible with passing a device_map`.
    In your own training loop, all processes put their layers on the same GPUs.

    ## Why
    A device map distributes one model over all GPUs of one process. DDP, FSDP and DeepSpeed give
    each process one GPU and place the model themselves.

    Found by execution: the arguments of `from_pretrained` while several processes trained. The dry
    run itself puts the small model on one device. In a script that is only read: `device_map` next
    to `deepspeed` or `fsdp` among the training arguments. It is an error if arguments with ZeRO-3
    are created before the model is loaded, because loading raises then, and a warning otherwise. A
    launcher beside the script that starts several processes is read as well: a command in a shell
    file makes it an error, one in a comment a warning.

    ## Versions
    All versions of accelerate.

    ## Fix
    No `device_map`, or `{"": PartialState().process_index}` for quantized weights under DDP; or one
    process, which uses all GPUs one after the other.

    ## Links
    https://huggingface.co/docs/accelerate/usage_guides/big_modeling
    """

    code = "LD546"
    name = "device-map-with-processes"
    summary = "Each of several processes distributes the model over all GPUs."
    depth = "static"
    symptoms = (
        Symptom(r"loaded with `?device_map='auto'`? in any distributed mode"),
        Symptom(r"DeepSpeed Zero-3 is not compatible with .*device_map"),
        Symptom(
            r"loaded in 8-bit(?: or 4-bit)? precision on (?:multiple devices"
            r"|a different device than the one you're training on)",
            "accelerate",
        ),
        Symptom(r"model contains `DTensor` parameters, which is incompatible with DDP"),
    )
    told_as = ("Training with device_map auto fails under torchrun, each process uses all GPUs.",)
    examples = (
        Example("broken", "", script=_LOADED.replace("DEVICES", '"auto"') + DDP_LOOP, processes=2),
        Example(
            "healthy",
            "",
            script=_LOADED.replace("DEVICES", '{"": int(os.environ["RANK"])}') + DDP_LOOP,
            processes=2,
        ),
        Example(
            "broken",
            "tests/launched/device_map/train.py",
            depth="static",
            why="torchrun starts four processes in run.sh",
        ),
        Example("healthy", "tests/launched/one_process/train.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if not case.has("dry_run"):
            found_in_script = spread_twice(case.program, case.launches)
            if found_in_script is not None:
                yield self._of_script(found_in_script)
            return
        found = case.dry_run.processes
        if found is None:
            return
        zero3 = found.zero_stage == 3
        if found.device_map not in _SPREAD and not (zero3 and found.device_map):
            return
        if max(found.met, found.asked if found.trained[1:] else 1) < 2:
            return
        yield self.finding(
            "error",
            f"device_map={found.device_map!r} distributes the model over all GPUs in each of "
            f"{found.asked} processes.",
            location=at(case.dry_run, found.loaded_in, found.loaded_line),
            evidence=(
                Measurement("device_map", found.device_map, "arguments of from_pretrained"),
                together(found),
            ),
            proof=Proof("inferred", f"{SOURCE}, on one device"),
            fixes=(
                Fix(
                    "Remove device_map (quantized weights with DDP: "
                    'device_map={"": PartialState().process_index}); or start one process.',
                    "manual",
                ),
            ),
        )

    def _of_script(self, found: SpreadTwice) -> Finding:
        """What a script that was only read says."""
        what = f"device_map={found.device_map!r}, and {found.by} places the model itself"
        if found.processes:
            fix = Fix(
                "Remove device_map (quantized weights with DDP: "
                'device_map={"": PartialState().process_index}); or start one process.',
                "unsafe",
                rewrites=found.rewrites,
            )
            message = (
                f"device_map={found.device_map!r} distributes the model over all GPUs in each of "
                f"{found.processes} processes, which training refuses."
            )
        elif found.refused:
            fix = (
                Fix("Remove device_map.", "safe", rewrites=found.rewrites)
                if found.rewrites
                else Fix("Remove device_map.", "manual")
            )
            message = f"{what}: from_pretrained raises ValueError."
        else:
            fix = Fix("Remove device_map, or start one process without that argument.", "manual")
            message = f"{what}: with several processes, training may be refused."
        return self.finding(
            "error" if found.refused or (found.processes and found.certain) else "warning",
            message,
            location=Location("file", found.place.file, found.place.line),
            evidence=(
                Measurement("device_map", str(found.device_map), str(found.place)),
                Measurement("placed by", found.by, str(found.by_place)),
            ),
            proof=Proof("inferred", "the script and the command that starts it"),
            fixes=(fix,),
        )
