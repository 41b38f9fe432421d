"""Which captions say something of their picture: not too long, in a language that is read, no boilerplate."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pocketclip.errors import DataError
from pocketclip.recipe.collecting import CleanSettings

TOO_LONG, BOILERPLATE, LANGUAGE = "too long", "boilerplate", "another language"
UNLIKELY = 0.001  # a language less probable than this is ruled out; docs/log.md says what that finds and what it costs

# What is repeated is possessive (`*+`, `++`) or atomic (`(?>`) wherever what follows could match the same characters:
# a caption may come from anybody, and a pattern that tries each way to share them out takes seconds.
WHOLE = r"""
    [\W\d_]*+                                             # no letters at all
  | (?:file|image|datei):.*                               # a page's title
  | \S+\.(?:jpe?g|png|gif|webp|tiff?|bmp|svg|heic|raw)    # a file's name
  | (?:img|dsc|dscn|dscf|dji|gopr|mvi|p|pict|sam|vid|image|photo|picture|scan|screen\ ?shot|untitled|unnamed)
    (?:[\d_.\s()-]++[a-z]?)?+                             # what a camera or a program calls it
  | (?:https?://|www\.)\S++ | (?>\S+?@)\S+\.\w++          # an address
  | (?:an?\ |the\ |this\ |no\ |my\ )?(?:image|photo|photograph|picture|pic|thumbnail|icon|logo|banner|avatar|gallery
    |placeholder|default|description|caption|title|alt|text|alt\ text|image\ description|n/?a|none|null|undefined|test)
  | (?:image|photo|picture|photography|photos)\ (?:by|credit|courtesy)\b.*
  | click\ (?:to|for|on|here)\b.* | (?:view|see|show|load|open)\ (?:larger|full|more|image|original|gallery)\b.*
  | this\ image\ has\ an\ empty\ alt\ attribute.* | (?:royalty[\ -]free\ )?stock\ (?:photos?|images?|vectors?|footage)
  | image\ may\ contain:?.{0,3} | (?:download|buy|shop|order)(?:\ now|\ here|\ this)?(?:\ (?:image|photo|picture))?
  | .*\ball\ rights\ reserved\b.* | (?:©|\(c\)|copyright\ (?:©|\(c\)|by|\d{4}))\s?.*
"""
_BOILERPLATE = re.compile(rf"(?:{WHOLE})[\s.!:…]*+", re.IGNORECASE | re.VERBOSE | re.DOTALL)


def why_not(caption: str, settings: CleanSettings) -> str:
    """Why a caption is of no use, "" if it is of use.

    Raises DataError if a language is asked for that nobody can tell, or the extra for telling them is missing.
    """
    if settings.most_words and len(caption.split(None, settings.most_words)) > settings.most_words:
        return TOO_LONG
    if settings.boilerplate and _BOILERPLATE.fullmatch(caption[:1000].strip()):
        return BOILERPLATE
    if settings.languages and _probability(caption, settings.languages) < UNLIKELY:
        return LANGUAGE
    return ""


def _probability(caption: str, languages: Sequence[str]) -> float:
    """How probable it is that a caption is in one of some languages.

    Short captions seldom give a language away, so that the question is not which language is the most probable one
    but whether those that are wanted can be ruled out.
    """
    ranked = _identifier(tuple(languages)).rank(caption)
    return float(sum(probability for language, probability in ranked if language in languages))


@lru_cache(maxsize=1)
def _identifier(languages: tuple[str, ...]) -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise DataError("telling languages needs the extra: pip install 'pocketclip[collect]'") from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = set(map(str, identifier.labels))
    if unknown := [language for language in languages if language not in known]:
        raise DataError(f"clean.languages: {unknown[0]!r} is not known; known: {', '.join(sorted(known))}")
    return identifier
