"""What is timed and measured, against what. `make bench` runs all; results/ holds dated ones."""
