"""Statistics of layer inputs, gathered with hooks while a pipeline draws pictures.

They cover all timesteps and both guidance branches. One component is in memory at a time, in float32: the
text encoders, then the UNet, then the VAE, each over all prompts.
"""

from __future__ import annotations

import gc
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sdcompress.backends.torch.dtypes import TORCH_DTYPE
from sdcompress.backends.torch.loading import choose_device
from sdcompress.backends.torch.names import living_name
from sdcompress.calibration import FIRST_SEED, Calibration, Observed, Watch, choose_prompts
from sdcompress.errors import SourceError
from sdcompress.quant.activations import Histogram
from sdcompress.safetensors_file import read_bytes
from sdcompress.source import Source, is_buffer

if TYPE_CHECKING:
    from sdcompress.prompts import PromptSet

Wanted = Mapping[str, Mapping[str, Watch]]
Observations = dict[str, dict[str, Observed]]

XL = "StableDiffusionXLPipeline"
PIPELINES = ("StableDiffusionPipeline", XL)
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
COMPONENTS = (*TEXT_ENCODERS, "unet", "vae")  # in the order they run


def observe_activations(
    source: Source,
    wanted: Wanted,
    calibration: Calibration,
    advance: Callable[[str, int, int], None],
    device: str = "auto",
) -> Observations:
    """Component -> layer -> histograms of what goes in and out, over the trajectories that `calibration` describes.

    wanted: component -> Conv2d or Linear layer, as files call it -> what of it is watched. Histograms count a sample
    of large tensors, their extremes are of all values. `advance` hears the component, how many runs are done and how
    many there are: a prompt through a text encoder, a denoising step, a picture decoded or encoded. Only what is
    wanted, and what leads there, is run. Raises SourceError for pipelines and layers that this cannot be done with, and
    for values that are not finite.
    """
    _check(source, wanted)
    if not any(wanted.values()):
        return {}
    walk = Walk(source, wanted, calibration, advance, device)
    texts = walk.encode_prompts()
    latents = walk.denoise(texts) if walk.needs("unet") else []
    walk.decode(latents)
    return walk.observations


class Walk:
    """One pass of all prompts through a pipeline, component by component, and what was observed on the way."""

    def __init__(
        self,
        source: Source,
        wanted: Wanted,
        calibration: Calibration,
        advance: Callable[[str, int, int], None],
        device: str,
    ):
        self.observations: Observations = {}
        self._source, self._wanted = source, wanted
        self._device = choose_device(device)
        self._first_seed = calibration.seed + FIRST_SEED
        self._prompts: PromptSet = choose_prompts(calibration, source)
        self._settings: dict[str, Any] = {"height": calibration.height, "width": calibration.width}
        self._bare = _open_without_models(source)
        defaults = inspect.signature(self._bare.__call__).parameters
        for name in ("num_inference_steps", "guidance_scale"):
            chosen = getattr(self._prompts, name)
            self._settings[name] = defaults[name].default if chosen is None else chosen
        in_the_unet = source.components["unet"].config.get("time_cond_proj_dim") is not None
        self._guided = self._settings["guidance_scale"] > 1 and not in_the_unet  # as the pipelines decide it
        self._bare.scheduler.set_timesteps(self._settings["num_inference_steps"])
        self._advance, self._done, self._total = advance, 0, self._count_runs(len(self._bare.scheduler.timesteps))

    def needs(self, component: str) -> bool:
        """Whether `component` has to run: because it is wanted itself, or one that comes after it is."""
        return any(self._wanted.get(name) for name in COMPONENTS[COMPONENTS.index(component) :])

    def encode_prompts(self) -> list[dict[str, torch.Tensor | None]]:
        """The arguments of the pipeline that stand for each prompt, and for its lack where guidance needs that."""
        if self._source.pipeline_class == XL:
            return self._encode_for_xl()
        texts: list[dict[str, torch.Tensor | None]] = []
        with self._opened("text_encoder") as model:
            pipeline = self._pipeline(text_encoder=model)
            for prompt in self._prompts.prompts:
                positive, negative = pipeline.encode_prompt(prompt, self._device, 1, self._guided)
                texts.append({"prompt_embeds": positive, "negative_prompt_embeds": negative})
                self._tick("text_encoder")
        return texts

    def _encode_for_xl(self) -> list[dict[str, torch.Tensor | None]]:
        """What the pipeline's own `encode_prompt` gives, which wants both text encoders in memory at once."""
        prompts = self._prompts.prompts
        zeros = bool(self._source.model_index.get("force_zeros_for_empty_prompt", True))
        read = (*prompts, "") if self._guided and not zeros else prompts
        states: list[list[torch.Tensor]] = [[] for _ in read]
        pooled: list[torch.Tensor] = []  # of the last text encoder
        for part in self._text_encoders():
            tokenizer = self._bare.components[part.replace("text_encoder", "tokenizer")]
            with self._opened(part) as model:
                pooled = []
                for index, wording in enumerate(read):
                    ids = tokenizer(wording, padding="max_length", truncation=True, return_tensors="pt").input_ids
                    output = model(ids.to(self._device), output_hidden_states=True)
                    states[index].append(output.hidden_states[-2])
                    pooled.append(output[0])
                    if index < len(prompts):
                        self._tick(part)
        embeddings = [torch.cat(parts, dim=-1) for parts in states]
        texts: list[dict[str, torch.Tensor | None]] = []
        for index in range(len(prompts)):
            text: dict[str, torch.Tensor | None] = {
                "prompt_embeds": embeddings[index],
                "pooled_prompt_embeds": pooled[index],
            }
            if self._guided:
                for name, of_nothing in (("prompt_embeds", embeddings[-1]), ("pooled_prompt_embeds", pooled[-1])):
                    text[f"negative_{name}"] = torch.zeros_like(of_nothing) if zeros else of_nothing
            texts.append(text)
        return texts

    def denoise(self, texts: Sequence[Mapping[str, torch.Tensor | None]]) -> list[torch.Tensor]:
        """The latents at the end of each prompt's trajectory, still in the UNet's scale."""

        def count_step(*_: Any) -> dict[str, Any]:
            self._tick("unet")
            return {}

        latents = []
        with self._opened("unet") as model:
            pipeline = self._pipeline(unet=model)
            pipeline.vae_scale_factor = self._vae_scale_factor()  # which it takes from a VAE if it has one
            for index, text in enumerate(texts):
                generator = torch.Generator("cpu").manual_seed(self._first_seed + index)
                output = pipeline(
                    **text,
                    **self._settings,
                    generator=generator,
                    output_type="latent",
                    callback_on_step_end=count_step,
                )
                latents.append(output.images)
        return latents

    def decode(self, latents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The pictures, each [1, 3, height, width] from -1 to 1; encoded again if a layer of the encoder is wanted."""
        if not self.needs("vae"):
            return []
        pictures = []
        with self._opened("vae") as model, torch.no_grad():
            for end in latents:
                pictures.append(model.decode(self._unscaled(end, model.config)).sample.clamp_(-1, 1))
                self._tick("vae")
                if self._encodes():
                    model.encode(pictures[-1])
                    self._tick("vae")
        return pictures

    def _unscaled(self, latents: torch.Tensor, config: Any) -> torch.Tensor:
        """The latents as the VAE wants them; the pipeline for SDXL alone heeds their mean and deviation."""
        latents = latents / config.scaling_factor
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if self._source.pipeline_class != XL or mean is None or deviation is None:
            return latents
        return latents * latents.new_tensor(deviation).view(1, -1, 1, 1) + latents.new_tensor(mean).view(1, -1, 1, 1)

    @contextmanager
    def _opened(self, component: str) -> Iterator[Any]:
        """The component in memory with its wanted layers watched, while in the context; its weights go at the end."""
        model = open_component(self._source, component, self._device)
        layers = self._wanted.get(component, {})
        try:
            with watch_layers(model, component, layers) as observed, torch.no_grad():
                yield model
        finally:
            model.to("meta")  # whoever still refers to the module
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        idle = [layer for layer, seen in observed.items() if not seen.inputs[0].count]
        if idle:
            raise SourceError(f"{component}.{idle[0]}: drawing pictures never runs it; leave its activations in float")
        if layers:
            self.observations[component] = observed

    def _pipeline(self, **models: Any) -> Any:
        """The source's pipeline with its own tokenizers and scheduler, and no models but these."""
        pipeline = type(self._bare)(**self._bare.components | models, **_options(self._source))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _vae_scale_factor(self) -> int:
        """Pixels for each of the latents' along an edge, as the pipelines reckon it."""
        return 2 ** (len(_empty_model(self._source, "vae").config.block_out_channels) - 1)

    def _text_encoders(self) -> list[str]:
        return [part for part in TEXT_ENCODERS if part in self._source.components]

    def _encodes(self) -> bool:
        return any(layer.startswith(("encoder.", "quant_conv")) for layer in self._wanted.get("vae", {}))

    def _count_runs(self, steps: int) -> int:
        per_picture = len(self._text_encoders()) + steps * self.needs("unet") + self.needs("vae") + self._encodes()
        return len(self._prompts.prompts) * per_picture

    def _tick(self, component: str) -> None:
        self._done += 1
        self._advance(component, self._done, self._total)


@contextmanager
def watch_layers(model: nn.Module, component: str, layers: Mapping[str, Watch]) -> Iterator[dict[str, Observed]]:
    """Layer -> histograms of its input and output, which grow with every run of the model while in the context."""
    observed: dict[str, Observed] = {}
    hooks = []
    try:
        for name, watch in layers.items():
            layer, axis, channels = _find_layer(model, component, name)
            if watch.splits and sum(watch.splits) != channels:
                raise SourceError(
                    f"{component}.{name}: has {channels} input channels, which {watch.splits} do not add up to"
                )
            observed[name] = Observed(
                tuple(Histogram() for _ in watch.splits or (channels,)),
                Histogram() if watch.first_token else None,
                Histogram() if watch.output else None,
            )
            where = f"{component}.{name}"
            hooks.append(layer.register_forward_pre_hook(_input_observer(where, observed[name], watch, axis)))
            if watch.output:
                hooks.append(layer.register_forward_hook(_output_observer(where, observed[name])))
        yield observed
    finally:
        for handle in hooks:
            handle.remove()


def _input_observer(
    name: str, observed: Observed, watch: Watch, axis: int
) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def observe(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0]
        if observed.first_token is not None:
            _add(observed.first_token, x[:, :1], name, "input")
            x = x[:, 1:]
        parts = x.split(watch.splits, dim=axis) if watch.splits else (x,)
        for histogram, part in zip(observed.inputs, parts, strict=True):
            _add(histogram, part, name, "input")

    return observe


def _output_observer(name: str, observed: Observed) -> Callable[[nn.Module, Any, torch.Tensor], None]:
    def observe(_: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        assert observed.output is not None
        _add(observed.output, output, name, "output")

    return observe


def _add(histogram: Histogram, values: torch.Tensor, name: str, what: str) -> None:
    try:
        histogram.add(values)
    except ValueError as error:
        raise SourceError(f"{name}: in its {what} {error}; the source's weights are broken") from None


def _open_without_models(source: Source) -> Any:
    """The source's pipeline with nothing but its tokenizers and scheduler."""
    import diffusers
    from diffusers.utils import logging

    models = (*TEXT_ENCODERS, "unet", "vae", "safety_checker", "image_encoder", "feature_extractor")
    pipeline_class = getattr(diffusers, source.pipeline_class)
    absent = dict.fromkeys(name for name in models if name in inspect.signature(pipeline_class).parameters)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return pipeline_class.from_pretrained(str(source.path), local_files_only=True, **absent, **_options(source))
    finally:
        if bars:
            logging.enable_progress_bar()


def _options(source: Source) -> dict[str, bool]:
    """What keeps the pipeline class from missing the parts that are left out."""
    return {"add_watermarker": False} if source.pipeline_class == XL else {"requires_safety_checker": False}


def open_component(source: Source, component: str, device: torch.device) -> Any:
    """The component as its own class in float32 on `device`, read tensor by tensor, so that it is in memory once.

    Raises SourceError when it is quantized, or its files lack one of its tensors.
    """
    if "quantization_config" in source.components[component].config:
        raise SourceError(f"{source.name}: its {component} is quantized already; calibrate the original pipeline")
    model = _empty_model(source, component)
    for name, where in source.tensors[component].items():
        living = None if is_buffer(name) else living_name(model, name)
        if living is not None:
            flat = torch.frombuffer(read_bytes(where), dtype=TORCH_DTYPE[where.dtype])
            value = flat.view(where.shape).to(device, torch.float32)
            owner, _, leaf = living.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    missing = [name for name, value in model.named_parameters() if value.is_meta]
    if missing:
        raise SourceError(f"{source.path}: its {component} lacks {missing[0]}; download or save it again")
    return model.to(device).eval()


def _empty_model(source: Source, component: str) -> Any:
    """The component as its class with parameters that take no memory."""
    from accelerate import init_empty_weights

    spec = source.components[component]
    model_class = getattr(importlib.import_module(spec.library), spec.class_name)
    with init_empty_weights(include_buffers=False):
        if spec.library == "diffusers":
            return model_class.from_config(dict(spec.config))
        return model_class(model_class.config_class.from_dict(dict(spec.config)))


def _find_layer(model: nn.Module, component: str, name: str) -> tuple[nn.Module, int, int]:
    """The module that files call `name`, the axis of its input's channels and their number."""
    living = living_name(model, name)
    layer = model.get_submodule(living) if living else None
    if isinstance(layer, nn.Conv2d):
        return layer, 1, layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer, -1, layer.in_features
    raise SourceError(f"{component}.{name}: is no linear layer or convolution, so no range of its input is needed")


def _check(source: Source, wanted: Wanted) -> None:
    """Raises SourceError unless the pipeline can be drawn with here, and has every wanted component."""
    if source.pipeline_class not in PIPELINES:
        raise SourceError(
            f"{source.name}: is a {source.pipeline_class}; activation ranges can be calibrated for "
            f"{' and '.join(PIPELINES)} only"
        )
    if source.path is None:
        raise SourceError(f"{source.name}: has no weights here, and calibrating draws pictures; give a folder")
    for component in wanted:
        if component not in COMPONENTS:
            raise SourceError(f"{component}: has no activation ranges; they are calibrated for {', '.join(COMPONENTS)}")
    needed = {"unet", "vae", *(("text_encoder_2",) if source.pipeline_class == XL else ("text_encoder",)), *wanted}
    missing = sorted(needed - set(source.components))
    if missing:
        raise SourceError(f"{source.name}: has no {missing[0]}, without which it cannot draw pictures to calibrate on")
