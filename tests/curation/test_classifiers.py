"""fastText classifiers and scores by any callable."""

import dataclasses

import pytest

from lmx.curation.functions import classifier
from lmx.curation.functions.classifier import Training
from lmx.curation.pipelines.classify import Classifier, LabelFiles, Quality, Topic
from lmx.curation.pipelines.score import Score
from lmx.curation.run import Folder
from lmx.curation.sample import prose
from lmx.curation.sample.source import QualityLabels, TopicLabels


def area_under_curve(good, poor):
    return sum((a > b) + (a == b) / 2 for a in good for b in poor) / (len(good) * len(poor))


def test_quality_and_topics_are_told_on_texts_that_were_not_trained_on(run_step, make_document, tmp_path):
    good = [make_document("\n".join(prose.article(f"new {n}", prose.TOPICS[n % 5])), topic=prose.TOPICS[n % 5]) for n in range(40)]
    poor = [make_document("\n".join(prose.spam(f"new {n}"))) for n in range(40)]
    quality = Quality(classifier=Classifier(labels=QualityLabels(count=60)), label="good", least=0.0)
    result = run_step(quality, [*good, *poor])
    scores = [[result.documents[page.key].meta["quality"] for page in pages] for pages in (good, poor)]
    assert area_under_curve(*scores) > 0.9
    topics = run_step(Topic(classifier=Classifier(labels=TopicLabels(count=30)), field="found"), good)
    assert sum(item.meta["found"] == item.meta["topic"] for item in topics.documents.values()) >= 36
    drops = run_step(dataclasses.replace(quality, least=0.5), [*good, *poor]).drops
    assert {item.reason for item in drops.values()} == {"quality_too_low"}
    assert len(set(drops) & {page.key for page in poor}) > 38 and len(drops) < 42


def test_the_same_labels_give_the_same_model_and_another_seed_does_not():
    labels = QualityLabels(count=20)()
    model = classifier.train(labels, Training(buckets=1000))
    assert model == classifier.train(labels[::-1], Training(buckets=1000))
    assert model != classifier.train(labels, Training(buckets=1000, seed=1))
    found = classifier.probabilities(classifier.load(model), "Buy __label__poor now\nand save")
    assert set(found) == {"good", "poor"} and sum(found.values()) == pytest.approx(1, abs=1e-3)


def test_a_model_can_be_given_as_a_file_and_labels_too(tmp_path):
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"label": "a", "text": "river bridge"}\n{"label": "b", "text": "oven dough"}\n')
    folder = Folder(str(tmp_path))
    trained = Classifier(labels=LabelFiles(path=str(labels))).prepared(folder, "x")
    assert Classifier(model=trained.model).prepared(folder, "y").model == trained.model
    assert set(trained.probabilities()("river")) == {"a", "b"}
    with pytest.raises(ValueError, match="asks for the label 'good'; the classifier has a, b"):
        Quality(classifier=trained, label="good").prepare(folder)
    labels.write_text('{"text": "no label"}\n')
    with pytest.raises(ValueError, match="line 1: a labelled text needs the field 'label'"):
        list(LabelFiles(path=str(labels))())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classifier(), "either a model"),
        (lambda: Classifier(model="x", labels=QualityLabels()), "not both"),
        (lambda: classifier.train([("a", "x")], Training()), "at least two labels"),
        (lambda: classifier.train([("a", "x"), ("b c", "y")], Training()), "must be one word"),
        (lambda: classifier.load(b"no model"), "wrong file format"),
        (lambda: Training(epochs=0), "positive"),
        (lambda: Quality(classifier=Classifier(model="x"), label="a", least=2.0), "a probability"),
        (lambda: Score(scorer=Lengths(), batch=0), "batch=0"),
    ],
)
def test_wrong_settings_are_told_in_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Scores a text by its length; notes how many it was given at once."""

    most_at_once: int = 3

    def open(self):
        return self.scores

    def scores(self, texts):
        assert 0 < len(texts) <= self.most_at_once
        return [float("nan") if text == "strange" else len(text) for text in texts]


def test_any_callable_scores_in_batches_and_what_has_no_score_is_set_aside(run_step, make_document):
    pages = [make_document("x" * n) for n in range(1, 8)]
    result = run_step(Score(scorer=Lengths(), field="length", least=3.0, batch=3), [*pages, make_document("strange")])
    assert {item.meta["length"] for item in result.documents.values()} == {3.0, 4.0, 5.0, 6.0, 7.0}
    assert sorted((item.kind, item.reason) for item in result.drops.values()) == [
        ("dropped", "length_too_low"),
        ("dropped", "length_too_low"),
        ("set_aside", "ValueError"),
    ]
