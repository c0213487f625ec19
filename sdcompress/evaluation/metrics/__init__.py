"""Quality metrics, one file each. They see pictures and prompts only: no steps, no backends, no pipelines."""

from sdcompress.evaluation.metrics.measurement import Measurement

__all__ = ["Measurement"]
