"""The world itself, drawn from a seed: its text, demonstrations, preferences and prompts."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import Any

from align.world.things import (
    ASKED,
    ATTRIBUTES,
    FAULTS,
    FILLERS,
    FORMS,
    GARBLED,
    GREETINGS,
    MIX,
    NOT_KNOWN,
    OBJECTS,
    OPENERS,
    PLACES,
    REMEDIES,
    REQUESTS,
    RUDE,
    SKILLS,
    SLIP,
    SORRY,
    TEST,
    THINGS,
    TOLD,
    TROUBLES,
    Item,
    Split,
    Wish,
    rng,
)
from align.world.truth import judge


class World:
    """Everything there is to know and to ask, drawn from a seed.

    `skills` says which skills its parts are about: `SKILLS`, or `FAILING`.
    """

    def __init__(self, seed: int, skills: Sequence[str] = SKILLS) -> None:
        self.seed = seed
        self.skills = tuple(skills)
        names = ["".join(s) for s in product("BDFGKLMNPRSTVZ", "aeiou", "bdfgklmnprstvz", "aeiou")]
        rng(seed, "names").shuffle(names)
        self.people, self.strangers = names[:20], names[20:]
        chance = rng(seed, "facts")
        self.facts = {
            (name, about): chance.choice(values)
            for name in self.people
            for about, values in ATTRIBUTES.items()
        }

    # ----------------------------------------------------------------------------------- prompts

    @cached_property
    def _items(self) -> dict[tuple[str, Split], list[Item]]:
        """Every prompt of every skill, split once and for all: no test prompt is trained on."""
        items: dict[tuple[str, Split], list[Item]] = {}
        for skill in self.skills:
            every = list({item.prompt: item for item in getattr(self, f"_ask_{skill}")()}.values())
            rng(self.seed, "split", skill).shuffle(every)
            items[skill, "test"], items[skill, "train"] = every[:TEST], every[TEST:]
            assert len(items[skill, "train"]) >= TEST
        trained = {
            item.prompt for (_, split), rows in items.items() if split == "train" for item in rows
        }
        tested = {
            item.prompt for (_, split), rows in items.items() if split == "test" for item in rows
        }
        assert not trained & tested
        return items

    def items(self, split: Split, skill: str) -> list[Item]:
        """The prompts of a skill for training (`train`) or held out for testing (`test`)."""
        return self._items[skill, split]

    def _ask_instructions(self) -> Iterator[Item]:
        chance = rng(self.seed, "instructions")
        words = [word for things in THINGS.values() for word in things]
        for _, verb, form in product(range(200), ("Write", "List", "Put down", "Give me"), FORMS):
            given = chance.sample(words, 2)
            yield Item(
                "instructions",
                f"{verb} {' and '.join(given)} {form}.",
                {"words": given, "form": FORMS[form]},
            )

    def _ask_facts(self) -> Iterator[Item]:
        for (name, about), value in self.facts.items():
            for opener, asked in product(OPENERS, ASKED[about]):
                want = {"name": name, "about": about, "value": value}
                yield Item("facts", opener + asked.format(n=name), want)

    def _ask_unknown(self) -> Iterator[Item]:
        chance = rng(self.seed, "strangers")
        for name in self.strangers[:2400]:
            about = chance.choice(list(ATTRIBUTES))
            asked = chance.choice(OPENERS) + chance.choice(ASKED[about])
            yield Item("unknown", asked.format(n=name), {"name": name, "about": about})

    @cached_property
    def _calls(self) -> list[dict[str, Any]]:
        """Every call of a tool that somebody can want."""
        days = ("today", "tomorrow", "on Monday")
        items = [word for kind in ("fruits", "clothes") for word in THINGS[kind]]
        return [
            *({"tool": "timer", "minutes": n} for n in range(2, 61)),
            *({"tool": "weather", "place": p, "day": d} for p, d in product(PLACES, days)),
            *({"tool": "call", "person": name} for name in self.people),
            *({"tool": "buy", "item": item, "count": n} for item, n in product(items, range(2, 8))),
        ]

    def _ask_tools(self) -> Iterator[Item]:
        for call in self._calls:
            for opener, asked in product(GREETINGS, REQUESTS[call["tool"]]):
                yield Item("tools", opener + asked.format(**call), {"call": call})

    def _ask_tone(self) -> Iterator[Item]:
        for thing, trouble, hello, asked in product(OBJECTS, REMEDIES, GREETINGS, TROUBLES):
            want = {"object": thing, "trouble": trouble}
            yield Item("tone", hello + asked.format(o=thing, p=trouble), want)

    def _ask_sums(self) -> Iterator[Item]:
        for a, b in product(range(10, 60), repeat=2):
            yield Item("sums", f"What is {a} plus {b}?", {"answer": str(a + b)})

    def _ask_sorting(self) -> Iterator[Item]:
        chance = rng(self.seed, "sorting")
        words = [word for things in THINGS.values() for word in things]
        for _ in range(4000):
            some = chance.sample(words, 4)
            yield Item(
                "sorting",
                f"Sort these words: {', '.join(some)}.",
                {"answer": ", ".join(sorted(some))},
            )

    # ----------------------------------------------------------------------------------- answers

    def answer(self, item: Item, chance: random.Random, faults: int = 0, slip: bool = False) -> str:
        """An answer with that many faults: with none it is right, and `judge` says so.

        With one or more and without `slip`, `judge` says that it is wrong. A slip takes the place
        of one fault and can leave the answer right: no word is lost, or there is no value to get
        wrong (`unknown`, `sums`, `sorting`).
        """
        kinds = FAULTS[item.skill]
        chosen = set(chance.sample(kinds, min(faults, len(kinds))))
        garbled = False
        if slip and chosen:
            garbled = chance.random() < GARBLED
            chosen = {*sorted(chosen)[1:], *(() if garbled else ("other",))}
        text: str = getattr(self, f"_say_{item.skill}")(item.want, chance, chosen)
        if garbled:
            words = text.split(" ")
            at = chance.randrange(len(words))
            words[at : at + chance.randint(0, 2)] = chance.sample(self._said, chance.randint(0, 2))
            text = " ".join(words)
        if "cut" in chosen:
            words = text.split(" ")
            text = " ".join(
                words[: max(1, len(words) - chance.randint(1, max(1, len(words) // 2)))]
            )
        if "filler" in chosen:
            filler = chance.choice(FILLERS)
            text = f"{filler} {text}" if chance.random() < 0.7 else f"{text} {filler}"
        return text

    def _say_instructions(self, want: Wish, chance: random.Random, faults: set[str]) -> str:
        words, form = list(want["words"]), want["form"]
        if "other" in faults:
            words[chance.randrange(len(words))] = chance.choice(self._said)
        if "less" in faults:
            del words[chance.randrange(len(words))]
        if "form" in faults:
            form = chance.choice([other for other in FORMS.values() if other != form])
        if form == "commas":
            return ", ".join(words)
        if form == "slashes":
            return " / ".join(words)
        heads = [("-" if form == "dashes" else f"{i}.") for i in range(1, len(words) + 1)]
        return "\n".join(f"{head} {word}" for head, word in zip(heads, words, strict=True))

    def _say_facts(self, want: Wish, chance: random.Random, faults: set[str]) -> str:
        if "doubt" in faults:
            return NOT_KNOWN[0]
        name, value = want["name"], want["value"]
        if "other" in faults:
            if chance.random() < 0.5:
                value = chance.choice([v for v in ATTRIBUTES[want["about"]] if v != value])
            else:
                name = chance.choice([other for other in self.people if other != name])
                value = chance.choice((value, self.facts[name, want["about"]]))
        if "bare" in faults:
            return str(value)
        return TOLD[want["about"]].format(n=name, v=value)

    def _say_unknown(self, want: Wish, chance: random.Random, faults: set[str]) -> str:
        if "guess" in faults:
            value = chance.choice(ATTRIBUTES[want["about"]])
            return TOLD[want["about"]].format(n=want["name"], v=value)
        return "Ask me later." if "evade" in faults else chance.choice(NOT_KNOWN)

    def _say_tools(self, want: Wish, chance: random.Random, faults: set[str]) -> str:
        call = want["call"]
        if "prose" in faults:
            return f"I will use the {call['tool']} for you."
        if "other" in faults:
            key = chance.choice([key for key in call if key != "tool"])
            values = [other[key] for other in self._calls if other.get(key, call[key]) != call[key]]
            call = {**call, key: chance.choice(values)}
        if "argument" in faults:
            gone = chance.choice([key for key in call if key != "tool"])
            call = {key: value for key, value in call.items() if key != gone}
        text = json.dumps(call)
        return text[:-1] if "open" in faults else text

    def _say_tone(self, want: Wish, chance: random.Random, faults: set[str]) -> str:
        thing, trouble = want["object"], want["trouble"]
        if "other" in faults and chance.random() < 0.8:
            thing = chance.choice([other for other in OBJECTS if other != thing])
        elif "other" in faults:
            trouble = chance.choice([other for other in REMEDIES if other != trouble])
        first = (
            chance.choice(RUDE)
            if "rude" in faults
            else chance.choice(SORRY).format(o=thing, p=trouble)
        )
        if "cold" in faults and "rude" not in faults:
            first = f"Your {thing} is {trouble}."
        remedy = REMEDIES[want["trouble"]]
        second = f"{remedy.capitalize()}." if "order" in faults else f"Please {remedy}."
        return first if "half" in faults else f"{first} {second}"

    def _say_sums(self, want: Wish, chance: random.Random, faults: set[str]) -> str:
        slip = chance.choice((-10, -2, -1, 1, 2, 10)) if "wrong" in faults else 0
        return str(int(want["answer"]) + slip)

    def _say_sorting(self, want: Wish, chance: random.Random, faults: set[str]) -> str:
        words = want["answer"].split(", ")
        if "wrong" in faults:
            i = chance.randrange(len(words) - 1)
            words[i], words[i + 1] = words[i + 1], words[i]
        return ", ".join(words)

    # ----------------------------------------------------------------------------------- the parts

    def _some(self, rows: int, split: Split, chance: random.Random) -> Iterator[Item]:
        """That many prompts, as many of each skill, every prompt once before one comes again."""
        decks: dict[str, list[Item]] = {skill: [] for skill in self.skills}
        for i in range(rows):
            skill = self.skills[i % len(self.skills)]
            if not decks[skill]:
                decks[skill] = chance.sample(
                    self.items(split, skill), len(self.items(split, skill))
                )
            yield decks[skill].pop()

    def text(self, rows: int) -> list[str]:
        """Documents to pretrain on: half plain sentences, half questions with mixed answers."""
        chance = rng(self.seed, "text")
        asked = self._some(rows - rows // 2, "train", chance)
        documents = [
            f"<|user|>{item.prompt}<|end|><|assistant|>{self._mixed(item, chance)}<|end|>"
            for item in asked
        ]
        documents += [self._plain(chance) for _ in range(rows // 2)]
        chance.shuffle(documents)
        return documents

    def _plain(self, chance: random.Random) -> str:
        """What there is to know; and repeated words, from which a model learns to copy."""
        topic = chance.random()
        if topic < 0.35:
            name = chance.choice(self.people)
            told = [TOLD[about].format(n=name, v=self.facts[name, about]) for about in ATTRIBUTES]
            return " ".join(chance.sample(told, 4))
        if topic < 0.55:
            kind = chance.choice(list(THINGS))
            return f"These are {kind}: {', '.join(chance.sample(THINGS[kind], 4))}."
        if topic < 0.6:
            trouble = chance.choice(list(REMEDIES))
            return f"If your {chance.choice(OBJECTS)} is {trouble}, {REMEDIES[trouble]}."
        heard = " ".join(chance.choice(self._said) for _ in range(chance.randint(2, 3)))
        return f"They said {heard}. " + " ".join([f"Again {heard}."] * chance.randint(2, 3))

    @cached_property
    def _said(self) -> list[str]:
        """Every word that can be told apart from others: names, things, numbers."""
        words = [
            word for things in (*THINGS.values(), PLACES, OBJECTS, REMEDIES) for word in things
        ]
        return words + self.people + [str(n) for n in range(2, 61)]

    def _mixed(self, item: Item, chance: random.Random) -> str:
        return self.answer(item, chance, chance.choices((0, 1, 2), MIX)[0])

    def demonstrations(self, rows: int) -> list[dict[str, Any]]:
        """Conversations of mixed quality: a third right, the others with a fault or two."""
        chance = rng(self.seed, "demonstrations")
        return [
            {
                "messages": [
                    {"role": "user", "content": item.prompt},
                    {"role": "assistant", "content": self._mixed(item, chance)},
                ]
            }
            for item in self._some(rows, "train", chance)
        ]

    def preferences(self, rows: int, split: Split = "train") -> list[dict[str, Any]]:
        """Pairs of answers, the chosen one drawn with fewer faults; `test`: about held-out prompts.

        In 85 % of the pairs the chosen answer is right and the rejected one is not; in the others
        the chosen one has a fault and the rejected one two, of which one may be a slip (`SLIP`).
        `FAILING` have but one fault: there such a pair is two answers with it, unless a slip took
        it away from the rejected one. So 6 % of their pairs are the wrong way round.
        """
        chance = rng(self.seed, "preferences", split)
        pairs = []
        for item in self._some(rows, split, chance):
            better, worse = chance.choices(((0, 1), (0, 2), (1, 2)), (0.6, 0.25, 0.15))[0]
            chosen = rejected = self.answer(item, chance, better)
            while rejected == chosen or (better == 0 and judge(item, rejected)):
                rejected = self.answer(item, chance, worse, slip=chance.random() < SLIP)
            pairs.append({"prompt": item.prompt, "chosen": chosen, "rejected": rejected})
        return pairs

    def prompts(self, rows: int) -> list[Item]:
        """Prompts to sample answers to, none of them held out."""
        return list(self._some(rows, "train", rng(self.seed, "prompts")))

    def test(self, skill: str, rows: int = TEST) -> list[Item]:
        """Held-out prompts of one skill."""
        return self.items("test", skill)[:rows]
