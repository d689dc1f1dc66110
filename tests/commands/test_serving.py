"""What `hf-ravlm serve` hands to the server, and what it says when that does not start."""

from __future__ import annotations

import json

import pytest
from transformers import BertConfig

from hf_ravlm.cli import main
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.integrations import transformers_serve


@pytest.fixture
def served(monkeypatch):
    calls = []
    monkeypatch.setattr(transformers_serve, "serve", lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


def test_only_this_machine_may_ask_unless_told_otherwise(served):
    assert main(["serve", "flags", "--device", "cpu"]) == 0
    assert main(["serve", "flags", "--host", "0.0.0.0", "--port", "9000", "--k", "3", "--device", "meta"]) == 0
    assert main(["serve", "flags", "--device", "cpu", "--fetch_images"]) == 0
    parts = ["--knowledge", "my_folder", "--encoder", "google/siglip2"]
    assert main(["serve", "offline", "--k", "0", *parts, "--device", "cpu"]) == 0
    here = {"host": "localhost", "port": 8000, "device": "cpu"}
    assert served == [
        (("flags", None), {"host": "localhost", "port": 8000, "device": "cpu"}),
        (("flags", 3), {"host": "0.0.0.0", "port": 9000, "device": "meta"}),
        (("flags", None), {"host": "localhost", "port": 8000, "device": "cpu", "fetch_images": True}),
        (("offline", 0), {**here, "knowledge": "my_folder", "encoder": "google/siglip2"}),
    ]


def test_a_port_that_cannot_be_is_refused(served, capsys):
    with pytest.raises(SystemExit):
        main(["serve", "flags", "--port", "99999"])
    assert "expected a port, 1 to 65535" in capsys.readouterr().err
    assert not served


def test_a_model_of_another_kind_is_not_served_without_evidence(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: True)
    monkeypatch.setattr(transformers_serve, "Reader", lambda *args, **kwargs: pytest.fail("served"))
    monkeypatch.setattr(transformers_serve, "check_port", lambda *args: None)
    BertConfig().save_pretrained(tmp_path)
    assert main(["serve", str(tmp_path)]) == 2
    assert "model of the type 'bert'" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device, served, capsys):
    with pytest.raises(SystemExit):
        main(["serve", "flags", "--device", device])
    assert f"{device!r} cannot be used on this machine" in capsys.readouterr().err


def test_what_stops_it_is_told(served, monkeypatch, capsys):
    def fail(*_args, **_kwargs):
        raise InvalidInputError("the model is no reader")

    monkeypatch.setattr(transformers_serve, "serve", fail)
    assert main(["serve", "flags", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "the model is no reader"


def test_what_it_needs_is_named(monkeypatch, capsys):
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    assert main(["serve", "flags"]) == 1
    assert 'pip install "hf_ravlm[serve]"' in capsys.readouterr().err


def test_ctrl_c_ends_it(served, monkeypatch, capsys):
    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(transformers_serve, "serve", stop)
    assert main(["serve", "flags"]) == 130
    assert "Stopped." in capsys.readouterr().err
