"""Recipes: YAML in, frozen and checked models out, and back."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator

from sdcompress.calibration.settings import Calibration
from sdcompress.errors import Problem, ProblemList, RecipeError, UserError, nearest
from sdcompress.planning.gates import parse_gate
from sdcompress.planning.registry import known_steps
from sdcompress.planning.steps import Step

SCHEMA_VERSION = 1
CHECKOUT_RECIPES = Path(__file__).parents[2] / "recipes"  # in a checkout; the wheel holds a copy in the package


class Recipe(BaseModel):
    """What to do with each component of a pipeline.

    Examples:
        schema_version: 1
        description: The UNet in 4 bits.
        components:
          unet:
            - quantize: {format: int4}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1]
    description: str = Field(min_length=1)
    target: Literal["torch", "onnx"] = Field(default="torch", description="the backend that packages the result")
    components: dict[str, tuple[Step, ...]] = Field(
        min_length=1,
        description="component -> its steps. A key is a name, alternatives `unet|transformer`, or a pattern "
        "`text_encoder*`; a pipeline may lack a component whose key ends with `?`; `*` is for all others",
    )
    calibration: Calibration = Field(default=Calibration(), description="the pictures that calibrated steps draw")
    gates: tuple[str, ...] = Field(
        default=(), description="what an evaluation of the artifact must reach, such as psnr_db>=30"
    )

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

    @property
    def measures(self) -> bool:
        """Whether planning it needs the model's weights."""
        return any(step.measures for steps in self.components.values() for step in steps)


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Return a shipped recipe, or the recipe in a YAML file.

    Args:
        name_or_path: a shipped recipe's name or a file's path. Relative paths in a recipe are relative to its folder.

    Raises:
        RecipeError: there is no such recipe, or with all that is wrong with it.

    Examples:
        >>> recipe = load_recipe("int8")
        >>> recipe.target, [step.kind for step in recipe.components["*"]]
        ('torch', ['cast', 'quantize'])
    """
    file = find_recipe(str(name_or_path))
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: cannot be read ({error})") from None
    return parse_recipe(text, str(file), file.parent)


def parse_recipe(text: str, where: str, folder: Path | None = None) -> Recipe:
    """Return the recipe in a YAML text.

    Args:
        where: what errors call the text, such as the path of its file.
        folder: the folder that paths in the recipe are relative to; the current one if None.

    Raises:
        RecipeError: with all that is wrong with it.

    Examples:
        >>> text = "{schema_version: 1, description: Half, components: {unet: [{cast: {dtype: float16}}]}}"
        >>> parse_recipe(text, "here").components["unet"][0].kind
        'cast'
    """
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"is not valid YAML: {' '.join(str(error).split())}", where=where) from None
    if not isinstance(value, dict):
        raise RecipeError(f"is not a mapping; a recipe begins with `schema_version: {SCHEMA_VERSION}`", where=where)
    body = dict(value)
    problems = ProblemList()
    if isinstance(body.get("components"), dict):
        parsed: dict[str, tuple[Step, ...]] = {}
        for component, entries in body["components"].items():
            parsed[str(component)] = ()
            with problems.collect(f"components.{component}"):
                parsed[str(component)] = _parse_steps(entries, folder or Path())
        body["components"] = parsed
    try:
        recipe = Recipe.model_validate(body)
    except ValidationError as error:
        raise RecipeError([*problems, *explain(error, Recipe)], where=where) from None
    if problems:
        raise RecipeError(problems, where=where)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML that parses to the same recipe, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a shipped recipe, or the path.

    Raises:
        RecipeError: there is no such recipe or file.
    """
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
    """Return name -> file of the recipes that come with sdcompress."""
    packaged = Path(str(importlib.resources.files("sdcompress"))) / "recipes"
    folder = packaged if packaged.is_dir() else CHECKOUT_RECIPES
    return {file.stem: file for file in sorted(folder.glob("*.yaml"), key=lambda file: file.stem)}


def explain(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Return what pydantic found wrong with the fields of a model, in our words."""
    problems = []
    for finding in error.errors():
        field = ".".join(str(part) for part in finding["loc"])
        known = model.model_fields.get(str(finding["loc"][0])) if finding["loc"] else None
        if finding["type"] == "extra_forbidden":
            message = f"no such key; {nearest(str(finding['loc'][-1]), model.model_fields)}"
        elif finding["type"] == "missing":
            description = known.description if known is not None and len(finding["loc"]) == 1 else None
            message = f"missing; give {description}" if description else "missing"
        else:
            message = f"{finding['msg'][0].lower()}{finding['msg'][1:]} (got {finding['input']!r})"
        problems.append(Problem(field, message))
    return problems


def _parse_steps(entries: Any, folder: Path) -> tuple[Step, ...]:
    """Return a component's list as steps. UserError with all that is wrong with them."""
    if not isinstance(entries, list) or not entries:
        raise UserError("must be a list of steps, such as `- quantize: {format: int8}`")
    problems, steps = ProblemList(), []
    for index, entry in enumerate(entries):
        with problems.collect(str(index)):
            steps.append(_parse_step(entry, folder))
    problems.raise_any()
    return tuple(steps)


def _parse_step(entry: Any, folder: Path) -> Step:
    known = known_steps()
    if not isinstance(entry, dict) or len(entry) != 1:
        raise UserError("must be one step with its parameters, such as `cast: {dtype: float16}`")
    kind, parameters = next(iter(entry.items()))
    if kind not in known:
        raise UserError(f"no step {kind!r}; {nearest(str(kind), known)}")
    if not isinstance(parameters, dict | None):
        raise UserError(Problem(kind, "must be a mapping of parameters"))
    try:
        return known[kind].model_validate(parameters or {}, context={"folder": folder})
    except ValidationError as error:
        raise UserError(problem.inside(kind) for problem in explain(error, known[kind])) from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader that refuses a key given twice; PyYAML would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for key, (where, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", where.start_mark)
        return super().construct_mapping(node, deep)
