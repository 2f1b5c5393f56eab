"""What modelctl costs, as ratios against floors and peers measured beside it.

``python -m benchmarks`` runs everything; ``python -m benchmarks --help`` says how. No absolute time
in here is a claim: machines differ, and only what ran side by side on one can be compared.
"""
