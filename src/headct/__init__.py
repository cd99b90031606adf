"""Foundation models for head CT. `import headct` loads nothing else; its names load what they need when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headct.checkpoints import load
    from headct.cohort import Cohort
    from headct.detection import Detector
    from headct.embedding import embed
    from headct.embedding.transformer import HeadCTEncoder
    from headct.preparing import Recipe, prepare, recipes
    from headct.reading import read
    from headct.scan import Rejection, Scan
    from headct.virtual.simulated import simulate

__version__ = "0.1.0"

__all__ = [
    "Cohort",
    "Detector",
    "HeadCTEncoder",
    "Recipe",
    "Rejection",
    "Scan",
    "__version__",
    "embed",
    "load",
    "prepare",
    "read",
    "recipes",
    "simulate",
]

_ROOMS = {
    "Cohort": "cohort",
    "Detector": "detection",
    "HeadCTEncoder": "embedding.transformer",
    "Recipe": "preparing",
    "Rejection": "scan",
    "Scan": "scan",
    "embed": "embedding",
    "load": "checkpoints",
    "prepare": "preparing",
    "read": "reading",
    "recipes": "preparing",
    "simulate": "virtual.simulated",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its room when it is first used (PEP 562)."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'headct' has no attribute {name!r}; public names are {', '.join(__all__)}")
    from importlib import import_module

    value = getattr(import_module(f"headct.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, whether loaded or not."""
    return sorted(__all__)
