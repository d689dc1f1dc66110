"""What people type for reader, encoder and knowledge: mistakes are told at once, and that the Hub is away, too."""

from __future__ import annotations

import huggingface_hub
import pytest
from huggingface_hub import constants

from hash_encoder import HashEncoder
from hf_ravlm.cli import main
from hf_ravlm.errors import HubUnavailableError, InvalidInputError, KnowledgeBaseNotFoundError
from hf_ravlm.pipelines.knowledge import open_knowledge
from hf_ravlm.pipelines.opening import open_pipeline
from hf_ravlm.retrieval import load_encoder
from tiny import picture
from tiny_backbones import causal_model
from tiny_folder import save_everything


@pytest.fixture
def mine(tmp_path):
    folder = tmp_path / "meine Bilder"
    folder.mkdir()
    picture(0).save(folder / "eins.png")
    (folder / "eins.txt").write_text("the capital of Norway is Oslo")
    return folder


@pytest.fixture
def away(monkeypatch):
    """A Hub that nobody answers for, and no word in the environment that it is not to be asked."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def unasked(monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: pytest.fail("the Hub was asked"))


@pytest.mark.parametrize("word", ["ofline", "Offline", "offlin", "of-line"])
def test_a_word_of_ours_that_is_mistyped_is_told_without_asking_the_hub(word, mine, away, monkeypatch, capsys):
    unasked(monkeypatch)
    for parts in (["--model", word, "--encoder", "offline"], ["--model", "offline", "--encoder", word]):
        assert main(["ask", str(mine), "what ?", *parts, "--quiet"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"error: {word}: there is no such folder. Did you mean 'offline'?"
    with pytest.raises(InvalidInputError, match="Did you mean"):
        load_encoder(word)


def test_a_hub_that_is_away_is_told_at_once(mine, away, caplog):
    for names in ({"model": "org/nothing", "encoder": "offline"}, {"model": "org/nothing"}):
        with pytest.raises(
            HubUnavailableError, match="did not deliver, and the cache does not hold it. Check the net"
        ):
            open_pipeline(knowledge=mine, device="cpu", **names)
        assert "The Hub cannot be reached" in caplog.text
        assert constants.HF_HUB_OFFLINE is False


def test_a_hub_that_is_not_to_be_asked_is_told(mine, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    unasked(monkeypatch)
    with pytest.raises(HubUnavailableError, match=r"the Hub is not asked \(HF_HUB_OFFLINE is set\), and the cache"):
        open_pipeline("org/nothing", mine, "offline", "cpu")


def test_what_lies_here_asks_no_hub(tmp_path, away, monkeypatch):
    unasked(monkeypatch)
    assert len(open_pipeline(save_everything(tmp_path / "système entier"), device="cpu").retriever) == 3


def test_a_place_that_is_not_there_is_told_before_models_are_loaded(monkeypatch, capsys):
    unasked(monkeypatch)
    words = ["explain", "org/reader", "--image", __file__, "--out", "a.png", "--knowledge", "kein/solcher/Ordner"]
    assert main([*words, "--quiet"]) == 2
    assert "kein/solcher/Ordner: there is no such file or folder" in capsys.readouterr().err


def test_a_missing_encoder_and_an_unknown_channel_are_told_before_models_are_loaded(
    mine, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr("hf_ravlm.pipelines.opening.pipeline", lambda *args, **kwargs: pytest.fail("it was loaded"))
    causal_model("llama").config.save_pretrained(tmp_path / "reader")
    with pytest.raises(InvalidInputError, match="has to be encoded: name an encoder"):
        open_pipeline(tmp_path / "reader", mine, device="cpu")
    with pytest.raises(KnowledgeBaseNotFoundError, match="there is no such file or folder"):
        open_pipeline(tmp_path / "reader", "~/no_such_folder", device="cpu")
    (mine / "empty.txt").touch()
    with pytest.raises(InvalidInputError, match=r"empty\.txt"):
        open_pipeline(tmp_path / "reader", mine, HashEncoder(), device="cpu")
    with pytest.raises(SystemExit):
        main(["ask", str(mine), "what ?", "--model", "offline", "--encoder", "offline", "--channels", "smell"])
    assert "there is no smell; choose from dense, bm25" in capsys.readouterr().err


def test_how_a_source_is_read_is_said_of_sources_alone(mine, tmp_path):
    encoder, options = HashEncoder(), {"on_error": "skip"}
    retriever = open_knowledge(mine, encoder, **options)
    retriever.save_pretrained(tmp_path / "kept")
    for stored in (tmp_path / "kept", retriever, retriever.knowledge_base, "owner/name"):
        with pytest.raises(InvalidInputError, match='`on_error="skip"` says how .* is a knowledge base already'):
            open_knowledge(stored, encoder, **options)
    with pytest.raises(KnowledgeBaseNotFoundError, match="there is no such file or folder"):
        open_knowledge(tmp_path / "gone", encoder, **options)
