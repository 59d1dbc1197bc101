"""How many machines a load needs, and what breaks first: from measured figures, and simulated.

toxicity plan --rps 1000000 --p99-ms 50 --zones 3
"""
