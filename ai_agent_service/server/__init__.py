"""The process: the ASGI application, workers, HTTP/1 and signals."""
