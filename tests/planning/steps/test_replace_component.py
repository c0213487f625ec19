"""replace_component: what stands in the artifact is the replacement, and all later steps take it for the original."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from in_process import evaluate
from listeners import interrupt_writing
from safetensors.torch import load_file

from sdcompress.calibration.prompts import PromptSet
from sdcompress.errors import RecipeError, UserError
from sdcompress.evaluation.settings import EvaluationSettings
from sdcompress.evaluation.worker.component_recording import Recorder, replay
from sdcompress.execution.execute import execute
from sdcompress.execution.verify import verify
from sdcompress.files.artifact import partial_folder
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import dump_recipe, parse_recipe
from sdcompress.sources.opening import open_source

CALIBRATION = {"prompts": ["ab"], "num_inference_steps": 1}


def recipe_of(components, folder=None, **more):
    text = json.dumps({"schema_version": 1, "description": "T", "components": components, **more})
    return parse_recipe(text, "r", folder)


def replaced(**parameters):
    return [{"replace_component": parameters}]


def plan_of(source, components, folder=None, **more):
    return make_plan(recipe_of(components, folder, **more), open_source(str(source)))


def snapshot(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def tiny_autoencoder(**changes):
    from diffusers import AutoencoderTiny

    torch.manual_seed(5)
    sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8),
             "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}  # fmt: skip
    return AutoencoderTiny(**{**sizes, **changes})


@pytest.fixture(scope="module")
def parts(nano_folder, tmp_path_factory):
    """A folder with other components for the nano pipeline: taesd, an encoder, a pipeline with both, a scheduler."""
    from diffusers import DiffusionPipeline, EulerDiscreteScheduler
    from transformers import CLIPTextModel

    folder = tmp_path_factory.mktemp("parts")
    tiny_autoencoder().save_pretrained(folder / "taesd")
    torch.manual_seed(6)
    config = CLIPTextModel.config_class.from_pretrained(nano_folder / "text_encoder")
    config.num_hidden_layers = 1
    CLIPTextModel(config).save_pretrained(folder / "encoder")
    EulerDiscreteScheduler(beta_start=0.002).save_pretrained(folder / "euler")
    pipeline = DiffusionPipeline.from_pretrained(nano_folder, text_encoder=CLIPTextModel(config))
    pipeline.tokenizer.add_tokens(["zz"])
    pipeline.save_pretrained(folder / "pipeline")
    return folder


def draw(folder):
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, pipeline("ab", num_inference_steps=2, output_type="np", generator=torch.manual_seed(0)).images


def test_tiny_autoencoder_opens_with_stock_diffusers(parts, nano_folder, tmp_path):
    components = {"vae": replaced(model="taesd"), "scheduler": replaced(class_name="EulerDiscreteScheduler")}
    plan = plan_of(nano_folder, components, parts)
    before, after = plan.source.components["vae"], plan.after("vae")
    assert (before.class_name, after.class_name) == ("AutoencoderKL", "AutoencoderTiny")
    assert f"({before.parameters:,} parameters" in plan.steps_of("vae")[0].planned.notes[0]
    assert f"({after.parameters:,} parameters" in plan.steps_of("vae")[0].planned.notes[0]
    manifest = execute(plan, tmp_path / "out")
    assert manifest.components["vae"].class_name == "AutoencoderTiny"
    assert manifest.components["vae"].parameters.to_json() == {
        "original": before.parameters, "compressed": sum(p.numel() for p in tiny_autoencoder().parameters())
    }  # fmt: skip
    assert manifest.components["vae"].replaced_by["model"] == "taesd"
    assert manifest.replaced_parts == {
        "scheduler": {"original": "DDIMScheduler", "compressed": "EulerDiscreteScheduler"}
    }
    assert verify(tmp_path / "out") == []
    pipeline, pictures = draw(tmp_path / "out")
    assert type(pipeline.vae).__name__ == "AutoencoderTiny" and pictures.shape == (1, 16, 16, 3)
    got = load_file(tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors")
    want = load_file(parts / "taesd" / "diffusion_pytorch_model.safetensors")
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    assert not (tmp_path / "out" / "scheduler" / "config.json").exists()


def test_later_steps_work_on_the_replacement(parts, nano_folder, tmp_path):
    """Calibration too: the bytes are those of the same steps on a pipeline that had the parts from the beginning."""
    steps = {
        "unet": [{"quantize": {"format": "int4", "rounding": "weighted-search", "include": ["mid_block"]}}],
        "vae": [{"cast": {"dtype": "float16"}}],
        "text_encoder": [{"quantize": {"format": "int8"}}],
    }  # fmt: skip
    replacing = {
        "vae": replaced(model="taesd"),
        "text_encoder": replaced(model="pipeline"),
        "scheduler": replaced(model="euler"),
    }
    together = {name: replacing.get(name, []) + steps.get(name, []) for name in {**steps, **replacing}}
    execute(plan_of(nano_folder, together, parts, calibration=CALIBRATION), tmp_path / "at-once")
    execute(plan_of(nano_folder, replacing, parts), tmp_path / "replaced")
    execute(plan_of(tmp_path / "replaced", steps, calibration=CALIBRATION), tmp_path / "later")
    execute(plan_of(nano_folder, {"unet": steps["unet"]}, calibration=CALIBRATION), tmp_path / "as-it-was")
    unet = Path("unet", "diffusion_pytorch_model.safetensors")
    for file in (unet, Path("vae", unet.name), Path("text_encoder", "model.safetensors"), Path("model_index.json"),
                 Path("scheduler", "scheduler_config.json")):  # fmt: skip
        assert (tmp_path / "at-once" / file).read_bytes() == (tmp_path / "later" / file).read_bytes(), file
    assert (tmp_path / "at-once" / unet).read_bytes() != (tmp_path / "as-it-was" / unet).read_bytes()


def test_text_encoder_brings_its_tokenizer(parts, nano_folder, tmp_path):
    plan = plan_of(nano_folder, {"text_encoder": replaced(model="pipeline")}, parts)
    assert "its tokenizer comes with it" in plan.steps[0].planned.notes
    execute(plan, tmp_path / "out")
    pipeline, _ = draw(tmp_path / "out")
    assert "zz" in pipeline.tokenizer.get_vocab() and pipeline.text_encoder.config.num_hidden_layers == 1
    execute(plan_of(nano_folder, {"text_encoder": replaced(model="encoder")}, parts), tmp_path / "alone")
    pipeline, _ = draw(tmp_path / "alone")
    assert "zz" not in pipeline.tokenizer.get_vocab() and pipeline.text_encoder.config.num_hidden_layers == 1


def test_from_the_hub(parts, nano_folder, tmp_path, monkeypatch):
    """What is fetched of a pipeline are the part's folder and the tokenizers, and that is enough."""

    def fetch(hub_id, part):
        assert (hub_id, part) == ("someone/pipeline", "text_encoder")
        for name in (part, "tokenizer"):
            shutil.copytree(parts / "pipeline" / name, tmp_path / "fetched" / name, dirs_exist_ok=True)
        shutil.copy(parts / "pipeline" / "model_index.json", tmp_path / "fetched")
        return tmp_path / "fetched"

    monkeypatch.setattr("sdcompress.sources.hub.fetch_component", fetch)
    execute(plan_of(nano_folder, {"text_encoder": replaced(model="someone/pipeline")}), tmp_path / "out")
    execute(plan_of(nano_folder, {"text_encoder": replaced(model="pipeline")}, parts), tmp_path / "local")
    for part in ("text_encoder", "tokenizer"):
        fetched, local = (
            {file.name: file.read_bytes() for file in (tmp_path / out / part).iterdir()} for out in ("out", "local")
        )
        assert fetched and fetched == local


def test_scheduler_is_what_from_config_makes(nano_folder, tmp_path):
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    config = {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}
    scheduler = replaced(class_name="DPMSolverMultistepScheduler", config=config)
    plan = plan_of(nano_folder, {"scheduler": scheduler})
    assert plan.components_after == plan.source.components
    execute(plan, tmp_path / "out")
    current = DDIMScheduler.from_pretrained(nano_folder / "scheduler")
    want = DPMSolverMultistepScheduler.from_config(current.config, **config)
    pipeline, _ = draw(tmp_path / "out")
    assert type(pipeline.scheduler) is DPMSolverMultistepScheduler
    assert pipeline.scheduler.config.timestep_spacing == "leading"  # DDIM's, which its config says
    got = {name: value for name, value in pipeline.scheduler.config.items() if not name.startswith("_")}
    assert got == {name: value for name, value in want.config.items() if not name.startswith("_")}


def test_same_bytes_twice_and_resumed(parts, nano_folder, tmp_path):
    components = {"vae": [*replaced(model="taesd"), {"quantize": {"format": "int8"}}],
                  "scheduler": replaced(class_name="LCMScheduler")}  # fmt: skip
    plan = plan_of(nano_folder, components, parts)
    execute(plan, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        execute(plan, tmp_path / "out", listener=interrupt_writing("vae"))
    execute(plan_of(nano_folder, components, parts), tmp_path / "out", resume=True)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")
    shutil.copytree(parts / "taesd", tmp_path / "taesd")
    moved = plan_of(nano_folder, components, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        execute(moved, tmp_path / "again", listener=interrupt_writing("vae"))
    tiny_autoencoder(decoder_block_out_channels=(8, 4)).save_pretrained(tmp_path / "taesd")
    with pytest.raises(UserError, match="was begun with another recipe, model"):
        execute(plan_of(nano_folder, components, tmp_path), tmp_path / "again", resume=True)
    assert partial_folder(tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("components", "said"),
    [
        ({"vae": {"model": "nowhere"}}, r"vae\.0\.replace_component\.model: .*nowhere: no such folder"),
        ({"vae": {}}, r"vae\.0\.replace_component\.model: missing"),
        ({"vae": {"model": "encoder"}}, "is a CLIPTextModel, which cannot stand for the vae; give AutoencoderKL or"),
        ({"vae": {"model": "sd15"}}, "its pixels per latent is 8, and the vae's was 2"),
        ({"vae": {"model": "sd3-medium"}}, r"its latent_channels is 16, .* was 4 \(the denoiser works on that many"),
        ({"vae": {"model": "pipeline", "component": "unit"}}, "has no component unit; it has scheduler, text"),
        ({"vae": {"class_name": "X", "model": "taesd"}}, r"class_name: is for the scheduler; for vae give model"),
        ({"text_encoder": {"model": "sd15"}}, r"hidden_size is 768, .* was 32 \(the denoiser's cross-attention takes"),
        ({"text_encoder": {"model": "sd15", "component": "safety_checker"}}, "cannot stand for the text_encoder"),
        ({"unet": {"model": "sd15"}}, "its cross_attention_dim is 768, and the unet's was 32"),
        ({"vae": {"model": "euler"}}, "holds no component"),
        ({"scheduler": {"model": "taesd"}}, r"scheduler\.0\.replace_component\.model: .*has no scheduler_config.json"),
        ({"scheduler": {}}, "class_name: missing; give class_name, config or model"),
        ({"scheduler": {"class_name": "EulerDiscrete"}}, "did you mean EulerDiscreteScheduler"),
        ({"scheduler": {"class_name": "FlowMatchEulerDiscreteScheduler"}}, "does not fit a model that predicts noise"),
        ({"scheduler": {"config": {"beta_stop": 1}}}, r"config\.beta_stop: DDIMScheduler has no such parameter; did"),
        ({"scheduler": {"class_name": "DPMSolverMultistepScheduler", "config": {"solver_type": "x"}}},
         "config: DPMSolverMultistepScheduler refuses it"),
        ({"scheduler": {"class_name": "DDIMScheduler", "model": "euler"}}, "class_name: is settled by model"),
        ({"scheduler": {"component": "vae", "model": "euler"}}, "component: does not go with the scheduler"),
    ],
)  # fmt: skip
def test_wrong_ones_are_refused(components, said, parts, nano_folder):
    with pytest.raises(RecipeError, match=said):
        plan_of(nano_folder, {name: replaced(**given) for name, given in components.items()}, parts)


def test_where_it_may_stand(parts, nano_folder):
    half = {"cast": {"dtype": "float16"}}
    with pytest.raises(RecipeError, match=r"components\.scheduler: has no weights that cast could work on"):
        plan_of(nano_folder, {"scheduler": [half]})
    with pytest.raises(RecipeError, match=r"vae\.1\.replace_component: must stand before cast"):
        plan_of(nano_folder, {"vae": [half, *replaced(model="taesd")]}, parts)
    with pytest.raises(RecipeError, match=r"components\.scheduler: the pipeline has none, or its config is not here"):
        plan_of("sd15", {"scheduler": replaced(class_name="DDIMScheduler")})
    plan = plan_of(nano_folder, {"*": [half]})  # which the scheduler is none of
    assert [step.component for step in plan.steps] == list(plan.source.components)
    recipe = recipe_of({"vae": replaced(model="taesd"), "scheduler": replaced(class_name="DDIMScheduler")})
    assert parse_recipe(dump_recipe(recipe), "r") == recipe


def test_decoders_of_other_classes_are_given_the_same_latents(parts, nano_folder, tmp_path):
    """A tiny autoencoder wants latents as the denoiser has them, a KL one divided by its factor."""
    from diffusers import DiffusionPipeline

    execute(plan_of(nano_folder, {"vae": replaced(model="taesd")}, parts), tmp_path / "out")
    original, compressed = (
        DiffusionPipeline.from_pretrained(nano_folder),
        DiffusionPipeline.from_pretrained(tmp_path / "out"),
    )
    assert (original.vae.config.scaling_factor, compressed.vae.config.scaling_factor) == (0.18215, 1.0)
    recorder = Recorder(original)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    with recorder.one_picture(), torch.no_grad():
        original("ab", num_inference_steps=1, output_type="latent", generator=torch.manual_seed(0))
        original.vae.decode(latents / 0.18215, return_dict=False)
    recorder.save(tmp_path / "recording.pt")
    seen = []
    decode = compressed.vae.decode
    compressed.vae.decode = lambda x, *rest, **more: (seen.append(x), decode(x, *rest, **more))[1]
    figures, _ = replay(compressed, tmp_path / "recording.pt")
    assert torch.allclose(seen[0], latents, rtol=4 * 2**-24, atol=0)  # divided and multiplied
    assert len(figures["vae"]["decode_psnr_db"]["values"]) == 1


@pytest.mark.full
def test_evaluation_across_classes(parts, nano_folder, tmp_path):
    components = {"vae": replaced(model="taesd"), "scheduler": replaced(class_name="EulerDiscreteScheduler")}
    plan = plan_of(nano_folder, components, parts)
    execute(plan, tmp_path / "out")
    settings = EvaluationSettings(
        prompts=PromptSet("two", ("ab", "ba"), 2), num_inference_steps=2, use_clip=False, noise_floor=(),
        attribute=True, component_metrics_count=1, attribute_count=2, threads=1, device="cpu",
    )  # fmt: skip
    report = evaluate(str(nano_folder), str(tmp_path / "out"), tmp_path / "report", settings=settings)
    assert report["original"]["components"]["vae"]["parameters"] == plan.source.components["vae"].parameters
    assert report["compressed"]["components"]["vae"]["parameters"] == plan.after("vae").parameters
    costs = {entry["name"]: entry for entry in report["attribution"]}
    assert costs["vae"]["identical"] == 0 and costs["vae"]["psnr_db"]["mean"] < 30  # of random weights
    assert costs["vae"]["steps"][0]["replace_component"]["model"] == "taesd"
    assert costs["unet"]["identical"] == costs["text_encoder"]["identical"] == 2
