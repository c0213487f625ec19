"""Comparing two pipelines: what is drawn, measured and logged."""
