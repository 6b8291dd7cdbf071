"""Count what the memory stores and summarises, as plain numbers that metrics read."""

import msgspec


class MemoryCounts(msgspec.Struct):
    """The numbers of one database since the start of this process.

    `messages` are the stored ones; `conversations` are the first questions among them.
    `tokens_saved` estimates by how much summaries are shorter than what they replace; the tokens of
    `summary_...` are those of making them, as reported.
    """

    messages: int = 0
    conversations: int = 0
    summaries: int = 0
    failed_summaries: int = 0
    tokens_saved: int = 0
    summary_prompt_tokens: int = 0
    summary_completion_tokens: int = 0
