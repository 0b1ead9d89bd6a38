"""What runs in the confined child that unpacks layers: nothing but the standard library, under ``python -I -S``."""
