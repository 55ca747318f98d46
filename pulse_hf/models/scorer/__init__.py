"""The candidate scorer of phase II (paper §4.2, Eq. 3): one scalar logit per candidate, all in one pass."""
