"""What can go wrong, in the user's words.

    RecipeError      the recipe or its inputs are wrong; nothing ran        exit code 2
    StageFailed      a stage could not go on                                exit code 1
    └── GateStopped  a gate said stop; what was made is kept                exit code 3

Every message says the place, the fact and the remedy. Anything else that is raised is a defect
of this project or of a library, and is let through with its traceback (in the stage's log).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a recipe.

    `place` is where to look (`recipes/mine.yaml:11:5`, or `--set stages.dpo.trainer.beta`),
    `path` the key there (`stages.dpo.trainer`, may be empty), `message` the fact and the remedy.
    """

    place: str
    path: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.path, self.message) if part)


class RecipeError(Exception):
    """The recipe or its inputs are wrong. Holds every problem that could be found, in order."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class StageFailed(Exception):
    """A stage cannot go on: one sentence for the user, with the remedy."""

    exit_code = 1


class GateStopped(StageFailed):
    """A gate of the recipe said stop. What was made is kept."""

    exit_code = 3
