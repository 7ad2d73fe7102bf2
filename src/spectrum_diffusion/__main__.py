"""``python -m spectrum_diffusion`` and the command ``spectrum``."""

from __future__ import annotations

from ._interrupts import exit_interrupted, notice_interrupts, was_interrupted, was_said


def main() -> None:
    """Entry point of the command ``spectrum``: the command line is imported where Ctrl-C is noticed already."""
    notice_interrupts()
    try:
        from .cli import main as run

        run()
    except BaseException:
        if was_said() or not was_interrupted():
            raise
        exit_interrupted()


if __name__ == "__main__":
    main()
