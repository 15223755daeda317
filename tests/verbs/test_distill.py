"""``uplift distill``: the recipe it writes, the teacher's answers as a file, and a teacher behind an address."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from uplift.cli.main import main
from uplift.core.errors import ResourceError, UsageError
from uplift.core.recipe_file import load_recipe
from uplift.core.values import Message
from uplift.model.endpoint import Endpoint
from uplift.testing.tiny import tiny_causal, tiny_encoder, tiny_rows, write_rows
from uplift.verbs.distill import write_answers, write_recipe

TURNS = [Message("user", "What colour is the cup?")]
ASKED: dict[str, Any] = {"max_new_tokens": 5, "temperature": 0.0, "seed": 0}


class Server(ThreadingHTTPServer):
    """Answers as its ``plan`` says, then by counting the letters of the question."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[tuple[int, Any]] = []
        self.seen: list[tuple[dict[str, Any], str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:  # noqa: N802 (the library's name)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((body, self.headers.get("Authorization")))
        text = f"{len(body['messages'][-1]['content'])} letters"
        usual = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}
        status, content = self.server.plan.pop(0) if self.server.plan else (200, usual)
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("distill")
    tiny_causal(root / "teacher", seed=1, initializer_range=0.4)
    tiny_causal(root / "student")
    tiny_encoder(root / "encoder")
    for kind in ("chat", "classify", "text"):
        write_rows(root / f"{kind}.jsonl", tiny_rows(kind, 24))  # type: ignore[arg-type]
    return root


# -- behind an address -------------------------------------------------------------------------------------------------
def test_a_server_is_asked_and_answers(server, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k-1")
    answer = Endpoint(server.url, "big").answer(TURNS, **ASKED)
    assert answer.text == "23 letters" and answer.tokens == 2 and answer.finished == "stop"
    body, key = server.seen[0]
    assert key == "Bearer k-1" and body["model"] == "big" and body["max_tokens"] == 5
    assert body["messages"] == [{"role": "user", "content": TURNS[0].content}]


def test_a_busy_server_is_asked_again_and_a_refusal_is_final(server) -> None:
    endpoint = Endpoint(server.url, "big", attempts=3, wait=0.0)
    server.plan = [(503, {}), (429, {})]
    assert endpoint.answer(TURNS, **ASKED).text == "23 letters" and len(server.seen) == 3
    server.plan = [(500, {})] * 3
    with pytest.raises(ResourceError, match="did not answer 3 times"):
        endpoint.answer(TURNS, **ASKED)
    server.plan, before = [(401, {"error": "no"})], len(server.seen)
    with pytest.raises(ResourceError, match="refuses") as caught:
        endpoint.answer(TURNS, **ASKED)
    assert len(server.seen) == before + 1 and "401" in caught.value.why and caught.value.fix
    for odd in ([], {"choices": []}, {"choices": [{"message": {"content": None}}]}):
        server.plan = [(200, odd)]
        with pytest.raises(ResourceError, match="not a chat completion"):
            endpoint.answer(TURNS, **ASKED)
    with pytest.raises(UsageError, match="web address"):
        Endpoint("file:///etc/hostname", "big")


def test_nobody_there_is_said_so(server) -> None:
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(ResourceError, match="did not answer 2 times"):
        Endpoint(url, "big", attempts=2, wait=0.0, timeout=2.0).answer(TURNS, **ASKED)


# -- answers as a file -------------------------------------------------------------------------------------------------
def test_answers_are_written_and_continued(server, home, tmp_path) -> None:
    out, endpoint = tmp_path / "answers.jsonl", Endpoint(server.url, "big", attempts=1, wait=0.0)
    usual = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}
    cut = {"choices": [{"message": {"content": "and then"}, "finish_reason": "length"}]}
    server.plan = [(200, usual)] * 8 + [(200, cut)] + [(200, usual)] * 7 + [(500, {})]
    with pytest.raises(ResourceError):
        write_answers(endpoint, home / "chat.jsonl", out)
    first = out.read_text()
    assert 8 <= len(first.splitlines()) < 24, "what was answered before the failure is there"
    asked = len(server.seen)
    found = write_answers(endpoint, home / "chat.jsonl", out)
    assert out.read_text().startswith(first) and found.answers == found.questions and found.cut == 0
    assert len(server.seen) - asked == found.questions - len(first.splitlines()), "nothing is asked twice"
    row = json.loads(out.read_text().splitlines()[-1])
    assert row["messages"][-1]["role"] == "assistant" and row["messages"][-1]["content"].endswith("letters")
    assert write_answers(endpoint, home / "chat.jsonl", out) == found
    (tmp_path / "else.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(UsageError, match="something else"):
        write_answers(endpoint, home / "chat.jsonl", tmp_path / "else.jsonl")
    with pytest.raises(UsageError, match="there are none"):
        write_answers(endpoint, home / "text.jsonl", tmp_path / "text-answers.jsonl")


def test_a_local_teacher_answers_the_same_again(home, tmp_path) -> None:
    found = [
        write_answers(str(home / "teacher"), home / "chat.jsonl", tmp_path / f"{n}.jsonl", max_tokens=12, device="cpu")
        for n in (1, 2)
    ]
    assert found[0] == found[1] and found[0].questions == found[0].answers + found[0].cut
    assert (tmp_path / "1.jsonl").read_text() == (tmp_path / "2.jsonl").read_text()


# -- the recipe --------------------------------------------------------------------------------------------------------
def test_the_recipe_fits_the_data(home, tmp_path) -> None:
    student, teacher = str(home / "encoder"), str(home / "teacher")
    path = write_recipe(student, teacher, home / "classify.jsonl", tmp_path, labels={"negative": "bad", "positive": "good"})
    recipe = load_recipe(path)
    assert recipe.task.use == "classify" and dict(recipe.task.labels) == {"negative": "bad", "positive": "good"}
    (technique,) = recipe.techniques
    assert technique.use == "distill" and (tmp_path / technique.teacher[0].id).resolve() == home / "teacher"
    with pytest.raises(UsageError, match="exists already"):
        write_recipe(student, teacher, home / "chat.jsonl", tmp_path)
    spoken = load_recipe(write_recipe(student, teacher, home / "chat.jsonl", tmp_path, spoken=True, force=True))
    assert spoken.task.use == "chat" and not spoken.techniques


TOY = ["train.steps=4", "train.batch_tokens=256", "train.max_length=128", "evaluate.bootstrap=100", "hardware.device=cpu"]


def test_the_command_teaches_a_student(home, tmp_path, capsys) -> None:
    words = [str(home / "student"), str(home / "teacher"), str(home / "text.jsonl"), *TOY]
    code = main(["distill", *words, f"output_dir={tmp_path / 'runs'}", "--directory", str(tmp_path), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == 0 and [effect["technique"] for effect in report["effects"]] == ["distill"]
    assert report["effects"][0]["passed"] and list((tmp_path / "runs").glob(".teachers/*/*.safetensors"))


def test_the_command_learns_what_a_server_says(home, server, tmp_path, capsys) -> None:
    answers = tmp_path / "answers.jsonl"
    words = [str(home / "student"), server.url, str(home / "chat.jsonl"), *TOY, f"output_dir={tmp_path / 'runs'}"]
    assert main(["distill", *words]) == 2
    assert "--answers" in capsys.readouterr().err
    code = main(["distill", *words, "--answers", str(answers), "--model", "big", "--directory", str(tmp_path), "--json"])
    assert code == 0 and len(answers.read_text().splitlines()) == len(server.seen)
    assert main(["distill", *words[:3], "--labels", "0", "--answers", str(answers), "--model", "big"]) == 2
