"""The content of a text file that a person wrote, in whatever editor: UTF-8, with a byte order mark or without."""

from __future__ import annotations

import codecs

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


def without_byte_order_mark(content: bytes) -> bytes:
    r"""The bytes of the text; raises ValueError for UTF-16 and UTF-32.

    >>> without_byte_order_mark(b"\xef\xbb\xbf[model]"), without_byte_order_mark(b"[model]")
    (b'[model]', b'[model]')
    >>> without_byte_order_mark("[model]".encode("utf-16"))
    Traceback (most recent call last):
    ValueError: it is UTF-16 and has to be UTF-8: save it as UTF-8 (PowerShell: Set-Content -Encoding utf8)
    """
    if content.startswith(_UTF_16) or b"\0" in content[:2]:  # every second byte of Latin letters is 0
        raise ValueError("it is UTF-16 and has to be UTF-8: save it as UTF-8 (PowerShell: Set-Content -Encoding utf8)")
    return content.removeprefix(codecs.BOM_UTF8)


def text_of(content: bytes) -> str:
    """The text; raises ValueError for what is not UTF-8."""
    return without_byte_order_mark(content).decode("utf-8")
