"""How many of the examples that state a fact are found, counted by hand from the scores of each method."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from figures import bars
from tiny_heads import CASES

from hf_fastif.analysis import METHODS
from hf_fastif.experiments import Retrieval, retrieval
from hf_fastif.experiments.bm25 import text_overlap


CASE = replace(CASES["causal-gpt2"])  # with a model of its own, since others share theirs in double
RANDOM = np.random.default_rng(3)


def stating(dataset, facts):
    texts = [" ".join(f"w{i}" for i in row["input_ids"]) for row in dataset]
    return dataset.add_column("text", texts).add_column("fact", facts)


TRAIN = stating(CASE.data(14), [0, 1, -1, 0, 2, 1, 0, -1, 2, 0, 1, -1, 4, 4])
QUERIES = stating(CASE.data(4, seed=1), [1, 3, 0, -1])  # nothing states the second, and the last one has none


@pytest.fixture
def trainer(tmp_path):
    trainer = CASE.trainer(tmp_path, TRAIN, solver="exact", damping=0.3, remove_unused_columns=True)
    trainer.model.float()
    return trainer


def recall_by_hand(scores, k):
    shares = []
    for query in (0, 2):
        relevant = [row for row, fact in enumerate(TRAIN["fact"]) if fact == QUERIES["fact"][query]]
        best = sorted(range(len(TRAIN)), key=lambda row: scores[query][row])[:k]
        shares.append(len(set(best) & set(relevant)) / len(relevant))
    return np.mean(shares), np.std(shares, ddof=1) / np.sqrt(2)


def test_recall_of_every_method(trainer, tmp_path):
    found = retrieval(trainer, QUERIES, ["text"], k=4)
    ways = {
        "influence": trainer.compute_influence(QUERIES),
        "gradient product": METHODS["gradient product"](trainer, QUERIES),
        "representation similarity": METHODS["representation similarity"](trainer, QUERIES),
        "BM25": text_overlap(trainer, QUERIES, ["text"]),
    }
    assert [row["method"] for row in found.table] == list(ways)
    for row in found.table:
        assert (row["recall"], row["std_err"]) == pytest.approx(recall_by_hand(ways[row["method"]], 4))
    assert (found.k, found.num_queries, found.num_candidates, found.num_relevant) == (4, 2, 14, 3.5)
    assert len({row["recall"] for row in found.table}) > 1
    printed = str(found)
    assert "2 queries, 3.5 of 14 training examples state the fact of each; by chance recall@4 would be 0.29" in printed
    assert f"  BM25: recall@4 {found.table[-1]['recall']:.2f} ± " in printed
    path = found.write(tmp_path, "retrieval")
    assert Retrieval.load(path) == found
    assert bars(found.figure().axes[0]) == pytest.approx([row["recall"] for row in found.table])


def test_what_is_found_among_neighbours(trainer):
    s_test = trainer.compute_s_test(QUERIES)
    trainer.args.index_features = "pooled"
    trainer.build_index()
    result = trainer.find_influential(QUERIES, num_examples=4, num_neighbors=6, s_test=s_test)
    found = retrieval(trainer, QUERIES, ["text"], result=result, s_test=s_test, k=4)
    assert [row["method"] for row in found.table][:2] == ["influence, of 6 neighbours", "influence"]
    shares = []
    for query in (0, 2):
        stated = [fact == QUERIES["fact"][query] for fact in result.helpful(query)["fact"]]
        shares.append(sum(stated) / TRAIN["fact"][:].count(QUERIES["fact"][query]))
    assert found.table[0]["recall"] == pytest.approx(np.mean(shares))
    whole = trainer.find_influential(QUERIES, num_examples=4, s_test=s_test)
    assert retrieval(trainer, QUERIES, ["text"], result=whole, s_test=s_test, k=4).table == found.table[1:]
    with pytest.raises(ValueError, match="k=5: the result lists 4 examples in each direction; ask for num_examples=5"):
        retrieval(trainer, QUERIES, ["text"], result=whole, s_test=s_test, k=5)


def test_facts_that_are_not_there(trainer):
    with pytest.raises(ValueError, match="column='about' is not in train_dataset; give one of its columns: .*fact"):
        retrieval(trainer, QUERIES, ["text"], column="about")
    with pytest.raises(ValueError, match="queries: no training example has the same number in 'fact' as any query"):
        retrieval(trainer, QUERIES.select([1, 3]), ["text"])
