"""The roof: the ``stablelightning`` command."""
