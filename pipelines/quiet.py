"""Keeps model libraries from writing progress bars and notices into a server's log."""

from __future__ import annotations


def quiet_libraries() -> None:
    """Errors only, no progress bars; imports the libraries, which costs seconds."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
