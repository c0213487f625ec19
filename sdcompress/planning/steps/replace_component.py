"""replace_component: put another VAE, text encoder, denoiser or scheduler in the place of the pipeline's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from sdcompress.backends.component import Component
from sdcompress.errors import Problem, ProblemList, SdcompressError, UserError
from sdcompress.files.artifact import sha256_of
from sdcompress.planning.replacement import Replacement, misfits, open_replacement
from sdcompress.planning.schedulers import SCHEDULER, SCHEDULER_FILE, make_scheduler
from sdcompress.planning.steps import Planned, Stage, StepWithFiles
from sdcompress.sources.component_folder import read_json
from sdcompress.sources.spec import ComponentSpec
from sdcompress.sources.weight_files import is_weight_file

if TYPE_CHECKING:
    from sdcompress.sources.source import Source


class ReplaceComponent(StepWithFiles):
    """Put another VAE, text encoder, denoiser or scheduler in the place of the pipeline's own.

    All later steps take the replacement for the original. A text encoder brings its tokenizer along if it has one. A
    scheduler is made of the current one by `class_name` and `config`, as diffusers' `from_config` does, or `model` is a
    folder with a scheduler_config.json. The plan checks that the replacement fits the rest of the pipeline.

    Examples:
        replace_component: {model: ./taesd}
    """

    kind = "replace_component"
    stage = Stage.REPLACE
    model: str | None = Field(
        default=None,
        min_length=1,
        description="a folder of a component or of a pipeline, a name that sdcompress knows, or a hub id",
    )
    component: str | None = Field(
        default=None, description="the component of that pipeline; the one of the same name if left out"
    )
    variant: str | None = Field(default=None, description="variant of its weight files, such as fp16")
    class_name: str | None = Field(default=None, description="class of the new scheduler")
    config: dict[str, Any] = Field(default_factory=dict, description="config entries that the new scheduler changes")

    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        if spec.name == SCHEDULER:
            return self._plan_scheduler(spec)
        wrong = [name for name in ("class_name", "config") if getattr(self, name)]
        if wrong:
            raise UserError(Problem(name, f"is for the scheduler; for {spec.name} give model") for name in wrong)
        found = self._open(spec.name)
        ProblemList(Problem("model", reason) for reason in misfits(spec, found)).raise_any()
        old, new = (f"{each.class_name} ({each.parameters:,} parameters, {each.weights_bytes / 1e6:,.2f} MB)"
                    for each in (spec, found.spec))  # fmt: skip
        notes = [f"{old} replaced by {new} from {self.model}"]
        notes += [f"its {part} comes with it" for part in found.parts]
        return Planned(_with_pipeline_of(found, spec), notes=tuple(notes), reads=found.weight_files)

    def modified(self, source: Source, component: str) -> Source:
        if component == SCHEDULER:
            return self._with_scheduler(source)
        found = self._open(component)
        model_index = {**source.model_index, component: [found.spec.library, found.spec.class_name]}
        model_index |= {part: list(entry) for part, entry in found.parts.items()}
        replaced = {component, *found.parts}
        return replace(
            _with_files(source, model_index, found.files, replaced),
            components={**source.components, component: _with_pipeline_of(found, source.components[component])},
            tensors={**source.tensors, component: found.tensors},
            readers={name: read for name, read in source.readers.items() if name != component},
        )

    def apply(self, component: Component, planned: Planned) -> Component:
        component.results.facts["replaced_by"] = {
            "model": self.model,
            "files": [{"name": file.name, "sha256": sha256_of(file)} for file in planned.reads],
        }
        return component

    def _open(self, component: str) -> Replacement:
        from sdcompress.sources.hub import fetch_component

        if self.model is None:
            raise UserError(Problem("model", f"missing; give a folder or hub id that holds the new {component}"))
        part = self.component or component
        try:
            return open_replacement(self.model, part, component, self.variant, self._folder, fetch_component)
        except SdcompressError as error:
            raise UserError(Problem("model", str(error))) from None

    def _plan_scheduler(self, spec: ComponentSpec) -> Planned:
        wrong = [name for name in ("component", "variant") if getattr(self, name)]
        if wrong:
            raise UserError(Problem(name, "does not go with the scheduler; leave it out") for name in wrong)
        base = self._scheduler_config()
        if base is None and not self.class_name and not self.config:
            raise UserError(Problem("class_name", "missing; give class_name, config or model"))
        if base is not None and self.class_name:
            raise UserError(Problem("class_name", "is settled by model; leave one of the two out"))
        name = self.class_name if base is None else str(base.get("_class_name"))
        config = make_scheduler(spec, name, self.config, base)
        note = f"{spec.class_name} replaced by {config['_class_name']}"
        changed = ", ".join(f"{key}={value}" for key, value in self.config.items())
        return Planned(
            spec.replace(class_name=config["_class_name"], config=config),
            notes=(note + (f" with {changed}" if changed else ""),),
        )

    def _scheduler_config(self) -> dict[str, Any] | None:
        """Return the config in the folder that `model` names; None where it names none."""
        if self.model is None:
            return None
        folder = self._folder / Path(self.model).expanduser()
        inner = folder / SCHEDULER
        file = (inner if inner.is_dir() else folder) / SCHEDULER_FILE
        try:
            return read_json(
                file, missing=f"{folder}: has no {SCHEDULER_FILE}; give a scheduler's or pipeline's folder"
            )
        except SdcompressError as error:
            raise UserError(Problem("model", str(error))) from None

    def _with_scheduler(self, source: Source) -> Source:
        from sdcompress.planning.schedulers import scheduler_spec

        current = scheduler_spec(source)
        if current is None:
            raise UserError("the pipeline has no scheduler to replace; leave this step out")
        spec = self._plan_scheduler(current).spec
        model_index = {**source.model_index, SCHEDULER: [spec.library, spec.class_name]}
        text = json.dumps(dict(spec.config), indent=2, sort_keys=True) + "\n"
        return _with_files(source, model_index, {Path(SCHEDULER, SCHEDULER_FILE): text.encode()}, {SCHEDULER})


def _with_pipeline_of(found: Replacement, original: ComponentSpec) -> ComponentSpec:
    return found.spec.replace(pipeline_class=original.pipeline_class)


def _with_files(source: Source, model_index: dict[str, Any], files: Mapping[Path, bytes], parts: set[str]) -> Source:
    """Return the source with this model_index.json, and with `files` in place of all files of these parts."""
    kept = [file for file in source.other_files if file.parts[0] not in parts]
    changed = {file: content for file, content in source.changed_files.items() if file in kept}
    changed |= {file: content for file, content in files.items() if not is_weight_file(file.name)}
    changed[Path("model_index.json")] = (json.dumps(model_index, indent=2) + "\n").encode()
    others = tuple(dict.fromkeys((*kept, *changed)))
    return replace(source, model_index=model_index, other_files=others, changed_files=changed)
