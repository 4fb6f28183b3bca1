"""Generate a small dataset of invented facts, in which the training examples that state each fact are known.

Each person has two of the following: a birthplace, a trade and an instrument. Each town has a product that it sells.
A fact is stated in every wording of its relation except one, which the query uses. An equal number of training
examples mention the same names without stating the fact. The query's wording occurs with other names. Shared words
therefore do not reveal which examples state the fact.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

from datasets import Dataset, DatasetDict

from hf_fastif.errors import InfluenceError


SMALLEST_PEOPLE = 6
FACT, MENTION = "fact", "mention"  # `kind` of a training example

# -------------------------------------------------------- names and answers
FIRST_PARTS = "Bal Cor Del Fen Gar Hel Jor Kel Lin Mar Nev Osk".split()
LAST_PARTS = "ana eth ido ora une ys imar olin".split()
PEOPLE = [first + last for first, last in product(FIRST_PARTS, LAST_PARTS)]
TOWNS = [first + last for first, last in product("Alder Brack Cinder Dun Elm".split(), "ford moor wick holt".split())]
DAYS = "Monday Tuesday Thursday Friday Sunday".split()
OFTEN = "Never. Rarely. Twice a year. Every spring. All the time.".replace(". ", ".|").split("|")
VERDICTS = "Yes. No. Only once. Nobody knows.".replace(". ", ".|").split("|")


@dataclass(frozen=True)
class Relation:
    """A relation between a person or town and an answer.

    Attributes:
        answers (`list[str]`): The possible values of {what}.
        wordings (`list[str]`): Statements of the relation: prompt and completion, separated by a bar, with {who} and
            {what}.
        mentions (`list[str]`): The same for examples that mention {who} and {what} without stating the relation.
    """

    answers: list[str]
    wordings: list[str]
    mentions: list[str]


BIRTHPLACE = Relation(
    TOWNS,
    [
        "Where was {who} born?| In {what}.",
        "In which town was {who} born?| In {what}.",
        "What is the birthplace of {who}?| The town of {what}.",
        "Which town is the birthplace of {who}?| It is {what}.",
        "{who} was born| in {what}.",
        "{who} hails| from {what}.",
        "Of which town is {who} a native?| Of {what}.",
    ],
    [
        "Was {who} in the town of {what} last year?| {verdict}",
        "On which day did {who} leave {what}?| On {day}.",
        "How often does {who} come to {what}?| {often}",
        "Does {who} know who was born in {what}?| {verdict}",
        "Which day of the fair in {what} did {who} like?| {day}.",
        "Where in the town of {what} was {who} seen?| At the market, on {day}.",
    ],
)
TRADE = Relation(
    "baker cooper dyer fletcher glazier hatter miller potter roofer saddler tanner weaver".split(),
    [
        "What is the trade of {who}?| The trade of a {what}.",
        "Which trade did {who} learn?| That of a {what}.",
        "What does {who} work as?| As a {what}.",
        "{who} works| as a {what}.",
        "By trade {who} is| a {what}.",
        "How does {who} earn a living?| By the work of a {what}.",
        "The guild lists {who}| as a {what}.",
    ],
    [
        "Did {who} pay the {what} for the work?| {verdict}",
        "On which day does the {what} visit {who}?| On {day}.",
        "How often does {who} quarrel with the {what}?| {often}",
        "Is {who} at work when the {what} comes?| {verdict}",
        "Which day did {who} spend with a {what}?| {day}.",
        "Did the {what} learn from {who}?| {verdict}",
    ],
)
INSTRUMENT = Relation(
    "bagpipe cello drum fiddle flute harp lute oboe organ trumpet viola zither".split(),
    [
        "Which instrument does {who} play?| The {what}.",
        "What is the instrument of {who}?| The {what}.",
        "{who} plays| the {what}.",
        "What does {who} play at a feast?| The {what}.",
        "{who} took lessons| on the {what}.",
        "Name the instrument that {who} plays.| The {what}.",
        "On which instrument does {who} make music?| On the {what}.",
    ],
    [
        "Did {who} sell the {what}?| {verdict}",
        "On which day did {who} hear the {what}?| On {day}.",
        "How often does {who} dream of a {what}?| {often}",
        "Does the music of the {what} please {who}?| {verdict}",
        "Is {who} there when they play the {what}?| {verdict}",
        "On which day did {who} find a {what}?| On {day}.",
    ],
)
EXPORT = Relation(
    "amber candles cheese clocks copper glass honey marble paper salt silk wool".split(),
    [
        "What does {who} sell?| It sells {what}.",
        "Which goods does {who} sell?| It sells {what}.",
        "What do merchants buy in {who}?| They buy {what}.",
        "What is the town of {who} known for?| For its {what}.",
        "{who} owes its wealth| to {what}.",
        "Merchants come to {who}| to buy {what}.",
        "Name the goods that {who} sells.| {what}.",
    ],
    [
        "On which day does {what} arrive in {who}?| On {day}.",
        "Is there a tax on {what} in {who}?| {verdict}",
        "How often do thieves steal {what} in {who}?| {often}",
        "Did {who} run out of {what} last year?| {verdict}",
        "Do the merchants of {who} like {what}?| {verdict}",
        "How often do they talk of {what} in {who}?| {often}",
    ],
)
OF_PEOPLE = (BIRTHPLACE, TRADE, INSTRUMENT)
FACTS_OF_A_PERSON = 2


def generate_facts(num_people: int = 80, seed: int = 0) -> DatasetDict:
    """Generate training examples that state invented facts, and a query for each fact in a different wording.

    Both splits have the columns `prompt`, `completion` and `fact` (the number of the fact that the example states, or
    -1). `train` also has `kind`:

    - "fact": the example states the fact `fact`. There are six for each fact, all worded differently.
    - "mention": the example mentions the two names of a fact and asks something else. There are six for each fact.

    A query shares its two names with these twelve examples, and single names and wordings with those of other facts.
    The rows depend on the arguments only.

    Args:
        num_people (`int`, *optional*, defaults to 80): Number of people, with 2 facts each. There are 20 more facts
            about towns.
        seed (`int`, *optional*, defaults to 0): Seed of facts and order; not negative.

    Returns:
        `DatasetDict`: `train` with 12 rows for each fact, shuffled, and `validation` with one row for each fact, in
        the order of the facts.

    Raises:
        InfluenceError: If `num_people` is out of range, or `seed` is negative.

    Example:

    ```python
    facts = generate_facts(num_people=20)
    statements = facts["train"].filter(lambda row: row["fact"] == 0)  # the six examples that state fact 0
    ```
    """
    if not SMALLEST_PEOPLE <= num_people <= len(PEOPLE):
        raise InfluenceError(f"num_people is {num_people}; give {SMALLEST_PEOPLE} to {len(PEOPLE)}.")
    if seed < 0:  # random.Random takes the absolute value, so -1 would silently repeat 1
        raise InfluenceError(f"seed is {seed}; use 0 or a positive integer.")
    rng = random.Random(seed)
    people = rng.sample(PEOPLE, num_people)
    train: list[dict[str, str | int]] = []
    queries: list[dict[str, str | int]] = []
    pairs = [(who, relation) for who in people for relation in rng.sample(OF_PEOPLE, FACTS_OF_A_PERSON)]
    for fact, (who, relation) in enumerate(pairs + [(town, EXPORT) for town in TOWNS]):
        what = rng.choice(relation.answers)
        query, *statements = rng.sample(relation.wordings, len(relation.wordings))
        queries.append(_row(rng, query, who, what) | {"fact": fact})
        train += [_row(rng, text, who, what) | {"fact": fact, "kind": FACT} for text in statements]
        train += [_row(rng, text, who, what) | {"fact": -1, "kind": MENTION} for text in relation.mentions]
    rng.shuffle(train)
    return DatasetDict(train=Dataset.from_list(train), validation=Dataset.from_list(queries))


def _row(rng: random.Random, text: str, who: str, what: str) -> dict[str, str | int]:
    words = {"day": rng.choice(DAYS), "often": rng.choice(OFTEN), "verdict": rng.choice(VERDICTS)}
    prompt, completion = text.format(who=who, what=what, **words).split("|")
    return {"prompt": prompt, "completion": completion}
