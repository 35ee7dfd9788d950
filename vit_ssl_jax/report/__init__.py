"""Tables and pictures of what runs have measured."""
