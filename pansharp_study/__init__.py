"""Zero-shot and one-shot pansharpening. `pansharp_study.sharpen(ms, pan)` is the one call; nothing heavy is imported before it is used."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`sharpen`, imported when first asked for (PEP 562)."""
    if name == "sharpen":
        from pansharp_study.sharpening import sharpen

        return sharpen
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What the package offers by itself."""
    return sorted([*globals(), "sharpen"])
