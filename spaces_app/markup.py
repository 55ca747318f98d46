"""The one door from data to markup: every text of people, shops and models goes through :func:`inert`."""

from __future__ import annotations

import html

from pulse_hf.data.item_text import clean_text

# Beside HTML's own characters those of the page's template language, in case a template ever reads the result.
_TEMPLATE = {ord(sign): f"&#{ord(sign)};" for sign in "${}`[]"}


def inert(text: str, max_chars: int = 2_000) -> str:
    """A text that a page shows as it is: one line, visible characters only, nothing in it acts.

    Example:
        >>> inert('<b>${x}</b> & "so"')
        '&#36;&#123;x&#125; &amp; &quot;so&quot;'
    """
    return html.escape(clean_text(text, max_chars=max_chars)).translate(_TEMPLATE)


def signed(value: float) -> str:
    """A number with a real minus sign.

    >>> signed(-0.5)
    '−0.50'
    """
    return f"{value:.2f}".replace("-", "−")
