"""What can open the result of a plan."""

from __future__ import annotations

from sdcompress.planning.plan import Plan

STOCK = "stock diffusers"
BITSANDBYTES = "stock diffusers with bitsandbytes on a GPU; sdcompress.open_pipeline on a CPU"
SDCOMPRESS = "diffusers after `import sdcompress`"
ONNX = "stock ORTDiffusionPipeline of optimum-onnx; sdcompress.open_pipeline"


def loader_of(plan: Plan, component: str) -> str:
    """Return what can open the component once the plan is carried out."""
    if plan.recipe.target == "onnx":
        return ONNX
    quantization = plan.after(component).config.get("quantization_config") or {}
    method = quantization.get("quant_method")
    if quantization.get("pruning"):
        return SDCOMPRESS
    return {None: STOCK, "bitsandbytes": BITSANDBYTES, "sdcompress": SDCOMPRESS}.get(method, str(method))


def loading_code(plan: Plan) -> str:
    """Return Python code that opens the whole artifact."""
    loaders = {loader_of(plan, name) for name in plan.source.components}
    if ONNX in loaders:
        return (
            "import sdcompress\n\n"
            'pipeline = sdcompress.open_pipeline("PATH")  # or optimum.onnxruntime\'s ORTDiffusionPipeline'
        )
    if BITSANDBYTES in loaders:
        return (
            "import sdcompress\n\n"
            'pipeline = sdcompress.open_pipeline("PATH")  # on a GPU stock DiffusionPipeline.from_pretrained works too'
        )
    first = (
        "import sdcompress  # registers its formats with diffusers and transformers\n" if SDCOMPRESS in loaders else ""
    )
    return f'{first}from diffusers import DiffusionPipeline\n\npipeline = DiffusionPipeline.from_pretrained("PATH")'
