"""The configuration: the backbones by their own configs, the shared embedding space, and how evidence is fused."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..errors import InvalidInputError
from ..saving.bounds import check_sizes
from ..saving.folders import SHIM_NAME, PublishMixin
from ..saving.safe_paths import at_home
from .parts.whole_encoder import check_whole_encoder, vision_half, width_of


DESCRIBE_PROMPT = "Describe this image and say what is known about it."


@strict
class RavlmConfig(PublishMixin, PreTrainedConfig):
    r"""
    Configuration of [`RavlmModel`] and [`RavlmForConditionalGeneration`].

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Any vision tower of transformers. Of a dual tower (CLIP, SigLIP) the vision half counts.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Encoder of questions and passages. Of a dual tower the text half is taken. With neither of the two the
            model is a reader without towers: passages are its words, and an encoder beside it finds them. Where one
            is given, or a fusion that needs both, a missing one is a ViT or a BERT.
        encoder_config (`dict` or `PreTrainedConfig`, *optional*):
            A dual encoder that is kept whole, with its pooling, projections and scale (CLIP, SigLIP, ALIGN, ...),
            in the place of two towers; its halves and its width then are `vision_config`, `text_config` and
            `projection_dim`.
        detector_config (`dict` or `PreTrainedConfig`, *optional*):
            of [`RavlmForObjectDetection`]: any detector of transformers that has queries (DETR, RT-DETR, YOLOS, ...).
        generator_config (`dict` or `PreTrainedConfig`, *optional*):
            Any causal language model of attention layers, or any image-text-to-text model; defaults to Llama.
        projection_dim (`int`, *optional*, defaults to 256): `D`, width of the space that queries and passages share.
        pooling_grid (`int`, *optional*, defaults to 1):
            The image embedding is one linear map of the patch features averaged over a `grid x grid` raster; 1 is the
            plain mean, 2 and more keep the layout of the image.
        logit_scale_init (`float`, *optional*, defaults to 2.6592):
            Natural log of `1 / temperature` at the start (2.6592 is temperature 0.07). Kept within [0, ln 100].
        text_weight_init (`float`, *optional*, defaults to 1.0):
            Weight of the text vector beside the image vector (1.0) where a query or passage has both, at the start.
        fusion (`str`, *optional*, defaults to `"in_context"`):
            What the language model sees of the passages: their text in the prompt (`"in_context"`); memory tokens in
            it: all projected states (`"concat"`), one (`"product"`) or `num_memory_tokens` (`"attention"`, `"gated"`)
            per passage; or nothing in the prompt, but layers of its own that read them (`"cross_attention"`).
        marginalization (`"none"`, `"sequence"` or `"token"`, *optional*, defaults to `"none"`):
            `"none"` reads all passages in one prompt. The others read each in a prompt of its own and weigh them by
            the retriever's belief, for the answer as a whole (RAG-sequence) or token by token (RAG-token).
        num_passages (`int`, *optional*, defaults to 4): passages that a pipeline retrieves per question.
        num_image_tokens (`int`, *optional*, defaults to 4): `P`, image tokens in the prompt; a square number.
        num_memory_tokens (`int`, *optional*, defaults to 8): `M` per passage, with `fusion="attention"` or `"gated"`.
        fusion_layers (`int`, *optional*, defaults to 2): gated exchange layers.
        fusion_heads (`int`, *optional*, defaults to 4): attention heads of the fusion; must divide its width.
        cross_attention_every (`int`, *optional*, defaults to 4):
            With `fusion="cross_attention"` every so many layers of the language model read the evidence.
        image_token_id, evidence_token_id (`int`, *optional*): placeholders in the vocabulary of the generator.
        default_prompt (`str`, *optional*): what a pipeline asks when it is given an image alone.
        class_prompt (`str`, *optional*):
            of a classifier whose classes are known by their names: the words around a name, with `{}` in its place.
        answer_head (`bool`, *optional*, defaults to `False`):
            of [`RavlmForVisualQuestionAnswering`]: whether a head chooses among the answers of `id2label`.
        content_free_weight (`float`, *optional*, defaults to 0.5):
            where answers of a closed set are compared, how much of what the reader holds of an answer before anything
            is asked is taken from it, from 0 to 1; it keeps answers that are frequent anyway from winning.
        references (`dict`, *optional*):
            of a folder saved with `base="reference"`: the pretrained parts that are not in it, each by the name and
            the revision of its repository on the Hub.

    Example:

    >>> from hf_ravlm import RavlmConfig
    >>> config = RavlmConfig(generator_config={"model_type": "gpt2"}, fusion="gated")
    >>> config.generator_config.model_type, config.num_memory_tokens
    ('gpt2', 8)
    """

    _published_as = "config"
    model_type = "ravlm"
    # What others (trl) go by to load a model whose class transformers does not have; saving writes the whole map.
    auto_map = {"AutoModelForImageTextToText": f"{SHIM_NAME}.RavlmForConditionalGeneration"}
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="vit", optional=True),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert", optional=True),
        "encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="clip", optional=True),
        "generator_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "detector_config": SubConfigSpec(config_class=AutoConfig, model_type="detr", optional=True),
    }
    keys_to_ignore_at_inference = ["past_key_values", "image_hidden_states", "evidence_hidden_states"]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    encoder_config: dict | PreTrainedConfig | None = None
    generator_config: dict | PreTrainedConfig | None = None
    detector_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 256
    pooling_grid: int = 1
    logit_scale_init: float = 2.6592
    text_weight_init: float = 1.0
    fusion: Literal["in_context", "concat", "product", "attention", "gated", "cross_attention"] = "in_context"
    marginalization: Literal["none", "sequence", "token"] = "none"
    num_passages: int = 4
    num_image_tokens: int = 4
    num_memory_tokens: int = 8
    fusion_layers: int = 2
    fusion_heads: int = 4
    cross_attention_every: int = 4
    image_token_id: int = 3
    evidence_token_id: int = 4
    default_prompt: str = DESCRIBE_PROMPT
    class_prompt: str | None = None
    answer_head: bool = False
    content_free_weight: float = 0.5
    references: dict | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        for part in (
            *(self.__dict__, self.vision_config, self.text_config, self.generator_config, self.detector_config),
        ):
            check_sizes(part)  # before it is built: a list of 2**31 layers is never finished
        kwargs.pop("auto_map", None)  # of the folder it was loaded from; saving writes it anew
        if self.encoder_config is not None:
            self.vision_config = self.text_config = None  # its halves, as they are set below
        elif self.fusion != "in_context" or not (self.vision_config is None and self.text_config is None):
            self.vision_config = {} if self.vision_config is None else self.vision_config
            self.text_config = {} if self.text_config is None else self.text_config
        super().__post_init__(**kwargs)
        if self.encoder_config is not None:
            check_whole_encoder(self.encoder_config)
            self.vision_config, self.text_config = vision_half(self.encoder_config), self.encoder_config.text_config
            self.projection_dim = width_of(self.encoder_config)
        self.vision_config = getattr(self.vision_config, "vision_config", self.vision_config)
        self.text_config = getattr(self.text_config, "text_config", self.text_config)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """The saved settings.

        Raises:
            `InvalidInputError`: if they are those of another kind of model: transformers would take our defaults for
                all that they lack.
        """
        settings, rest = super().get_config_dict(at_home(pretrained_model_name_or_path), **kwargs)
        if settings.get("model_type") != cls.model_type:
            raise InvalidInputError(
                f"{pretrained_model_name_or_path}: config.json says model_type={settings.get('model_type')!r}, and "
                f"that of a model of hf_ravlm {cls.model_type!r}. A reader or an encoder of transformers becomes one "
                "by `hf_ravlm.from_backbones(generator=..., encoder=...)`."
            )
        return settings, rest

    def get_text_config(self, decoder=None, encoder=None) -> PreTrainedConfig:
        """The config that generation, caches and the vocabulary are about: the generator's."""
        return self.generator_config.get_text_config(decoder=decoder, encoder=encoder)

    @property
    def has_towers(self) -> bool:
        """Whether there is a dual encoder in the model; without, images are seen by the generator or not at all."""
        return self.vision_config is not None

    @property
    def vision_dim(self) -> int:
        """Width of one patch feature of the vision tower; raises `ValueError` if its config does not tell."""
        sizes = getattr(self.vision_config, "hidden_sizes", None)
        if sizes:
            return sizes[-1]
        for name in ("hidden_size", "hidden_dim"):
            if hasattr(self.vision_config, name):
                return getattr(self.vision_config, name)
        raise ValueError(
            f"vision_config of type {self.vision_config.model_type!r} does not tell the width of its features: "
            "expected hidden_sizes, hidden_size or hidden_dim; choose another tower or give its config a hidden_size"
        )

    @property
    def generator_dim(self) -> int:
        """Width of the generator's input embeddings (not its hidden size in the 350M OPT)."""
        config = self.get_text_config()
        return getattr(config, "word_embed_proj_dim", None) or config.hidden_size

    def validate_positive(self):
        """Raises `ValueError` for a count below 1."""
        names = ("projection_dim", "pooling_grid", "num_passages", "num_image_tokens", "num_memory_tokens")
        for name in (*names, "fusion_layers", "fusion_heads", "cross_attention_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a whole number of at least 1")

    def validate_text_weight(self):
        """Raises `ValueError` for a weight without a logarithm, which is what is learned."""
        if self.text_weight_init <= 0:
            raise ValueError(f"text_weight_init={self.text_weight_init}: expected a positive number")

    def validate_content_free_weight(self):
        """Raises `ValueError` for a weight that is no share."""
        if not 0 <= self.content_free_weight <= 1:
            raise ValueError(f"content_free_weight={self.content_free_weight}: expected a number from 0 to 1")

    def validate_class_prompt(self):
        """Raises `ValueError` if there is no place for the name of a class."""
        if self.class_prompt is not None and "{}" not in self.class_prompt:
            raise ValueError(f"class_prompt={self.class_prompt!r}: expected '{{}}' in the place of a class's name")

    def validate_image_tokens(self):
        """Raises `ValueError` if the image tokens form no square raster."""
        if round(self.num_image_tokens**0.5) ** 2 != self.num_image_tokens:
            raise ValueError(
                f"num_image_tokens={self.num_image_tokens}: expected a square number (1, 4, 9, 16, ...), "
                "because the image tokens are a square raster of the image"
            )

    def validate_fusion_heads(self):
        """Raises `ValueError` for heads that do not divide the text encoder's width, at which the fusion works."""
        if self.text_config is not None and self.text_config.hidden_size % self.fusion_heads:
            raise ValueError(
                f"fusion_heads={self.fusion_heads} does not divide the text encoder's width "
                f"{self.text_config.hidden_size}; choose a divisor of it"
            )


__all__ = ["RavlmConfig"]
