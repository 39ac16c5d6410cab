"""The errors that users meet: each is one line saying what happened, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


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
