"""Rows of a batch blended in the embeddings; done by `adapters_hub.tasks.mixing`."""

from random import Random

from adapters_hub.data.augmentation.method import Change, Material, Method


class Mixup(Method):
    """The number is α of λ ~ Beta(α, α) (mixup, arXiv:1710.09412, eq. 1-2), at the embeddings.

    A row becomes λ times itself and 1 - λ times another row of the batch that trains the same
    adapter, of any language, and so does its loss. Of λ and 1 - λ the larger one is the row's,
    which stays under its own blend of adapters, whatever the other's is.
    """

    name = "mixup"
    help = "alpha of Beta(alpha, alpha), the share of another row in a row's embeddings and loss"
    order = 50
    share = False

    def change(self, material: Material) -> Change:
        """Vectors alone."""
        return "embeddings"

    def partner(self, place: int, rows: int, random: Random) -> tuple[int, float]:
        """The place of the other row among so many, and the share λ of the row itself.

        A row that is alone gets itself.
        """
        drawn = random.betavariate(self.amount, self.amount)
        other = random.randrange(rows - 1) if rows > 1 else place
        return other + (rows > 1 and other >= place), max(drawn, 1 - drawn)


METHOD = Mixup
