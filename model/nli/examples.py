"""A small set of pairs written for this project, so that everything runs without a data file.

Too small to learn from: it shows, it does not teach.
"""

from __future__ import annotations

from .pairs import LABELS, Pair

# premise | a sentence that follows | one that can't be | one that may be
_EXAMPLES = """
two dogs run across a wet field | some dogs are outside | the dogs are asleep on a sofa | the dogs chase a red ball
a woman in a blue coat reads a letter on the train | a woman is reading | nobody is on the train | the letter is from her brother
three children build a tower of wooden blocks | children are playing with blocks | the children are swimming | the tower is taller than a chair
an old man repairs a bicycle in front of his shop | a man is fixing a bicycle | the man is selling fruit at sea | the bicycle belongs to his neighbour
a chef slices onions in a crowded kitchen | someone is cutting vegetables | the kitchen is empty | the chef is making soup for a wedding
a girl with a violin stands on a small stage | a girl holds an instrument | the girl is sitting in a canoe | the girl has practised for years
people wait at a bus stop in heavy rain | people are waiting outdoors | the sun is shining on a dry street | the bus is ten minutes late
a cat looks out of an open window | an animal is near a window | the cat is under the bed | the cat has seen a bird
four climbers rest on a snowy ridge | climbers are taking a break | the climbers are in a desert | the climbers will reach the summit today
a boy pours milk into a tall glass | a boy is pouring a drink | the glass is full of sand | the boy is thirsty after school
a painter stands on a ladder beside a yellow wall | a person is on a ladder | the painter is lying on the floor | the wall was white last week
a train crosses a stone bridge above a river | a train is on a bridge | the train is inside a tunnel | the river floods every spring
two women laugh while they fold clean sheets | women are folding laundry | the women are silent and still | the sheets were washed this morning
a farmer drives a green tractor along a dirt road | someone is driving a tractor | the farmer is riding a horse | the farmer is going to the market
a nurse checks the temperature of a sleeping patient | a nurse is with a patient | the patient is running in the park | the patient has a fever
a crowd watches a man juggle five oranges | a man is juggling fruit | the man is alone in a room | the man has juggled for money before
a fisherman pulls a heavy net into his boat | a man is on a boat | the fisherman is asleep at home | the net is full of herring
a student writes a long equation on the board | someone is writing on a board | the board is blank and no one is near | the equation has no solution
a brown horse jumps over a low fence | a horse is jumping | the horse is standing in a stable | the horse wins the race
several musicians tune their instruments before a concert | musicians are preparing | the concert ended an hour ago | the concert is sold out
"""


def example_pairs() -> list[Pair]:
    """The embedded pairs: three a premise, one of each label."""
    pairs = []
    for line in _EXAMPLES.strip().splitlines():
        premise, *hypotheses = (part.split() for part in line.split("|"))
        pairs += [Pair(premise, hypothesis, label) for label, hypothesis in enumerate(hypotheses)]
    assert len(pairs) == len(LABELS) * len(_EXAMPLES.strip().splitlines())
    return pairs
