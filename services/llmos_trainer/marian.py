"""A fast tokenizer for Marian's translation models, which come as two SentencePiece models over one vocabulary.

Sources are cut by `source.spm`, whose pieces `vocab.json` numbers; what is written is put together by the same numbers.
Texts of the source language get the numbers of transformers' own tokenizer; words of another may be cut otherwise.
"""

import json
from pathlib import Path
from typing import Any

from llmos.errors import Rejected

FILES = ("source.spm", "vocab.json")
END, UNKNOWN = "</s>", "<unk>"
# How far below any score of the source language the target's pieces lie: a letter stands for itself where nothing else
# does, a longer piece is never chosen before letters are.
_LETTER, _LONGER = 10.0, 1e4


def tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder that has `FILES`. Raises `Rejected` for files that can't be read."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers.convert_slow_tokenizer import import_protobuf

    try:
        numbers: dict[str, int] = json.loads((folder / "vocab.json").read_bytes())
        protobuf: Any = import_protobuf
        pieces = protobuf().ModelProto()
        pieces.ParseFromString((folder / "source.spm").read_bytes())
        ordered = sorted(numbers, key=numbers.__getitem__)
        if [numbers[piece] for piece in ordered] != list(range(len(ordered))):
            raise ValueError("vocab.json does not number its pieces from 0 on")
        end, unknown = numbers[END], numbers[UNKNOWN]
    except Exception as error:  # protobuf raises its own, and a foreign file may be wrong in any way
        raise Rejected(f"no tokenizer can be read: {error}", remedy="Save source.spm and vocab.json.") from error
    scores = {piece.piece: float(piece.score) for piece in pieces.pieces if piece.type == 1}  # 1: normal
    lowest = min(scores.values(), default=0.0)
    other = {piece: lowest - (_LETTER if len(piece) == 1 else _LONGER) for piece in ordered}
    made = Tokenizer(models.Unigram([(piece, scores.get(piece, other[piece])) for piece in ordered], unk_id=unknown))
    charsmap = pieces.normalizer_spec.precompiled_charsmap
    made.normalizer = normalizers.Sequence(
        [
            *([normalizers.Precompiled(charsmap)] if charsmap else []),
            normalizers.Strip(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    made.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
    made.add_special_tokens([END, UNKNOWN, *(["<pad>"] if "<pad>" in numbers else [])])
    return made
