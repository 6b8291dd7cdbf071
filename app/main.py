"""python -m app.main [--debug] [--host] [--port] [--workers]: starts the service; with a command's name first, runs that command."""

import sys

from app.cli import main

if __name__ == "__main__":
    # Options alone are those of `serve`, as the operations document has it.
    arguments = sys.argv[1:]
    serves = not arguments or (arguments[0].startswith("-") and arguments[0] not in ("--help", "--version"))
    main(["serve", *arguments] if serves else arguments)
