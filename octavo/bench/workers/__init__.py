"""What runs in the processes that `octavo bench` starts: one module a party, speaking JSON lines."""
