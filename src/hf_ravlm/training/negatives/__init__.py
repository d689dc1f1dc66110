"""Hard negatives: mining, rules, cache."""
