"""A folder and the folders in it: nothing in them is passed over in silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hybrid_jax.errors import UserError


def walk(folder: Path) -> Iterator[Path]:
    """Yields what is no folder in `folder` and in folders in it, sorted; links are followed.

    What is hidden, with a name that begins with a dot, does not count.

    Raises:
      UserError: a folder that cannot be read, or a link to a folder that holds the link.
    """
    # The folders that lead to where it is, each with its own place on disk and what is left of it.
    # (A list, as they can be nested more deeply than functions.)
    above = [(folder.resolve(), folder, _entries(folder))]
    while above:
        real, _, entries = above[-1]
        entry = next(entries, None)
        if entry is None:
            above.pop()
        elif not _is_folder(entry):
            yield entry
        else:
            real = entry.resolve() if entry.is_symlink() else real / entry.name
            for other, path, _ in above:
                if other == real:
                    raise UserError(f"{entry} leads back to {path}: remove the link.")
            above.append((real, entry, _entries(entry)))


def _is_folder(entry: Path) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # named by whoever wants to know what it is instead
        return False


def _entries(folder: Path) -> Iterator[Path]:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be read: {error.strerror}; make it readable."
        ) from None
    return (folder / name for name in names if not name.startswith("."))
