"""Another segmentation of the same text; drawn by `adapters_hub.text.pieces`."""

from adapters_hub.data.augmentation.method import Change, Material, Method


class Subword(Method):
    """The number is, by the kind of the tokenizer's vocabulary:

    - BPE: the probability that a merge is left out (BPE-dropout, arXiv:1910.13267);
    - Unigram: the share of words whose segmentation is drawn, P(x) ∝ Π p(piece)^0.2
      (arXiv:1804.10959);
    - WordPiece: the probability that the longest piece which fits is passed over
      (MaxMatch-Dropout, arXiv:2209.04126).
    """

    name = "subword"
    help = "merges left out (BPE), words cut anew (Unigram), pieces passed over (WordPiece)"
    order = 40

    def change(self, material: Material) -> Change:
        """Tokens alone."""
        return "segmentation"


METHOD = Subword
