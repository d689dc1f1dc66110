"""Downloading with the real client: parts, pinned revisions, what is in the cache, a Hub that is down."""

from __future__ import annotations

import pytest


OPEN = 'RavlmRetriever.from_pretrained("me/birds", encoder, repo_type="dataset", cache_dir=cache{})'
READ = 'KnowledgeBase.from_pretrained("me/birds", cache_dir=cache{})'


def suffixes(hub) -> list[str]:
    return sorted(path.rsplit(".", 1)[-1] for path in hub.downloads if path.startswith("objects/"))


def push(client, more="", number=40):
    client.do(f'retriever = birds({number}); retriever.push_to_hub("me/birds", repo_type="dataset"{more})')


def test_passages_come_without_their_vectors(hub, client):
    push(client)
    read = READ.format("")
    assert client.do(f"knowledge_base = {read}; result = knowledge_base.ids") == [str(n) for n in range(40)]
    assert suffixes(hub) == ["parquet"]
    assert client.do("result = RavlmRetriever.build(knowledge_base, encoder).vectors.tolist()") == client.do(
        "result = retriever.vectors.tolist()"
    )


def test_vectors_come_without_passages_for_whoever_has_them(hub, client):
    push(client)
    opened = OPEN.format(", knowledge_base=retriever.knowledge_base")
    assert client.do(f"again = {opened}; result = found(again)") == client.do("result = found(retriever)")
    assert "parquet" not in suffixes(hub)
    assert client.do('again.remove(["3"]); result = len(again)') == 39  # in memory


def test_passages_can_be_published_alone(hub, client):
    push(client, ", include_vectors=False")
    assert [name.split(".")[-1] for name in hub.repository("me/birds").files() if "objects/" in name] == ["parquet"]
    assert client.do(f"result = len({READ.format('')})") == 40
    error = client.error(OPEN.format(""))
    assert error.startswith("KnowledgeBaseNotFoundError")
    assert "published without its vectors. Read it with `KnowledgeBase.from_pretrained`" in error
    card = hub.repository("me/birds").files()["README.md"].decode()
    assert "RavlmRetriever.from_pretrained" not in card
    assert "HashEncoder" not in card


def test_vectors_can_be_published_alone(hub, client):
    push(client, ", include_passages=False")
    published = b"".join(hub.repository("me/birds").files().values())
    assert b"number 3 first" not in published
    opened = OPEN.format(", knowledge_base=retriever.knowledge_base")
    assert client.do(f"result = found({opened})") == client.do("result = found(retriever)")
    error = client.error(OPEN.format(""))
    assert "published without its passages. If you have them" in error
    card = hub.repository("me/birds").files()["README.md"].decode()
    assert "a good part of a text can be reconstructed" in card
    assert "knowledge_base=knowledge_base" in card
    assert "configs:" not in card


@pytest.mark.parametrize(
    ("passages", "reason"),
    [
        ("numbered(range(39))", "there are 40 vectors and 39 passages"),
        ("numbered(range(39, -1, -1))", "their ids, or the order of them, differ"),
        ('numbered(range(40), "other")', "they have the same ids, but other texts or images"),
    ],
)
def test_vectors_of_other_passages_are_refused(hub, client, passages, reason):
    push(client, ", include_passages=False")
    error = client.error(OPEN.format(f", knowledge_base=KnowledgeBase.from_dicts({passages})"))
    assert error.startswith("KnowledgeBaseMismatchError")
    assert reason in error


def test_a_pinned_revision_stays_what_it_was(hub, client):
    push(client)
    first = hub.repository("me/birds").refs["main"]
    push(client, number=41)
    assert client.do(f"result = len({OPEN.format('')})") == 41
    assert client.do(f"result = len({OPEN.format(f', revision={first!r}')})") == 40
    assert client.do(f"result = len({READ.format(f', revision={first!r}')})") == 40
    error = client.error(OPEN.format(", revision='nowhere'"))
    assert error.startswith("KnowledgeBaseNotFoundError")
    assert "no such revision" in error


def test_model_and_knowledge_base_come_from_one_commit(hub, client):
    client.do('birds().push_to_hub("me/model")')
    commit = hub.repository("me/model", "model").refs["main"]
    client.do(
        "from hf_ravlm.retrieval import retriever as module\n"
        "plain, seen = module.encoder_beside, []\n"
        "module.encoder_beside = lambda source, store, hub_kwargs: seen.append([source, hub_kwargs]) or encoder\n"
    )
    try:
        client.do('RavlmRetriever.from_pretrained("me/model", revision="main", cache_dir=cache)')
        (source, hub_kwargs), *_ = client.do("result = seen")
    finally:
        client.do("module.encoder_beside = plain")
    assert (source, hub_kwargs["revision"]) == ("me/model", commit)


def test_a_branch_that_moves_between_two_downloads_does_not_mix_versions(hub, client):
    push(client)
    old = hub.repository("me/birds").refs["main"]
    push(client, number=41)
    hub.repository("me/birds").refs["main"], new = old, hub.repository("me/birds").refs["main"]
    client.do(
        "import functools, huggingface_hub\n"
        "plain = huggingface_hub.snapshot_download\n"
        "@functools.wraps(plain)\n"
        "def moved(*arguments, **options):\n"
        f"    import urllib.request; urllib.request.urlopen(urllib.request.Request({hub.url!r} + '/move/{new}'))\n"
        "    return plain(*arguments, **options)\n"
        "huggingface_hub.snapshot_download = moved\n"
    )
    try:
        assert client.do(f"result = len({OPEN.format('')})") == 40
    finally:
        client.do("huggingface_hub.snapshot_download = plain")
    assert hub.repository("me/birds").refs["main"] == new


def test_an_index_of_somebody_else_is_not_even_downloaded(hub, client, tmp_path):
    client.do('birds(300, index="hnsw").push_to_hub("me/birds", repo_type="dataset")')
    assert any(name.endswith(".faiss") for name in hub.repository("me/birds").files())
    client.do(
        "from huggingface_hub import constants\n"
        f"home, constants.HF_HOME = constants.HF_HOME, {str(tmp_path / 'stranger')!r}"  # who wrote no index here
    )
    try:
        kind = client.do(f"again = {OPEN.format('')}; result = again.index.spec['kind']")
        assert kind == "hnsw"
        assert "faiss" not in suffixes(hub)
        client.do(f"allowed = {OPEN.format(', allow_foreign_index=True')}")
        assert "faiss" in suffixes(hub)
        assert client.do("result = found(allowed)") == client.do("result = found(again)")
    finally:
        client.do("constants.HF_HOME = home")


def test_what_was_downloaded_opens_when_the_hub_is_down(hub, client):
    push(client)
    client.do(OPEN.format(""))
    hub.is_down = True
    assert client.do(f"result = len({OPEN.format('')})") == 40


def test_a_hub_that_is_down_is_named(hub, client):
    push(client)
    hub.is_down = True
    for call in (OPEN.format(""), READ.format("")):
        error = client.error(call)
        assert error.startswith("HubUnavailableError: me/birds is no folder here; reading the dataset repository")
    error = client.error('retriever.add(numbered([77])); retriever.push_to_hub("me/birds", repo_type="dataset")')
    assert error.startswith("InvalidInputError: 1 of 41 passages say nothing about their licence: '77'")
    error = client.error('retriever.push_to_hub("me/birds", repo_type="dataset", allow_missing_licence=True)')
    assert error.startswith("HubUnavailableError: publishing to the dataset repository me/birds")
    assert client.do("result = len(retriever)") == 41


def test_mistakes_are_named(hub, client):
    push(client)
    error = client.error('RavlmRetriever.from_pretrained("me/birds", repo_type="dataset", cache_dir=cache)')
    assert "holds no model. Pass `encoder=`" in error
    assert "there is no such repository" in client.error(OPEN.format("").replace("me/birds", "me/nothing"))
    error = client.error('RavlmRetriever.from_pretrained("me/birds", encoder, cache_dir=cache)')
    assert "reading the model repository me/birds: there is no such repository" in error
    client.do('import huggingface_hub; huggingface_hub.create_repo("me/empty", repo_type="dataset")')
    error = client.error('KnowledgeBase.from_pretrained("me/empty", cache_dir=cache)')
    assert error.startswith("KnowledgeBaseNotFoundError: me/empty: this dataset repository holds no knowledge base")
    assert 'repo_type="model"' in error
    assert 'Choose "model" or "dataset"' in client.error(
        'KnowledgeBase.from_pretrained("me/birds", repo_type="space")'
    )


def test_a_damaged_download_is_refused(hub, client):
    push(client)
    files = hub.repository("me/birds").files()
    name = next(name for name in files if name.endswith(".parquet"))
    files[name] = files[name][:-1] + b"?"
    assert client.error(READ.format("")).startswith("KnowledgeBaseCorruptError")
