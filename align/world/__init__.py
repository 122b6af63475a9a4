"""The quickstart's own offline world: what a tiny model can be taught, and the truth about answers.

Everything is drawn from a seed: twenty people with four facts each, things that have names, four
small tools, customers with troubles. `World` makes from it plain text, demonstrations of mixed
quality, preferences, prompts to sample from, and held-out test prompts, which no other part asks.
`judge` says whether an answer is right; it reads the answer and never asks a model.

Two groups of skills. In `SKILLS` judging is easier than answering: what is wrong with an answer can
mostly be seen in it (another form, filler, half an answer, a rude word). In `FAILING` judging is as
hard as answering (sums, sorting): a small reward model learns little about them, and what it picks
need not be better than a blind pick. They show what a gate is for: see why-gates.yaml among the
quickstart's files.
"""
