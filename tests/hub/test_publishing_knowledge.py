"""Publishing with the real client to a Hub of our own: one commit, licences, interruptions, private repositories."""

from __future__ import annotations

import json

import pytest
import yaml
from huggingface_hub import DatasetCard


OPEN = 'RavlmRetriever.from_pretrained("me/birds", encoder, repo_type="dataset", cache_dir=cache)'


def test_a_data_set_repository_opens_as_what_was_pushed(hub, client):
    client.do('retriever = birds(); retriever.remove(["5"]); retriever.push_to_hub("me/birds", repo_type="dataset")')
    repository = hub.repository("me/birds")
    assert len(repository.messages) == 1
    (manifest,) = [name for name in repository.files() if name.startswith("manifests/")]
    listed = {entry["name"] for entry in json.loads(repository.files()[manifest])["files"]}
    assert set(repository.files()) == {"README.md", "CURRENT", manifest, *listed}
    assert client.do(f"again = {OPEN}; result = found(again)") == client.do("result = found(retriever)")
    assert client.do("result = [len(again), '5' in again.knowledge_base.ids]") == [39, False]
    assert b"number 5 first" not in b"".join(hub.large.values())


def test_the_next_push_replaces_the_first_in_one_commit(hub, client):
    client.do('birds(40).push_to_hub("me/birds", repo_type="dataset")')
    first = set(hub.repository("me/birds").files())
    client.do('birds(41, "second").push_to_hub("me/birds", repo_type="dataset", commit_message="More birds")')
    repository = hub.repository("me/birds")
    assert repository.messages == ["Upload knowledge base", "More birds"]
    kept = first & set(repository.files())
    assert {name.split("/")[0] for name in kept} <= {"README.md", "CURRENT", "manifests", "objects"}
    listed = json.loads(next(data for name, data in repository.files().items() if name.startswith("manifests/")))
    objects = {name for name in repository.files() if name.startswith("objects/")}
    assert objects == {entry["name"] for entry in listed["files"]}
    assert client.do(f"result = len({OPEN})") == 41


def test_many_files_are_still_one_commit(hub, client):
    client.do(
        "from hf_ravlm.retrieval.store import row_files\n"
        "row_files._MAX_ROWS_PER_FILE = 4\n"
        'birds(300).push_to_hub("me/birds", repo_type="dataset")\n'
        "row_files._MAX_ROWS_PER_FILE = 50_000"
    )
    assert len(hub.repository("me/birds").messages) == 1
    assert client.do(f"result = len({OPEN})") == 300


def test_an_interrupted_push_changes_nothing_and_the_next_sends_the_rest(hub, client):
    client.do('birds(30).push_to_hub("me/birds", repo_type="dataset")')
    before = dict(hub.repository("me/birds").files())
    hub.uploads.clear()
    hub.uploads_before_failure = 1
    push = 'more.push_to_hub("me/birds", repo_type="dataset")'
    error = client.error(f"more = birds(50); {push}")
    assert error.startswith("HubUnavailableError: publishing to the dataset repository me/birds: ")
    assert "Nothing was changed" in error
    assert hub.repository("me/birds").files() == before
    assert client.do("result = len(more)") == 50
    hub.uploads_before_failure = None
    client.do(push)
    assert len(hub.uploads) == len(set(hub.uploads))  # nothing was sent twice
    assert client.do(f"result = len({OPEN})") == 50


def test_a_push_in_between_is_not_overwritten(hub, client):
    client.do('birds(30).push_to_hub("me/birds", repo_type="dataset")')
    repository = hub.repository("me/birds")

    def somebody_else():
        hub.before_commit = lambda: None
        hub.edit("me/birds", README__md=b"mine")

    hub.before_commit = somebody_else
    error = client.error('birds(50).push_to_hub("me/birds", repo_type="dataset")')
    assert error.startswith("HubUnavailableError")
    assert "412" in error
    assert repository.files()["README.md"] == b"mine"


def test_passages_without_a_licence_are_refused_before_anything_is_sent(hub, client):
    rows = [{"id": str(n), "text": f"t {n}", "licence": "CC0-1.0" if n % 2 else " "} for n in range(30)]
    for repo_type in ("dataset", "model"):
        error = client.error(f'some = built({rows!r}, encoder); some.push_to_hub("me/x", repo_type="{repo_type}")')
        assert error.startswith("InvalidInputError: 15 of 30 passages say nothing about their licence: '0', '2', '4'")
    assert hub.repositories == {}
    client.do('some.push_to_hub("me/x", repo_type="dataset", allow_missing_licence=True)')
    assert "| none stated | 15 |" in hub.repository("me/x").files()["README.md"].decode()


def test_a_knowledge_base_lies_beside_a_model_and_leaves_its_files_alone(hub, client):
    client.do('birds(30).push_to_hub("me/model")')
    repository = hub.repository("me/model", "model")
    hub.edit("me/model", "model", config__json=b"{}", README__md=b"A model.")
    client.do('birds(31).push_to_hub("me/model")')
    assert {name.split("/")[0] for name in repository.files()} == {"README.md", "config.json", "knowledge_base"}
    assert repository.files()["README.md"] == b"A model."
    assert client.do('result = len(RavlmRetriever.from_pretrained("me/model", encoder, cache_dir=cache))') == 31
    opened = 'KnowledgeBase.from_pretrained("me/model", repo_type="model", cache_dir=cache)'
    assert client.do(f"result = len({opened})") == 31
    error = client.error('birds().push_to_hub("me/model", include_vectors=False)')
    assert error.startswith("InvalidInputError: parts=('passages',): beside a model the whole")


def test_branches_and_pull_requests(hub, client):
    client.do('birds(30).push_to_hub("me/birds", repo_type="dataset")')
    client.do('birds(31).push_to_hub("me/birds", repo_type="dataset", revision="next")')
    client.do('info = birds(32).push_to_hub("me/birds", repo_type="dataset", create_pr=True)')
    assert client.do("result = info.pr_url").endswith("/discussions/1")
    opened = {
        revision: client.do(f"result = len({OPEN[:-1]}, revision={revision!r}))")
        for revision in ("main", "next", "refs/pr/1")
    }
    assert opened == {"main": 30, "next": 31, "refs/pr/1": 32}


def test_a_private_repository_is_private_from_the_first_byte(hub, client):
    client.do('birds().push_to_hub("me/birds", repo_type="dataset", private=True)')
    assert hub.repository("me/birds").private
    assert client.do(f"result = len({OPEN})") == 40
    error = client.error(f"{OPEN[:-1]} + '2', token='hf_stranger')")
    assert error.startswith("KnowledgeBaseNotFoundError: me/birds is no folder here; reading the dataset repository")
    client.do('birds().push_to_hub("me/open", repo_type="dataset")')
    error = client.error('birds(41).push_to_hub("me/open", repo_type="dataset", private=True)')
    assert error.startswith("InvalidInputError: me/open: private=True, but this repository exists and is public")
    assert len(hub.repository("me/open").messages) == 1


# --- The card


def test_the_card_counts_and_names_what_is_published(hub, client):
    client.do(
        'rows = [{"id": str(n), "text": f"t {n}", "licence": "CC-BY-SA-4.0" if n else "WordNet", "source": "a|b<img>"}'
        " for n in range(3)]\n"
        'built(rows, encoder).push_to_hub("me/birds", repo_type="dataset")'
    )
    content = hub.repository("me/birds").files()["README.md"].decode()
    card = DatasetCard(content)
    assert card.data.license == ["cc-by-sa-4.0", "other"]
    assert card.data.size_categories == ["n<1K"]
    (part,) = card.data.to_dict()["configs"]
    assert part["data_files"][0]["path"] == [n for n in hub.repository("me/birds").files() if n.endswith(".parquet")]
    for line in (
        "| passages | 3 (3 with text, 0 with image) |",
        "| CC-BY-SA-4.0 | 2 |",
        "| WordNet | 1 |",
        r"| a\|b&lt;img> | 3 |",
        "| vectors | 3 x 32, float32, unit length, for inner products |",
        f"| encoder | `HashEncoder`, fingerprint `{'a' * 64}` |",
        "| index | flat |",
        'RavlmRetriever.from_pretrained("me/birds", encoder, repo_type="dataset")',
    ):
        assert line in content


def test_what_people_write_in_the_card_stays(hub, client):
    client.do('birds(30).push_to_hub("me/birds", repo_type="dataset")')
    head, body = hub.repository("me/birds").files()["README.md"].decode().split("\n---\n")
    body = body.replace("# birds", "# Birds of my garden\n\nCounted in May.") + "\nWrite to me."
    hub.edit("me/birds", README__md=f"{head}\npretty_name: Garden birds\n---\n{body}".encode())
    client.do('birds(31).push_to_hub("me/birds", repo_type="dataset")')
    content = hub.repository("me/birds").files()["README.md"].decode()
    head, body = content.removeprefix("---\n").split("\n---\n")
    assert yaml.safe_load(head)["pretty_name"] == "Garden birds"
    assert yaml.safe_load(head)["license"] == "cc0-1.0"
    assert body.strip().startswith("# Birds of my garden\n\nCounted in May.")
    assert body.rstrip().endswith("Write to me.")
    assert "| passages | 31 " in body
    assert "| passages | 30 " not in body


@pytest.mark.slow
def test_the_passages_are_a_data_set_for_everybody(hub, client, tmp_path):
    client.do(
        "from PIL import Image\n"
        'rows = [{"id": str(n), "text": f"t {n}", "image": Image.new("RGB", (4, 3)), "licence": "CC0-1.0"}'
        " for n in range(3)]\n"
        'built(rows, encoder).push_to_hub("me/birds", repo_type="dataset")\n'
    )
    assert client.do(
        "from datasets import load_dataset\n"
        f'rows = list(load_dataset("me/birds", split="train", cache_dir={str(tmp_path)!r}))\n'
        'result = [[row["id"], row["text"], row["image"].size] for row in rows]'
    ) == [[str(n), f"t {n}", [4, 3]] for n in range(3)]
