"""Tiny random models of the captioners' families, with tokenizers trained here; saved as anyone would find them."""

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Blip2Processor,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    Florence2Processor,
    GitProcessor,
    Kosmos2Processor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from sca_hf.testing import CAPTIONS


SIDE = 32
WORDS = (*CAPTIONS, "What is this?", "Describe the region in the image.", "An image of It is in the box")
_WIDE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
_VISION = dict(_WIDE, image_size=SIDE, patch_size=8)
_CHAT = (
    "{{ bos_token }}{% for turn in messages %}USER: {% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def word_pieces():
    """A tokenizer as BERT's, lower case, for BLIP and GIT; [DEC] begins BLIP's captions."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    tokenizer.train_from_iterator(WORDS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
    pair = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pair)
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="[DEC]", **names)


def bytes_tokenizer(start=True, end=False, **more):
    """A byte-level tokenizer as GPT-2's; start, end: put special tokens around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    pair = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    form = " ".join(["<s>"] * start + ["$A"] + ["</s>"] * end)
    tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=pair)
    names = dict(bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **more)


def _images(kind):
    uncut = {"do_center_crop": False} if kind is CLIPImageProcessorPil else {}
    return kind(size={"height": SIDE, "width": SIDE}, **uncut)


def blip():
    tokenizer = word_pieces()
    ids = dict(bos_token_id=5, pad_token_id=0, sep_token_id=3, eos_token_id=3, vocab_size=len(tokenizer))
    text = dict(_WIDE, encoder_hidden_size=32, projection_dim=16, max_position_embeddings=64, **ids)
    config = AutoConfig.for_model("blip", text_config=text, vision_config=_VISION, projection_dim=16)
    return config, BlipProcessor(_images(BlipImageProcessorPil), tokenizer)


def git():
    tokenizer = word_pieces()
    ids = dict(bos_token_id=2, eos_token_id=3, pad_token_id=0, vocab_size=len(tokenizer))
    config = AutoConfig.for_model("git", vision_config=_VISION, max_position_embeddings=64, **_WIDE, **ids)
    return config, GitProcessor(_images(CLIPImageProcessorPil), tokenizer)


def blip2():
    processor = Blip2Processor(_images(BlipImageProcessorPil), bytes_tokenizer(), num_query_tokens=4)
    tokenizer = processor.tokenizer
    text = dict(
        model_type="opt",
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        vocab_size=len(tokenizer),
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    config = AutoConfig.for_model(
        "blip-2",
        vision_config=_VISION,
        qformer_config=dict(_WIDE, encoder_hidden_size=32, vocab_size=30),
        text_config=text,
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return config, processor


def kosmos2():
    processor = Kosmos2Processor(_images(CLIPImageProcessorPil), bytes_tokenizer(start=True, end=True))
    text = dict(
        vocab_size=len(processor.tokenizer),
        embed_dim=32,
        layers=2,
        ffn_dim=64,
        attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    return AutoConfig.for_model("kosmos-2", text_config=text, vision_config=_VISION, latent_query_num=64), processor


def florence2():
    tokenizer = bytes_tokenizer(start=True, end=True, extra_special_tokens={"image_token": "<image>"})
    tokenizer.add_tokens([f"<loc_{place}>" for place in range(1000)])
    images = _images(CLIPImageProcessorPil)
    images.image_seq_length = 5
    text = dict(
        model_type="bart",
        d_model=32,
        vocab_size=len(tokenizer),
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    vision = dict(
        depths=(1, 1),
        embed_dim=(16, 32),
        num_heads=(2, 4),
        num_groups=(2, 4),
        patch_size=(7, 3),
        patch_stride=(8, 2),
        patch_padding=(3, 1),
        patch_prenorm=(False, True),
        window_size=2,
        projection_dim=32,
        max_temporal_embeddings=10,
        max_position_embeddings=10,
    )
    config = AutoConfig.for_model(
        "florence2",
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        is_encoder_decoder=True,
    )
    return config, Florence2Processor(images, tokenizer)


def llava():
    tokenizer = bytes_tokenizer(extra_special_tokens={"image_token": "<image>"})
    processor = LlavaProcessor(
        _images(CLIPImageProcessorPil),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_CHAT,
    )
    text = dict(_WIDE, model_type="llama", vocab_size=len(tokenizer), bos_token_id=0, pad_token_id=1, eos_token_id=2)
    config = AutoConfig.for_model(
        "llava",
        vision_config=dict(_VISION, model_type="clip_vision_model", projection_dim=16),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    return config, processor


FAMILIES = {"blip": blip, "git": git, "blip2": blip2, "kosmos2": kosmos2, "florence2": florence2, "llava": llava}


def save(family, folder):
    """Builds a random model and its processor and saves them."""
    config, processor = FAMILIES[family]()
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Fresh weights are so small that every picture gets the same words.
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.5 / parameter.shape[-1] ** 0.25)
        # Words for places and the like are the most by far, and make poor captions.
        places = [number for word, number in processor.tokenizer.get_vocab().items() if word.startswith("<")]
        head = model.get_output_embeddings()
        if head is not None:
            head.weight[places] = 0.0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
