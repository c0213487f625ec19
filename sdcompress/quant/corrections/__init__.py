"""Corrections of the error of few bits, one module each."""
