"""The embedded synthetic world: a shop whose people have known motives."""
