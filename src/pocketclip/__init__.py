"""PocketCLIP: train a CLIP of your own, from scratch, on one machine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketclip.bundle import Bundle, load

__all__ = ["Bundle", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import torch and what needs it only when it is asked for, so that the command line answers at once."""
    if name in ("Bundle", "load"):
        from pocketclip import bundle

        return getattr(bundle, name)
    raise AttributeError(f"module 'pocketclip' has no attribute {name!r}")
