"""The operations, by kind; importing a module registers its own."""
