"""A model behind an OpenAI-compatible address (``POST .../chat/completions``), asked for answers as text."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uplift.core.errors import ResourceError, UsageError
from uplift.core.values import Generation, Message

AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Answers of a server that is busy; all other refusals are final."""
LARGEST = 16 * 2**20
"""Most bytes of an answer that are read."""
LONGEST_WAIT = 60.0
KEY = "OPENAI_API_KEY"
"""The environment variable that holds the key, if the server wants one."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask (``http://host:port/v1``) and for which of the server's models; ``attempts`` and seconds of each."""

    url: str
    model: str
    attempts: int = 6
    timeout: float = 120.0
    wait: float = 1.0
    """Seconds before the second attempt; doubled each time, or what the server asks for."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"`{self.url}` is not a web address", fix="give `http://host:port/v1` or `https://...`")

    def answer(self, turns: Sequence[Message], *, max_new_tokens: int, temperature: float, seed: int) -> Generation:
        """The server's answer to these turns. Raises ResourceError when it refuses, or stays silent after all attempts."""
        body = {
            "model": self.model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in turns],
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        failure = ""
        for attempt in range(self.attempts):
            try:
                return _read(self._post(json.dumps(body).encode()))
            except urllib.error.HTTPError as error:
                failure = f"HTTP {error.code}: {error.read(300).decode('utf-8', 'replace')}"
                if error.code not in AGAIN:
                    fix = f"check the address, the model's name, and the key in {KEY}"
                    raise ResourceError(f"{self.url} refuses to answer", why=failure, fix=fix) from error
                asked = error.headers.get("Retry-After", "")
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                failure, asked = str(getattr(error, "reason", error)), ""
            if attempt + 1 < self.attempts:
                time.sleep(min(LONGEST_WAIT, float(asked) if asked.isdigit() else self.wait * 2**attempt))
        raise ResourceError(f"{self.url} did not answer {self.attempts} times", why=failure, fix="try again later: it goes on")

    def _post(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            return json.loads(response.read(LARGEST))


def _read(content: Any) -> Generation:
    """What an answer says. Raises ResourceError for one that is not of the usual form."""
    try:
        choice = content["choices"][0]
        text, used = choice["message"]["content"], content.get("usage") or {}
        if not isinstance(text, str):
            raise TypeError("the answer is not text")
        finished = "length" if choice.get("finish_reason") == "length" else "stop"
        return Generation(text, int(used.get("completion_tokens", 0)), int(used.get("prompt_tokens", 0)), finished)  # type: ignore[arg-type]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ResourceError(
            "the server's answer is not a chat completion", why=why, fix="use an OpenAI-compatible server"
        ) from error
