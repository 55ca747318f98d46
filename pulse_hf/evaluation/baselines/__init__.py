"""Systems without thoughts: one short file each, one function ``scores(study, decisions) -> list of arrays``."""

__all__: list[str] = []
