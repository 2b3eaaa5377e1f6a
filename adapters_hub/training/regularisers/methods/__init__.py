"""The methods: a module each, whose name is the method's and whose ``METHOD`` is its class."""
