"""What training would see of the rows: encoded samples, which tokens are learned, and turns of conversations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from uplift.core.errors import DataError
from uplift.core.recipe import ClassifyTask
from uplift.core.values import Encoded, Sample
from uplift.data.audit import audit, decoded_stretches
from uplift.data.chat import Encoder
from uplift.data.explore.findings import Chat, Learning, Problem, Rendered
from uplift.data.explore.sample import TextRow
from uplift.data.explore.task import Aim
from uplift.data.formats import labelled
from uplift.data.labels import Labels

MOST_ROWS = 500
MOST_CHARACTERS = 1_000_000
SAMPLES = 3
LONGEST = 2**20
Head = Literal["language", "class"]


def samples_for(rows: Sequence[TextRow], aim: Aim, names: Sequence[str], head: Head) -> list[Sample]:
    """The samples that training would make of the rows; ``names`` are all labels."""
    task = aim.task
    if not isinstance(task, ClassifyTask):
        return [row.sample for row in rows]
    words = tuple(sorted(names))
    known = Labels(words, {name: index for index, name in enumerate(words)})
    return [labelled(row.text, known.index(str(row.label)), row.origin, task, head, words) for row in rows]


def overhead_of(samples: Sequence[Sample], counts: Sequence[int], encoder: Encoder) -> list[int]:
    """Tokens that the template adds to each row that it takes; ``counts`` are the tokens of the rows' own text."""
    added = []
    for sample, count in zip(samples, counts, strict=True):
        try:
            added.append(max(0, len(encoder.encode(sample)) - int(count)))
        except DataError:
            continue
    return added


def learning_of(samples: Sequence[Sample], encoder: Encoder, head: Head) -> Learning:
    """Encode the samples at the encoder's length: shares, problems, and three samples decoded with what is learned."""
    encoded: list[Encoded] = []
    origins, refused = [], Counter[str]()
    for sample in samples:
        try:
            encoded.append(encoder.encode(sample))
            origins.append(sample.origin)
        except DataError as error:
            refused[error.what] += 1
    found = audit(encoded, encoder, head=head)
    wrong = {**{f"cannot be encoded: {what}": count for what, count in sorted(refused.items())}, **found.counts()}
    return Learning(
        template=bool(getattr(encoder.tokenizer, "chat_template", None)) and encoder.kind == "causal",
        rows=len(samples),
        learned=round(found.learned_tokens / max(1, found.tokens), 4),
        samples=[_rendered(encoded[index], str(origins[index]), encoder) for index in _typical(encoded)],
        problems=[Problem(rows=count, of=len(samples), text=what) for what, count in wrong.items()],
    )


def _typical(encoded: Sequence[Encoded]) -> list[int]:
    """A short, a middling and a long one (at the 10, 50 and 90 % of the lengths)."""
    order = sorted(range(len(encoded)), key=lambda index: (len(encoded[index]), index))
    return list(dict.fromkeys(order[int(share * (len(order) - 1))] for share in (0.1, 0.5, 0.9))) if order else []


def _rendered(item: Encoded, place: str, encoder: Encoder) -> Rendered:
    learned = sum(weight > 0 for weight in item.weights)
    return Rendered(place=place, tokens=len(item), learned=learned, stretches=decoded_stretches(item, encoder))


def chat_of(rows: Sequence[TextRow]) -> Chat | None:
    """Roles and turns of the conversations; None when the rows are not conversations."""
    if not any(row.sample.messages for row in rows):
        return None
    roles: Counter[str] = Counter()
    turns: Counter[int] = Counter()
    systems = set()
    for row in rows:
        roles.update(message.role for message in row.sample.messages)
        turns[sum(message.role != "system" for message in row.sample.messages)] += 1
        systems |= {message.content for message in row.sample.messages if message.role == "system"}
    ranked = dict(sorted(roles.items(), key=lambda item: (-item[1], item[0])))
    return Chat(roles=ranked, turns=dict(sorted(turns.items())), systems=len(systems))
