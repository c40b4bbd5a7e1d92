"""Making hako ready on a machine: for a checkout (`make run`) and under a PREFIX (`make install`)."""
