"""Calibration runs: drawing pictures component by component, while an observer looks at the layers.

The trajectories cover all timesteps and both guidance branches. One component is in memory at a time, in float32: the
text encoders (those of Stable Diffusion 3 and FLUX together), then the denoiser, then the VAE, each for all prompts.
"""

from __future__ import annotations

import gc
import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from sdcompress.backends.torch.latents_catcher import LatentsCatcher
from sdcompress.backends.torch.loading import choose_device
from sdcompress.backends.torch.source_parts import (
    empty_component,
    open_component,
    open_without_models,
    pipeline_options,
)
from sdcompress.calibration.input_pictures import PictureRequest, make_pictures, wanted_pictures
from sdcompress.calibration.settings import FIRST_SEED, Calibration, choose_prompts
from sdcompress.errors import SourceError
from sdcompress.families.registry import known_families
from sdcompress.progress import Activity, Listener, ProgressEvent, silent
from sdcompress.sources.source import DENOISERS, Source

if TYPE_CHECKING:
    from sdcompress.calibration.prompts import PromptSet

Outputs = dict[str, torch.Tensor]  # what a component gives for one prompt to the components after it
_Item = TypeVar("_Item")

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
BESIDE_THE_DENOISER = ("controlnet",)  # runs with it
COMPONENTS = (*TEXT_ENCODERS, *DENOISERS, "vae")  # in the order they run; a pipeline has one of the denoisers
_XL = "StableDiffusionXL"  # whose text encoders are run one after the other here


class Observer:
    """What observes the components during a calibration run, and keeps progress. This one does nothing."""

    def observe(self, component: str, model: nn.Module, runs: int) -> AbstractContextManager[None]:
        """Observe the component in the context, in which it runs for all prompts that are not finished.

        Args:
            runs: how often it runs for all prompts together, finished ones included.
        """
        return nullcontext()

    def resume(self, component: str) -> list[Outputs]:
        """Return the component's outputs for the prompts that an earlier run finished, in order."""
        return []

    def finish_prompt(self, component: str, outputs: Sequence[Outputs]) -> None:
        """Keep the component's outputs for all prompts so far; called after each prompt."""


class CalibrationRun:
    """One pass of all prompts through a pipeline, component by component.

    Args:
        wanted: component -> names of layers, as files call them, that have to run.
        listener: told of the runs of each component: a prompt through a text encoder, a denoising step, a picture
            decoded or encoded.
        device: where the components run, such as `cpu` or `auto`.
        activity: what progress events call the run.
    """

    def __init__(
        self,
        source: Source,
        wanted: Mapping[str, Collection[str]],
        calibration: Calibration,
        listener: Listener = silent,
        device: str = "auto",
        observer: Observer | None = None,
        activity: Activity = "calibrating",
    ):
        self._source, self._wanted = source, wanted
        self._observer = observer or Observer()
        self.device = choose_device(device)
        self._first_seed = calibration.seed + FIRST_SEED
        self.prompts: PromptSet = choose_prompts(calibration, source)
        self._size = {"height": calibration.height, "width": calibration.width}
        self._family = known_families()[source.pipeline_class]
        self._denoiser = next(name for name in DENOISERS if name in source.components)
        self._bare = open_without_models(source)
        takes = inspect.signature(self._bare.__call__).parameters
        self._settings: dict[str, Any] = {name: value for name, value in self._size.items() if name in takes}
        for name in ("num_inference_steps", "guidance_scale"):
            chosen = getattr(self.prompts, name)
            self._settings[name] = takes[name].default if chosen is None else chosen
        self._settings |= {name: value for name, value in self._family.call.items() if name in takes}
        self._unsaid = {"negative_prompt": None} if "negative_prompt" in takes else {}  # given as embeddings
        in_the_unet = source.components[self._denoiser].config.get("time_cond_proj_dim") is not None
        scale = self._settings["guidance_scale"]
        self._guided = self._family.guided and scale > 1 and not in_the_unet  # as the pipelines decide it
        self._steps = self._settings["num_inference_steps"]
        if not self._bare.scheduler.config.get("use_dynamic_shifting"):  # else it needs the picture's size
            self._bare.scheduler.set_timesteps(self._steps)
            self._steps = len(self._bare.scheduler.timesteps)
        if "strength" in takes:  # pipelines that draw over a picture take only this share of the steps
            self._steps = max(1, int(self._steps * takes["strength"].default))
        self._listener, self._activity = listener, activity
        self._done: Counter[str] = Counter()  # runs of each component

    def run(self) -> None:
        """Run the wanted layers, and the components that lead to them."""
        texts = self.encode_prompts()
        latents = self.denoise(texts) if self.needs(self._denoiser) else []
        self.decode(latents)

    def needs(self, component: str) -> bool:
        """Return whether the component has to run: it is wanted itself, or one that comes after it."""
        return any(self._wanted.get(name) for name in COMPONENTS[COMPONENTS.index(component) :])

    def encode_prompts(self) -> list[Outputs]:
        """Return the pipeline's arguments for each prompt, and for the empty prompt where guidance needs it."""
        if self._source.pipeline_class.startswith(_XL):
            return self._encode_for_xl()
        texts: list[Outputs] = []
        for part in self._text_encoders_to_run():
            texts = self._each(part, self.prompts.prompts, partial(self._encoder, part))
        return texts

    def _encoder(self, part: str, model: Any) -> Callable[[str], Outputs]:
        """Return a function from prompt to arguments: the pipeline's `encode_prompt`, with `model` as that part."""
        others = [name for name in self._text_encoders() if name != part]
        pipeline = self.assemble(
            **{part: model}, **{name: open_component(self._source, name, self.device) for name in others}
        )
        takes = inspect.signature(pipeline.encode_prompt).parameters
        defaults = inspect.signature(pipeline.__call__).parameters
        # The defaults of the pipeline's call, which can differ from those of `encode_prompt`.
        said = {name: defaults[name].default for name in takes if name in defaults and name not in self._settings}
        settings = said | {name: value for name, value in self._settings.items() if name in takes}
        settings |= {"device": self.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": self._guided}

        def encode(prompt: str) -> Outputs:
            wordings = dict.fromkeys(("prompt", "prompt_2", "prompt_3"), prompt)
            given = {name: value for name, value in (settings | wordings).items() if name in takes}
            encoded = zip(self._family.encoded, pipeline.encode_prompt(**given), strict=True)
            self._tick(part)
            return {name: value for name, value in encoded if name and value is not None}

        return encode

    def _encode_for_xl(self) -> list[Outputs]:
        """Return what the pipeline's own `encode_prompt` gives, which needs both text encoders in memory at once."""
        prompts = self.prompts.prompts
        zeros = bool(self._source.model_index.get("force_zeros_for_empty_prompt", True))
        wordings = (*prompts, "") if self._guided and not zeros else prompts
        states = [self._hidden_states(part, wordings) for part in self._text_encoders()]
        embeddings = [torch.cat([each["state"] for each in parts], dim=-1) for parts in zip(*states, strict=True)]
        pooled = [each["pooled"] for each in states[-1]]  # of the last text encoder
        texts = [{"prompt_embeds": embeddings[i], "pooled_prompt_embeds": pooled[i]} for i in range(len(prompts))]
        if self._guided:
            for text in texts:
                for name, of_nothing in (("prompt_embeds", embeddings[-1]), ("pooled_prompt_embeds", pooled[-1])):
                    text[f"negative_{name}"] = torch.zeros_like(of_nothing) if zeros else of_nothing
        return texts

    def _hidden_states(self, part: str, wordings: Sequence[str]) -> list[Outputs]:
        """Return the last hidden state but one and the first output of SDXL's text encoder, for each wording."""
        tokenizer = self._bare.components[part.replace("text_encoder", "tokenizer")]

        def prepare(model: Any) -> Callable[[tuple[int, str]], Outputs]:
            def encode(item: tuple[int, str]) -> Outputs:
                index, wording = item
                ids = tokenizer(wording, padding="max_length", truncation=True, return_tensors="pt").input_ids
                output = model(ids.to(self.device), output_hidden_states=True)
                if index < len(self.prompts.prompts):
                    self._tick(part)
                return {"state": output.hidden_states[-2], "pooled": output[0]}

            return encode

        return self._each(part, tuple(enumerate(wordings)), prepare)

    def denoise(self, texts: Sequence[Outputs]) -> list[torch.Tensor]:
        """Return what the VAE is given at the end of each prompt's trajectory."""

        def prepare(model: Any) -> Callable[[tuple[int, Outputs]], Outputs]:
            drawn_over = bool(wanted_pictures(self._source.pipeline_class))
            encoder = open_component(self._source, "vae", self.device) if drawn_over else None
            vae = LatentsCatcher(empty_component(self._source.components["vae"]).config, self.device, encoder)
            beside = {
                name: open_component(self._source, name, self.device)
                for name in BESIDE_THE_DENOISER
                if name in self._source.components
            }
            pipeline = self.assemble(**{self._denoiser: model}, **beside, vae=vae)
            self._count_steps(pipeline)

            def denoise(item: tuple[int, Outputs]) -> Outputs:
                index, text = item
                pipeline(**text, **self.inputs(pipeline, index), **self._unsaid)
                return {"latents": vae.caught}

            return denoise

        return [each["latents"] for each in self._each(self._denoiser, tuple(enumerate(texts)), prepare)]

    def inputs(self, pipeline: Any, index: int) -> dict[str, Any]:
        """Return the pipeline's arguments for the picture of a prompt, besides its text."""
        seed = self._first_seed + index
        pictures = make_pictures(pipeline, PictureRequest(seed), self._size)
        return pictures | self._settings | {"generator": torch.Generator("cpu").manual_seed(seed), "output_type": "pt"}

    def _count_steps(self, pipeline: Any) -> None:
        """Count each step of the pipeline; not every pipeline takes a callback for that."""
        scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        step = scheduler.step

        @wraps(step)  # pipelines read its signature
        def counted(*arguments: Any, **named: Any) -> Any:
            self._tick(self._denoiser)
            return step(*arguments, **named)

        scheduler.step = counted
        pipeline.scheduler = scheduler

    def decode(self, latents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the pictures, each [1, 3, height, width] from -1 to 1, without those that an earlier run finished.

        They are encoded again if a layer of the encoder is wanted.
        """
        if not self.needs("vae"):
            return []
        pictures = []

        def prepare(model: Any) -> Callable[[torch.Tensor], Outputs]:
            def decode(end: torch.Tensor) -> Outputs:
                pictures.append(model.decode(end).sample.clamp_(-1, 1))
                self._tick("vae")
                if self._encodes():
                    model.encode(pictures[-1])
                    self._tick("vae")
                return {}

            return decode

        self._each("vae", latents, prepare)
        return pictures

    def _each(
        self, component: str, items: Sequence[_Item], prepare: Callable[[Any], Callable[[_Item], Outputs]]
    ) -> list[Outputs]:
        """Return the component's outputs for each item.

        Args:
            prepare: returns the function from an item to outputs, given the opened model.
        """
        outputs = [
            {name: value.to(self.device) for name, value in each.items()} for each in self._observer.resume(component)
        ]
        self._done[component] += min(len(outputs), len(self.prompts.prompts)) * self._runs(component)
        if len(outputs) < len(items) or self._wanted.get(component):
            with self._opened(component) as model:
                make = prepare(model)
                for item in items[len(outputs) :]:
                    outputs.append(make(item))
                    self._observer.finish_prompt(component, outputs)
        return outputs

    @contextmanager
    def _opened(self, component: str) -> Iterator[Any]:
        """Hold the component in memory and observe it while in the context; free its weights at the end."""
        model = open_component(self._source, component, self.device)
        try:
            with self._observer.observe(component, model, self._calls(component)), torch.no_grad():
                yield model
        finally:
            model.to("meta")  # something may still refer to the module
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def assemble(self, **models: Any) -> Any:
        """Return the source's pipeline with its own tokenizers and scheduler, and with these models alone."""
        takes = inspect.signature(type(self._bare)).parameters
        plain = {name: value for name, value in self._source.model_index.items() if not isinstance(value, list)}
        options = {name: value for name, value in plain.items() if name in takes} | pipeline_options(type(self._bare))
        pipeline = type(self._bare)(**self._bare.components | models, **options)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _text_encoders(self) -> list[str]:
        return [part for part in TEXT_ENCODERS if part in self._source.components]

    def _text_encoders_to_run(self) -> list[str]:
        """Return the text encoders that are observed, or the last one; each runs for all prompts."""
        if self._source.pipeline_class.startswith(_XL):
            return self._text_encoders()
        return [part for part in self._text_encoders() if self._wanted.get(part)] or self._text_encoders()[-1:]

    def _encodes(self) -> bool:
        return any(layer.startswith(("encoder.", "quant_conv")) for layer in self._wanted.get("vae", ()))

    def _calls(self, component: str) -> int:
        """Return how often the component's layers run for all prompts together."""
        xl = self._source.pipeline_class.startswith(_XL)
        branches_apart = component in TEXT_ENCODERS and self._guided and not xl
        each = self._steps if component == self._denoiser else 1 + branches_apart
        return len(self.prompts.prompts) * each

    def _runs(self, component: str) -> int:
        """Return the runs of the component for one prompt, as progress counts them."""
        return {self._denoiser: self._steps, "vae": 1 + self._encodes()}.get(component, 1)

    def _tick(self, component: str) -> None:
        self._done[component] += 1
        total = len(self.prompts.prompts) * self._runs(component)
        self._listener(ProgressEvent(self._activity, component, self._done[component], total, "runs"))


def check_calibration(source: Source, wanted: Mapping[str, Collection[str]], what: str) -> None:
    """Check that the pipeline can draw here, and that it has every wanted component.

    Args:
        what: what is calibrated, for errors.

    Raises:
        SourceError: it cannot, or has not.
    """
    families = known_families()
    if source.pipeline_class not in families:
        able = ", ".join(families)
        raise SourceError(f"{source.name}: is a {source.pipeline_class}; {what} can be calibrated for {able} only")
    if source.path is None:
        raise SourceError(f"{source.name}: has no weights here, and calibrating draws pictures; give a folder")
    for component in wanted:
        if component not in COMPONENTS:
            raise SourceError(f"{component}: has no {what}; they are calibrated for {', '.join(COMPONENTS)}")
    # SDXL's refiner has the second of its text encoders alone.
    text = "text_encoder_2" if source.pipeline_class.startswith(_XL) else "text_encoder"
    needed = {text, "vae", *wanted}
    if not any(name in source.components for name in DENOISERS):
        needed.add(DENOISERS[0])
    missing = sorted(needed - set(source.components))
    if missing:
        raise SourceError(f"{source.name}: has no {missing[0]}, without which it cannot draw pictures to calibrate on")
