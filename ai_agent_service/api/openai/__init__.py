"""The OpenAI surface: chat completions and models, with what Open WebUI needs."""
