"""NeuroImagen: the picture a person saw, reconstructed from their EEG (arXiv 2308.02510)."""

__version__ = "0.1.0"
