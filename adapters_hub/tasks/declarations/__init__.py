"""One module a task: its `Declaration`, named DECLARATION, and its options. Never imports torch."""
