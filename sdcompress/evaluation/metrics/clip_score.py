"""CLIP score: how well a picture matches its prompt.

Source: Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning" (arXiv:2104.08718),
equation 1 with w = 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.errors import EvaluationError

if TYPE_CHECKING:
    import numpy as np
    import torch


class ClipScorer:
    """A CLIP model in float32, with its tokenizer and image processor.

    Args:
        folder: where they are.
        device: where torch computes.

    Raises:
        EvaluationError: the folder cannot be opened as a CLIP model.

    Examples:
        >>> import numpy as np
        >>> from sdcompress.evaluation.metrics.scorer import TINY_SD_SCORER
        >>> scorer = ClipScorer(TINY_SD_SCORER)
        >>> (score,) = scorer.scores([np.full((64, 64, 3), 255, np.uint8)], "a white square")
        >>> 0 <= score <= 100
        True
    """

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
        """Return each picture's score: 100 times the cosine of the embeddings of picture and prompt.

        Args:
            pictures: uint8, [height, width, 3] each.
            prompt: cut where the model's context ends, its end token kept.

        Returns:
            0 to 100 for each; a negative cosine is 0.
        """
        return self.score_embeddings(self.embed(pictures), prompt)

    def embed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Return the embeddings of uint8 pictures, [pictures, projection], float32, of unit length."""
        import torch

        with torch.inference_mode():
            pixels = self._processor(images=list(pictures), return_tensors="pt", input_data_format="channels_last")
            image = _features(self._model.get_image_features(pixel_values=pixels["pixel_values"].to(self._device)))
            return torch.nn.functional.normalize(image).cpu().numpy()

    def score_embeddings(self, embeddings: np.ndarray, prompt: str) -> tuple[float, ...]:
        """Return what `scores` does, of pictures that were embedded already."""
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


def _image_processor() -> Any:
    """Return the class that resizes with Pillow, so that scores do not depend on whether torchvision is installed."""
    import transformers

    # transformers 5 renamed it; its CLIPImageProcessor resizes with torchvision.
    return getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor


def _features(output: Any) -> torch.Tensor:
    """Return the projected embeddings, which transformers 5 has inside an output object."""
    pooled: torch.Tensor = getattr(output, "pooler_output", output)
    return pooled
