"""Fixtures that several test files share: a real registry, small images, a faulty network."""
