"""Rows in another language go; what is too short to tell stays."""

import pydantic
import pytest

from align.curation import language
from align.curation.language import Language

# The first article of the Universal Declaration of Human Rights (in the public domain)
ARTICLE = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with "
    "reason and conscience and should act towards one another in a spirit of brotherhood.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft "
    "und Gewissen begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués "
    "de raison et de conscience et doivent agir les uns envers les autres dans un esprit de "
    "fraternité.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como "
    "están de razón y conciencia, deben comportarse fraternalmente los unos con los otros.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены "
    "разумом и совестью и должны поступать в отношении друг друга в духе братства.",
    "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdana "
    "sahiptirler ve birbirlerine karşı kardeşlik zihniyeti ile hareket etmelidirler.",
}


@pytest.mark.parametrize("code", ARTICLE)
def test_only_the_wanted_language_stays(code: str) -> None:
    rule = Language(keep=[code])
    kept = [other for other, text in ARTICLE.items() if rule.look([("text", text)]) is None]
    assert kept == [code]


def test_several_languages_may_stay_together() -> None:
    said = [("assistant", ARTICLE["en"]), ("user", "?"), ("assistant", ARTICLE["de"])]
    assert Language(keep=["de", "en"], at_least=0.9).look(said) is None
    why = Language(keep=["fr"]).look(said)
    assert why is not None and why.reason == "language"
    assert why.facts["language"] in ("de", "en")
    assert why.facts["probability"] < 0.5


def test_answers_are_read_and_prompts_only_where_there_are_none() -> None:
    asked, answered = ("user", ARTICLE["fr"]), ("assistant", ARTICLE["en"])
    assert Language(keep=["en"]).look([asked, answered]) is None
    assert Language(keep=["en"]).look([asked]) is not None


@pytest.mark.parametrize(
    "text",
    [
        "Bonjour, merci beaucoup.",
        f"```\n{ARTICLE['fr']}\n```",
        "12 * 7 = 84; 84 + 3 = 87; 87 - 4 = 83; x = 83, y = 12, z = 11, a = 1, b = 2, c = 3, " * 3,
    ],
    ids=["short", "code", "numbers"],
)
def test_what_tells_nothing_stays(text: str) -> None:
    assert Language(keep=["en"]).look([("text", text)]) is None


SUMS = (
    "Anna picked 20 - 5 = <<20-5=15>>15 pears.\nBen picked 12 + 15 = <<12+15=27>>27 pears.\n"
    "Ben picked 27 - 20 = <<27-20=7>>7 pears more than Anna\n#### 7"
)

PROGRAM = """
def remove_occurrences(string, letter):
    for place in range(len(string)):
        if (string[place] == letter):
            string = string[0:place] + string[place + 1:]
            break
    return string.replace(letter, "")
"""


def test_code_without_a_fence_tells_nothing_and_prose_around_it_does() -> None:
    rule = Language(keep=["de"])
    assert rule.look([("text", PROGRAM)]) is None and rule.short([("text", PROGRAM)])
    assert rule.look([("text", f"{ARTICLE['fr']} {ARTICLE['fr']}\n{PROGRAM}")]) is not None


def test_of_a_link_its_text_is_read() -> None:
    linked = " ".join(f"[{word}](#{word})" for word in ARTICLE["fr"].split())
    assert Language(keep=["de"]).look([("text", linked)]) is not None


def test_a_row_whose_likeliest_language_is_wanted_stays_unless_more_is_asked() -> None:
    said = [("assistant", SUMS)]
    likely = dict(language._identifier().rank(SUMS))
    assert max(likely, key=likely.__getitem__) == "en" and likely["en"] < 0.5
    assert Language(keep=["en"]).look(said) is None
    why = Language(keep=["en"], at_least=0.5).look(said)
    assert why is not None and why.facts["language"] == "en"


def test_what_is_too_short_can_be_counted() -> None:
    rule = Language(keep=["en"])
    assert rule.short([("assistant", "Oui."), ("user", ARTICLE["fr"])])
    assert not rule.short([("assistant", ARTICLE["fr"])])


def test_codes_are_those_of_the_model() -> None:
    labels = set(language._identifier().labels)
    assert set(language.codes()) == labels - {"zxx"}


def test_an_unknown_language_is_refused_with_the_nearest() -> None:
    with pytest.raises(pydantic.ValidationError, match='knows no language "eng".*"en"'):
        Language(keep=["eng"])


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> None:
        return None

    monkeypatch.setattr("importlib.util.find_spec", nowhere)
    with pytest.raises(pydantic.ValidationError, match=r"pip install 'align-recipes\[curate\]'"):
        Language(keep=["en"])
