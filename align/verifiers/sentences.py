"""Sentences and words as IFEval's published checker counts them, without NLTK's downloads.

The checker counts sentences with NLTK's Punkt (Kiss & Strunk 2006, Unsupervised Multilingual
Sentence Boundary Detection), whose English model is a list of abbreviations and how 30,000 words
are written, and capital words with NLTK's Treebank tokenizer. Here are Punkt's rules with its
common abbreviations and the words that begin sentences, and what of the tokenizer changes a count.
"""

from __future__ import annotations

import re
from itertools import zip_longest

_ABBREVIATIONS = """
mr mrs ms dr prof st jr sr gen col lt maj sen rep reps messrs inc corp co cos ltd bros vs ave
jan feb aug sept sep oct nov dec tues wed fri va vt wash calif ariz fla minn conn wis
ph.d m.b.a d.c n.y l.a u.s u.k u.n a.m p.m c d e f g h j k l m n p r s t v w
"""

_STARTERS = """
according although both but despite finally he her here however i if in instead it many moreover
overall please she similarly since so some sometimes the there therefore these they this though thus
when which while without yes yet
"""
"""Words that are capitalised where a sentence begins, and hardly anywhere else."""

_APART_FROM_WORDS = r"""?!)";}\]*:@'({\[‘’“”«»"""
_END = re.compile(rf"[.?!](?=[{_APART_FROM_WORDS}])")
_TOKEN = re.compile(rf"(?:\.{{2,}}|'?[^\s{_APART_FROM_WORDS}]*)$")
_NUMBER = re.compile(r"-?[.,]?\d[\d,.-]*\.")
_CLOSING = re.compile(r"""["')\]}’”»]+?(?:\s+|(?=--)|$)""")


def sentences(text: str) -> int:
    """How many sentences a text has.

    A line's end ends none: a list without full stops is one sentence. The number of a list's item
    (`1.`) is one of its own. Both are Punkt's ways.
    """
    count = begin = 0
    words = list(re.finditer(r"\S+", text))
    for word, after in zip_longest(words, words[1:]):
        end = _end(word.group(), after.group() if after else "")
        if end is None:
            continue
        stop = word.start() + end
        count += stop > begin
        begin = after.start() if after and stop == word.end() else stop
        if closing := _CLOSING.match(text, begin):
            begin = closing.end()
    return count + (begin < len(text.rstrip()))


def _end(word: str, after: str) -> int | None:
    """Where in a word a sentence ends; `after` is the next word."""
    ends = [found.end() for found in _END.finditer(word)]
    if after and word[-1] in ".?!":
        ends.append(len(word))
    if not ends:
        return None
    said, following = word[: ends[-1]], word[ends[-1] :] or after
    return ends[-1] if re.search("[?!]", said) or _stops(said, following) else None


def _stops(said: str, following: str) -> bool:
    """Whether the full stop at the end of `said` ends a sentence."""
    token = _TOKEN.search(said)
    assert token is not None
    stem = token.group().lower().rstrip(".")
    known = stem.rpartition("-")[2] in _ABBREVIATIONS.split()
    if token.group().endswith("..") or known:
        return len(stem) != 1 and _begins(following)
    item = len(stem) == 1 or _NUMBER.fullmatch(token.group())
    return not (item and following[0].islower())


def _begins(following: str) -> bool:
    word = re.match(r"\w*", following)
    return following[0].isupper() and word is not None and word.group().lower() in _STARTERS.split()


_APART = re.compile(
    r"""\.{3}|--|[\]\[(){}<>;@\#$%&?!"“”«»‘]|[:,](?!\d)
    |(?='(?:s|m|d|ll|re|ve)\b)|(?=n't\b)|(?<=\bcan)(?=not\b)""",
    re.IGNORECASE | re.VERBOSE,
)


def capital_words(text: str) -> int:
    """How many words are in capital letters: `I`, `U.S.` and `A-B` are one, `R&D` and `I'M` two."""
    return sum(piece.isupper() for piece in _APART.sub(" ", text).split())
