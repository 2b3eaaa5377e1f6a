"""What servers of adapters take: the ranks that vLLM and SGLang can be started with."""

MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's ``--max-lora-rank`` may be (vllm/config/lora.py)."""


def rank_limit(rank: int) -> int | None:
    """The smallest ``--max-lora-rank`` that takes a rank; None above the largest."""
    return next((limit for limit in MAX_LORA_RANKS if limit >= rank), None)
