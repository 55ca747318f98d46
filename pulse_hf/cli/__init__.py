"""The command line: ``pulse`` with one word per stage."""
