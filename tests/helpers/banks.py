"""A bank that also tells what was put in it."""

from adapters_hub.runtime.bank import Bank


class OpenBank(Bank):
    """``slots``: name → the slot that was last put under it."""

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.slots = {}

    def put(self, name, *given, **options):
        self.slots[name] = super().put(name, *given, **options)
        return self.slots[name]
