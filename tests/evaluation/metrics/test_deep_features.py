"""FID and LPIPS really run, on networks whose seeded random weights lie where torch hub keeps the trained ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdcompress.errors import EvaluationError
from sdcompress.evaluation.metrics import fid, lpips
from sdcompress.evaluation.worker.picture_scoring import PictureScorer
from sdcompress.evaluation.worker.requests import OpenMetrics, Score, ScoreSets


def _pictures(count: int, seed: int, side: int = 64) -> list[np.ndarray]:
    """Random blocks of 8 pixels with a little noise: pictures that differ at every scale."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, side // 8, side // 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return list((coarse + generator.normal(0, 20, coarse.shape)).clip(0, 255).astype(np.uint8))


def _saved(pictures: list[np.ndarray], folder: Path) -> list[str]:
    folder.mkdir(parents=True)
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{index}.png")
    return [str(folder / f"{index}.png") for index in range(len(pictures))]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub cache; nothing can be fetched into it."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was begun")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def inception_state() -> dict[str, torch.Tensor]:
    """Weights for torch-fidelity's InceptionV3, drawn so that signals neither vanish nor explode through 48 layers."""
    pytest.importorskip("torchvision")
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import feature_extractor_inceptionv3 as source

    class Recorder(Exception):
        pass

    shapes: dict[str, torch.Tensor] = {}

    class Shapes(source.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict: object, strict: bool = True, assign: bool = False) -> None:
            shapes.update(torch.nn.Module.state_dict(self))
            raise Recorder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source.torch, "load", lambda *_, **__: {})
        with pytest.raises(Recorder):
            Shapes("shapes", ["2048"], "nowhere")
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in shapes.items():
        if name.endswith("conv.weight"):
            state[name] = torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5
        else:  # batch norms that leave their input as it is
            state[name] = torch.ones_like(tensor) if name.endswith(("bn.weight", "var")) else torch.zeros_like(tensor)
    return state


def _frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Heusel et al. 2017, equation 6, with scipy's matrix square root."""
    linalg = pytest.importorskip("scipy.linalg")
    means, covariances = [each.mean(0) for each in (first, second)], [np.cov(each.T) for each in (first, second)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root))


def test_fid_is_its_definition() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(0, 1, (60, 12)), generator.normal(0.5, 2, (40, 12))
    expected = _frechet(first, second)
    # float64; the eigenvalues of a product of full rank are right to some 1e-12 of its norm
    assert fid.fid(first, second) == pytest.approx(expected, rel=1e-9) and expected > 5
    assert fid.fid(first, first) == pytest.approx(0, abs=1e-9)
    closed = 12 * 3.0**2  # equal covariances: the squared distance of the means
    assert fid.fid(first, first + 3) == pytest.approx(closed, rel=1e-9)


def test_fid_is_measured_on_inception(
    hub: Path, inception_state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    assert str(hub / fid.WEIGHTS_FILE) in (fid.why_not() or "")
    scorer = PictureScorer()
    assert set(scorer.open(OpenMetrics(scorer=None)).not_measured) >= {"fid"}
    sets = _pictures(5, 1), _pictures(4, 2)
    files = [_saved(pictures, tmp_path / name) for pictures, name in zip(sets, "ab", strict=True)]
    sets_of_files = ScoreSets(original=files[0], compressed=files[1])
    assert scorer.score_sets(sets_of_files).to_json() == {"cmmd": None, "fid": None}

    torch.save(inception_state, hub / fid.WEIGHTS_FILE)
    assert fid.why_not() is None and "fid" not in scorer.open(OpenMetrics(scorer=None)).not_measured
    measured = scorer.score_sets(sets_of_files).fid
    network = FeatureExtractorInceptionV3("independent", ["2048"], str(hub / fid.WEIGHTS_FILE))
    features = []
    for pictures in sets:
        batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        features.append(network(batch)[0].double().numpy())
    assert features[0].shape == (5, 2048) and features[0].std(0).max() > 1e-3
    # With fewer pictures than features, the trace of the root is the nuclear norm of the centred features' product.
    centred = [(each - each.mean(0)) / np.sqrt(len(each) - 1) for each in features]
    root = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    spread = sum(float((each**2).sum()) for each in centred)
    expected = float(((features[0].mean(0) - features[1].mean(0)) ** 2).sum()) + spread - 2 * root
    # float32 features of pictures in batches, and 2048 eigenvalues of which most are rounding's roots of 1e-16
    assert measured == pytest.approx(expected, rel=1e-3) and expected > 0


def test_a_weights_file_that_is_none_is_named(hub: Path, inception_state: dict[str, torch.Tensor]) -> None:
    (hub / fid.WEIGHTS_FILE).write_bytes(b"<html>404</html>")
    with pytest.raises(EvaluationError, match=r"inception.*cannot be read as the weights of InceptionV3"):
        fid.Inception()
    torch.save(dict(list(inception_state.items())[1:]), hub / fid.WEIGHTS_FILE)
    with pytest.raises(EvaluationError, match="cannot be read as the weights of InceptionV3"):
        fid.Inception()


def _slow_lpips(first: np.ndarray, second: np.ndarray, alexnet: dict[str, torch.Tensor]) -> float:
    """Zhang et al. 2018, equation 1, layer by layer in float64, on the linear weights that torchmetrics brings."""
    import torchmetrics.functional.image.lpips as brought
    from torch.nn.functional import conv2d, max_pool2d, relu

    linear = torch.load(
        Path(brought.__file__).parent / "lpips_models" / "alex.pth", map_location="cpu", weights_only=True
    )
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)[:, None, None]
    x = torch.stack([torch.from_numpy(each / 255.0).permute(2, 0, 1) for each in (first, second)]) * 2 - 1
    x = (x - shift) / scale
    distance = 0.0
    for place, (layer, stride, padding, pooled) in enumerate(
        ((0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False))
    ):
        x = max_pool2d(x, 3, 2) if pooled else x
        weight, bias = (alexnet[f"features.{layer}.{name}"].double() for name in ("weight", "bias"))
        x = relu(conv2d(x, weight, bias, stride, padding))
        unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-8)
        weighted = linear[f"lin{place}.model.1.weight"][0].double() * (unit[0] - unit[1]).square()
        distance += float(weighted.sum(0).mean())
    return distance


def test_lpips_is_measured_on_alexnet(hub: Path, tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    state = torchvision.models.alexnet(weights=None).state_dict()
    assert str(hub / lpips.ALEXNET_FILE) in (lpips.why_not() or "")
    torch.save(state, hub / lpips.ALEXNET_FILE)
    scorer = PictureScorer()
    assert "lpips" not in scorer.open(OpenMetrics(scorer=None)).not_measured

    def measure(original: str, compressed: str) -> float | None:
        return scorer.score(Score(original=original, compressed=compressed, prompt="")).metrics["lpips"]

    first, second = _pictures(2, 3)
    files = _saved([first, second], tmp_path / "pictures")
    measured = measure(*files)
    expected = _slow_lpips(first, second, state)
    assert expected > 0.01 and measured == pytest.approx(expected, abs=1e-4)
    assert measure(files[0], files[0]) == 0
    small = _saved([each[: lpips.SMALLEST_SIDE - 1] for each in (first, second)], tmp_path / "small")
    assert measure(*small) is None
    least = _saved([each[: lpips.SMALLEST_SIDE] for each in (first, second)], tmp_path / "least")
    assert measure(*least) > 0
