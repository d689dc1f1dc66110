"""LangChain's own tests of retrievers, and what its users rely on beside them."""

from __future__ import annotations

import asyncio
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from hash_encoder import HashEncoder, built


pytest.importorskip("langchain_core", reason='needs langchain-core: pip install "hf_ravlm[langchain]"')

ROWS = [
    {
        "id": str(number),
        "text": f"topic{number % 3} number {number}",
        "source": f"book{number % 2}",
        "licence": "CC0-1.0",
        "pages": number,
    }
    for number in range(9)
]


def wrapped(**settings):
    from hf_ravlm.integrations.langchain import RavlmLangchainRetriever

    return RavlmLangchainRetriever(retriever=built(ROWS, HashEncoder()), **settings)


def standard_tests():
    """LangChain's suite for retrievers, read from its file: the package around it wants tools of other suites."""
    package = find_spec("langchain_tests")
    if package is None:
        return object
    name = "langchain_tests.integration_tests.retrievers"
    spec = spec_from_file_location(name, Path(package.origin).parent / "integration_tests" / "retrievers.py")
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.RetrieversIntegrationTests


@pytest.mark.skipif(find_spec("langchain_tests") is None, reason="needs: pip install --no-deps langchain-tests")
@pytest.mark.anyio
class TestStandardBehaviour(standard_tests()):
    retriever_query_example = "topic1 number 4"

    @property
    def retriever_constructor(self):
        return wrapped

    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"


def test_documents_carry_where_they_come_from():
    document = wrapped().invoke("topic1 number 4")[0]
    assert (document.id, document.page_content) == ("4", "topic1 number 4")
    told = document.metadata
    assert (told["source"], told["licence"], told["rank"], told["metadata"]) == ("book0", "CC0-1.0", 1, {"pages": 4})
    assert told["score"] == pytest.approx(1)


def test_every_way_of_asking_finds_what_our_retriever_finds():
    retriever = wrapped(k=4)
    questions = [row["text"] for row in ROWS]
    expected = [[passage.id for passage in found] for found in retriever.retriever.retrieve(texts=questions, k=4)]
    ways = {
        "invoke": [retriever.invoke(question) for question in questions],
        "batch": retriever.batch(questions),
        "abatch": asyncio.run(retriever.abatch(questions)),
    }
    for way, answers in ways.items():
        assert [[document.id for document in documents] for documents in answers] == expected, way


def test_settings_hold_for_all_calls_or_for_one():
    only = {"where": {"source": "book1"}}
    assert {d.metadata["source"] for d in wrapped(options=only).invoke("topic1 number 4")} == {"book1"}
    documents = asyncio.run(wrapped().ainvoke("topic1 number 4", k=2, **only))
    assert [d.metadata["source"] for d in documents] == ["book1"] * 2


def test_it_takes_its_place_in_a_chain():
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnablePassthrough

    prompt = ChatPromptTemplate.from_template("Use {passages} to answer {question}")
    joined = wrapped(k=1) | (lambda documents: documents[0].page_content)
    chain = {"passages": joined, "question": RunnablePassthrough()} | prompt
    assert chain.invoke("topic1 number 4").to_string() == "Human: Use topic1 number 4 to answer topic1 number 4"


def test_what_is_no_retriever_is_refused():
    from hf_ravlm.integrations.langchain import RavlmLangchainRetriever

    with pytest.raises(ValueError, match="is a str without"):
        RavlmLangchainRetriever(retriever="my_folder")


def test_a_image_finds_passages(tmp_path):
    import numpy as np
    from PIL import Image

    from hf_ravlm.integrations.langchain import RavlmLangchainRetriever
    from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever

    class ColourEncoder:
        name, fingerprint = "colours", "c" * 64

        def encode_queries(self, images, texts):
            return np.stack([np.asarray(image).mean((0, 1)) for image in images]).astype(np.float32)

        def encode_passages(self, texts, images):
            return self.encode_queries(images, texts)

    colours = ["red", "lime", "blue"]
    knowledge = KnowledgeBase.from_dicts([{"id": c, "image": Image.new("RGB", (8, 8), c)} for c in colours])
    retriever = RavlmLangchainRetriever(retriever=RavlmRetriever.build(knowledge, ColourEncoder()))
    Image.new("RGB", (9, 7), "lime").save(tmp_path / "seen.png")
    documents = retriever.invoke("What is it?", image=tmp_path / "seen.png", k=1)
    assert [(d.id, d.page_content) for d in documents] == [("lime", "")]
