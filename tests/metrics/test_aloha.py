import itertools
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avlens.errors import MetricError
from avlens.metrics.aloha import (
    LanguageModelExtractor,
    OverlapEmbedder,
    VocabularyExtractor,
    aloha,
    aloha_score,
    best_matching,
    parse_objects,
    sentence_embedder,
)

# In two dimensions: a dog, a wolf at 0.8 of it, and a car at a right angle to the dog, at 0.6 of the wolf.
VECTORS = {"dog": (1.0, 0.0), "wolf": (0.8, 0.6), "car": (0.0, 1.0)}


def embed(texts):
    return np.array([VECTORS[text] for text in texts])


def objects(*names):
    return [tuple(name.split("/")) for name in names]


def test_the_worst_object_counts_or_the_mean_one():
    targets, references = objects("dog", "wolf"), objects("dog", "car")
    # Matching dog-dog, wolf-car: 1.0 + 0.6; the other way: 0.0 + 0.8.
    assert aloha_score(targets, references, embed) == pytest.approx(0.6)
    assert aloha_score(targets, references, embed, aggregate="mean") == pytest.approx(0.8)


def test_surplus_objects_count_zero_and_in_the_released_code_nothing():
    targets, references = objects("dog", "wolf"), objects("dog")
    assert aloha_score(targets, references, embed) == 0.0
    assert aloha_score(targets, references, embed, aggregate="mean") == 0.5
    assert aloha_score(targets, references, embed, released=True) == 1.0


def test_empty_lists():
    assert math.isnan(aloha_score([], objects("dog"), embed)) and math.isnan(aloha_score([], [], embed))
    assert aloha_score(objects("dog"), [], embed) == 0.0
    assert aloha_score([], objects("dog"), embed, released=True) == -math.inf
    assert aloha_score(objects("dog"), [], embed, released=True) == -math.inf


def test_a_released_corpus_with_an_empty_caption_is_infinite():
    result = aloha(["It is quiet.", "a dog"], [["a dog"], ["a dog"]], released=True)
    assert result.mean.estimate == -math.inf and math.isnan(result.mean.low)


def test_the_best_choice_of_alternatives_counts_and_equal_choices_are_one_object():
    assert aloha_score(objects("dog/car"), objects("car/wolf"), embed) == pytest.approx(1.0)
    # Chosen as dog and dog, the two targets are one, and nothing is left over.
    assert aloha_score(objects("dog", "car/dog"), objects("dog"), embed) == pytest.approx(1.0)


def test_too_many_choices_are_refused_and_named():
    many = objects(*["dog/wolf/car"] * 8)
    with pytest.raises(MetricError, match="Raise max_choices"):
        aloha_score(many, objects("dog"), embed)
    result = aloha(["-"], [["-"]], extract=lambda text, *, reference: many, embed=embed)
    assert math.isnan(result.scores[0]) and "Raise max_choices" in result.to_frame()["problem"][0]


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
def test_the_matching_is_the_best_of_all(n_rows, n_columns, seed):
    gain = np.random.default_rng(seed).integers(-5, 6, (n_rows, n_columns)).astype(float)
    pairs = best_matching(gain)
    rows, columns = zip(*pairs, strict=True)
    assert len(set(rows)) == len(set(columns)) == len(pairs) == min(n_rows, n_columns)
    wide = gain if n_rows <= n_columns else gain.T
    every = itertools.permutations(range(wide.shape[1]), wide.shape[0])
    best = max(sum(wide[i, j] for i, j in enumerate(choice)) for choice in every)
    assert sum(gain[pair] for pair in pairs) == pytest.approx(best)


@given(st.lists(st.sampled_from(sorted(VECTORS)), min_size=1, max_size=4, unique=True))
def test_a_caption_scores_one_against_itself_and_no_more_against_less(names):
    own = aloha_score(objects(*names), objects(*names), embed)
    assert own == pytest.approx(1.0)
    assert aloha_score(objects(*names), objects(*names[:1]), embed) <= own + 1e-9


def test_a_corpus_offline():
    result = aloha(
        ["A puppy barks while a train passes.", "A hound.", "It is quiet."],
        [["dog barking", "a dog in a garden"], ["a dog"], ["a dog"]],
    )
    # The train has nothing to be matched with; the hound is the dog; the last caption has no object.
    assert result.scores.tolist()[:2] == [0.0, pytest.approx(1.0)] and math.isnan(result.scores[2])
    assert (result.mean.estimate, result.mean.n, result.mean.n_missing) == (pytest.approx(50.0), 2, 1)
    assert result.to_frame()["problem"].tolist() == ["", "", "the caption mentions no object"]
    assert "1 of 3 captions without a score" in repr(result)


def test_overlap_is_one_for_synonyms_and_falls_with_what_is_shared():
    compare = OverlapEmbedder()
    one = compare(["puppy", "dog", "dog house", "accordion", "power drills", "power drill"])
    similarity = one @ one.T
    assert similarity[0, 1] == pytest.approx(1.0) and similarity[4, 5] == pytest.approx(1.0)
    assert similarity[1, 3] < 0.2 and ((similarity > -1e-9) & (similarity < 1 + 1e-9)).all()
    plain = compare(["garden gnome", "garden hose", "street"])
    assert plain[0] @ plain[1] > 0.3 > plain[0] @ plain[2]


def test_lines_of_a_language_model_become_objects():
    answer = "Objects:\n- a red dog (small)\n- cat or kitten, tabby\n- possibly a gong\n-\n-x\nno line"
    assert parse_objects(answer, reference=False) == [("a red dog",), ("cat", "kitten", "tabby")]
    assert parse_objects(answer, reference=True) == [
        ("a red dog", "dog"), ("cat", "kitten", "tabby"), ("a gong", "gong"),
    ]  # fmt: skip
    asked = []
    extract = LanguageModelExtractor(lambda prompt: asked.append(prompt) or "- bell")
    assert extract("A bell rings.", reference=False) == [("bell",)]
    assert "A bell rings." in asked[0] and "heard" in asked[0]


def test_mentions_count_once_as_objects():
    extract = VocabularyExtractor()
    assert extract("dogs, a dog and a puppy", reference=True) == [("dog",), ("puppy",)]


def test_what_does_not_fit_is_refused(monkeypatch):
    with pytest.raises(MetricError, match="Pass a list for each"):
        aloha(["a"], [])
    with pytest.raises(MetricError, match=r"such as \['a dog'\]"):
        aloha(["a dog"], ["a dog"])
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MetricError, match=r"Install avlens\[metrics\]"):
        sentence_embedder()


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory):
    """A sentence-transformers model as one is saved: a tiny random BERT, mean-pooled."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    letters = [chr(97 + i) for i in range(26)]
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)])
    )
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=57, **sizes)).save_pretrained(folder)
    bert = modules.Transformer(str(folder))
    whole = tmp_path_factory.mktemp("sentences")
    SentenceTransformer(modules=[bert, modules.Pooling(16, "mean")], device="cpu").save(str(whole))
    return whole


@pytest.mark.filterwarnings("default")  # of other packages
def test_a_sentence_transformers_model_compares_objects(sentence_model):
    from sentence_transformers import SentenceTransformer

    embed = sentence_embedder(str(sentence_model))
    vectors = embed(["dog", "train", "dog"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)
    raw = SentenceTransformer(str(sentence_model), device="cpu").encode(["dog", "train"])
    want = float(raw[0] @ raw[1] / np.linalg.norm(raw[0]) / np.linalg.norm(raw[1]))
    assert vectors[0] @ vectors[1] == pytest.approx(want, abs=1e-5) and want < 0.999
    result = aloha(["A dog.", "A train and a dog."], [["a dog"], ["a dog"]], embed=embed)
    assert result.scores.tolist() == [pytest.approx(1.0, abs=1e-6), 0.0]
    assert aloha(["A train."], [["a dog"]], embed=embed).scores[0] == pytest.approx(want, abs=1e-5)


@pytest.mark.filterwarnings("default")
def test_a_sentence_model_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MetricError, match="Pass the folder of one"):
        sentence_embedder(str(tmp_path / "nothing"))


def test_a_corpus_is_embedded_in_one_call():
    calls, plain = [], OverlapEmbedder()
    aloha(
        ["A dog.", "A cat and a dog."],
        [["a dog"], ["a bell"]],
        embed=lambda texts: calls.append(list(texts)) or plain(texts),
    )
    assert calls == [["bell", "cat", "dog"]]
