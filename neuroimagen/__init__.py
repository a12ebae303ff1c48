"""NeuroImagen: the picture a person saw, reconstructed from their EEG (arXiv 2308.02510)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroimagen.model.model import NeuroImagen

__version__ = "0.1.0"
__all__ = ["NeuroImagen", "__version__"]


def __getattr__(name: str) -> Any:
    """NeuroImagen is imported when it is asked for: the command line and the readers need no diffusion model."""
    if name == "NeuroImagen":
        from neuroimagen.model.model import NeuroImagen

        return NeuroImagen
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
