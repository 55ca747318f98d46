"""The stages that fit models: sequential, thought space, scorer."""
