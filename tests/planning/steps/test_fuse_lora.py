"""fuse_lora: what it adds is what diffusers and PEFT add; files that do not fit are errors of the plan."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from listeners import interrupt_writing
from safetensors.torch import load_file, save_file
from saved_by_transformers import tensors_in, tensors_of

from sdcompress.backends.torch.source_parts import open_component
from sdcompress.errors import RecipeError, UserError
from sdcompress.execution.execute import execute
from sdcompress.files.artifact import sha256_of
from sdcompress.lora.file import layer_names, open_lora
from sdcompress.lora.fusing import difference
from sdcompress.lora.keys import parse_key
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import dump_recipe, load_recipe, parse_recipe
from sdcompress.sources.opening import open_source

ROOT = Path(__file__).resolve().parents[3]
REAL = ROOT.parent / "shared/reference/lora/pytorch_lora_weights.safetensors"  # of SD 1.5, by its authors
UNET_MODULES = ("to_q", "to_out.0", "ff.net.2", "proj_in", "conv1", "conv_shortcut", "time_emb_proj")
TEXT_MODULES = ("q_proj", "out_proj", "fc1")
RANK = 3


def recipe_of(components, folder, **more):
    return parse_recipe(json.dumps({"schema_version": 1, "description": "T", "components": components, **more}), "r",
                        folder)  # fmt: skip


def fuse(*files):
    return [{"fuse_lora": {"files": [{"path": str(path), "weight": weight} for path, weight in files]}}]


def random_lora(model, modules, seed):
    """PEFT's adapter of random weights on the model, as its state dict."""
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install 'sdcompress[dev]')")
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(modules), init_lora_weights=False)
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(model, config)
    state = peft.get_peft_model_state_dict(adapted)
    return {name.removeprefix("base_model.model."): value.clone() for name, value in state.items()}


@pytest.fixture(scope="module")
def loras(nano_folder):
    """Two adapters, each component -> PEFT's names in diffusers' classes -> weights."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    def make(seed):
        unet = UNet2DConditionModel.from_pretrained(nano_folder / "unet")
        text = CLIPTextModel.from_pretrained(nano_folder / "text_encoder")
        return {"unet": random_lora(unet, UNET_MODULES, seed), "text_encoder": random_lora(text, TEXT_MODULES, seed)}

    return make(1), make(2)


def module_of(name):
    return name.removesuffix(".lora_A.weight").removesuffix(".lora_B.weight")


def as_peft_of_diffusers(lora):
    return {f"{part}.{name}": value for part, state in lora.items() for name, value in state.items()}


def as_attention_processors(lora):
    found = {}
    for name, value in lora["unet"].items():
        if ".attn" in name:
            module = module_of(name).replace("to_out.0", "to_out")
            owner, _, leaf = module.rpartition(".")
            half = "down" if "lora_A" in name else "up"
            found[f"unet.{owner}.processor.{leaf}_lora.{half}.weight"] = value
    for name, value in lora["text_encoder"].items():
        if ".self_attn" in name:
            module = module_of(name).replace("out_proj", "to_out").replace("q_proj", "to_q")
            found[f"text_encoder.{module}_lora.{'down' if 'lora_A' in name else 'up'}.weight"] = value
    return found


def as_kohya(lora, alpha=2.0):
    found = {}
    for part, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_")):
        for name, value in lora[part].items():
            module = prefix + module_of(name).replace(".", "_")
            found[f"{module}.{'lora_down' if 'lora_A' in name else 'lora_up'}.weight"] = value
            found[f"{module}.alpha"] = torch.tensor(alpha)
    return found


LAYOUTS = {"peft": as_peft_of_diffusers, "processors": as_attention_processors, "kohya": as_kohya}


def fused_by_diffusers(folder, files, pipeline_class="StableDiffusionPipeline"):
    """Component -> its weights after `load_lora_weights` and `fuse_lora`."""
    import diffusers

    pipeline = getattr(diffusers, pipeline_class).from_pretrained(folder)
    for index, (file, _) in enumerate(files):
        pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=str(index))
    parts = [name for name in ("unet", "text_encoder", "text_encoder_2") if name in pipeline.components]
    pipeline.set_adapters([str(index) for index in range(len(files))], [weight for _, weight in files])
    pipeline.fuse_lora(components=parts)
    pipeline.unload_lora_weights()
    return {part: tensors_of(pipeline.components[part]) for part in parts}


def assert_same_weights(folder, want, original, parts=("unet", "text_encoder")):
    """The artifact's tensors are `want`'s, and some are not the original's."""
    for part in parts:
        got, before = tensors_in(folder, part), tensors_in(original, part)
        changed = [name for name in got if not torch.equal(got[name], before[name])]
        assert len(changed) > 3
        for name, value in got.items():
            # Products of rank 3 and two sums, in another order: some roundings of 2**-24 of the largest value.
            tolerance = 16 * 2**-24 * float(want[part][name].abs().max())
            assert float((value - want[part][name]).abs().max()) <= tolerance, name


@pytest.mark.smoke
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fuses_what_diffusers_fuses(layout, loras, nano_folder, tmp_path):
    files = [(tmp_path / "a.safetensors", 0.8), (tmp_path / "b.safetensors", -0.35)]
    for (file, _), lora in zip(files, loras, strict=True):
        save_file(LAYOUTS[layout](lora), file)
    recipe = recipe_of({"unet": fuse(*files), "text_encoder": fuse(*files)}, tmp_path)
    manifest = execute(make_plan(recipe, open_source(str(nano_folder))), tmp_path / "out")
    assert_same_weights(tmp_path / "out", fused_by_diffusers(nano_folder, files), nano_folder)
    assert manifest.components["unet"].fused_loras == [
        {"path": str(file), "weight": weight, "sha256": sha256_of(file)} for file, weight in files
    ]


def test_peft_folder_with_its_own_settings(nano_folder, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install 'sdcompress[dev]')")
    from diffusers import UNet2DConditionModel

    config = peft.LoraConfig(
        r=RANK, lora_alpha=5, use_rslora=True, alpha_pattern={"attn1.to_q": 7}, rank_pattern={"conv1": 2},
        target_modules=list(UNET_MODULES), init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(3)
    adapted = peft.get_peft_model(UNet2DConditionModel.from_pretrained(nano_folder / "unet"), config)
    adapted.save_pretrained(tmp_path / "adapter")
    want = adapted.merge_and_unload().state_dict()
    recipe = recipe_of({"unet": [{"fuse_lora": {"path": "adapter"}}]}, tmp_path)
    execute(make_plan(recipe, open_source(str(nano_folder))), tmp_path / "out")
    assert_same_weights(tmp_path / "out", {"unet": want}, nano_folder, ("unet",))
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(RecipeError, match=r"files\.0\.path: .*adapter_config.json, which has its alpha, is not beside"):
        make_plan(recipe, open_source(str(nano_folder)))


def test_alpha_in_the_header(loras, nano_folder, tmp_path):
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=loras[0]["unet"],
        unet_lora_adapter_metadata={"r": RANK, "lora_alpha": 12, "target_modules": list(UNET_MODULES)},
    )  # fmt: skip
    lora = open_lora(tmp_path, open_source(str(nano_folder)).components["unet"])
    assert {update.scale for update in lora.updates.values()} == {12 / RANK}


@pytest.mark.parametrize("kernel", [1, 3])
def test_locon_with_a_kernel_in_the_middle(kernel, nano_folder, tmp_path):
    """The update is the three convolutions one after the other."""
    layer = "down_blocks.0.resnets.0.conv1" if kernel == 3 else "down_blocks.0.attentions.0.proj_in"
    spec = open_source(str(nano_folder)).components["unet"]
    out, into, *_ = shape = spec.tensors[f"{layer}.weight"].shape
    generator = torch.Generator().manual_seed(0)
    down = torch.randn((RANK, into, 1, 1), generator=generator)
    up = torch.randn((out, RANK, 1, 1), generator=generator)
    mid = torch.randn((RANK, RANK, kernel, kernel), generator=generator)
    name = "lora_unet_" + layer.replace(".", "_")
    save_file(
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.lora_mid.weight": mid,
         f"{name}.alpha": torch.tensor(RANK / 2, dtype=torch.bfloat16)},
        tmp_path / "locon.safetensors",
    )  # fmt: skip
    update = open_lora(tmp_path / "locon.safetensors", spec).updates[layer]
    x = torch.randn((1, into, 5, 5), generator=generator)
    want = 0.5 * F.conv2d(F.conv2d(F.conv2d(x, down), mid, padding=kernel // 2), up)
    got = F.conv2d(x, difference(update, shape), padding=kernel // 2)
    # Sums over channels, kernels and ranks in another order: sqrt(1000) terms' roundings of 2**-24.
    assert float((got - want).norm() / want.norm()) < 32 * 2**-24


def test_linear_updates_of_1x1_convolutions(nano_folder, tmp_path):
    layer, spec = "down_blocks.0.attentions.0.proj_in", open_source(str(nano_folder)).components["unet"]
    out, into, *_ = spec.tensors[f"{layer}.weight"].shape
    save_file({f"unet.{layer}.lora_A.weight": torch.ones(2, into), f"unet.{layer}.lora_B.weight": torch.ones(out, 2)},
              tmp_path / "l.safetensors")  # fmt: skip
    update = open_lora(tmp_path / "l.safetensors", spec).updates[layer]
    assert torch.equal(difference(update, (out, into, 1, 1)), torch.full((out, into, 1, 1), 2.0))


def small(tensors, tmp_path, **metadata):
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "l.safetensors", metadata)
    return tmp_path / "l.safetensors"


ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0"
QUERY, KEY = f"unet.{ATTENTION}.attn1.to_q", f"unet.{ATTENTION}.attn2.to_k"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"lora_unet_x.dora_scale": (1,)}, "is a DoRA"),
        ({"lora_unet_x.hada_w1_a": (1, 1)}, "is a LoHa"),
        ({"lora_unet_x.lokr_w1": (1, 1)}, "is a LoKr"),
        ({"whatever.weight": (1,)}, "whatever.weight is in no layout of LoRA"),
        ({"lora_te_text_model_x.lora_down.weight": (1, 1)}, "has nothing for unet, only for text_encoder"),
        ({"unet.nowhere.lora_A.weight": (1, 1), "unet.nowhere.lora_B.weight": (1, 1)},
         "2 of its 2 keys for unet match no layer of it, the first being unet.nowhere.lora_A.weight"),
        ({f"{QUERY}.lora_A.weight": (2, 32)}, "to_q has no up half"),
        ({f"{QUERY}.lora_A.weight": (2, 32), f"{QUERY}.lora_B.weight": (32, 3)},
         r"its halves are \[32, 3\] and \[2, 32\], whose ranks do not agree"),
        ({f"{KEY}.lora_A.weight": (2, 2048), f"{KEY}.lora_B.weight": (32, 2)},
         r"its update is \[32, 2048\], and the weight is \[32, 32\]; it was made for SDXL \(sdxl_base_v1-0\)"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(tensors, said, nano_folder, tmp_path):
    file = small(tensors, tmp_path, ss_base_model_version="sdxl_base_v1-0")
    with pytest.raises(RecipeError, match=r"components\.unet\.0\.fuse_lora\.files\.0\.path: .*" + said):
        make_plan(recipe_of({"unet": fuse((file, 1))}, tmp_path), open_source(str(nano_folder)))


def test_what_is_wrong_with_a_recipe(nano_folder, tmp_path):
    (tmp_path / "l.bin").write_bytes(b"x")
    steps = fuse(("a.safetensors", 1), ("l.bin", 1))
    with pytest.raises(RecipeError) as caught:
        make_plan(recipe_of({"unet": steps}, tmp_path), open_source(str(nano_folder)))
    assert [problem.field for problem in caught.value.problems] == [
        "components.unet.0.fuse_lora.files.0.path", "components.unet.0.fuse_lora.files.1.path",
    ]  # fmt: skip
    with pytest.raises(RecipeError, match=r"unet\.0\.fuse_lora\.files\.0\.weight: input should be a finite number"):
        recipe_of({"unet": [{"fuse_lora": {"path": "a", "weight": float("nan")}}]}, tmp_path)
    with pytest.raises(RecipeError, match=r"unet\.0\.fuse_lora\.files: .*must name at least one"):
        recipe_of({"unet": [{"fuse_lora": {"files": []}}]}, tmp_path)
    with pytest.raises(RecipeError, match=r"unet\.1\.fuse_lora: must stand before cast"):
        make_plan(recipe_of({"unet": [{"cast": {"dtype": "float16"}}, *steps]}, tmp_path), open_source("sd15"))


def test_keys_of_other_components_are_said(loras, nano_folder, tmp_path):
    save_file(as_kohya(loras[0]), tmp_path / "a.safetensors")
    plan = make_plan(recipe_of({"unet": fuse(("a.safetensors", 1))}, tmp_path), open_source(str(nano_folder)))
    assert plan.steps[0].planned.notes[1] == "a.safetensors has 6 layers for text_encoder too, which are not fused here"


def test_paths_are_relative_to_the_recipe_and_dumped_as_written(loras, nano_folder, tmp_path):
    save_file(as_kohya(loras[0]), tmp_path / "a.safetensors")
    file = tmp_path / "r.yaml"
    file.write_text(dump_recipe(recipe_of({"unet": fuse(("a.safetensors", 0.5))}, tmp_path)))
    assert "path: a.safetensors" in file.read_text() and str(tmp_path) not in file.read_text()
    make_plan(load_recipe(str(file)), open_source(str(nano_folder)))
    with pytest.raises(RecipeError, match=r"a\.safetensors: no such file"):
        make_plan(parse_recipe(file.read_text(), "r"), open_source(str(nano_folder)))


def test_calibration_and_later_steps_see_the_fused_weights(loras, nano_folder, tmp_path):
    """Fusing and quantizing at once gives the bytes of quantizing what was fused before; statistics are its own."""
    save_file(as_kohya(loras[0]), tmp_path / "a.safetensors")
    calibration = {"prompts": ["ab"], "num_inference_steps": 1}
    rest = [
        {"prune": {"heads": 0.5, "importance": "activation"}},
        {"quantize": {"format": "int8"}},
    ]
    source = open_source(str(nano_folder))
    at_once = recipe_of({"unet": fuse(("a.safetensors", 1)) + rest}, tmp_path, calibration=calibration)
    execute(make_plan(at_once, source), tmp_path / "at-once")
    execute(make_plan(recipe_of({"unet": fuse(("a.safetensors", 1))}, tmp_path), source), tmp_path / "fused")
    later = recipe_of({"unet": rest}, tmp_path, calibration=calibration)
    execute(make_plan(later, open_source(str(tmp_path / "fused"))), tmp_path / "later")
    execute(make_plan(later, source), tmp_path / "unfused")
    weights = Path("unet", "diffusion_pytorch_model.safetensors")
    assert (tmp_path / "at-once" / weights).read_bytes() == (tmp_path / "later" / weights).read_bytes()
    assert (tmp_path / "at-once" / weights).read_bytes() != (tmp_path / "unfused" / weights).read_bytes()


def test_models_opened_to_measure_and_teach_are_fused(loras, nano_folder, tmp_path):
    save_file(as_kohya(loras[0]), tmp_path / "a.safetensors")
    plan = make_plan(recipe_of({"unet": fuse(("a.safetensors", 1))}, tmp_path), open_source(str(nano_folder)))
    execute(plan, tmp_path / "out")
    opened = open_component(plan.modified_source, "unet", torch.device("cpu")).state_dict()
    written = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert opened.keys() == written.keys() and all(torch.equal(opened[name], written[name]) for name in written)


def test_half_precision_stays_and_overflow_is_named(nano_copy, tmp_path):
    file = nano_copy / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: value.half() for name, value in load_file(file).items()}, file)
    name = f"unet.{ATTENTION}.attn1.to_q"
    for size in (0.25, 1e5):
        save_file({f"{name}.lora_A.weight": torch.full((1, 32), size), f"{name}.lora_B.weight": torch.ones(32, 1)},
                  tmp_path / "l.safetensors")  # fmt: skip
        plan = make_plan(recipe_of({"unet": fuse(("l.safetensors", 1))}, tmp_path), open_source(str(nano_copy)))
        if size == 1e5:
            with pytest.raises(UserError, match=r"attn1\.to_q\.weight: holds 1e\+05 with the LoRAs, too large"):
                execute(plan, tmp_path / "out-2")
        else:
            execute(plan, tmp_path / "out")
            got = load_file(tmp_path / "out" / "unet" / file.name)[f"{ATTENTION}.attn1.to_q.weight"]
            before = load_file(file)[f"{ATTENTION}.attn1.to_q.weight"]
            assert torch.equal(got, (before.float() + 0.25).half())


def test_a_changed_lora_cannot_be_resumed(loras, nano_folder, tmp_path):
    save_file(as_kohya(loras[0]), tmp_path / "a.safetensors")
    recipe = recipe_of({"unet": fuse(("a.safetensors", 1))}, tmp_path)
    plan = make_plan(recipe, open_source(str(nano_folder)))
    with pytest.raises(KeyboardInterrupt):
        execute(plan, tmp_path / "out", listener=interrupt_writing("unet"))
    save_file(as_kohya(loras[1]), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="was begun with another recipe, model"):
        execute(make_plan(recipe, open_source(str(nano_folder))), tmp_path / "out", resume=True)


def test_names_of_the_original_unet():
    assert parse_key("lora_unet_output_blocks_5_2_conv.lora_up.weight").module == "output_blocks_5_2_conv"
    names = layer_names(open_source("sdxl").components["unet"])
    want = {
        "output_blocks_5_2_conv": "up_blocks.1.upsamplers.0.conv",
        "input_blocks_6_0_op": "down_blocks.1.downsamplers.0.conv",
        "middle_block_2_out_layers_3": "mid_block.resnets.1.conv2",
        "out_2": "conv_out",
        "label_emb_0_2": "add_embedding.linear_2",
        "input_blocks_8_1_proj_out": "down_blocks.2.attentions.1.proj_out",
    }
    assert {name: names[name] for name in want} == want


@pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL} is not here (a published LoRA, which is not committed)")
def test_real_lora_on_full_size_shapes():
    source = open_source("sd15")
    recipe = recipe_of({"unet": fuse((REAL, 0.8))}, REAL.parent)
    plan = make_plan(recipe, source)
    assert plan.steps[0].planned.notes == (f"{REAL} fused with weight 0.8: 128 layers, rank 4",)
    updates = open_lora(REAL, source.components["unet"]).updates
    assert {layer.rpartition(".attn")[2][1:] for layer in updates} == {".to_q", ".to_k", ".to_v", ".to_out.0"}
    tensors = load_file(REAL)
    for layer, key in (
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "attn2.processor.to_k_lora"),
        ("up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_out.0", "attn1.processor.to_out_lora"),
    ):
        key = layer.rpartition(".attn")[0] + "." + key
        want = tensors[f"{key}.up.weight"].double() @ tensors[f"{key}.down.weight"].double()
        got = difference(updates[layer], source.components["unet"].tensors[f"{layer}.weight"].shape)
        assert float(want.abs().max()) > 0
        assert float((got - want).abs().max()) < 8 * 2**-24 * float(
            want.abs().max()
        )  # four products, summed in float32


def test_planning_needs_no_torch(tmp_path):
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    shapes = {"lora_A": (4, 768), "lora_B": (1280, 4)}
    file = tmp_path / "l.safetensors"
    save_file({f"unet.{layer}.{part}.weight": torch.ones(shape) for part, shape in shapes.items()}, file)
    code = (
        "import sys, json\nfrom sdcompress import open_source\nfrom sdcompress.planning.plan import make_plan\n"
        "from sdcompress.planning.recipe import parse_recipe\n"
        "make_plan(parse_recipe(sys.argv[1], 'r'), open_source('sd15'))\nassert 'torch' not in sys.modules\n"
    )
    recipe = json.dumps({"schema_version": 1, "description": "T", "components": {"unet": fuse((file, 1))}})
    subprocess.run([sys.executable, "-c", code, recipe], check=True, cwd=ROOT)
