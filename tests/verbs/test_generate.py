"""``generate`` and ``chat`` as verbs: which model, which form, and the talk's turns."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from uplift.core.errors import ModelError, UsageError
from uplift.serve import generate as serve
from uplift.testing.tiny import tiny_causal
from uplift.verbs.generate import STOPPED, chat, generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("run") / "model", initializer_range=0.4)


def talk(folder: Path, lines: list[str], **options):
    written: list[str] = []
    rest = iter(lines)
    turns = chat(str(folder), read=lambda: next(rest, None), write=written.append, device="cpu", max_tokens=6, **options)
    return turns, "".join(written)


def test_generate_from_a_run_folder(folder):
    answers = generate(str(folder.parent), ["What colour is the cup?", "A"], max_tokens=6, device="cpu")
    assert len(answers) == 2 and all(isinstance(answer, str) for answer in answers)
    assert answers != generate(str(folder), ["What colour is the cup?", "A"], max_tokens=6, device="cpu", raw=True)


def test_system_message_needs_a_template(folder, tmp_path):
    assert generate(str(folder), ["A"], system="Be kind.", max_tokens=3, device="cpu")
    plain = Path(shutil.copytree(folder, tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink()
    assert generate(str(plain), ["A"], max_tokens=3, device="cpu")
    with pytest.raises(UsageError, match="chat template"):
        generate(str(plain), ["A"], system="Be kind.", max_tokens=3, device="cpu")


def test_what_is_no_model():
    with pytest.raises(ModelError, match="is not a model"):
        generate("./no/such/thing/x", ["A"])


def test_chat_remembers_and_streams(folder):
    turns, written = talk(folder, ["What colour is the cup?", "And the hat?", "/exit", "never read"], temperature=0.0)
    assert [turn.role for turn in turns] == ["user", "assistant", "user", "assistant"]
    assert written == turns[1].content + "\n" + turns[3].content + "\n"
    alone, _ = talk(folder, ["And the hat?"], temperature=0.0)
    assert alone[1].content != turns[3].content


def test_chat_can_forget_and_repeats_by_seed(folder):
    turns, _ = talk(folder, ["Hello", "/new", "And the hat?"], system="Be kind.", seed=1)
    assert [turn.role for turn in turns] == ["system", "user", "assistant"]
    assert talk(folder, ["Hello", "/new", "And the hat?"], system="Be kind.", seed=1)[0] == turns


def test_interrupt_ends_the_answer_not_the_talk(folder, monkeypatch):
    calls = []

    def interrupted(model, prompts, *, on_text, **options):
        calls.append(len(prompts[0]))
        on_text(0, "half")
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(serve, "generate", interrupted)
    turns, written = talk(folder, ["one", "two"])
    assert written == f"half{STOPPED}\nhalf\n" and calls == [1, 3]
    assert [turn.content for turn in turns] == ["one", "half", "two", "half"]
