"""What every reader that sees images must do: thirteen checks, each of which passes, is refused in words, or fails."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from hf_ravlm import RavlmError, from_backbones
from tiny import picture
from tiny_readers import FAMILIES, make_reader, save_unmade


QUESTIONS = ["what is it?", "red or"]
PASSAGES = [["the capital is Oslo", "red white"], ["Chad"]]
GREEDY = {"max_new_tokens": 4, "do_sample": False}
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}
DOCUMENTED = {  # how families without a chat template are asked, by their documentation
    "blip": "{}",
    "blip-2": "Question: {} Answer:",
    "chameleon": "<image>{}",
    "git": "{}",
    "instructblip": "{}",
    "kosmos-2": "<grounding>Question: {} Answer:",
    "paligemma": "<image>{}",
}


BY_NAME = """
import logging, torch, transformers
transformers.utils.logging.disable_progress_bar()
logging.disable(logging.WARNING)
from hf_ravlm import from_backbones
from tiny import picture
model, processor = from_backbones(generator={name!r})
inputs = processor(images=[picture(0), picture(1, (40, 20))], text={questions!r}, evidence={passages!r})
with torch.no_grad():
    logits = model(**inputs).logits[:, -1].float()
result = [inputs["input_ids"].tolist(), logits.tolist(), model.language_model.loaded_from.reference["name"]]
"""


@dataclass
class Reader:
    """A reader of a family under test.

    Attributes:
        model_type: the family.
        root: of folders; its generator and processor are in `published`.
        hub, client: a Hub, and a process that loads from it; without these it is not loaded by name.
        generator, generator_processor: as transformers makes them.
        parts: model and processor of ours.
    """

    model_type: str
    root: Path
    hub: Any = None
    client: Any = None
    generator: Any = None
    generator_processor: Any = None
    parts: tuple[Any, Any] = field(default=(None, None), repr=False)

    @property
    def folder(self) -> Path:
        return self.root / "published"

    @property
    def name(self) -> str:
        return f"org/{self.model_type}"

    @property
    def by_name_code(self) -> str:
        """What the client does to load it by name, and to read."""
        return BY_NAME.format(name=self.name, questions=QUESTIONS, passages=PASSAGES)

    def make(self) -> None:
        """Puts the reader together, by object; one that is not made here comes by folder."""
        self.folder.mkdir()
        if self.model_type not in FAMILIES:
            save_unmade(self.model_type, self.folder)
            self.parts = from_backbones(generator=self.folder)
            return
        self.generator, self.generator_processor = make_reader(self.model_type)
        self.generator.save_pretrained(self.folder)
        self.generator_processor.save_pretrained(self.folder)
        self.parts = from_backbones(generator=self.generator, generator_processor=self.generator_processor)

    @property
    def model(self) -> Any:
        return self.parts[0]

    @property
    def processor(self) -> Any:
        return self.parts[1]

    def ask(self, evidence: Any = None, images: Any = "both", **more: Any) -> Any:
        """Inputs of two questions."""
        shown = [picture(0), picture(1, (40, 20))] if images == "both" else images
        return self.processor(images=shown, text=QUESTIONS, evidence=evidence, **more)

    def answers(self, inputs: Any, **options: Any) -> torch.Tensor:
        """What is generated behind prompts."""
        return self.model.generate(**inputs, **{**GREEDY, **options})[:, inputs["input_ids"].shape[1] :]

    @cached_property
    def with_images(self) -> list[list[Any]]:
        """Passages, one of which has an image."""
        return [[{"text": PASSAGES[0][0], "image": picture(2)}, PASSAGES[0][1]], PASSAGES[1]]


def logits_of(reader: Reader, inputs: Any) -> torch.Tensor:
    """Of the last token of every prompt, `(B, V)`."""
    with torch.no_grad():
        return reader.model(**inputs).logits[:, -1].float()


def words_of(reader: Reader, inputs: Any, row: int = 0) -> str:
    kept = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
    return str(reader.processor.tokenizer.decode(kept))


def stock_inputs(reader: Reader, image: Any, question: str) -> Any:
    """A plain question as the family's own processor writes it."""
    processor = reader.generator_processor
    if processor.chat_template is None:
        text = DOCUMENTED[reader.model_type].format(question)
        return processor(images=[image], text=[text], return_tensors="pt", padding=True)
    parts = [{"type": "image", "image": image}] if image is not None else []
    parts.append({"type": "text", "text": question})
    types = {"return_mm_token_type_ids": True} if "mm_token_type_ids" in processor.model_input_names else {}
    return processor.apply_chat_template(
        [[{"role": "user", "content": parts}]],
        **types,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def closed_book(reader: Reader) -> None:
    """A plain question is what the family's own processor writes, token for token, and is answered as without us."""
    ours = reader.processor(images=[picture(0)], text=QUESTIONS[:1])
    theirs = stock_inputs(reader, picture(0), QUESTIONS[0])
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    assert set(theirs) == set(ours), (set(theirs), set(ours))
    for name, tensor in theirs.items():
        torch.testing.assert_close(torch.as_tensor(ours[name]), torch.as_tensor(tensor))
    stock = reader.generator.generate(**theirs, **GREEDY)
    assert reader.answers(ours).tolist() == stock[:, -reader.answers(ours).shape[1] :].tolist()


def text_passages(reader: Reader) -> None:
    """Passages stand in the prompt, the best last, and change the answer's logits."""
    inputs = reader.ask(PASSAGES)
    text = words_of(reader, inputs)
    assert text.index("red white") < text.index("the capital is Oslo") < text.index("what is it?"), text
    assert inputs["evidence_mask"].tolist() == [[True, True], [True, False]]
    assert not torch.allclose(logits_of(reader, inputs), logits_of(reader, reader.ask()), atol=1e-6)
    assert len(reader.answers(inputs)) == 2


def image_passages(reader: Reader) -> None:
    """Images of passages are seen."""
    inputs = reader.ask(reader.with_images, passage_images=True)
    without = reader.ask(reader.with_images)
    assert not torch.allclose(logits_of(reader, inputs)[0], logits_of(reader, without)[0], atol=1e-6)
    assert len(reader.answers(inputs)) == 2


def batch_is_rows(reader: Reader) -> None:
    """A batch of prompts of different lengths is answered as its rows are."""
    images = [picture(0), picture(1, (40, 20))]
    inputs = reader.ask(PASSAGES)
    together, told = logits_of(reader, inputs), reader.answers(inputs)
    for row in range(2):
        alone = reader.processor(images=images[row : row + 1], text=QUESTIONS[row : row + 1], evidence=[PASSAGES[row]])
        torch.testing.assert_close(together[row], logits_of(reader, alone)[0], **ROUNDING)
        answer = reader.answers(alone)[0]
        assert told[row, : len(answer)].tolist() == answer.tolist()


def no_image(reader: Reader) -> None:
    """A question without an image, alone, as the family writes it, and beside one that has one."""
    if reader.generator_processor.chat_template is not None:
        alone = reader.processor(text=QUESTIONS[:1])["input_ids"]
        assert alone.tolist() == stock_inputs(reader, None, QUESTIONS[0])["input_ids"].tolist()
    inputs = reader.processor(text=QUESTIONS, evidence=PASSAGES)
    assert len(reader.answers(inputs)) == 2
    mixed = reader.processor(images=[picture(0), None], text=QUESTIONS, evidence=PASSAGES)
    torch.testing.assert_close(logits_of(reader, mixed)[1], logits_of(reader, inputs)[1], **ROUNDING)


def system_message(reader: Reader) -> None:
    """A system message stands before the question, in a prompt that is answered."""
    inputs = reader.ask(PASSAGES, prompt={"system_message": "this country is big"})
    text = words_of(reader, inputs)
    assert text.index("this country is big") < text.index("what is it?"), text
    assert len(reader.answers(inputs)) == 2


def several_images(reader: Reader) -> None:
    """A question about two images; both are seen."""
    shown = [[picture(0), picture(3)], [picture(1)]]
    inputs = reader.ask(PASSAGES, shown)
    others = reader.ask(PASSAGES, [[picture(0), Image.new("RGB", (24, 16), "white")], [picture(1)]])
    assert len(reader.answers(inputs)) == 2
    assert not torch.equal(logits_of(reader, inputs)[0], logits_of(reader, others)[0])


def beams(reader: Reader) -> None:
    """Beam search gives as many answers as asked for, the best one at least as likely as the greedy one."""
    inputs = reader.ask(PASSAGES)
    answers = reader.answers(inputs, num_beams=3, num_return_sequences=2)
    assert len(answers) == 4
    assert answers.shape[1] <= 4


def in_pipeline(reader: Reader) -> None:
    """`pipeline("image-to-text")` says what `generate` says."""
    ask = pipeline("image-to-text", model=reader.model, processor=reader.processor)
    found = ask(picture(0), question=QUESTIONS[0], generate_kwargs=GREEDY)[0]["generated_text"]
    inputs = reader.processor(images=[picture(0)], text=QUESTIONS[:1])
    words = reader.processor.tokenizer.batch_decode(reader.answers(inputs), skip_special_tokens=True)
    assert found == words[0].strip(), (found, words)


def save_and_reload(reader: Reader) -> None:
    """The saved folder, opened by Auto classes, answers the same."""
    folder = reader.root / "saved"
    reader.model.save_pretrained(folder)
    reader.processor.save_pretrained(folder)
    again = AutoModelForImageTextToText.from_pretrained(folder).eval()
    inputs = AutoProcessor.from_pretrained(folder)(
        images=[picture(0), picture(1, (40, 20))], text=QUESTIONS, evidence=PASSAGES
    )
    expected = reader.ask(PASSAGES)
    assert inputs["input_ids"].tolist() == expected["input_ids"].tolist()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits[:, -1].float(), logits_of(reader, expected), **ROUNDING)


def by_name(reader: Reader) -> None:
    """A reader by folder, and by name from a Hub, is the one by object."""
    expected = reader.ask(PASSAGES)
    ids, logits = expected["input_ids"].tolist(), logits_of(reader, expected)
    model, processor = from_backbones(generator=reader.folder)
    inputs = processor(images=[picture(0), picture(1, (40, 20))], text=QUESTIONS, evidence=PASSAGES)
    assert inputs["input_ids"].tolist() == ids
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits[:, -1].float(), logits, **ROUNDING)
    if reader.hub is not None:
        reader.hub.put(reader.name, reader.folder)
        found = reader.client.do(reader.by_name_code)
        assert [found[0], found[2]] == [ids, reader.name]
        torch.testing.assert_close(torch.tensor(found[1]), logits, **ROUNDING)


def lora(reader: Reader) -> None:
    """A few steps of LoRA lower the loss, and leave what the reader sees with alone."""
    model, processor = from_backbones(generator=reader.folder)
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=32)).train()
    trained = [name for name, weight in tuned.named_parameters() if weight.requires_grad]
    assert trained
    assert not [name for name in trained if any(word in name for word in ("vision", "visual", "image"))], trained
    optimizer = torch.optim.Adam([weight for weight in tuned.parameters() if weight.requires_grad], lr=0.01)
    inputs = processor(
        images=[picture(0), picture(1, (40, 20))], text=QUESTIONS, evidence=PASSAGES, answers=["Oslo", "the red"]
    )
    losses = []
    for _ in range(6):
        loss = tuned(**inputs).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0], losses


def hidden_is_absent(reader: Reader) -> None:
    """A passage that `evidence_mask` hides is as one that is not there."""
    inputs = reader.ask(PASSAGES)
    inputs["evidence_mask"][0, 0] = False
    absent = reader.ask([PASSAGES[0][1:], PASSAGES[1]])
    torch.testing.assert_close(logits_of(reader, inputs), logits_of(reader, absent), **ROUNDING)
    assert reader.answers(inputs).tolist() == reader.answers(absent).tolist()


CHECKS: dict[str, Callable[[Reader], None]] = {
    "closed book": closed_book,
    "text passages": text_passages,
    "image passages": image_passages,
    "batch": batch_is_rows,
    "no image": no_image,
    "several images": several_images,
    "system message": system_message,
    "beams": beams,
    "pipeline": in_pipeline,
    "reload": save_and_reload,
    "by name": by_name,
    "LoRA": lora,
    "hidden passage": hidden_is_absent,
}


def measure(reader: Reader) -> dict[str, str]:
    """Of each check `"ok"`, `"refused: reason"` or `"failed: error"`; of a reader that is refused, that alone."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if (refused := _outcome(reader.make)) != "ok":
                return dict.fromkeys(CHECKS, refused)
            return {name: _outcome(lambda check=check: check(reader)) for name, check in CHECKS.items()}
    finally:
        logging.disable(logging.NOTSET)
        gc.collect()


def _outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except RavlmError as error:
        return f"refused: {error}"
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return f"failed: {type(error).__name__}: {first}"
    return "ok"
