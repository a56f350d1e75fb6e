"""A toy LLaVA for scenes, as a Hugging Face directory: word tokenizer, processor, config, weights.

A conversation as the chat template writes it, and how the tokenizer cuts it:

  <s><user><image>where is the circle ?<assistant>i see a small red circle .. top left .</s>
  <s> <user> <image> x 9 where is the circle ? <assistant> i see a small red circle .. . </s>

Decoding joins the words with single spaces, which is the text that `language.score` reads.
"""

from __future__ import annotations

import json
import pathlib

import jax
import tokenizers
import transformers

from rubric_jax import models
from rubric_jax.data.scenes import instances, language, world
from rubric_jax.models import weights

PATCH = 16  # pixels: a cell of the picture, so that a patch shows one thing or nothing

_SPECIAL = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "image_token": "<image>",
    "user_token": "<user>",
    "assistant_token": "<assistant>",
}
_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role not in ('user', 'assistant') -%}
{{- raise_exception('Only user and assistant may speak, not ' ~ message.role) -}}
{%- endif -%}
{{- '<' ~ message.role ~ '>' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{{- '<image>' if part.type == 'image' else part.text -}}
{%- endfor -%}
{%- endif -%}
{%- if message.role == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}
"""


def vocabulary() -> tuple[str, ...]:
    """Every word of instructions and responses, after the special tokens; the order is the id."""
    asked = [q.text for questions in instances.QUESTIONS.values() for q in questions]
    words = sorted(" ".join((*asked, *language.phrases())).split())
    return tuple(dict.fromkeys((*_SPECIAL.values(), *words)))


def write_model(
    directory,
    *,
    seed: int = 0,
    width: int = 128,
    depth: int = 4,
    vision_width: int = 96,
    vision_depth: int = 3,
) -> None:
    """Writes a LLaVA with random weights that transformers loads, about 0.9 million parameters.

    Args:
      directory: made if it is not there; files of the same name are overwritten.
      width, depth: of the decoder; the width a multiple of 8 (4 heads, of even size).
      vision_width, vision_depth: of the vision tower; the width a multiple of 4 (4 heads).
    """
    config = _config(width, depth, vision_width, vision_depth)
    write_processor(directory, config)
    vlm = models.build("llava", directory)
    # On the CPU, so that the bits do not depend on the device; unoptimised, as it runs once.
    init = jax.jit(vlm.init, compiler_options={"xla_backend_optimization_level": 0})
    with jax.default_device(jax.devices("cpu")[0]):
        params = init(jax.random.key(seed))
    # As NumPy: cutting layers apart on a device would compile once per shape.
    weights.write(directory, jax.device_get(params), vlm.weights)


def write_processor(directory, config: transformers.LlavaConfig | None = None) -> None:
    """Writes all of the directory but the weights: config, tokenizer, template, processor."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = config or _config()
    image_size = {"height": world.SIDE, "width": world.SIDE}
    image_processor = transformers.CLIPImageProcessorPil(
        size=image_size,  # pictures of this size come through untouched
        do_center_crop=False,
        crop_size=image_size,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = transformers.LlavaProcessor(
        image_processor=image_processor,
        tokenizer=_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # the class token, which the strategy takes away again
        chat_template=_TEMPLATE,
    )
    processor.save_pretrained(directory)
    config.save_pretrained(directory)
    text = config.text_config
    generation = {
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_id,
        "pad_token_id": text.pad_token_id,
        "max_new_tokens": 48,
        "transformers_version": transformers.__version__,
    }
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    ids = {word: i for i, word in enumerate(vocabulary())}
    model = tokenizers.models.WordLevel(ids, unk_token=_SPECIAL["unk_token"])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()  # punctuation apart, too
    named = {key: word for key, word in _SPECIAL.items() if key[:3] in ("pad", "bos", "eos", "unk")}
    extra = {key: word for key, word in _SPECIAL.items() if key not in named}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **named,
        extra_special_tokens=extra,
        model_max_length=512,
        clean_up_tokenization_spaces=False,  # keeps " ." as it is
    )


def _config(
    width: int = 128, depth: int = 4, vision_width: int = 96, vision_depth: int = 3
) -> transformers.LlavaConfig:
    ids = {word: i for i, word in enumerate(vocabulary())}
    text = transformers.LlamaConfig(
        # Rounded up, so that the embedding can be sharded; the ids beyond are never seen.
        vocab_size=-(-len(ids) // 32) * 32,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=depth,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
        pad_token_id=ids["<pad>"],
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=vision_width,
        intermediate_size=2 * vision_width,
        num_hidden_layers=vision_depth,
        num_attention_heads=4,
        image_size=world.SIDE,
        patch_size=PATCH,
    )
    return transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids["<image>"],
        image_seq_length=(world.SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        architectures=["LlavaForConditionalGeneration"],
        dtype="float32",
    )
