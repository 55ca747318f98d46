"""The decision protocol: every system on the same candidates, with intervals, paired tests and the leak audit."""

__all__: list[str] = []
