"""Every question set can be had from somewhere, and one that nobody serves says from where."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamline.errors import AssetError
from streamline.evaluation.tasks.question_sets import QUESTION_SETS
from streamline.evaluation.tasks.sources import question_source


@pytest.mark.parametrize("name", QUESTION_SETS)
def test_every_set_has_a_source(name: str):
    known = QUESTION_SETS[name]
    served = known.hub is not None or known.packaged is not None or known.requests is not None
    assert served or (known.files and known.published)
    assert known.reader is not None or not known.files


@pytest.mark.parametrize("source", ["auto", "hub", "packaged"])
def test_a_set_that_its_authors_alone_publish_says_where_its_file_is(source: str, tmp_path: Path):
    with pytest.raises(AssetError) as caught:
        question_source("streamline_chid", source=source, data_dir=tmp_path)
    message = str(caught.value)
    assert "it exists as: original files only" in message
    assert "put chid/test_public.json into a folder given with --data-dir" in message
    assert "raw.githubusercontent.com/CLUEbenchmark/FewCLUE/" in message
    assert ("offline mode is enabled" in message) == (source != "packaged")
    file = tmp_path / "chid" / "test_public.json"
    file.parent.mkdir()
    file.write_text("")
    assert question_source("streamline_chid", source=source, data_dir=tmp_path).kind == "folder"
