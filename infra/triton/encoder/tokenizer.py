"""The model's tokenizer for the library `tokenizers`: Unicode to pieces of the pretrained vocabulary."""

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from infra.triton.encoder.pretrained import Vocabulary

_INVISIBLE = r"[\u0000-\u0008\u000b\u000e-\u001f\u007f\u200b-\u200f\u202a-\u202e\ufeff\u00ad]"


def build(vocabulary: Vocabulary) -> Tokenizer:
    """NFKC, invisible characters out, runs of spaces to one; then the unigram model between `<s>` and `</s>`."""
    pairs = list(zip(vocabulary.pieces, vocabulary.scores, strict=True))
    tokenizer = Tokenizer(models.Unigram(pairs, unk_id=vocabulary.unk, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(Regex(_INVISIBLE), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always", split=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", vocabulary.bos), ("</s>", vocabulary.eos)]
    )
    return tokenizer
