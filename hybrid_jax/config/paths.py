"""Paths as users write them: `~`, variables and URLs, turned into local paths at one door."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from hybrid_jax.config.checks import shown
from hybrid_jax.errors import UserError

_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([^}]*\}?))")
# One slash is enough: `Path("gs://bucket")` is "gs:/bucket". One letter is no scheme but a drive.
_URL = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+):(?:/|$)")
_UNFIT = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates, ends of lines
_LONGEST, _LONGEST_PART = 4095, 255  # bytes, on Linux and macOS


def local_path(name: str, value: str | os.PathLike[str]) -> Path:
    """Returns a path of the local file system, with `~`, `~user`, `$VAR` and `${VAR}` expanded.

    >>> local_path("data.source", "file:///data/a%20b.txt")
    PosixPath('/data/a b.txt')
    >>> local_path("train.output_dir", "gs://bucket/run")
    Traceback (most recent call last):
    hybrid_jax.errors.UserError: train.output_dir='gs://bucket/run' is a URL, but must be a local \
path: mount it (for gs:// such as with gcsfuse), or copy it here.

    Args:
      name: of the field or argument, for messages.
      value: as the user wrote it. Expanding the result again changes nothing.

    Raises:
      UserError: an empty path, a variable or user that does not exist, a URL other than `file://`,
        or what no file system can hold.
    """
    return Path(local_text(name, value))


def local_text(name: str, value: str | os.PathLike[str]) -> str:
    """Returns what `local_path` returns, as text: "./kjv" stays apart from "kjv".

    Raises:
      UserError: as `local_path`.
    """
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    text = _checked_text(name, value, value)
    _refuse_remote(name, value, text)
    expanded = _VARIABLE.sub(lambda match: _variable(name, value, match), text)
    _refuse_remote(name, value, expanded)
    if _URL.match(expanded):
        expanded = _file_url(name, value, expanded)
    elif expanded.startswith("~"):
        expanded = _home(name, value, expanded)
    if _VARIABLE.search(expanded):
        raise UserError(
            f"{name}={shown(value)} expands to {shown(expanded)}, which names a variable again: "
            "write the path in full."
        )
    _check_lengths(name, expanded)
    return expanded


def folder_text(name: str, value: str | os.PathLike[str]) -> str:
    """Returns `local_text` of a folder that is there or can be made.

    Raises:
      UserError: as `local_path`, or it is a file, or lies in one.
    """
    text = local_text(name, value)
    path = Path(text)
    try:
        found = next((part for part in (path, *path.parents) if os.path.lexists(part)), None)
        is_folder = found is None or found.is_dir()
    except OSError as error:
        raise UserError(
            f"{name}={shown(value)} cannot be looked at: {error.strerror}; choose another folder."
        ) from None
    if not is_folder:
        raise UserError(
            f"{name}={shown(value)} must be a folder, but {shown(str(found))} is none: choose "
            "another folder, or move that away."
        )
    return text


def is_folder(path: str) -> bool:
    """Whether `path` is a folder that this process can see."""
    try:
        return Path(path).is_dir()
    except OSError:
        return False


def _checked_text(name: str, value: Any, text: Any) -> str:
    if not isinstance(text, str):
        raise UserError(f"{name}={shown(value)} must be text: a path.")
    if not text.strip():
        raise UserError(f"{name}={shown(value)} must not be empty: give a path.")
    if any(unicodedata.category(character) in _UNFIT for character in text):
        raise UserError(
            f"{name}={shown(value)} must not have control or undecodable characters: rename it."
        )
    return text


def _refuse_remote(name: str, value: Any, text: str) -> None:
    match = _URL.match(text)
    scheme = match[1].lower() if match else ""
    if scheme == "file" or (not scheme and "://" not in text):
        return
    tools = {"gs": "gcsfuse", "s3": "mountpoint-s3", "hdfs": "hadoop-fuse"}
    tool = f" (for {scheme}:// such as with {tools[scheme]})" if scheme in tools else ""
    expanded = "" if text == value else f" ({shown(text)})"
    raise UserError(
        f"{name}={shown(value)}{expanded} is a URL, but must be a local path: mount it{tool}, or "
        "copy it here."
    )


def _variable(name: str, value: Any, match: re.Match[str]) -> str:
    variable = match[1] or match[2].removesuffix("}")
    if not match[1] and not (match[2].endswith("}") and variable.isidentifier()):
        raise UserError(
            f"{name}={shown(value)} has {shown(match[0])}, which names no variable: write "
            "${NAME}."
        )
    found = os.environ.get(variable)
    if not found:  # an empty one would turn "$RUNS/a" into "/a"
        state = "empty" if found == "" else "not set"
        raise UserError(
            f"{name}={shown(value)} needs the environment variable {shown(variable)}, which is "
            f"{state}: set it, or write the path in full."
        )
    return found


def _home(name: str, value: Any, text: str) -> str:
    user = text.partition("/")[0]
    try:
        expanded = Path(text).expanduser()
    except RuntimeError:
        expanded = None
    if expanded is None or (user == "~" and os.environ.get("HOME") == ""):
        raise UserError(
            f"{name}={shown(value)} needs the home folder {shown(user)}, which does not exist: "
            f"write the path in full, or './{user[:20]}' for a file of that name."
        )
    return str(expanded)


def _file_url(name: str, value: Any, text: str) -> str:
    rest = text.strip().partition(":")[2]
    if rest.startswith("//"):
        host, slash, rest = rest[2:].partition("/")
        if host not in ("", "localhost") or not slash:
            raise UserError(
                f"{name}={shown(value)} names {shown(host)} as its host: write file:/// and the "
                "absolute path."
            )
        rest = f"/{rest}"
    return _checked_text(name, value, unquote(rest, errors="surrogateescape"))


def _check_lengths(name: str, text: str) -> None:
    num_bytes = len(os.fsencode(text))
    part = max(map(len, map(os.fsencode, text.split("/"))))
    if num_bytes > _LONGEST or part > _LONGEST_PART:
        raise UserError(
            f"{name}={shown(text)} is too long: a path may have {_LONGEST} bytes, a name in it "
            f"{_LONGEST_PART}; it has {num_bytes} and {part}."
        )
