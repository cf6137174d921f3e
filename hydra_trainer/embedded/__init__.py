"""An embedded cluster."""
