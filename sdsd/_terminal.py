"""What a terminal or file that is not Unicode shows of our output."""

from __future__ import annotations

import codecs
import io
from typing import TextIO

_HANDLER = "sdsd.spelled"
_SPELLED = {
    "Γ": "Gamma",
    "Δ": "Delta",
    "Σ": "Sum",
    "Π": "Pi",
    "λ": "lambda",
    "σ": "sigma",
    "ρ": "rho",
    "η": "eta",
    "ε": "epsilon",
    "θ": "theta",
    "τ": "tau",
    "μ": "mu",
    "µ": "u",
    "π": "pi",
    "χ": "chi",
    "κ": "kappa",
    "∞": "inf",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "≠": "!=",
    "±": "+/-",
    "×": "x",
    "÷": "/",
    "·": "*",
    "−": "-",
    "–": "-",
    "—": "-",
    "─": "-",
    "│": "|",
    "→": "->",
    "…": "...",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
    "‖": "||",
    "√": "sqrt",
    "²": "^2",
    "³": "^3",
    "°": " degrees",
    "█": "#",
}


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_SPELLED.get(character, "?") for character in error.object[error.start : error.end]), error.end


codecs.register_error(_HANDLER, _spell)


def spell_what_cannot_be_shown(*streams: TextIO) -> None:
    """Let streams write the name of a character that their encoding lacks (Gamma for Γ), or a question mark."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def as_shown(text: str, stream: TextIO) -> str:
    """`text` as `stream` will show it, which may be longer."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, _HANDLER).decode(encoding)
