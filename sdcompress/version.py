"""The version of sdcompress."""

__version__ = "0.1.0"
