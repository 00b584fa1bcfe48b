"""The chat template of Llama-2, as llama2.c renders it."""

from __future__ import annotations


def render(user: bytes, system: bytes = b"") -> bytes:
    """One turn of the user, with the system text in front on the first turn.

    Example: b"Hi" -> b"[INST] Hi [/INST]"
    """
    if system:
        user = b"<<SYS>>\n" + system + b"\n<</SYS>>\n\n" + user
    return b"[INST] " + user + b" [/INST]"
