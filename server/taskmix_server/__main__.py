"""`python -m taskmix_server` is the `taskmix` command."""

from taskmix_server.cli import main

main(prog_name="taskmix")
