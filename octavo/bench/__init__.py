"""`octavo bench`: tokens per second beside this machine's measured limits, a peer, and dense models.

The parent (`schedule`) starts one process a party (`workers/`), asks one at a time for one metric, and turns the
answers into rates, ratios and shares of the bound (`results`, `bounds`).
"""
