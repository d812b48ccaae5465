"""Pure decisions over plain records: what to admit, what to restart, what to give up."""
