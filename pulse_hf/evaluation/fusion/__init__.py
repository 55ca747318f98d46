"""Systems that join others' scores, by constants fitted on validation decisions."""

__all__: list[str] = []
