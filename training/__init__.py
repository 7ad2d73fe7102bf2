"""Scripts that make the small models that ship with the package, from a public package of pictures."""
