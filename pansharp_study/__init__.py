"""Zero-shot and one-shot pansharpening: networks pretrained on simulated pairs, classical methods, quality indices.

    from pansharp_study import sharpen, metrics, classical, create_model, list_models, get_sensor

Each name is imported when it is first asked for (PEP 562), so that importing the package loads nothing heavy.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "sharpen": "sharpening.sharpen",
    "create_model": "networks.zoo",
    "list_models": "networks.zoo",
    "get_sensor": "optics.sensors",
    "metrics": None,
    "classical": None,
}


def __getattr__(name: str):
    """A function of the public face from its module, or one of the two modules."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_PUBLIC[name] or name}")
    return getattr(module, name) if _PUBLIC[name] else module


def __dir__() -> list[str]:
    """What the package offers by itself."""
    return sorted([*globals(), *_PUBLIC])
