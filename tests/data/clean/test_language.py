"""Language: real sentences of several languages, short texts, texts without letters, and names that are not known."""

from __future__ import annotations

import pytest

from uplift.core.errors import RecipeError
from uplift.core.prepare_section import Language
from uplift.data.clean import language
from uplift.data.clean.language import LanguageFilter, detect

TEXTS = {
    "en": "The committee will meet again on Thursday to decide whether the old library should be closed or repaired this year.",
    "de": "Der Ausschuss trifft sich am Donnerstag wieder und entscheidet, ob die alte Bibliothek schließt oder nicht.",
    "fr": "Le comité se réunira de nouveau jeudi afin de décider si l'ancienne bibliothèque doit être fermée ou réparée.",
    "es": "El comité se reunirá de nuevo el jueves para decidir si la antigua biblioteca debe cerrarse o repararse este año.",
    "it": "Il comitato si riunirà di nuovo giovedì per decidere se la vecchia biblioteca debba essere chiusa o riparata.",
    "ru": "Комитет снова соберётся в четверг, чтобы решить, следует ли закрыть или отремонтировать старую библиотеку.",
    "zh": "委员会将于星期四再次开会，决定今年是关闭还是修缮旧图书馆，许多市民对此表示关注，并希望图书馆继续开放下去。",
    "ja": "委員会は木曜日に再び会合を開き、古い図書館を閉鎖するか修理するかを決定します。市民は残ることを望んでいます。",
}


@pytest.mark.parametrize("code", TEXTS)
def test_languages_are_told_apart(code: str) -> None:
    found, probability = detect(TEXTS[code])
    assert found == code and 0.65 <= probability <= 1
    assert LanguageFilter(Language(keep=[code])).judge(0, TEXTS[code]).text == TEXTS[code]
    other = "de" if code != "de" else "en"
    verdict = LanguageFilter(Language(keep=[other])).judge(0, TEXTS[code])
    assert verdict.text is None and verdict.counts == {"language": 1} and verdict.detail.startswith(f"{code} ")


def test_languages_to_keep_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "identifier", lambda: lambda text: {"no": 0.4, "da": 0.35, "sv": 0.25})
    assert LanguageFilter(Language(keep=["no", "da"])).judge(0, TEXTS["de"]).text is not None
    verdict = LanguageFilter(Language(keep=["no", "sv"], least=0.66)).judge(0, TEXTS["de"])
    assert verdict.text is None and verdict.detail == "no 0.40; no sv 0.65"


def test_a_text_without_letters_stays() -> None:
    keeper = LanguageFilter(Language(keep=["de"], least=1.0))
    for text in ("", "12 345.67 – 2021-03-04", "🙂🙂", "\n\n"):
        assert keeper.judge(0, text).text == text and detect(text) == ("und", 0.0)


def test_a_short_text_goes_only_if_another_language_is_sure() -> None:
    keeper = LanguageFilter(Language(keep=["en"]))
    for text in ("OK, thanks!", "ja", "Wow", "Zug"):
        assert keeper.judge(0, text).text == text
    assert keeper.judge(0, "Где находится библиотека?").text is None
    long = "xqz " * 200
    assert LanguageFilter(Language(keep=["en"], least=0.999)).judge(0, long).text is None


def test_a_long_text_is_judged_by_three_windows() -> None:
    text = TEXTS["en"] * 3000
    assert detect(text)[0] == "en"
    assert LanguageFilter(Language(keep=["en"])).judge(0, "1 " * 5000 + text).text is not None


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(RecipeError, match="`xq` is not known") as error:
        LanguageFilter(Language(keep=["en", "xq"]))
    assert "de" in error.value.why.split()
