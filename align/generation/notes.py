"""What a server has said to a shard's prompts, so that it is never asked again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from align.generation.generate import Completion


@dataclass
class Notes:
    """The answers by prompt and index, written down as they come: one line an answer.

    A kill loses what is under way. A line that was being written then is cut off.
    """

    file: Path | None
    answers: dict[str, dict[int, Completion]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.touch()
        with self.file.open("r+b") as file:
            *lines, broken = file.read().split(b"\n")
            file.truncate(file.tell() - len(broken))
        for note in map(json.loads, lines):
            if "refused" not in note:  # a prompt that was refused is asked about again
                answer = Completion(**{k: v for k, v in note.items() if k != "id"})
                self.answers.setdefault(note["id"], {})[answer.index] = answer

    def add(self, id: str, answer: Completion) -> None:
        """Note an answer."""
        self.answers.setdefault(id, {})[answer.index] = answer
        self._write({"id": id, **asdict(answer)})

    def refuse(self, id: str, reason: str) -> None:
        """Note why a prompt has no answer."""
        self.refused[id] = reason
        self._write({"id": id, "refused": reason})

    def _write(self, note: dict[str, Any]) -> None:
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(note, ensure_ascii=False) + "\n")
