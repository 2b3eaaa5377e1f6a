"""Many adapters in one forward: plans, products, the bank and what is resident in it.

Knows backbones, libraries and factors; does not know tasks.
"""
