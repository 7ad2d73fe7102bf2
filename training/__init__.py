"""Training scripts of the small models, from a public package of emoji images."""
