"""What pipelines are run on, for calibration and evaluation: settings, prompts and pictures."""
