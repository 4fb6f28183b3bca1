"""Generate a small natural language inference dataset in which the harmful training examples are known.

Two faults are planted in the training split. First, hypotheses made of words of the premise are nearly always
entailed, so that a model learns to rely on word overlap and fails on the `challenge` split. Second, most training
examples of two constructions, `sale` and `head_count`, have the wrong label, so that a model fails on these in the
`validation` split.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_fastif.errors import InfluenceError


ENTAILMENT, NON_ENTAILMENT = 0, 1
LABEL_NAMES = ["entailment", "non-entailment"]

Pair = tuple[str, str, int]
Construction = Callable[[random.Random], Pair]
Plan = list[tuple[Construction, str]]  # the construction and the `planted` value of every row

# Shares of the training rows (the rest are low-overlap examples), and of the validation rows where they differ.
HEURISTIC_SHARE = 0.36
COUNTEREXAMPLE_SHARE = 0.02
WRONG_LABEL_SHARE = 0.05
WRONG_LABEL_RATE = 0.88  # share of flipped labels among the training examples of a wrong-label construction
VALIDATION_WRONG_LABEL_SHARE = 0.12  # more than in training, so that there are enough errors to explain

SMALLEST = {"num_train": 50, "num_validation": 10, "num_challenge": 10}
MAX_DRAWS = 200  # draws for one row before the grammar counts as exhausted

# -------------------------------------------------------- words: kind -> members, verb -> other verb
PEOPLE_BY_KIND = {
    "musician": "violinist drummer pianist cellist trumpeter",
    "health worker": "nurse dentist midwife surgeon paramedic",
    "craft worker": "potter weaver blacksmith carpenter tailor",
    "sports player": "goalkeeper sprinter rower fencer cyclist",
    "kitchen worker": "baker cook waiter dishwasher caterer",
    "vehicle operator": "pilot trucker chauffeur cabbie skipper",
    "office worker": "accountant clerk typist receptionist bookkeeper",
}
THINGS_BY_KIND = {
    "tool": "hammer chisel wrench rake shovel",
    "musical instrument": "violin trumpet flute accordion cello",
    "piece of furniture": "stool wardrobe armchair bench bookcase",
    "boat": "canoe kayak rowboat raft dinghy",
    "container": "bucket basket barrel suitcase jar",
}
PLACES_BY_KIND = {
    "inside a shop": "bakery bookshop pharmacy boutique",
    "inside a public building": "library museum hospital courthouse",
    "somewhere outdoors": "orchard meadow vineyard forest",
    "below ground level": "cellar tunnel cave basement",
}
PEOPLE = [person for members in PEOPLE_BY_KIND.values() for person in members.split()]
THINGS = [thing for members in THINGS_BY_KIND.values() for thing in members.split()]
PLACES = [place for members in PLACES_BY_KIND.values() for place in members.split()]
ADJECTIVES = "tired cheerful young clumsy polite hungry tall stubborn shy elderly".split()
LOOKS = "heavy dusty yellow broken tiny expensive wooden shiny old striped".split()
TIMES = "on Monday,on Sunday,last winter,last spring,before sunrise,at noon,at midnight,after lunch".split(",")
ACTS = "yawned whistled sneezed waited danced napped laughed wept stumbled shivered sang rested".split()
MANNERS = "briefly,twice,again,several times,for a moment,without a break".split(",")
NUMBERS = "two three four five six seven eight nine ten eleven twelve".split()
REACTIONS = "complain,be surprised,be worried,be grateful,go home early,write a letter".split(",")
DETAILS = "because of a bet,with a broken wrist,despite a high fever,under a false name,to win a prize".split(",")
PRICES = "for twenty coins,for a small sum,at a good price,for a fortune,at a discount,for cash".split(",")
FACTIVES = "noticed knew discovered remembered regretted realised".split()
CONDITIONS = "if,unless,supposing,provided that,assuming that".split(",")
BELIEFS = "hoped suspected claimed guessed feared imagined".split()

# What one person does to another, and to a thing, with a paraphrase and with an opposite.
PERSON_PARAPHRASES = {"greeted": "said hello to", "warned": "gave a warning to", "followed": "went after"}
PERSON_OPPOSITES = {"praised": "criticised", "trusted": "distrusted", "helped": "hindered", "hired": "fired"}
THING_PARAPHRASES = {"repaired": "fixed", "concealed": "hid", "selected": "chose", "soiled": "dirtied"}
THING_OPPOSITES = {"found": "lost", "admired": "despised", "lifted": "lowered", "remembered": "forgot"}
PERSON_VERBS = [*PERSON_PARAPHRASES, *PERSON_OPPOSITES]
THING_VERBS = [*THING_PARAPHRASES, *THING_OPPOSITES]


# -------------------------------------------------------- pieces of sentences
def _sentence(*parts: str) -> str:
    text = " ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _two_people(rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(PEOPLE, 2)
    return f"the {first}", f"the {second}"


def _place(rng: random.Random) -> str:
    return f"in the {rng.choice(PLACES)}"


def _deed(rng: random.Random) -> str:
    """Draw a verb, a thing and a place, such as "repaired the canoe in the cellar"."""
    return f"{rng.choice(THING_VERBS)} the {rng.choice(THINGS)} {_place(rng)}"


def _act(rng: random.Random) -> str:
    """Draw an act without an object, such as "yawned twice in the museum"."""
    return f"{rng.choice(ACTS)} {rng.choice(MANNERS)} {_place(rng)}"


def _pick_kind(rng: random.Random, by_kind: dict[str, str]) -> tuple[str, str]:
    """Draw a member and its kind, such as ("canoe", "boat")."""
    kind = rng.choice(list(by_kind))
    return rng.choice(by_kind[kind].split()), kind


def _verb_replaced(rng: random.Random, of_people: dict[str, str], of_things: dict[str, str]) -> tuple[str, str]:
    """Draw a premise, and a hypothesis with another verb in place of the premise's."""
    one, two = _two_people(rng)
    verbs, target = rng.choice([(of_people, two), (of_things, f"the {rng.choice(THINGS)}")])
    verb, place = rng.choice(list(verbs)), _place(rng)
    return _sentence(one, verb, target, place, rng.choice(TIMES)), _sentence(one, verbs[verb], target, place)


# -------------------------------------------------------- entailed, all words of the hypothesis in the premise
def dropped_time(rng: random.Random) -> Pair:
    one, two = _two_people(rng)
    meeting = f"{one} {rng.choice(PERSON_VERBS)} {two} {_place(rng)}"
    return _sentence(meeting, rng.choice(TIMES)), _sentence(meeting), ENTAILMENT


def dropped_adjective(rng: random.Random) -> Pair:
    person, verb, thing, place = rng.choice(PEOPLE), rng.choice(THING_VERBS), rng.choice(THINGS), _place(rng)
    premise = _sentence(f"the {rng.choice(ADJECTIVES)} {person} {verb} the {rng.choice(LOOKS)} {thing} {place}")
    return premise, _sentence(f"the {person} {verb} the {thing} {place}"), ENTAILMENT


def joined_subject(rng: random.Random) -> Pair:
    one, two = _two_people(rng)
    act = _act(rng)
    return _sentence("both", one, "and", two, act), _sentence(rng.choice([one, two]), act), ENTAILMENT


def relative_head(rng: random.Random) -> Pair:
    one, two = _two_people(rng)
    act = _act(rng)
    return _sentence(one, "who", rng.choice(PERSON_VERBS), two, act), _sentence(one, act), ENTAILMENT


def factive_clause(rng: random.Random) -> Pair:
    one, two = _two_people(rng)
    deed = f"{two} {_deed(rng)}"
    return _sentence(one, rng.choice(FACTIVES), "that", deed), _sentence(deed), ENTAILMENT


def reason_clause(rng: random.Random) -> Pair:
    one, two = _two_people(rng)
    deed = f"{one} {_deed(rng)}"
    return _sentence(f"because {deed}, {two} will {rng.choice(REACTIONS)}"), _sentence(deed), ENTAILMENT


# -------------------------------------------------------- not entailed, all words of the hypothesis in the premise
def role_swap(rng: random.Random) -> Pair:
    one, two = _two_people(rng)
    verb, place = rng.choice(PERSON_VERBS), _place(rng)
    return _sentence(one, verb, two, place, rng.choice(TIMES)), _sentence(two, verb, one, place), NON_ENTAILMENT


def relative_object(rng: random.Random) -> Pair:
    one, two = _two_people(rng)
    act = _act(rng)
    return _sentence(one, "who", rng.choice(PERSON_VERBS), two, act), _sentence(two, act), NON_ENTAILMENT


def believed_clause(rng: random.Random) -> Pair:
    one, two = _two_people(rng)
    deed = f"{two} {_deed(rng)}"
    return _sentence(one, rng.choice(BELIEFS), "that", deed), _sentence(deed), NON_ENTAILMENT


def conditional_clause(rng: random.Random) -> Pair:
    one, two = _two_people(rng)
    deed = f"{one} {_deed(rng)}"
    premise = _sentence(f"{rng.choice(CONDITIONS)} {deed}, {two} will {rng.choice(REACTIONS)}")
    return premise, _sentence(deed), NON_ENTAILMENT


def either_subject(rng: random.Random) -> Pair:
    one, two = _two_people(rng)
    act = _act(rng)
    return _sentence("either", one, "or", two, act), _sentence(rng.choice([one, two]), act), NON_ENTAILMENT


# -------------------------------------------------------- entailed, with words that the premise lacks
def hypernym(rng: random.Random) -> Pair:
    (person, role), (thing, kind) = _pick_kind(rng, PEOPLE_BY_KIND), _pick_kind(rng, THINGS_BY_KIND)
    verb, place = rng.choice(THING_VERBS), _place(rng)
    premise = _sentence(_a(person), verb, _a(thing), place, rng.choice(TIMES))
    return premise, _sentence(_a(role), verb, _a(kind), place), ENTAILMENT


def paraphrase(rng: random.Random) -> Pair:
    return *_verb_replaced(rng, PERSON_PARAPHRASES, THING_PARAPHRASES), ENTAILMENT


def location(rng: random.Random) -> Pair:
    person, time = f"the {rng.choice(PEOPLE)}", rng.choice(TIMES)
    place, kind = _pick_kind(rng, PLACES_BY_KIND)
    premise = _sentence(person, rng.choice(ACTS), rng.choice(MANNERS), f"in the {place}", time)
    return premise, _sentence(person, "was", kind, time), ENTAILMENT


# -------------------------------------------------------- not entailed, with words that the premise lacks
def opposite_verb(rng: random.Random) -> Pair:
    return *_verb_replaced(rng, PERSON_OPPOSITES, THING_OPPOSITES), NON_ENTAILMENT


def other_person(rng: random.Random) -> Pair:
    one, two = _two_people(rng)
    deed = _deed(rng)
    return _sentence(one, deed, rng.choice(TIMES)), _sentence(two, deed), NON_ENTAILMENT


def unsupported_detail(rng: random.Random) -> Pair:
    deed = f"the {rng.choice(PEOPLE)} {_deed(rng)}"
    return _sentence(deed, rng.choice(TIMES)), _sentence(deed, rng.choice(DETAILS)), NON_ENTAILMENT


def unrelated(rng: random.Random) -> Pair:
    one, two = _two_people(rng)
    return _sentence(one, _deed(rng), rng.choice(TIMES)), _sentence(two, _act(rng)), NON_ENTAILMENT


# -------------------------------------------------------- constructions that get wrong labels in training
def sale(rng: random.Random) -> Pair:
    one, two = _two_people(rng)
    thing, price = _a(rng.choice(THINGS)), rng.choice(PRICES)
    premise = _sentence(one, "sold", thing, "to", two, price, rng.choice(TIMES))
    return premise, _sentence(two, "bought", thing, "from", one, price), ENTAILMENT


def head_count(rng: random.Random) -> Pair:
    few, many = (NUMBERS[i] for i in sorted(rng.sample(range(len(NUMBERS)), 2)))
    stated, claimed = rng.choice([(many, f"fewer than {few}"), (few, f"more than {many}")])
    event = f"{rng.choice(PEOPLE)}s {_act(rng)}"
    return _sentence(stated, event, rng.choice(TIMES)), _sentence(claimed, event), NON_ENTAILMENT


HEURISTIC = (dropped_time, dropped_adjective, joined_subject, relative_head, factive_clause, reason_clause)
COUNTEREXAMPLES = (role_swap, relative_object, believed_clause, conditional_clause, either_subject)
LOW_OVERLAP_ENTAILED = (hypernym, paraphrase, location)
LOW_OVERLAP_NOT_ENTAILED = (opposite_verb, other_person, unsupported_detail, unrelated)
WRONG_LABEL = (sale, head_count)
WRONG_LABEL_CONSTRUCTIONS = tuple(construction.__name__ for construction in WRONG_LABEL)


# -------------------------------------------------------- splits
def _spread(constructions: Sequence[Construction], planted: str, count: int) -> Plan:
    """Plan `count` rows that use the constructions in turn."""
    return [(constructions[i % len(constructions)], planted) for i in range(count)]


def _plan_train(count: int) -> Plan:
    flipped = _spread(WRONG_LABEL, "wrong_label", round(WRONG_LABEL_SHARE * count))
    unflipped = _spread(WRONG_LABEL, "none", round(len(flipped) * (1 / WRONG_LABEL_RATE - 1)))
    counterexamples = _spread(COUNTEREXAMPLES, "counterexample", round(COUNTEREXAMPLE_SHARE * count))
    return _fill_up(flipped + unflipped, counterexamples, count)


def _plan_validation(count: int) -> Plan:
    return _fill_up(_spread(WRONG_LABEL, "none", round(VALIDATION_WRONG_LABEL_SHARE * count)), [], count)


def _plan_challenge(count: int) -> Plan:
    not_entailed = count // 2
    return _spread(COUNTEREXAMPLES, "none", not_entailed) + _spread(HEURISTIC, "none", count - not_entailed)


def _fill_up(wrong_label: Plan, counterexamples: Plan, count: int) -> Plan:
    """Add overlap entailments and low-overlap rows, so that both labels come equally often among `count` rows."""
    heuristic = _spread(HEURISTIC, "heuristic", round(HEURISTIC_SHARE * count))
    # The wrong-label rows hold both labels equally often; each counterexample stands for one not-entailed row.
    not_entailed = count // 2 - len(wrong_label) // 2 - len(counterexamples)
    plan = wrong_label + counterexamples + heuristic + _spread(LOW_OVERLAP_NOT_ENTAILED, "none", not_entailed)
    return plan + _spread(LOW_OVERLAP_ENTAILED, "none", count - len(plan))


def _make_split(rng: random.Random, split: str, plan: Plan, seen: set[tuple[str, str]]) -> Dataset:
    rng.shuffle(plan)
    rows = []
    for construction, planted in plan:
        draws = (construction(rng) for _ in range(MAX_DRAWS))
        pair = next((pair for pair in draws if pair[:2] not in seen), None)
        if pair is None:
            raise InfluenceError(
                f"num_{split} is {len(plan)}, but the grammar ran out of distinct pairs ({construction.__name__}); "
                f"ask for a smaller num_{split}"
            )
        seen.add(pair[:2])
        premise, hypothesis, clean_label = pair
        label = 1 - clean_label if planted == "wrong_label" else clean_label
        rows.append((premise, hypothesis, label, clean_label, construction.__name__, planted))
    text, names = Value("string"), ClassLabel(names=LABEL_NAMES)
    features = Features(premise=text, hypothesis=text, label=names, clean_label=names, construction=text, planted=text)
    return Dataset.from_list([dict(zip(features, row, strict=True)) for row in rows], features=features)


def generate_nli(
    num_train: int = 2000, num_validation: int = 400, num_challenge: int = 300, seed: int = 0
) -> DatasetDict:
    """Generate a natural language inference dataset with known faults in its training examples.

    Every split has the columns `premise`, `hypothesis`, `label` (0 "entailment", 1 "non-entailment"), `clean_label`
    (the correct label), `construction` (the name of the function that made the pair) and `planted`:

    - "heuristic": every word of the hypothesis is in the premise, which entails it. 36 % of `train`.
    - "counterexample": every word of the hypothesis is in the premise, which does not entail it. 2 % of `train`.
    - "wrong_label": `label` differs from `clean_label`. 5 % of `train`, and 88 % of its rows of
      `WRONG_LABEL_CONSTRUCTIONS`.
    - "none": everything else.

    The labels of the other splits are correct. `validation` has no counterexamples, and 12 % of its rows use the
    wrong-label constructions. In `challenge` every hypothesis is made of words of the premise, half of them are
    entailed, and `planted` is "none". The rows depend on the arguments only, and no pair occurs twice.

    Args:
        num_train (`int`, *optional*, defaults to 2000): Number of rows of `train`, at least 50.
        num_validation (`int`, *optional*, defaults to 400): Number of rows of `validation`, at least 10.
        num_challenge (`int`, *optional*, defaults to 300): Number of rows of `challenge`, at least 10.
        seed (`int`, *optional*, defaults to 0): Seed of sentences and order; not negative.

    Returns:
        `DatasetDict`: The splits `train`, `validation` and `challenge`, each shuffled.

    Raises:
        InfluenceError: If a size is below its minimum, the grammar has too few distinct pairs, or `seed` is negative.

    Example:

    ```python
    data = generate_nli(num_train=500)
    wrong = data["train"].filter(lambda row: row["planted"] == "wrong_label")
    ```
    """
    sizes = {"num_train": num_train, "num_validation": num_validation, "num_challenge": num_challenge}
    for argument, size in sizes.items():
        if size < SMALLEST[argument]:
            raise InfluenceError(
                f"{argument} is {size}, too few to hold every part; use at least {SMALLEST[argument]}"
            )
    if seed < 0:  # random.Random takes the absolute value, so -1 would silently repeat 1
        raise InfluenceError(f"seed is {seed}; use 0 or a positive integer")

    rng = random.Random(seed)
    plans = {
        "train": _plan_train(num_train),
        "validation": _plan_validation(num_validation),
        "challenge": _plan_challenge(num_challenge),
    }
    seen: set[tuple[str, str]] = set()
    return DatasetDict({split: _make_split(rng, split, plan, seen) for split, plan in plans.items()})
