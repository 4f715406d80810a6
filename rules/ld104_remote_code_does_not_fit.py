"""LD104: code of the model's repository that this environment cannot run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    ProofKind,
    Rule,
    Symptom,
    known_architectures,
)
from lora_doctor.rules._missing_attribute import missing_attribute
from lora_doctor.rules._remote_code import View, basis, package_fixes, require_read

if TYPE_CHECKING:
    from lora_doctor.rule_api import StaticEvidence
    from lora_doctor.static.remote_code import source_facts
    from lora_doctor.static.remote_code.code_fit import (
        MissingKey,
        MissingName,
        MissingPackage,
        TiedKeys,
    )

#: Nothing of what follows can hold when the model cannot be built.
CONSEQUENCES = (
    "builds", "attaches", "forward", "starts-at-base", "loss-finite", "gradients", "steps",
    "adapters-move", "loss-falls", "save-reload", "merge",
)  # fmt: skip
#: An attribute of every model in transformers 5, set by ``post_init`` and read by loading.
_SET_BY_POST_INIT = "all_tied_weights_keys"
WHEN = {
    "function": "only in a function",
    "if": "only under a condition",
    "typing": "only for type checkers",
    "try": "under try",
    "demanded": "only in a text",
}


#: Where transformers puts the code of a model's repository.
_REMOTE = "transformers_modules"
#: A method of a cache that another release had.
_ATTRIBUTE = r"(type object '\w*Cache'|'\w*Cache' object) has no attribute '\w+'"


class RemoteCodeDoesNotFit(Rule):
    """The classes of this model are code of its repository, written for other package versions than
    those installed here.

    ## What happens
    Loading ends at `This modeling file requires the following packages that were not found in
    your environment`, at `cannot import name ... from 'transformers...'`, at `KeyError: 'type'`
    while the rotary embedding is being built, or at `'list' object has no attribute 'keys'`; the
    last one may wait until the trained and merged model is saved. Or the first step ends at
    `'DynamicCache' object has no attribute 'get_usable_length'`, in code of the repository.

    ## Why
    Remote code is not pinned to any release. Before transformers runs a file it requires every
    package that the file imports, also in functions and under most conditions. Names move and
    disappear between its releases. transformers 5 turns `rope_scaling: null` into a dictionary, so
    that code that checks for None reads a key that does not exist. It expects `_tied_weights_keys`
    to be a dictionary where transformers 4 expected a list; a list fails where weights are tied,
    and in every `save_pretrained`. And its loading needs attributes that `post_init` sets, which
    older code does not call. A class can be constructible and still not loadable, so lora-doctor
    loads a small model of it with `from_pretrained`.

    ## Versions
    Any. What the installed packages contain is read from their sources; no code of the repository
    is run for that.

    ## Fix
    Install the missing package; or install the transformers that the checkpoint was saved with,
    which its `config.json` names; or, where the installed transformers has this architecture, use
    its class: leave `trust_remote_code` out.

    ## Links
    https://huggingface.co/docs/transformers/custom_models
    """

    code = "LD104"
    name = "remote-code-does-not-fit"
    summary = "Code of the model's repository that the installed packages cannot run."
    depth = "static"
    symptoms = (
        Symptom(r"This modeling file requires the following packages that were not found"),
        Symptom(
            r"No module named '(?!transformers_modules)[\w.]+'",
            "remote code",
            raised_in=_REMOTE,
        ),
        Symptom(r"cannot import name '\w+' from 'transformers[\w.]*'", raised_in=_REMOTE),
        Symptom(r"cannot import name '\w+' from 'transformers[\w.]*'", alone=True, weight=-1),
        Symptom(_ATTRIBUTE, raised_in=_REMOTE),
        Symptom(_ATTRIBUTE, alone=True, weight=-1),
        Symptom(
            r"'\w*(?:Config|Tokenizer\w*)' object has no attribute '\w+'",
            raised_in=_REMOTE,
            weight=-1,
        ),
        Symptom(r"\w\(\) got an unexpected keyword argument '\w+'", raised_in=_REMOTE, weight=-1),
        Symptom(
            r"\w(?<!Fast)\._\w+\(\) got an unexpected keyword argument '\w+'",
            "a method that the repository's tokenizer or model has instead of the library's",
            context=r"transformers_modules|\bChatGLM",
            weight=-1,
        ),
        Symptom(
            r"(?:too many|not enough) values to unpack",
            "a cache of another form",
            raised_in=_REMOTE,
            context=r"(?i)past_key_value|\b(?:kv_)?cache\w*\b",
        ),
        Symptom(r"KeyError: 'type'", "transformers>=5", raised_in=_REMOTE),
        Symptom(r"^\s*(KeyError: )?'type'$", "transformers>=5"),
        Symptom(
            r"'(list|tuple)' object has no attribute 'keys'",
            "transformers>=5",
            raised_in=r"transformers[\\/]modeling_utils\.py|" + _REMOTE,
        ),
        Symptom(r"object has no attribute 'all_tied_weights_keys'", "transformers>=5"),
        Symptom(
            r"'(list|tuple)' object has no attribute 'keys'\s*$", "transformers>=5", alone=True
        ),
    )
    told_as = ("The model's remote code does not work with the installed transformers.",)
    examples = (
        Example(
            "broken",
            "tests/folders/code_needs_package",
            depth="static",
            why="a package that is imported and not installed",
        ),
        Example(
            "broken",
            "tests/folders/code_of_old_transformers",
            requires={"transformers": ">=5"},
            depth="static",
            why="a key that transformers 5 does not keep, and a list where it takes a dictionary",
        ),
        Example(
            "healthy",
            "tests/folders/code_of_old_transformers",
            requires={"transformers": "<5"},
            depth="static",
        ),
        Example(
            "healthy",
            "tests/folders/code_that_fits",
            depth="static",
            why="packages that are asked for before, or are the processor's matter",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        static = case.static
        if not static.auto_map:
            return
        native = static.model_type in (known_architectures() or ())
        if native and not case.source.trust_remote_code:
            return  # the library's own class is loaded
        found = [*self._found(case, static, native), *self._asked(View(case, static, native))]
        if not found:
            require_read(case.remote_code)
        yield from found

    def _found(self, case: Case, static: StaticEvidence, native: bool) -> Iterator[Finding]:
        from lora_doctor.static.remote_code import code_fit
        from lora_doctor.static.remote_code.loaded_code import loaded_code

        code = case.remote_code
        loaded = loaded_code(code, static.architectures, case.recipe.get("model_class"))
        works = case.source.trust_remote_code and case.reaches("meta") and case.has("structure")
        view = View(case, static, native)
        if not works:
            demands_all = case.source.kind == "hub"
            missing = code_fit.missing_packages(code, loaded, demands_all=demands_all)
            yield from self._packages(view, missing)
            yield from self._names(view, code_fit.missing_names(code, loaded))
            yield from self._keys(view, code_fit.missing_keys(code, loaded, static.config))
        refused = works and view.refused
        tied = list(
            self._tied(
                view, code_fit.tied_lists(code, loaded, static.config), works and not refused
            )
        )
        yield from tied
        if refused and not tied:
            yield self._refused(view)
        elif not works and view.saw(_SET_BY_POST_INIT):
            yield self._not_constructed(view)

    def _not_constructed(self, view: View) -> Finding:
        """The constructor of the class asks for what only ``post_init`` sets."""
        return self.finding(
            "error",
            f"transformers {view.version} cannot construct the class, which is code of the "
            f"repository and does not call self.post_init(): {view.raised}.",
            location=Location("file", "config.json"),
            evidence=(Measurement("the constructor raised", view.raised, "meta device, executed"),),
            proof=Proof("executed", "the class was constructed on the meta device"),
            fixes=(
                Fix(
                    "In a copy of the repository, call self.post_init() at the end of the class's "
                    f"__init__, in place of self.init_weights(): it sets {_SET_BY_POST_INIT}.",
                    "manual",
                ),
                *view.other_fixes(),
            ),
        )

    def _refused(self, view: View) -> Finding:
        """The class can be constructed, and ``from_pretrained`` of this release cannot load it."""
        case, fixes = view.case, view.other_fixes()
        name = case.structure.model_class
        target = next((item for item in view.static.auto_map if item.class_name == name), None)
        if _SET_BY_POST_INIT in view.reason:
            fixes.insert(
                0,
                Fix(
                    "In a copy of the repository, call self.post_init() at the end of "
                    f"{name}.__init__: it sets {_SET_BY_POST_INIT}, which loading needs.",
                    "manual",
                ),
            )
        return self.finding(
            "error",
            f"transformers {view.version} can construct {name}, which is code of the "
            f"repository, but cannot load it: {view.reason}.",
            location=Location("file", f"{target.module}.py" if target else "config.json"),
            evidence=(
                Measurement("from_pretrained raised", view.reason, "tiny model, executed"),
                Measurement("class", f"{name}, {case.structure.python_module}", "loaded class"),
            ),
            proof=Proof("executed", "a tiny model of the class was loaded by from_pretrained"),
            fixes=tuple(fixes),
            explains=CONSEQUENCES,
        )

    def _asked(self, view: View) -> Iterator[Finding]:
        """What its code asks the installed transformers for while it runs."""
        seen = missing_attribute(view.case)
        if seen is None or seen.in_transformers:
            return
        fixes = view.other_fixes()
        cache = "Cache." in seen.asked
        if cache:
            fixes.insert(
                0,
                Fix(
                    "Train without the cache, which only generation needs: "
                    'model.config.use_cache = False in the script, or "use_cache": false in '
                    "config.json of a copy.",
                    "manual",
                ),
            )
        from lora_doctor.static.remote_code import source_facts

        at = source_facts.Place(seen.file.rpartition("/")[2], seen.line)
        yield self.finding(
            "error",
            f"{at} uses {seen.asked}, which transformers {view.version} does not have: the "
            "model does not run in "
            f"training{(', where it keeps a cache by default' if cache else '')}.",
            location=Location("file", at.file, at.line),
            evidence=(Measurement("training forward", seen.message, f"{seen.depth} model"),),
            proof=Proof("executed", "the model was run without adapters and raised this"),
            fixes=tuple(fixes),
            explains=CONSEQUENCES,
        )

    def _packages(self, view: View, missing: Sequence[MissingPackage]) -> Iterator[Finding]:
        if not missing:
            return
        first = missing[0]
        names = ", ".join(item.name for item in missing)
        evidence = []
        for item in missing:
            when = f", {WHEN[item.when]}" if item.when in WHEN else ""
            evidence.append(Measurement(item.name, f"imported{when}; not installed", str(item.at)))
        if all(item.when != "always" for item in missing):
            evidence.append(
                Measurement(
                    f"transformers {view.version}",
                    "requires it before it runs the file",
                    "installed transformers, dynamic_module_utils.py",
                )
            )
        yield self._finding(
            view,
            f"{first.at} imports {names}, which {'is' if len(missing) == 1 else 'are'} not "
            "installed: the model cannot be loaded.",
            first.at,
            evidence,
            basis(view.lacks == first.name
                   or view.saw(*(f"No module named '{item.name}'" for item in missing))),
            [*package_fixes(missing), *view.other_fixes(pinned=False)],
        )  # fmt: skip

    def _names(self, view: View, missing: Sequence[MissingName]) -> Iterator[Finding]:
        if not missing:
            return
        first = missing[0]
        certain = any(item.certain for item in missing)
        evidence = [
            Measurement(str(item), "imported; missing in the installed package", str(item.at))
            for item in missing
        ]
        others = len(missing) - 1
        more = f" and {others} more name{'s' if others > 1 else ''}" if others else ""
        package = first.module.split(".")[0]
        version = view.case.environment.version(package) or ""
        yield self._finding(
            view,
            f"{first.at} imports {first}{more}, which {package} {version} does not have: the "
            f"model {'cannot be loaded' if certain else 'may fail to load'}.",
            first.at,
            evidence,
            basis(view.saw(*(f"'{item.name or item.module}'" for item in missing)), certain),
            view.other_fixes(),
        )

    def _keys(self, view: View, missing: Sequence[MissingKey]) -> Iterator[Finding]:
        if not missing:
            return
        item = missing[0]
        key = f'{item.read.attribute}["{item.read.key}"]'
        seen = view.saw(f"KeyError: '{item.read.key}'")
        evidence = [
            Measurement(f"config.{key}", "read, after a check for None only"
                    if item.rewritten else "read", str(item.read.at)),
            Measurement(f"{item.read.attribute} in config.json",
                    "null" if item.value is None else ", ".join(map(str, item.value)),
                    view.static.source),
        ]  # fmt: skip
        why = f"has no {item.read.key!r}"
        if item.rewritten:
            why = (
                f"is null, which transformers {view.version} turns into a dictionary without "
                "this key"
            )
            evidence.append(
                Measurement(f"config.{item.read.attribute}", "a property that returns "
                        "rope_parameters, never None", "installed transformers, "
                        "configuration_utils.py")
            )  # fmt: skip
        cannot, may_fail = ("be loaded", "load") if item.read.at_init else ("run", "run")
        fixes = view.other_fixes()
        if not item.rewritten and item.read.key == "type":
            fixes.insert(
                0,
                Fix('Add "type" next to "rope_type" in rope_scaling of config.json.', "manual"),
            )
        yield self._finding(
            view,
            f"{item.read.at} reads {key}, and {item.read.attribute} {why}: the model "
            f"{f'cannot {cannot}' if seen else f'may fail to {may_fail}'}.",
            item.read.at,
            evidence,
            basis(seen, certain=False),
            fixes,
        )

    def _tied(self, view: View, tied: Sequence[TiedKeys], works: bool) -> Iterator[Finding]:
        if not tied:
            return
        item = tied[0]
        at_load = bool(item.tied) and not works
        evidence = [
            Measurement(f"{item.class_name}._tied_weights_keys", "a list", str(item.at)),
            Measurement("PreTrainedModel._tied_weights_keys",
                    "expected to be a dictionary of target to source",
                    f"transformers {view.version}, modeling_utils.py"),
            Measurement("tie_word_embeddings", "not given" if item.tied is None else item.tied,
                    "config.json"),
        ]  # fmt: skip
        seen = view.saw("'list' object has no attribute 'keys'")
        how = (
            f"the model {'cannot be loaded' if seen else 'may fail to load'}"
            if at_load
            else "adapters train, but save_pretrained of the model itself, merged or not, may fail"
        )
        fix = Fix(
            f"In a copy of the repository, make {item.class_name}._tied_weights_keys a "
            'dictionary of target to source, such as {"lm_head.weight": '
            '"model.embed_tokens.weight"}, with the model\'s own names.',
            "manual",
        )
        yield self._finding(
            view,
            f"{item.at} has _tied_weights_keys as a list, and transformers {view.version} "
            f"expects a dictionary: {how}.",
            item.at,
            evidence,
            basis(seen, certain=False),
            [fix, *view.other_fixes()],
            fatal=at_load,
        )

    def _finding(
        self,
        view: View,
        message: str,
        at: source_facts.Place,
        evidence: list[Measurement],
        basis: ProofKind,
        fixes: list[Fix],
        *,
        fatal: bool = True,
    ) -> Finding:
        if basis == "executed":
            evidence.append(Measurement("loading", view.reason, "code of the repository, executed"))
            proof = Proof("executed", "loading it failed with this message")
        elif basis == "measured":
            proof = Proof("measured", "compared with the installed packages; the repository's "
                                      "code was read, not run")  # fmt: skip
        else:
            proof = Proof("inferred", "read from the source")
        return self.finding(
            "error" if fatal else "warning",
            message,
            location=Location("file", at.file, at.line),
            evidence=tuple(evidence),
            proof=proof,
            fixes=tuple(fixes),
            explains=CONSEQUENCES if fatal else (),
        )
