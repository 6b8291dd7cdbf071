"""Counts what the memory stores and summarises, as plain numbers that metrics read."""

import msgspec


class MemoryCounts(msgspec.Struct):
    """The numbers of one database since the start of this process.

    `messages` are those stored; `conversations` the questions among them that nothing comes before.
    `tokens_saved` is by how much summaries are shorter than what they stand for, estimated; the
    tokens of `summary_...` are what making them took, as reported.
    """

    messages: int = 0
    conversations: int = 0
    summaries: int = 0
    failed_summaries: int = 0
    tokens_saved: int = 0
    summary_prompt_tokens: int = 0
    summary_completion_tokens: int = 0
