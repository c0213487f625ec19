"""CLIP score: how well a picture matches its prompt (Hessel et al. 2021, arXiv:2104.08718, equation 1 with w = 100)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.errors import EvaluationError
from sdcompress.evaluation.metrics.measurement import Measurement

if TYPE_CHECKING:
    import numpy as np
    import torch


class ClipScorer:
    """A CLIP model with its tokenizer and image processor, opened from a local folder, in float32."""

    def __init__(self, folder: Path, device: str = "cpu"):
        from transformers import AutoTokenizer, CLIPModel

        try:
            self._model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._processor = _image_processor().from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise EvaluationError(
                f"{folder}: cannot be opened as a CLIP model with tokenizer and image processor ({error}); "
                f"give another with --clip PATH or use --no-clip"
            ) from error
        self._model = self._model.float().eval().to(device)
        self._device = device
        self._longest = self._model.config.text_config.max_position_embeddings

    def scores(self, pictures: Sequence[np.ndarray], prompt: str) -> tuple[float, ...]:
        """One score in 0..100 for each uint8 picture [height, width, 3]: 100 x cosine with the prompt, floored at 0.

        A prompt longer than the model's context is cut there, its end token kept.
        """
        return self.score_embeddings(self.embed(pictures), prompt)

    def embed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """The embeddings [pictures, projection] of uint8 pictures, float32, of unit length."""
        import torch

        with torch.inference_mode():
            pixels = self._processor(images=list(pictures), return_tensors="pt", input_data_format="channels_last")
            image = _features(self._model.get_image_features(pixel_values=pixels["pixel_values"].to(self._device)))
            return torch.nn.functional.normalize(image).cpu().numpy()

    def score_embeddings(self, embeddings: np.ndarray, prompt: str) -> tuple[float, ...]:
        """As `scores`, of pictures that were embedded already."""
        import torch

        with torch.inference_mode():
            tokens = self._tokenizer([prompt], truncation=True, max_length=self._longest, return_tensors="pt")
            text = _features(
                self._model.get_text_features(
                    input_ids=tokens["input_ids"].to(self._device),
                    attention_mask=tokens["attention_mask"].to(self._device),
                )
            )  # [1, projection]
            cosine = torch.nn.functional.cosine_similarity(torch.from_numpy(embeddings), text.cpu())  # [pictures]
        return tuple(max(0.0, 100.0 * value) for value in cosine.tolist())

    def measure(self, subject: str, samples: Iterable[tuple[np.ndarray, str]]) -> Measurement:
        """The CLIP score of every (picture, prompt)."""
        values = tuple(self.scores([picture], prompt)[0] for picture, prompt in samples)
        return Measurement("clip_score", subject, "0..100", values, higher_is_better=True)


def _image_processor() -> Any:
    """The class that resizes with Pillow, so that a score does not depend on whether torchvision is installed."""
    import transformers

    # transformers 5 renamed it; its CLIPImageProcessor resizes with torchvision.
    return getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor


def _features(output: Any) -> torch.Tensor:
    """The projected embeddings; transformers 5 hands them back inside an output object."""
    return getattr(output, "pooler_output", output)
