"""Invented facts: which rows state which, what queries share with them, and that the same seed gives the same."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from hf_fastif.training import generate_facts
from hf_fastif.training.corpora.facts import EXPORT, FACTS_OF_A_PERSON, OF_PEOPLE, TOWNS


PEOPLE = 20
FACTS = generate_facts(PEOPLE)
RELATIONS = (*OF_PEOPLE, EXPORT)


def parsed(row):
    """The relation, wording, who and what of a row that states a fact."""
    found = []
    for number, relation in enumerate(RELATIONS):
        for wording in relation.wordings:
            pattern = re.escape(wording.replace("|", "")).replace(r"\{who\}", r"(?P<who>\w+)")
            match = re.fullmatch(pattern.replace(r"\{what\}", r"(?P<what>\w+)"), row["prompt"] + row["completion"])
            if match and match["what"] in relation.answers:
                found.append((number, wording, match["who"], match["what"]))
    assert len(found) == 1, (row, found)
    return found[0]


def test_every_fact_is_stated_in_all_wordings_but_that_of_its_query():
    train, queries = FACTS["train"], FACTS["validation"]
    count = FACTS_OF_A_PERSON * PEOPLE + len(TOWNS)
    assert queries["fact"][:] == list(range(count)) and len(train) == 12 * count
    stated = {fact: [] for fact in range(count)}
    for row in train:
        assert (row["fact"] >= 0) == (row["kind"] == "fact")
        if row["fact"] >= 0:
            stated[row["fact"]].append(parsed(row))
    for query in queries:
        number, wording, who, what = parsed(query)
        own = stated[query["fact"]]
        assert {(n, w, a) for n, _, w, a in own} == {(number, who, what)}
        assert sorted([wording, *(other for _, other, _, _ in own)]) == sorted(RELATIONS[number].wordings)


def test_as_many_rows_name_both_and_say_something_else():
    mentions = [row for row in FACTS["train"] if row["kind"] == "mention"]
    texts = [row["prompt"] + row["completion"] for row in mentions]
    for query in FACTS["validation"]:
        _, _, who, what = parsed(query)
        own = [row for row, text in zip(mentions, texts, strict=True) if who in text and what in text]
        assert len(own) >= 6 and not any(what in row["completion"] for row in own)


def test_rows_are_distinct_and_answers_shared():
    texts = [row["prompt"] + row["completion"] for split in FACTS.values() for row in split]
    assert len(set(texts)) == len(texts)
    answers = Counter(parsed(query)[3] for query in FACTS["validation"])
    assert max(answers.values()) > 1  # so the answer alone does not tell the fact


def test_the_seed_decides():
    assert generate_facts(PEOPLE)["train"].to_list() == FACTS["train"].to_list()
    assert generate_facts(PEOPLE, seed=1)["validation"].to_list() != FACTS["validation"].to_list()


@pytest.mark.parametrize(("settings", "message"), [((5, 0), "num_people is 5; give 6 to 96"), ((9, -1), "seed is -1")])
def test_bad_sizes(settings, message):
    with pytest.raises(ValueError, match=message):
        generate_facts(*settings)
