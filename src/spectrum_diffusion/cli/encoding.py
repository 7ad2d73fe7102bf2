"""Output on terminals that know few characters: Windows code pages, and ASCII."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

SPELLED = {
    **{
        "–": "-",
        "—": "-",
        "−": "-",
        "×": "x",
        "·": "*",
        "•": "*",
        "∞": "inf",
        "≤": "<=",
        "≥": ">=",
        "≠": "!=",
        "≈": "~",
    },
    **{
        "→": "->",
        "←": "<-",
        "↑": "^",
        "↓": "v",
        "√": "sqrt",
        "∈": "in",
        "⊆": "in",
        "‖": "||",
        "⌊": "|",
        "⌋": "|",
        "⟨": "<",
        "⟩": ">",
    },
    **{"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "«": '"', "»": '"', "±": "+-", "²": "2", "°": "deg"},
    **{
        "α": "alpha",
        "β": "beta",
        "γ": "gamma",
        "δ": "delta",
        "κ": "kappa",
        "λ": "lambda",
        "π": "pi",
        "σ": "sigma",
        "τ": "tau",
        "φ": "phi",
    },
    **{
        "Δ": "Delta",
        "Σ": "Sum",
        "Φ": "Phi",
        "′": "'",
        "§": "section ",
        "▲": "^",
        "▼": "v",
        "⁻": "-",
        "✓": "ok",
        "✗": "x",
        "█": "#",
        "░": ".",
    },
}
"""How a character is written in ASCII, where its decomposition does not say it (``…`` and accents)."""

ERRORS = "spectrum_diffusion.spell"


def spell(error: UnicodeError) -> tuple[str, int]:
    """A codec's error handler: characters that can't be encoded are spelled in ASCII; "?" stands for unknown ones."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spelled, error.object[error.start : error.end])), error.end


def never_fail_to_print() -> None:
    """Let stdout and stderr spell what they can't encode, whatever prints it, in place of raising an error."""
    codecs.register_error(ERRORS, spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def knows_unicode() -> bool:
    """Whether stdout can print any character."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")


def _spelled(character: str) -> str:
    if character in SPELLED:
        return SPELLED[character]
    if "─" <= character <= "╿":  # drawings of boxes
        return "-" if "HORIZONTAL" in unicodedata.name(character) else "|"
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or "?"
