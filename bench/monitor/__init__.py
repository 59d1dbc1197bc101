"""What the monitor's rules find, and when."""
