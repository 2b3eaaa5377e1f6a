"""Small tokenizers of every kind, trained on texts of many scripts."""

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SCRIPTS = [
    "The room was clean, and quiet; we'll come again!",
    "Das Zimmer war schön – größer als erwartet.",
    "Комната была чистой и тихой.",
    "房间很干净，也很安静。",
    "部屋はきれいで静かでした。",
    "방은 깨끗하고 조용했습니다.",
    "ห้องสะอาดและเงียบมาก",
    "कमरा साफ और शांत था।",
    "كانت الغرفة نظيفة وهادئة.",
    "החדר היה נקי ושקט.",
    "Yàrá náà mọ́, ó sì dákẹ́.",
    "emoji 🤗 and e\u0301 ﬁne ½ twice  spaced",
    "<s> is a text here, and so is </s>",
]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]


def _finished(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
        eos_token="</s>", cls_token="<s>", sep_token="</s>", mask_token="<mask>",
    )  # fmt: skip


def unigram(texts=SCRIPTS, longest=4, most=10**6):
    """As XLM-R's: a normaliser that changes lengths, ▁ before words, and a score a piece."""
    normalizer, pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    words = [
        word
        for text in texts
        for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))
    ]
    pieces = dict.fromkeys(letter for word in words for letter in word)
    for size in range(2, longest + 1):
        pieces |= dict.fromkeys(w[a : a + size] for w in words for a in range(len(w) - size + 1))
    scores = [
        (piece, -6.0 - 0.5 * len(piece))
        for piece in [*pieces][: most - len(SPECIAL)]
        if piece not in SPECIAL
    ]
    tokenizer = Tokenizer(models.Unigram([*((name, 0.0) for name in SPECIAL), *scores], unk_id=1))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.Metaspace()
    return _finished(tokenizer)


def byte_bpe(texts=SCRIPTS, size=420):
    """As GPT-2's: bytes, with offsets that are trimmed by the post-processor of RoBERTa."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = _finished(tokenizer)
    wrapped.backend_tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 3), ("<s>", 2), trim_offsets=True, add_prefix_space=False
    )
    return wrapped


def metaspace_bpe(texts=SCRIPTS, size=500):
    """As Gemma's: spaces become ▁, and words are not parted before the model."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Replace("▁", " ")
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = None
    return _finished(tokenizer)


def word_piece(texts=SCRIPTS, size=500):
    """As multilingual BERT's, cased."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _finished(tokenizer)


KINDS = {
    "unigram": unigram,
    "byte BPE": byte_bpe,
    "metaspace BPE": metaspace_bpe,
    "WordPiece": word_piece,
}
