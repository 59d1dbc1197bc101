"""What names a person or a place of theirs is taken out of a comment, as far as its form shows it.

E-mail addresses, URLs and names of hosts, IP addresses, @names, and numbers of seven digits or
more become [email], [url], [ip], [name], [number]. By patterns, so it errs on the safe side where
a form is doubtful ("so.What" is a host's name, "@sshole" an @name), and finds no form that it does
not know: names of people, postal addresses and numbers in words stay. Each pattern takes a time
that grows as the comment does.
"""

from __future__ import annotations

import re
import string
import unicodedata

MOST_BYTES = 1000
"""Of a redacted comment in UTF-8; what is beyond is cut."""
_MOST_READ = 4000
"""Characters of a comment that are looked at."""
_OF_NUMBERS = f"{string.digits} ().,/_·–—+-"
_AT = r"(?:@| @ |\s?[(\[{]\s?at\s?[)\]}]\s?)"
_DOT = r"(?:\.|\s?[(\[{]\s?dot\s?[)\]}]\s?)"
_URL = re.compile(r"(?<!\S)\S*?://\S*")
_EMAIL = re.compile(rf"[\w.%+'-]++({_AT}[\w-]++(?:{_DOT}[\w-]++)+)?", re.IGNORECASE)
_IP4 = re.compile(r"(?<!\d)\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?")
_IP6 = re.compile(r"(?<![0-9a-f])[0-9a-f]*+(?::[0-9a-f]*+)+(?:%\w+)?", re.IGNORECASE)
_HOST = re.compile(r"(?<![\w@-])(?<!\w\.)[\w-]++(?:\.[\w-]++)+(?:[/?#:]\S*)?")
_NAME = re.compile(r"(?<!\w)@\w[\w.-]*")
_NUMBER = re.compile(r"(?:\+\s?)?(?:\(\s?)?\d(?:[\s().,/_·–—-]{0,3}\d){6,}")


def redacted(text: str) -> str:
    """The comment in one line of NFKC, at most MOST_BYTES, with such forms replaced."""
    text = _plain(text)
    text = _URL.sub("[url]", text)
    text = _EMAIL.sub(lambda found: "[email]" if found[1] else found[0], text)
    text = _IP4.sub("[ip]", text)
    text = _IP6.sub(lambda found: "[ip]" if _is_ip6(found[0]) else found[0], text)
    text = _HOST.sub(lambda found: "[url]" if _is_host(found[0]) else found[0], text)
    text = _NAME.sub("[name]", text)
    text = _NUMBER.sub("[number]", text)
    return text.encode("utf-8", "replace")[:MOST_BYTES].decode("utf-8", "ignore")


def _plain(text: str) -> str:
    """Its begin without what hides a form: letters of other widths, signs that nobody sees.

    A word or number that the cut goes through is left out, for half of it has another form.
    """
    if len(text) > _MOST_READ:
        begin, *cut = text[:_MOST_READ].rsplit(maxsplit=1)
        text = begin.rstrip(_OF_NUMBERS) if cut else ""
    kept = unicodedata.normalize("NFKC", text)
    shown = (char for char in kept if unicodedata.category(char) != "Cf")
    return " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in shown).split())


def _is_ip6(found: str) -> bool:
    """Whether it has more colons than a time, or two in a row and a digit."""
    digits = re.search("[0-9a-f]", found, re.IGNORECASE)
    return bool(digits and found.count(":") > 2) or bool("::" in found and re.search(r"\d", found))


def _is_host(found: str) -> bool:
    """Whether what is behind the last dot of the name begins with a letter and has two."""
    last = re.split(r"[/?#:]", found, maxsplit=1)[0].rpartition(".")[2]
    return len(last) > 1 and last[0].isalpha()
