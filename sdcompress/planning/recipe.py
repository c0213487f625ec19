"""Recipes: YAML in, frozen and checked models out, and back."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator

from sdcompress.calibration.settings import Calibration
from sdcompress.errors import RecipeError, UserError, nearest
from sdcompress.planning.gates import parse_gate
from sdcompress.planning.registry import known_steps
from sdcompress.planning.steps import Step

SCHEMA_VERSION = 1
CHECKOUT_RECIPES = Path(__file__).parents[2] / "recipes"  # in a checkout; the wheel holds a copy in the package


class Recipe(BaseModel):
    """What to do with each component of a pipeline.

    The keys of `components` name components: `unet`, alternatives `unet|transformer`, `text_encoder*` with a wildcard;
    a trailing `?` lets a pipeline have none. `*` alone takes all that no other key takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1]
    description: str = Field(min_length=1)
    target: Literal["torch", "onnx"] = "torch"
    components: dict[str, tuple[Step, ...]] = Field(min_length=1)
    calibration: Calibration = Calibration()
    gates: tuple[str, ...] = ()  # what an evaluation of the artifact must reach, such as psnr_db>=30

    @field_validator("gates")
    @classmethod
    def _check_gates(cls, gates: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(parse_gate(gate).text for gate in gates)
        except UserError as error:
            raise ValueError(str(error)) from None

    @field_serializer("components")
    def _dump_components(self, components: Mapping[str, Sequence[Step]]) -> dict[str, list[dict[str, Any]]]:
        return {
            name: [{step.kind: step.model_dump(mode="json")} for step in steps] for name, steps in components.items()
        }


def load_recipe(name_or_path: str) -> Recipe:
    """The shipped recipe of that name, or the one in the file. RecipeError lists everything that is wrong with it."""
    file = find_recipe(name_or_path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: cannot be read ({error})") from None
    return parse_recipe(text, str(file), file.parent)


def parse_recipe(text: str, where: str, folder: Path | None = None) -> Recipe:
    """The recipe in a YAML text; `where` names it in errors.

    folder: what paths in it are relative to; by default the one the process runs in.
    """
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: is not a mapping; a recipe begins with `schema_version: {SCHEMA_VERSION}`")
    problems: list[str] = []
    body = dict(value)
    if "components" in body:
        body["components"] = _parse_components(body["components"], problems, folder or Path())
    try:
        recipe = Recipe.model_validate(body)
    except ValidationError as error:
        problems += explain(error, "", tuple(Recipe.model_fields))
    if problems:
        raise RecipeError([f"{where}: {problem}" for problem in problems])
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML that parses to the same recipe, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def measures(recipe: Recipe) -> bool:
    """Whether planning the recipe needs the model's weights."""
    return any(step.measures for steps in recipe.components.values() for step in steps)


def find_recipe(name_or_path: str) -> Path:
    """The file of a shipped recipe or a path. RecipeError names near and known recipes when there is none."""
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if name_or_path in shipped:
        return shipped[name_or_path]
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise RecipeError(f"{name_or_path}: no such file")
    raise RecipeError(f"{name_or_path}: no such recipe or file; {nearest(name_or_path, shipped)}")


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with sdcompress."""
    packaged = Path(str(importlib.resources.files("sdcompress"))) / "recipes"
    folder = packaged if packaged.is_dir() else CHECKOUT_RECIPES
    return {file.stem: file for file in sorted(folder.glob("*.yaml"), key=lambda file: file.stem)}


def _parse_components(value: Any, problems: list[str], folder: Path) -> Any:
    """The components' lists as Step objects; what is wrong goes into `problems`, and what is no mapping stays."""
    if not isinstance(value, dict):
        return value
    parsed: dict[str, tuple[Step, ...]] = {}
    for component, entries in value.items():
        path = f"components.{component}"
        if not isinstance(entries, list) or not entries:
            problems.append(f"{path}: must be a list of steps, such as `- quantize: {{format: int8}}`")
            entries = []
        steps = (_parse_step(entry, f"{path}.{index}", problems, folder) for index, entry in enumerate(entries))
        parsed[str(component)] = tuple(step for step in steps if step is not None)
    return parsed


def _parse_step(entry: Any, path: str, problems: list[str], folder: Path) -> Step | None:
    known = known_steps()
    if not isinstance(entry, dict) or len(entry) != 1:
        problems.append(f"{path}: must be one step with its parameters, such as `cast: {{dtype: float16}}`")
        return None
    kind, parameters = next(iter(entry.items()))
    if kind not in known:
        problems.append(f"{path}: no step {kind!r}; {nearest(str(kind), known)}")
        return None
    if not isinstance(parameters, dict | None):
        problems.append(f"{path}.{kind}: must be a mapping of parameters")
        return None
    try:
        return known[kind].model_validate(parameters or {}, context={"folder": folder})
    except ValidationError as error:
        problems += explain(error, f"{path}.{kind}", tuple(known[kind].model_fields))
        return None


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, refusing a key given twice (PyYAML would keep the last without a word)."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for key, (where, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", where.start_mark)
        return super().construct_mapping(node, deep)


def explain(error: ValidationError, path: str, known: Sequence[str]) -> list[str]:
    """Pydantic's findings as lines that begin with the YAML path."""
    lines = []
    for finding in error.errors():
        where = ".".join(str(part) for part in (path, *finding["loc"]) if part != "")
        if finding["type"] == "extra_forbidden":
            message = f"no such key; {nearest(str(finding['loc'][-1]), known)}"
        elif finding["type"] == "missing":
            message = "missing"
        else:
            message = f"{finding['msg'][0].lower()}{finding['msg'][1:]} (got {finding['input']!r})"
        lines.append(f"{where}: {message}")
    return lines
