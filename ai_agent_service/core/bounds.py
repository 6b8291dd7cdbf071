"""Name the limits of what comes in: from callers, model servers and MCP servers.

MAX_REQUEST_BYTES, MAX_ANSWER_CHARACTERS, MAX_CONCURRENT_REQUESTS, LOG_QUEUE_LINES and an MCP
server's `max_message_bytes` are settings, because operators may want other values.
"""

# Requests

MAX_HEAD_BYTES = 64 * 1024
"""Bytes of the request line and the headers together."""

MAX_HEADERS = 100
"""Headers of a request."""

MAX_PIPELINED = 8
"""Requests of one connection that wait for the answers of those before them."""

LARGE_BODY = 256 * 1024
"""Bytes from which a body counts as large: it is decoded off the event loop, and the sizes of such
bodies together are limited."""

MAX_LARGE_BODY_BYTES = 256 * 1024 * 1024
"""Bytes of large bodies that are read and decoded at once; one always fits."""

MAX_JSON_DEPTH = 100
"""Levels of a free-form value, such as a tool's schema."""

MAX_JSON_VALUES = 100_000
"""JSON values in a free-form value, and in a body of any size."""

BYTES_PER_VALUE = 20
"""A larger body may hold one JSON value for so many of its bytes, so that decoding it takes no more
than some times its size. A value takes up to 150 bytes."""

MAX_MESSAGE_PARTS = 20_000
"""Parts of all messages of a request together."""

MAX_KEY_LENGTH = 512
"""Characters of an API key."""

MAX_TOKEN_BYTES = 16 * 1024
"""Bytes of a user's token."""

# Model servers

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Bytes of one answer of a model server, a stream as a whole."""

MAX_ERROR_BYTES = 64 * 1024
"""Bytes that are read of the body of an error."""

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""Bytes of one server-sent event."""

MAX_OLLAMA_LINE_BYTES = 16 * 1024 * 1024
"""Bytes of one line of Ollama's stream."""

MAX_WHOLE_ANSWER_BYTES = 16 * 1024 * 1024
"""Bytes of an answer in one piece, from a server that does not stream."""

# Runs

MAX_ANSWER_CHARACTERS = 1_000_000
"""Characters of text and reasoning of a run; a setting of the same name changes it."""

MAX_CALLS_PER_STEP = 128
"""Tool calls of one step that are run; models make far fewer."""

MAX_PENDING_STEPS = 10_000
"""Steps that wait for the results of clients' tools; the oldest are dropped."""

# MCP servers

MAX_MCP_VALUES = 250_000
"""JSON values in one message. Decoding holds the interpreter's lock and takes a hundred bytes or
more for each."""

MCP_BURST_BYTES = 64 * 1024 * 1024
"""Bytes that are read of a server as fast as it writes; after that, reading is slowed down, so that
one that floods leaves the event loop to others."""

MAX_TOOL_IMAGE_BYTES = 20 * 1024 * 1024
"""Bytes of one image of a tool, in base64; a larger one is replaced by a note."""

MAX_TOOL_PAGES = 250
"""Pages of a server's list of tools."""

# Documents

MAX_DOCUMENT_BYTES = 1_000_000
"""Bytes of a document of an identity provider, such as its keys."""

MAX_AVATAR_BYTES = 256 * 1024
"""Bytes of an agent's avatar."""
