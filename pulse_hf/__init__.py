"""PULSE: recommendation that knows why, native to the Hugging Face Hub."""

__version__ = "0.1.0"
