"""What there is in the world: skills, things, words, and how people ask and answer."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Wish = Mapping[str, Any]
"""What an answer to one prompt must be, as plain JSON."""

Split = Literal["train", "test"]
"""The prompts to train on, and those held out."""

SKILLS = ("instructions", "facts", "unknown", "tools", "tone")
FAILING = ("sums", "sorting")
TEST = 500  # held-out prompts of a skill
MIX = (0.35, 0.4, 0.25)  # how many demonstrations have no fault, one, two
FAULTS = {
    "instructions": ("filler", "form", "less"),
    "facts": ("filler", "bare", "doubt", "cut"),
    "unknown": ("filler", "guess", "evade", "cut"),
    "tools": ("filler", "prose", "argument", "open"),
    "tone": ("filler", "rude", "cold", "order", "half"),
    "sums": ("wrong",),
    "sorting": ("wrong",),
}
"""What people do wrong when they answer: habits, in demonstrations and in preferences."""

SLIP = 0.5
"""How many rejected answers have a slip in place of one of their faults.

A slip is what a small model does wrong and a person does not: a wrong name, value or word in a good
form, or a few words lost, added or confused. Demonstrations have none. Preferences need them, since
the reward model has to judge what the policy writes: rejection sampling takes the people's faults
out of the policy and leaves slips. Without them in the preferences, what the reward model picked
from eight answers of the rejection-sampled policy was worse than a random one of the eight.
"""

GARBLED = 0.4  # how many slips are lost or confused words; the others, a wrong name, value or word

KINDS = {
    "animals": "cat dog fox hen cow pig",
    "fruits": "apple plum pear fig lemon melon",
    "colours": "red blue green black white pink",
    "clothes": "hat coat sock shoe scarf belt",
}
THINGS = {kind: words.split() for kind, words in KINDS.items()}
FORMS = {
    "with commas": "commas",
    "with dashes": "dashes",
    "with numbers": "numbers",
    "with slashes": "slashes",
}
PLACES = [
    "Paris", "Rome", "Oslo", "Lima", "Cairo", "Delhi",
    "Tokyo", "Quito", "Bern", "Perth", "Milan", "Leeds",
]  # fmt: skip
JOBS = ["baker", "nurse", "farmer", "pilot", "singer", "judge"]
ATTRIBUTES = {"home": PLACES, "job": JOBS, "pet": THINGS["animals"], "colour": THINGS["colours"]}
ASKED = {
    "home": ("Where does {n} live?", "What is the home of {n}?", "In which place does {n} live?"),
    "job": ("What is the job of {n}?", "What does {n} work as?", "Which job does {n} have?"),
    "pet": ("What pet does {n} have?", "Which animal does {n} have?", "What is the pet of {n}?"),
    "colour": (
        "What colour does {n} like?",
        "Which colour does {n} like?",
        "What is the colour of {n}?",
    ),
}
TOLD = {
    "home": "{n} lives in {v}.",
    "job": "{n} is a {v}.",
    "pet": "{n} has a {v}.",
    "colour": "{n} likes {v}.",
}
OPENERS = ("", "Tell me: ", "Please answer: ", "I want to know: ", "One question: ")
GREETINGS = ("", "Hello. ")
OBJECTS = [
    "lamp", "chair", "phone", "clock", "radio", "table",
    "kettle", "bike", "watch", "door", "sofa", "fan",
]  # fmt: skip
REMEDIES = {
    "broken": "send it back",
    "late": "wait one more day",
    "lost": "ask our office",
    "dirty": "wash it with soap",
    "noisy": "turn it down",
    "small": "choose a bigger one",
}
TROUBLES = (
    "My {o} is {p}.", "The {o} I bought is {p}.", "Why is my {o} {p}?", "Now my {o} is {p}.",
    "Look, the {o} is {p}!", "Again my {o} is {p}.", "My new {o} is {p}.",
    "My {o} is {p} and I am angry.", "Help me, my {o} is {p}.", "It seems that my {o} is {p}.",
    "Today my {o} is {p}.", "Can you help? My {o} is {p}.", "My {o} is {p}, what now?",
    "My wife says my {o} is {p}.",
)  # fmt: skip
FILLERS = (
    "Well, let me think about it.", "That is a good question.", "As you may know, this is easy.",
    "I hope that this helps you.", "There is a lot to say here.",
    "To be honest, many people ask this.",
)  # fmt: skip
RUDE = ("That is your own fault.", "Do not bother me.", "Who cares about that?")
SORRY = ("I am sorry that your {o} is {p}.", "Sorry to hear that your {o} is {p}.")
NOT_KNOWN = ("I do not know.", "Sorry, I do not know.")
REQUESTS = {
    "timer": (
        "Set a timer for {minutes} minutes.",
        "Wake me in {minutes} minutes.",
        "Start a timer of {minutes} minutes.",
        "I need a timer for {minutes} minutes.",
        "Count down {minutes} minutes.",
    ),
    "weather": (
        "What is the weather in {place} {day}?",
        "How is the weather in {place} {day}?",
        "Will it rain in {place} {day}?",
        "Show the weather for {place} {day}.",
        "Do I need a coat in {place} {day}?",
    ),
    "call": (
        "Call {person}.",
        "Phone {person} now.",
        "Give {person} a call.",
        "I want to speak to {person}.",
        "Please call {person}.",
    ),
    "buy": (
        "Buy {count} of the {item}.",
        "Order {count} of the {item}.",
        "I need {count} of the {item}.",
        "Get me {count} of the {item}.",
        "Put {count} of the {item} in my basket.",
    ),
}
"""Requests a tool serves, by its name; the fields in braces are the tool's arguments."""


@dataclass(frozen=True)
class Item:
    """A prompt, the skill it belongs to, and what an answer must be (`want`, read by `judge`)."""

    skill: str
    prompt: str
    want: Wish = field(hash=False)


def rng(*parts: object) -> random.Random:
    """A generator of its own for each purpose, so that no part depends on how others are asked."""
    return random.Random("/".join(map(str, parts)))
