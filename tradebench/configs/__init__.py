"""Public architectures, so that their memory can be planned without a download."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """The shapes that are shipped, by the name a suite gives them."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def path(config: str) -> Path:
    """The config.json of a shipped shape, or of a folder.

    Raises:
        FileNotFoundError: `config` is neither.
    """
    file = FOLDER / f"{config}.json" if config in names() else Path(config) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{config!r} is neither a folder with a config.json nor one of {', '.join(names())}"
        )
    return file
