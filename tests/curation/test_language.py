"""Language identification with the packaged model."""

import pytest

from lmx.curation.document import Dropped
from lmx.curation.functions.language import Language, identify
from lmx.curation.sample import prose, words


@pytest.mark.parametrize("language", sorted(words.FOREIGN))
def test_languages_are_told_apart(language):
    assert identify("\n".join(prose.foreign("a", language)))[0] == language
    assert identify("\n".join(prose.article("a", "travel")))[0] == "en"


def test_documents_in_other_languages_or_uncertain_ones_are_dropped(make_document):
    step = Language(keep=("en",), least_probability=0.9).open()
    assert step(make_document("\n".join(prose.foreign("a", "de")))).reason == "language_de"
    kept = step(make_document("\n".join(prose.article("a", "travel"))))
    assert kept.meta["language"] == "en" and kept.meta["language_probability"] >= 0.9
    uncertain = step(make_document("taxi hotel"))
    assert isinstance(uncertain, Dropped)


def test_a_language_that_the_model_does_not_know_is_refused():
    with pytest.raises(ValueError, match="'klingon', which is not a language of the model; it knows"):
        Language(keep=("klingon",))
