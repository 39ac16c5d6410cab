"""Errors meant for users: each is one line that says what happened, where, and what to do."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

LIBRARIES = (*(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")), str(Path(__file__).parent))

FAULTS = (Exception, SystemExit)
"""What to catch around a plugin's code, so that its failure does not stop everything else."""

WORKER = "in DataLoader worker process"


class UserError(Exception):
    """A user's mistake; the command line prints its one line and exits with status 2."""


class MissingData(UserError):
    """A data set is not on this machine; the message says how to get it."""


class NoGradients(UserError):
    """Gradients of single images cannot be computed for a network; methods that do not need them can still score it."""


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> UserError:
    """The error for an unknown name, which suggests the nearest known ones."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"
    return UserError(f"{where + ': ' if where else ''}unknown {kind} '{name}'; {hint}")


def one_line(text: object) -> str:
    """A text without line breaks; for an error from a DataLoader worker, its message without the worker's traceback."""
    said = str(text)
    if WORKER in said.partition("\n")[0]:
        said = re.sub(r"^[\w.]+: ", "", said.strip().splitlines()[-1])
    return " ".join(said.split())


def why(error: BaseException) -> str:
    """An exception's message, in one line of at most 200 characters; its type if it has no message."""
    return one_line(getattr(error, "strerror", None) or error)[:200] or type(error).__name__


def described(error: BaseException, where: str = "") -> str:
    """Place, type and message of an unforeseen exception, in one line.

    The place is the last line of a plugin in the traceback; if there is none, `where`, else the line that raised.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((*LIBRARIES, "<frozen"))]
    places = [f"{f.filename}:{f.lineno}" for f in own[-1:]] or [where] * bool(where)
    place = (places or [f"{f.filename}:{f.lineno}" for f in frames[-1:]] or [""])[0]
    text = one_line(error)
    return f"{place}: {type(error).__name__}{': ' + text if text else ''}"
