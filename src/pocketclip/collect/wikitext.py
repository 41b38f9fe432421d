"""Wikipedia's page source -> the words a reader sees, as bytes, at a hundred megabytes a second.

A full parse of wikitext needs a wiki: templates are programs. Counting words needs less, so this removes what readers
do not read as running text (templates, footnotes, formulas, galleries, table formatting, addresses) and keeps what they
do (link labels, captions of pictures, table cells). Everything works on UTF-8 bytes: no character above 127 can be part
of markup, and C-speed `bytes` methods do most of the work.
"""

import re
from collections.abc import Callable
from operator import methodcaller

COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.DOTALL)
# Elements whose content is no running text; a self-closing <ref name=x /> has none. What lies between the tags is run
# through from < to <, an eighth of the time of `.*?`; "+" behind a repetition: it is not tried again with less.
SILENT_ELEMENT = re.compile(
    rb"<(ref|math|gallery|timeline|source|syntaxhighlight|code|score|imagemap|hiero|chem|graph|templatestyles)\b"
    rb"[^<>]*+>(?:(?<=/>)|[^<]*+(?:<(?!/\1\s*>)[^<]*+)*+(?:</\1\s*>|\Z))",
    re.IGNORECASE,
)
TAG = re.compile(rb"</?[a-zA-Z][^<>]*>")
TEMPLATE = re.compile(rb"\{\{[^{}]*+\}\}")
PARAMETER = re.compile(rb"\{\{\{[^{}]*\}\}\}")
TABLE_LINE = re.compile(rb"\n[ \t:]*(?:\{\||\|-|\|\})[^\n]*")
CELL_FORMAT = re.compile(rb"(?:\n[ \t]*[|!]|\|\||!!)[^|!\[\]\n=]*=[^|!\[\]\n]*\|(?!\|)")
CATEGORY = re.compile(rb"\[\[\s*category\s*:[^\[\]\n]*\]\]", re.IGNORECASE)
LANGUAGE = re.compile(rb"\n\[\[(?:[a-z]{2,3}(?:-[a-z-]+)?|simple):[^\[\]\n]*\]\]")  # dumps before 2013
BARE_PICTURE = re.compile(
    rb"\[\[\s*(?:file|image|media)\s*:[^\[\]|]*"
    rb"(?:\|\s*(?:thumb(?:nail)?|frame(?:d|less)?|border|left|right|center|none|upright|baseline|middle|[x\d]+\s*px"
    rb"|[a-z]+=[^\[\]|]*)\s*)*\]\]",
    re.IGNORECASE,
)
LINK = re.compile(rb"\[\[(?:[^\[\]|]*+\|)*+([^\[\]|]*+)\]\]")
EXTERNAL_LINK = re.compile(rb"\[(?:[a-z]+:)?//[^\s\]]*([^\]\n]*)\]", re.IGNORECASE)
ADDRESSES = re.compile(rb"https?://[^\s|\]]+"), re.compile(rb"ftps?://[^\s|\]]+")  # faster apart than as one pattern
MAGIC_WORD = re.compile(rb"__[A-Z]+__")
ENTITY = re.compile(rb"&(?:#\d{1,7}|#x[0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
LABEL = methodcaller("group", 1)  # a link's; templates for replacements are expanded in Python, this in C
DEEPEST = 40  # nested templates; a page that goes deeper keeps its outermost ones


def unescape(text: bytes) -> bytes:
    """The entities in which XML wraps a page; not &quot;, which ends a word like any other that is left."""
    for name, character in ((b"&lt;", b"<"), (b"&gt;", b">"), (b"&apos;", b"'"), (b"&amp;", b"&")):
        text = text.replace(name, character)
    return text


def visible_text(source: bytes) -> bytes:
    """Wikitext without its markup: running text, link labels and table cells, separated by white space."""
    text = COMMENT.sub(b"", source)
    text = SILENT_ELEMENT.sub(b" ", text)
    text = _innermost_first(TEMPLATE, _innermost_first(PARAMETER, text, b" "), b" ")
    if b"{|" in text:
        text = CELL_FORMAT.sub(b" ", TABLE_LINE.sub(b" ", text))
    for hidden in (CATEGORY, LANGUAGE, BARE_PICTURE):
        text = hidden.sub(b" ", text)
    text = _innermost_first(LINK, text, LABEL)
    text = EXTERNAL_LINK.sub(rb" \1 ", text)
    for hidden in (*ADDRESSES, TAG, MAGIC_WORD):
        text = hidden.sub(b" ", text)
    return ENTITY.sub(b" ", text).replace(b"'''", b"").replace(b"''", b"")


def _innermost_first(
    pattern: re.Pattern[bytes], text: bytes, replacement: bytes | Callable[[re.Match[bytes]], bytes]
) -> bytes:
    """Replace matches until none is left: what was nested becomes innermost in turn."""
    for _ in range(DEEPEST):
        text, found = pattern.subn(replacement, text)
        if not found:
            break
    return text
