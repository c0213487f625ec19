"""Carrying out a plan: writing, publishing and checking an artifact."""
