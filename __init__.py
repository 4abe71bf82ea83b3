"""Few-shot adaptation of CLIP in two stages: extract features once, train heads in a second."""

__version__ = "0.1.0"
