"""The errors that users meet: each is one line saying what happened, where, and what to do."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

LIBRARIES = (*(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")), str(Path(__file__).parent))

FAULTS = (Exception, SystemExit)
"""What a plugin's code may raise, where it must not stop what goes on without it."""

WORKER = "in DataLoader worker process"


class UserError(Exception):
    """A mistake of the user's; the command line prints its one line and exits with status 2."""


class MissingData(UserError):
    """A data set is not on this machine; the message says how to get it."""


class NoGradients(UserError):
    """A network has no gradients of single images; methods without this need can still score it."""


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> UserError:
    """The error for a name that is not known, with the nearest ones that are."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"
    return UserError(f"{where + ': ' if where else ''}unknown {kind} '{name}'; {hint}")


def one_line(text: object) -> str:
    """A text without line breaks; of an error in a process that loads data what it said, without its traceback."""
    said = str(text)
    if WORKER in said.partition("\n")[0]:
        said = re.sub(r"^[\w.]+: ", "", said.strip().splitlines()[-1])
    return " ".join(said.split())


def why(error: BaseException) -> str:
    """What an exception says, in one line of at most 200 characters; its type where it says nothing."""
    return one_line(getattr(error, "strerror", None) or error)[:200] or type(error).__name__


def told(error: BaseException, where: str = "") -> str:
    """Place, type and text of an exception that nobody foresaw: a line of a plugin's, else `where`, else the last."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((*LIBRARIES, "<frozen"))]
    places = [f"{f.filename}:{f.lineno}" for f in own[-1:]] or [where] * bool(where)
    place = (places or [f"{f.filename}:{f.lineno}" for f in frames[-1:]] or [""])[0]
    text = one_line(error)
    return f"{place}: {type(error).__name__}{': ' + text if text else ''}"
